"""Tables as they are found: missing values, text columns, one file for all splits."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from sdjax import LabelIndices, data
from sdjax.config import Config, DataConfig, check
from sdjax.data import splits
from sdjax.data.examples import Examples
from sdjax.data.preprocess import Preprocess
from sdjax.errors import InputError

ROWS = 24
WRITERS = {
    "t.csv": lambda frame, path: frame.to_csv(path, index=False),
    "t.parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def frame(random):
    x = random.normal(size=(ROWS, 3))
    labels = random.integers(0, 2, (ROWS, 2))
    return pd.DataFrame(np.column_stack([x, labels]), columns=["a", "b", "c", "l_0", "l_1"])


def write(frame, path):
    WRITERS[f"t{path.suffix}"](frame, path)
    return str(path)


def load(train, test="", **fields):
    return data.load(DataConfig(name="files", train=train, test=test, labels="l_*", **fields))


def rows_of(source):
    return source.inputs(np.arange(len(source)))


# Missing values


@pytest.mark.parametrize("name", WRITERS)
def test_missing_values_are_an_error_unless_asked_for(name, frame, tmp_path):
    frame.loc[4, "b"] = np.nan
    path = write(frame, tmp_path / name)
    with pytest.raises(InputError, match=r"feature 'b' is nan in row 4 .*data.missing='median'"):
        load(path)
    with pytest.raises(InputError, match="Unknown data.missing 'mean'"):
        load(path, missing="mean")


@pytest.mark.parametrize("name", WRITERS)
def test_medians_of_train_fill_every_split(name, frame, tmp_path):
    test = frame.copy()
    frame.loc[[4, 7, 9], "b"] = np.nan
    test.loc[3, ["b", "c"]] = np.nan
    validation = frame.iloc[::-1].assign(a=frame["a"] + 1)
    loaded = load(
        write(frame, tmp_path / name),
        write(test, tmp_path / f"test{name}"),
        validation=write(validation, tmp_path / f"validation{name}"),
        missing="median",
    )
    # scikit-learn is the reference; c has no missing value in train, hence no indicator.
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import StandardScaler

    columns = ["a", "b", "c"]
    impute = SimpleImputer(strategy="median", add_indicator=True).fit(frame[columns].to_numpy())
    scale = StandardScaler().fit(impute.transform(frame[columns].to_numpy()))
    for source, given in ((loaded.train, frame), (loaded.validation, validation)):
        expected = scale.transform(impute.transform(given[columns].to_numpy()))
        np.testing.assert_allclose(rows_of(source), expected, rtol=1e-5, atol=1e-5)
    assert loaded.input_spec.shape == (4,)
    assert loaded.preprocess.indicators == (1,)
    x = rows_of(loaded.test)[3]
    median_c = (frame["c"].median() - frame["c"].mean()) / frame["c"].std(ddof=0)
    np.testing.assert_allclose(x[2], median_c, rtol=1e-4)
    np.testing.assert_allclose(x[3], (1 - 3 / ROWS) / np.sqrt(3 / ROWS * (1 - 3 / ROWS)), rtol=1e-5)


def test_predict_fills_missing_values_in(frame, tmp_path):
    frame.loc[::5, "b"] = np.nan
    loaded = load(write(frame, tmp_path / "t.csv"), missing="median")
    preprocess = Preprocess.from_json(json.loads(json.dumps(loaded.preprocess.to_json())))
    assert preprocess == loaded.preprocess
    new = frame[["c", "b", "a"]].head(6).copy()
    new.loc[2, "a"] = np.nan
    x, _ = data.read_inputs(write(new, tmp_path / "new.csv"), preprocess)
    raw = new[["a", "b", "c"]].to_numpy()
    np.testing.assert_allclose(preprocess(raw), x, rtol=1e-6)
    np.testing.assert_allclose(preprocess(new), x, rtol=1e-6)  # a frame, by its column names
    filled = np.where(np.isnan(raw), preprocess.medians, raw)
    np.testing.assert_allclose(preprocess(filled)[:, :3], x[:, :3], rtol=1e-6)
    assert x[5, 3] > 0 > x[4, 3]  # row 5 lacks b
    with pytest.raises(
        InputError, match=r"feature 'a' is inf in row 0 .*; 1 inputs in all are not"
    ):
        preprocess(np.array([[np.inf, np.nan, 0]]))


def test_infinities_and_empty_columns_are_errors_all_the_same(frame, tmp_path):
    path = tmp_path / "t.csv"
    with pytest.raises(InputError, match="feature 'b' is inf in row 3"):
        load(
            write(frame.assign(b=np.where(np.arange(ROWS) == 3, np.inf, 0)), path), missing="median"
        )
    with pytest.raises(InputError, match="without any value in train: 'b'"):
        load(write(frame.assign(b=np.nan), path), missing="median")


def test_missing_values_of_arff(tmp_path):
    rows = "\n".join(f"{'?' if k % 4 == 0 else k},{k % 2}" for k in range(ROWS))
    text = f"@relation t\n@attribute a numeric\n@attribute l_0 {{0,1}}\n@data\n{rows}\n"
    (tmp_path / "t.arff").write_text(text)
    loaded = load(str(tmp_path / "t.arff"), missing="median")
    assert loaded.input_spec.shape == (2,)
    assert np.isfinite(rows_of(loaded.train)).all()


def test_medians_of_many_features(random):
    """Features are taken some at a time."""
    x = random.normal(size=(9, 37)).astype(np.float32)
    x[random.random(x.shape) < 0.3] = np.nan
    x[0] = 1
    fitted = Preprocess.fit(Examples("t", x, None), missing="median")
    np.testing.assert_array_equal(fitted.medians, np.nanmedian(x, axis=0))
    np.testing.assert_array_equal(fitted.indicators, np.flatnonzero(np.isnan(x).any(axis=0)))


def test_by_default_nothing_more_is_saved_than_before(random):
    fitted = Preprocess.fit(Examples("t", random.normal(size=(9, 2)), None))
    saved = fitted.to_json()
    assert list(saved) == [
        *("kind", "input_shape", "feature_names", "label_names", "scale", "mean", "std"),
        "image_size",
    ]
    assert Preprocess.from_json(saved) == fitted


# Text columns


@pytest.fixture
def coloured(frame):
    colours = np.array(["red", "blue", "green"])[np.arange(ROWS) % 3]
    frame.insert(1, "colour", colours)
    return frame


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dtype", ["str", "object", "category"])
def test_text_columns_become_one_hot(name, dtype, coloured, tmp_path, caplog):
    path = write(coloured.astype({"colour": dtype}), tmp_path / name)
    test = coloured.head(8).copy()
    test.loc[[2, 5], "colour"] = "pink"
    with caplog.at_level(logging.WARNING):
        loaded = load(path, write(test, tmp_path / f"test{name}"), categories=3)
    assert "2 values of 'colour' that training does not have are encoded as zeros: 'pink'" in (
        caplog.text
    )
    names = ("a", "colour=blue", "colour=green", "colour=red", "b", "c")
    assert loaded.preprocess.feature_names == names
    assert loaded.preprocess.categories == {"colour": ("blue", "green", "red")}
    expected = np.stack([test["colour"] == value for value in ("blue", "green", "red")], axis=1)
    np.testing.assert_array_equal(loaded.test.raw_inputs(np.arange(8))[:, 1:4], expected)
    np.testing.assert_array_equal(loaded.test.raw_inputs(np.arange(8))[:, 0], np.float32(test["a"]))


def test_text_needs_categories_enough(coloured, tmp_path):
    path = write(coloured, tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"'colour' is not a number: 'red' .*data.categories=K"):
        load(path)
    with pytest.raises(InputError, match=r"'colour' has 3 different values, .*categories=2\."):
        load(path, categories=2)
    config = Config(data=DataConfig(categories=-1))
    with pytest.raises(InputError, match="data.categories must be a whole number, at least 0"):
        check(config)


def test_missing_text(coloured, tmp_path):
    coloured.loc[[3, 4], "colour"] = None
    path = write(coloured, tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"feature 'colour' is missing in row 3 .*; 2 of its"):
        load(path, categories=3)
    loaded = load(path, categories=3, missing="median")
    assert loaded.preprocess.categories == {"colour": ("", "blue", "green", "red")}
    assert loaded.preprocess.indicators == ()
    one_hot = loaded.preprocess(coloured)[[3, 4, 5], 1]
    assert one_hot[0] == one_hot[1] > one_hot[2]


def test_predict_encodes_text(coloured, tmp_path, caplog):
    loaded = load(write(coloured, tmp_path / "t.csv"), categories=9)
    preprocess = Preprocess.from_json(json.loads(json.dumps(loaded.preprocess.to_json())))
    assert preprocess == loaded.preprocess
    new = coloured[["c", "b", "colour", "a"]]
    x, _ = data.read_inputs(write(new, tmp_path / "new.csv"), preprocess)
    np.testing.assert_allclose(preprocess(new), x, rtol=1e-6)
    one_hot = np.stack([new["colour"] == value for value in ("blue", "green", "red")], axis=1)
    raw = np.column_stack([new["a"], one_hot, new["b"], new["c"]])
    np.testing.assert_allclose(preprocess(raw), x, rtol=1e-6)
    with pytest.raises(InputError, match="Absent here: 'colour'"):
        preprocess(new.drop(columns="colour"))


def test_text_that_looks_like_numbers_elsewhere(frame, tmp_path):
    frame.insert(0, "code", np.where(np.arange(ROWS) % 2, "1", "x"))
    test = frame.assign(code="1")
    loaded = load(
        write(frame, tmp_path / "t.csv"), write(test, tmp_path / "test.csv"), categories=5
    )
    np.testing.assert_array_equal(loaded.test.raw_inputs(np.arange(ROWS))[:, :2], [[1, 0]] * ROWS)


def test_names_that_collide(coloured, tmp_path):
    coloured["colour=red"] = 1.5
    with pytest.raises(InputError, match="features of the same name.*'colour=red'"):
        load(write(coloured, tmp_path / "t.csv"), categories=5)


def test_values_without_a_row_in_train_are_no_features(coloured, tmp_path, caplog):
    path = tmp_path / "t.csv"
    seen = load(write(coloured, path), categories=9)
    trained = seen.train.raw_inputs(np.arange(len(seen.train)))[:, 0]
    held_out = np.setdiff1d(coloured["a"].astype(np.float32), trained)
    row = int(np.argmin(np.abs(coloured["a"].to_numpy() - held_out[0])))
    coloured.loc[row, "colour"] = "pink"
    with caplog.at_level(logging.WARNING):
        loaded = load(write(coloured, path), categories=9)
    assert "no row of train has are encoded as zeros: 'colour=pink'" in caplog.text
    assert loaded.preprocess.categories == {"colour": ("blue", "green", "red")}
    assert loaded.input_spec.shape == (6,)
    assert loaded.preprocess(coloured)[row, 1:4].max() < 0  # none of the three


# One file


def test_test_is_split_off_train(frame, tmp_path):
    path = write(frame, tmp_path / "t.csv")
    loaded = [load(path, split_seed=seed, test_fraction=0.25) for seed in (0, 0, 1)]
    drawn = []
    for each in loaded:
        parts = [each.train, each.validation, each.test]
        first = [part.raw_inputs(np.arange(len(part)))[:, 0] for part in parts]
        assert sorted(np.concatenate(first)) == sorted(frame["a"].astype(np.float32))
        drawn.append(first[2].tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert abs(len(drawn[0]) - ROWS / 4) <= 2
    with pytest.raises(InputError, match="test_fraction must lie between 0 and 1, got 1"):
        load(path, test_fraction=1.0)


def labelled(labels):
    rows = labels.indices.shape[0] if isinstance(labels, LabelIndices) else len(labels)
    return {"train": Examples("t", np.arange(rows)[:, None], labels)}


def numbers(examples):
    return examples.inputs[:][:, 0]


def test_the_split_is_stratified(random):
    labels = (random.random((1000, 12)) < np.geomspace(0.5, 0.02, 12)).astype(np.uint8)
    parts = splits.with_splits_off(labelled(labels), DataConfig(test=""))
    assert list(parts) == ["train", "validation", "test"]
    shares = np.stack([labels[numbers(part)].sum(axis=0) for part in parts.values()])
    np.testing.assert_allclose(shares, labels.sum(axis=0) * [[0.64], [0.16], [0.2]], atol=1.5)
    empty = [(labels[numbers(part)].sum(axis=1) == 0).sum() for part in parts.values()]
    np.testing.assert_allclose(empty, np.multiply(sum(empty), [0.64, 0.16, 0.2]), atol=1.5)
    # Lists of the same labels are split alike.
    indices = np.where(labels, np.arange(12), -1).astype(np.int32)
    listed = splits.with_splits_off(labelled(LabelIndices(indices, 12)), DataConfig(test=""))
    for split, part in parts.items():
        np.testing.assert_array_equal(numbers(part), numbers(listed[split]))


def test_validation_is_drawn_as_ever_beside_a_given_test_split(random):
    labels = random.integers(0, 2, (50, 3)).astype(np.uint8)
    given = labelled(labels) | {"test": labelled(labels)["train"]}
    parts = splits.with_splits_off(given, DataConfig(split_seed=3))
    order = np.random.default_rng(3).permutation(50)
    np.testing.assert_array_equal(numbers(parts["validation"]), np.sort(order[:10]))
    np.testing.assert_array_equal(numbers(parts["train"]), np.sort(order[10:]))
    assert parts["test"] is given["test"]


@pytest.mark.parametrize("limit", ["MOST_STRATIFIED_ROWS", "MOST_STRATIFIED_LABELS"])
def test_large_sets_are_split_at_random(limit, random, monkeypatch):
    labels = random.integers(0, 2, (50, 3)).astype(np.uint8)
    monkeypatch.setattr(splits, limit, 2)
    parts = splits.with_splits_off(labelled(labels), DataConfig(test="", split_seed=3))
    order = np.random.default_rng(3).permutation(50)
    np.testing.assert_array_equal(numbers(parts["test"]), np.sort(order[:10]))


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("rows", [3, 10])
def test_few_rows_and_few_labels(rows, classes):
    labels = np.zeros((rows, classes), np.uint8)
    labels[: rows // 2] = 1
    parts = splits.with_splits_off(labelled(labels), DataConfig(test=""))
    assert all(len(part) for part in parts.values())
    assert sorted(np.concatenate([numbers(part) for part in parts.values()])) == list(range(rows))
    tiny = labelled(np.ones((3, classes), np.uint8))
    with pytest.raises(InputError, match="2 rows cannot be split into train and validation"):
        splits.with_splits_off(tiny, DataConfig(test="", validation_fraction=0.9))


def test_tfds_sets_too():
    whole = data.load(DataConfig(train="train+validation", validation=""))
    loaded = data.load(DataConfig(train="train+validation", validation="", test=""))
    assert len(whole.train) + len(whole.validation) == 1500
    assert abs(len(loaded.test) - 300) < 10
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 1500


def test_folds_hold_each_row_once(frame, tmp_path):
    path = write(frame, tmp_path / "t.csv")
    loaded = [load(path, folds=4, fold=fold) for fold in range(4)]
    tests = [each.test.raw_inputs(np.arange(len(each.test)))[:, 0] for each in loaded]
    assert sorted(np.concatenate(tests)) == sorted(frame["a"].astype(np.float32))
    assert max(map(len, tests)) - min(map(len, tests)) <= ROWS / 10
    for each in loaded:
        assert len(each.train) + len(each.validation) + len(each.test) == ROWS
    again = load(path, folds=4, fold=1, split_seed=5).test
    assert again.raw_inputs(np.arange(len(again)))[:, 0].tolist() != tests[1].tolist()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": 1}, "folds must be 2 to"),
        ({"folds": 10_000}, "folds must be 2 to"),
        ({"folds": 3, "fold": 3}, "fold must be 0 to 2, got 3"),
    ],
)
def test_folds_that_cannot_be(fields, message, frame, tmp_path):
    with pytest.raises(InputError, match=message):
        load(write(frame, tmp_path / "t.csv"), **fields)


def test_folds_beside_a_test_file(frame, tmp_path):
    path = write(frame, tmp_path / "t.csv")
    other = write(frame.iloc[:9], tmp_path / "u.csv")
    with pytest.raises(InputError, match=r"data.folds takes the test split from data.train"):
        load(path, test=str(other), folds=3)


def test_folds_of_many_rows_are_random(monkeypatch):
    monkeypatch.setattr(splits, "MOST_STRATIFIED_ROWS", 10)
    given = labelled(np.ones((20, 2), np.uint8))
    parts = [splits.with_splits_off(given, DataConfig(test="", folds=2, fold=k)) for k in (0, 1)]
    rows = [numbers(part["test"]) for part in parts]
    assert sorted([*rows[0], *rows[1]]) == list(range(20))
