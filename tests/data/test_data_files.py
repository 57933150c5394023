"""The user's own files: every format, and a clear error for every way in which one is wrong."""

import json
import os
import time

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sdjax import data
from sdjax.config import DataConfig
from sdjax.data import overlap
from sdjax.data.readers import files

ROWS, FEATURES, LABELS = 20, 3, 2


@pytest.fixture(autouse=True)
def one_file_for_all_splits(monkeypatch):
    """Most tests here read one file as train and test; what keeps users from it is off."""
    monkeypatch.setattr(overlap, "check_paths", lambda paths: None)
    monkeypatch.setattr(overlap, "check_contents", lambda splits: None)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def table(random, rows=ROWS):
    """A frame of features a, b, c and labels l_0, l_1."""
    columns = {name: random.normal(size=rows).round(4) for name in "abc"}
    columns |= {f"l_{k}": random.integers(0, 2, rows) for k in range(LABELS)}
    return pd.DataFrame(columns)


def write_csv(path, frame):
    frame.to_csv(path, index=False)


def write_parquet(path, frame):
    frame.to_parquet(path, index=False)


def write_arff(path, frame, sparse=False):
    lines = ["@relation t"]
    for name in frame:
        lines.append(f"@attribute {name} {'{0,1}' if name.startswith('l_') else 'numeric'}")
    lines.append("@data")
    for row in frame.itertuples(index=False):
        if sparse:
            lines.append("{" + ",".join(f"{k} {x}" for k, x in enumerate(row) if x) + "}")
        else:
            lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines) + "\n")


def write_sparse_arff(path, frame):
    write_arff(path, frame, sparse=True)


def write_flat_jsonl(path, frame):
    frame.to_json(path, orient="records", lines=True)


def write_jsonl(path, frame):
    rows = []
    for row in frame.to_dict("records"):
        labels = {name: row.pop(name) for name in list(row) if name.startswith("l_")}
        rows.append(json.dumps({"features": row, "labels": labels}))
    path.write_text("\n".join(rows))


def arrays(frame):
    names = [name for name in frame if name.startswith("l_")]
    features = frame.drop(columns=names)
    return {
        "features": features.to_numpy(),
        "labels": frame[names].to_numpy(),
        "feature_names": np.array(list(features), "S"),
        "label_names": np.array(names, "S"),
    }


def write_npz(path, frame):
    np.savez(path, **arrays(frame))


def write_hdf5(path, frame):
    with h5py.File(path, "w") as file:
        for name, value in arrays(frame).items():
            file[name] = value


WRITERS = {
    "t.csv": write_csv,
    "t.parquet": write_parquet,
    "t.arff": write_arff,
    "sparse.arff": write_sparse_arff,
    "flat.jsonl": write_flat_jsonl,
    "t.jsonl": write_jsonl,
    "t.npz": write_npz,
    "t.h5": write_hdf5,
    "t.hdf5": write_hdf5,
}
TABLES = ("t.csv", "t.parquet", "t.arff", "sparse.arff", "flat.jsonl")


def config(train, test=None, **fields):
    fields = {"labels": "l_*", "validation_fraction": 0.25, **fields}
    return DataConfig(name="files", train=str(train), test=str(test or train), **fields)


def load_files(train, test=None, **fields):
    return data.load(config(train, test, **fields))


@pytest.mark.parametrize("name", WRITERS)
def test_reads_every_format(name, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    loaded = load_files(tmp_path / name)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (15, 5, 20)
    assert loaded.label_names == ("l_0", "l_1")
    assert loaded.num_classes == LABELS
    assert loaded.input_spec.shape == (FEATURES,)
    assert loaded.preprocess.kind == "vector"
    assert loaded.preprocess.feature_names == ("a", "b", "c")
    np.testing.assert_array_equal(loaded.test.labels, frame[["l_0", "l_1"]])
    expected = loaded.preprocess(frame[["a", "b", "c"]].to_numpy())
    x = np.stack([loaded.test[row]["x"] for row in range(len(loaded.test))])
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)
    assert x.dtype == np.float32
    assert loaded.train[0]["labels"].dtype == np.uint8


@pytest.mark.parametrize("name", WRITERS)
def test_preprocessing_is_of_the_training_rows(name, tmp_path, random):
    train, test = table(random), table(random)
    test[["a", "b", "c"]] += 100
    for frame, file in ((train, f"train_{name}"), (test, f"test_{name}")):
        WRITERS[name](tmp_path / file, frame)
    paths = [tmp_path / f"{split}_{name}" for split in ("train", "test")]
    loaded = load_files(*paths, validation=str(paths[0]))
    x = np.stack([row["x"] for row in loaded.train])
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-5)
    assert min(row["x"].min() for row in loaded.test) > 10


@pytest.mark.parametrize("name", WRITERS)
def test_columns_in_another_order_are_aligned(name, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    WRITERS[name](tmp_path / f"other_{name}", frame[["l_1", "c", "a", "l_0", "b"]])
    same = load_files(tmp_path / name)
    other = load_files(tmp_path / name, tmp_path / f"other_{name}")
    np.testing.assert_array_equal(other.test.labels, same.test.labels)
    np.testing.assert_array_equal(other.test[3]["x"], same.test[3]["x"])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("labelled", [True, False])
def test_read_inputs(name, labelled, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    preprocess = load_files(tmp_path / name).preprocess
    restored = data.Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    assert restored == preprocess
    new = table(random, 4)
    if not labelled:
        new = new[["c", "b", "a"]]
    if name in ("t.npz", "t.h5", "t.hdf5", "t.jsonl") and not labelled:
        new = new.assign(l_0=0)
    WRITERS[name](tmp_path / f"new_{name}", new)
    x, ids = data.read_inputs(str(tmp_path / f"new_{name}"), restored)
    np.testing.assert_allclose(x, preprocess(new[["a", "b", "c"]].to_numpy()), rtol=1e-6)
    assert ids is None


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "flat.jsonl"])
def test_an_id_column_names_the_rows(name, tmp_path, random):
    frame = table(random).assign(id=[f"row{k}" for k in range(ROWS)])
    WRITERS[name](tmp_path / name, frame)
    loaded = load_files(tmp_path / name)
    assert loaded.preprocess.feature_names == ("a", "b", "c")
    _, ids = data.read_inputs(str(tmp_path / name), loaded.preprocess)
    assert ids == [f"row{k}" for k in range(ROWS)]


@pytest.mark.parametrize("name", TABLES)
def test_ignored_columns_are_no_features(name, tmp_path, random):
    frame = table(random).assign(leak=1.5)
    WRITERS[name](tmp_path / name, frame)
    loaded = load_files(tmp_path / name, ignore="leak")
    assert loaded.preprocess.feature_names == ("a", "b", "c")
    WRITERS[name](tmp_path / f"test_{name}", frame.drop(columns="leak"))
    load_files(tmp_path / name, tmp_path / f"test_{name}", ignore="leak")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(name, value, tmp_path, random):
    if np.isinf(value) and name.endswith("jsonl"):
        pytest.skip("pandas writes infinities as null")
    frame = table(random)
    frame.loc[7, "b"] = value
    path = tmp_path / name
    WRITERS[name](path, frame)
    if name.endswith("arff"):
        path.write_text(path.read_text().replace("nan", "?"))
    with pytest.raises(ValueError, match=r"feature 'b' is (nan|inf) in row 7"):
        load_files(path)


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith("arff")])
@pytest.mark.parametrize("value", [0.5, 2, -1])
def test_labels_that_are_not_binary(name, value, tmp_path, random):
    frame = table(random)
    frame["l_1"] = frame["l_1"].astype(float)
    frame.loc[4, "l_1"] = value
    WRITERS[name](tmp_path / name, frame)
    with pytest.raises(ValueError, match=rf"0 or 1; label 'l_1' is {value}(\.0)? in row 4"):
        load_files(tmp_path / name)


def test_labels_that_are_text_or_missing(tmp_path, random):
    frame = table(random).astype({"l_0": object})
    frame.loc[2, "l_0"] = "yes"
    write_csv(tmp_path / "t.csv", frame)
    with pytest.raises(ValueError, match="0 or 1; label 'l_0' is yes in row 2"):
        load_files(tmp_path / "t.csv")
    frame.loc[2, "l_0"] = None
    write_csv(tmp_path / "t.csv", frame)
    with pytest.raises(ValueError, match="label 'l_0' is missing in row 2"):
        load_files(tmp_path / "t.csv")


def test_boolean_labels(tmp_path, random):
    frame = table(random).astype({"l_0": bool, "l_1": bool})
    for name in ("t.csv", "t.parquet", "flat.jsonl", "t.npz"):
        WRITERS[name](tmp_path / name, frame)
        loaded = load_files(tmp_path / name)
        np.testing.assert_array_equal(loaded.test.labels, frame[["l_0", "l_1"]])


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "flat.jsonl"])
def test_text_features_are_refused(name, tmp_path, random):
    frame = table(random).assign(d="3")
    frame.loc[5, "d"] = "red"
    WRITERS[name](tmp_path / name, frame)
    with pytest.raises(ValueError, match=r"feature 'd' is not a number: 'red' in row 5.*ignore"):
        load_files(tmp_path / name)
    assert load_files(tmp_path / name, ignore="d").input_spec.shape == (3,)


@pytest.mark.parametrize("name", TABLES)
def test_label_columns_must_be_there(name, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    with pytest.raises(ValueError, match=r"data.labels 'm_\*' matches no column.*'l_0'"):
        load_files(tmp_path / name, labels="m_*")
    WRITERS[name](tmp_path / f"test_{name}", frame.drop(columns="l_1"))
    with pytest.raises(ValueError, match=r"label columns of training .* absent here: 'l_1'"):
        load_files(tmp_path / name, tmp_path / f"test_{name}")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "flat.jsonl", "t.arff"])
def test_label_columns_must_be_named(name, tmp_path, random):
    WRITERS[name](tmp_path / name, table(random))
    with pytest.raises(ValueError, match=r"[Ss]et data.labels to"):
        load_files(tmp_path / name, labels="")


@pytest.mark.parametrize("name", WRITERS)
def test_features_must_be_those_of_training(name, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    WRITERS[name](tmp_path / f"test_{name}", frame.rename(columns={"b": "other"}))
    with pytest.raises(ValueError, match=r"'b'.*'other'"):
        load_files(tmp_path / name, tmp_path / f"test_{name}")
    preprocess = load_files(tmp_path / name).preprocess
    with pytest.raises(ValueError, match="'b'"):
        data.read_inputs(str(tmp_path / f"test_{name}"), preprocess)


@pytest.mark.parametrize("name", ["t.npz", "t.h5", "t.jsonl"])
def test_labels_must_be_those_of_training(name, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    WRITERS[name](tmp_path / f"test_{name}", frame.rename(columns={"l_0": "l_9"}))
    with pytest.raises(ValueError, match=r"'l_9'"):
        load_files(tmp_path / name, tmp_path / f"test_{name}")
    WRITERS[name](tmp_path / f"test_{name}", frame.drop(columns="l_0"))
    with pytest.raises(ValueError, match=r"l_0|labels 'l_1'"):
        load_files(tmp_path / name, tmp_path / f"test_{name}")


def test_unnamed_arrays_are_matched_by_number(tmp_path, random):
    x, y = random.normal(size=(ROWS, 4)), random.integers(0, 2, (ROWS, 3))
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x[:, :3], y=y)
    np.savez(tmp_path / "c.npz", x=x, y=y[:, :2])
    loaded = load_files(tmp_path / "a.npz")
    assert loaded.label_names == ("label_0", "label_1", "label_2")
    assert loaded.preprocess.feature_names == ()
    with pytest.raises(ValueError, match=r"features \(3,\), and \(4,\) in training"):
        load_files(tmp_path / "a.npz", tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"2 labels, and 3 in .*absent here: 'label_2'"):
        load_files(tmp_path / "a.npz", tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"features \(3,\), and \(4,\)"):
        data.read_inputs(str(tmp_path / "b.npz"), loaded.preprocess)


def test_array_keys(tmp_path, random):
    x, y = random.normal(size=(ROWS, 4)), random.integers(0, 2, (ROWS, 3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/vectors"], file["deep/truth"] = x, y
    loaded = load_files(tmp_path / "a.h5", input_key="deep/vectors", label_key="deep/truth")
    assert loaded.input_spec.shape == (4,)
    with pytest.raises(ValueError, match=r"set data.input_key. Arrays: 'deep/truth'"):
        load_files(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"data.label_key 'nope' is not there. Keys: 'deep/truth'"):
        load_files(tmp_path / "a.h5", input_key="deep/vectors", label_key="nope")


@pytest.mark.parametrize("labels", [np.zeros(ROWS), np.zeros((3, 2)), np.zeros((ROWS, 0))])
def test_label_arrays_of_a_wrong_shape(labels, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((ROWS, 4)), y=labels)
    with pytest.raises(ValueError, match=r"labels must be multi-hot \[20, C\]"):
        load_files(tmp_path / "a.npz")


def test_single_array_and_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    os.rename(tmp_path / "a.npy", tmp_path / "a.npz")
    with pytest.raises(ValueError, match="single array"):
        load_files(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.array([{}], object), y=np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"b.npz: cannot be read as array 'x'"):
        load_files(tmp_path / "b.npz")


@pytest.mark.parametrize("name", WRITERS)
def test_labels_may_be_empty_constant_or_single(name, tmp_path, random):
    frame = table(random).assign(l_0=0, l_1=0)
    WRITERS[name](tmp_path / name, frame)
    assert load_files(tmp_path / name).train.labels.sum() == 0
    WRITERS[name](tmp_path / name, frame.drop(columns="l_1"))
    single = load_files(tmp_path / name)
    assert single.train.labels.shape == (15, 1)


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_split(name, tmp_path, random):
    frame = table(random)
    WRITERS[name](tmp_path / name, frame)
    WRITERS[name](tmp_path / f"none_{name}", frame[:0])
    if name.endswith("jsonl"):
        (tmp_path / f"none_{name}").write_text("\n")
    with pytest.raises(ValueError, match="test split is empty|has no row"):
        load_files(tmp_path / name, tmp_path / f"none_{name}")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_broken_files(name, damage, tmp_path, random):
    path = tmp_path / name
    WRITERS[name](path, table(random))
    content = path.read_bytes()
    if damage == "truncated":
        content = content[: content.rfind(b",") + 2 if path.suffix == ".csv" else 100]
        content = content.rstrip(b"0123456789.") if path.suffix == ".csv" else content
    path.write_bytes({"garbage": b"\xff\x00\xfe" * 50, "empty": b""}.get(damage, content))
    with pytest.raises(ValueError, match=path.name):
        load_files(path)


def test_rows_longer_than_the_header(tmp_path, random):
    write_csv(tmp_path / "t.csv", table(random))
    with open(tmp_path / "t.csv", "a") as file:
        file.write("1,2,3,0,1,9\n")
    with pytest.raises(ValueError, match=r"t.csv: cannot be read as CSV"):
        load_files(tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([lines[0], *[f"{x},9" for x in lines[1:-1]]]))
    with pytest.raises(ValueError, match=r"t.csv: cannot be read as CSV"):
        load_files(tmp_path / "t.csv")


def test_repeated_columns(tmp_path):
    (tmp_path / "t.csv").write_text("a,a,l_0\n1,2,0\n3,4,1\n")
    with pytest.raises(ValueError, match="occur twice: 'a'"):
        load_files(tmp_path / "t.csv")


def test_unknown_suffix(tmp_path):
    (tmp_path / "t.xls").write_text("a")
    with pytest.raises(ValueError, match=r"suffix '.xls'; data files are .npz, .h5, .*.jsonl"):
        load_files(tmp_path / "t.xls")
    with pytest.raises(ValueError, match=r"a folder; data files are"):
        load_files(tmp_path)


def test_missing_file(tmp_path, random):
    write_csv(tmp_path / "train.csv", table(random))
    with pytest.raises(FileNotFoundError, match=r"no such file. Did you mean .*train.csv\?"):
        load_files(tmp_path / "trian.csv")
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        load_files(tmp_path / "nowhere" / "t.csv")
    with pytest.raises(FileNotFoundError, match="val.csv"):
        load_files(tmp_path / "train.csv", validation=str(tmp_path / "val.csv"))


@pytest.mark.parametrize("split", ["train", "test"])
def test_paths_must_be_given(split, tmp_path, random):
    write_csv(tmp_path / "t.csv", table(random))
    files = config(tmp_path / "t.csv")
    setattr(files, split, split)
    with pytest.raises(ValueError, match=f"data.{split} must be the path of a file"):
        data.load(files)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_validation_fraction(fraction, tmp_path, random):
    write_csv(tmp_path / "t.csv", table(random))
    with pytest.raises(ValueError, match="validation_fraction must lie between 0 and 1"):
        load_files(tmp_path / "t.csv", validation_fraction=fraction)


def test_validation_is_split_off_by_its_own_seed(tmp_path, random):
    write_csv(tmp_path / "t.csv", table(random))
    splits = [load_files(tmp_path / "t.csv", split_seed=seed) for seed in (0, 0, 1)]
    frame = pd.read_csv(tmp_path / "t.csv")[["a", "b", "c"]].to_numpy()
    rows = []
    for split in splits:
        parts = [np.stack([row["x"] for row in part]) for part in (split.train, split.validation)]
        found = np.concatenate(parts)[:, None] - split.preprocess(frame)[None]
        rows.append(np.abs(found).max(-1).argmin(-1).tolist())
        assert sorted(rows[-1]) == list(range(ROWS))  # every row is in one of them, once
    assert rows[0] == rows[1] != rows[2]
    with pytest.raises(ValueError, match="data.split_seed must be 0 or more, got -1"):
        load_files(tmp_path / "t.csv", split_seed=-1)


def test_one_row_cannot_be_split(tmp_path, random):
    write_csv(tmp_path / "t.csv", table(random, 1))
    with pytest.raises(ValueError, match="1 rows cannot be split"):
        load_files(tmp_path / "t.csv")


def test_constant_features_stay_finite(tmp_path, random):
    write_csv(tmp_path / "t.csv", table(random).assign(a=0.1, b=0))
    loaded = load_files(tmp_path / "t.csv")
    assert loaded.preprocess.std[:2] == (1, 1)
    assert np.abs(np.stack([row["x"] for row in loaded.train])[:, :2]).max() < 1e-6


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "flat.jsonl"])
def test_names_with_commas_are_quoted(name, tmp_path, random):
    frame = table(random).rename(columns={"l_0": "one, two", "l_1": 'say "l"'})
    WRITERS[name](tmp_path / name, frame)
    path = tmp_path / name
    both = load_files(path, labels='"one, two",say "l"')
    assert both.label_names == ("one, two", 'say "l"')
    np.testing.assert_array_equal(both.test.labels, frame[["one, two", 'say "l"']])
    assert load_files(path, labels='"say ""l""", "one, *"').label_names == both.label_names
    alone = load_files(path, labels="one, two", ignore='say "l"')
    assert alone.label_names == ("one, two",)
    assert load_files(path, labels="say*", ignore='"one, two"').num_classes == 1
    with pytest.raises(ValueError, match="data.labels must be comma-separated names.*quotation"):
        load_files(path, labels='"one, two')


def test_jsonl_label_names_with_commas(tmp_path):
    rows = [{"x": [1.0], "y": ["b, c"]}, {"x": [2.0], "y": ["a"]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_files(path, labels='a,"b, c",d', validation=str(path))
    assert loaded.label_names == ("a", "b, c", "d")
    np.testing.assert_array_equal(loaded.test.labels, [[0, 1, 0], [1, 0, 0]])
    path.write_text(json.dumps(rows[0]))
    assert load_files(path, labels="b, c", validation=str(path)).label_names == ("b, c",)


def test_wide_tables_are_read_in_linear_time(tmp_path, random):
    values = [f"{value:.2f}" for value in random.normal(size=20_000)]
    lines = [[f"f{k}" for k in range(20_000)] + ["l_0"]]
    lines += [[*values[k:], *values[:k], "1"] for k in range(300)]
    path = tmp_path / "wide.csv"
    path.write_text("\n".join(map(",".join, lines)))
    started = time.process_time()
    expected = pd.read_csv(path, low_memory=False).to_numpy()
    middle = time.process_time()
    examples = files.read_examples(str(path), files.ReadOptions(labels="l_*"))
    assert time.process_time() - middle < 4 * (middle - started)
    np.testing.assert_array_equal(examples.inputs, expected[:, :-1].astype(np.float32))


# ARFF


def write_mulan(path, names, extra=""):
    labels = "".join(f'<label name="{name}">{extra}</label>' for name in names)
    path.write_text(
        f'<?xml version="1.0"?><labels xmlns="http://mulan.sourceforge.net/labels">{labels}</labels>'
    )


@pytest.mark.parametrize(
    ("data_file", "xml", "labels"),
    [
        ("a.arff", "a.xml", ""),
        ("a-train.arff", "a.xml", ""),
        ("b.arff", "other.xml", ""),
        ("b.arff", "other.xml", "other.xml"),
    ],
)
def test_mulan_labels(data_file, xml, labels, tmp_path, random):
    frame = table(random)
    write_sparse_arff(tmp_path / data_file, frame)
    write_mulan(tmp_path / xml, ["l_1", "l_0"])
    loaded = load_files(tmp_path / data_file, labels=labels)
    assert loaded.label_names == ("l_1", "l_0")
    np.testing.assert_array_equal(loaded.test.labels, frame[["l_1", "l_0"]])


def test_nested_mulan_labels(tmp_path, random):
    write_arff(tmp_path / "a.arff", table(random))
    write_mulan(tmp_path / "a.xml", ["l_1"], extra='<label name="l_0"/>')
    assert load_files(tmp_path / "a.arff", labels="").label_names == ("l_1", "l_0")


def test_wrong_mulan_labels(tmp_path, random):
    write_arff(tmp_path / "a.arff", table(random))
    write_mulan(tmp_path / "a.xml", ["l_1", "l_7"])
    with pytest.raises(ValueError, match="labels that are no attribute: 'l_7'"):
        load_files(tmp_path / "a.arff", labels="")
    write_mulan(tmp_path / "a.xml", ["l_1", "l_1"])
    with pytest.raises(ValueError, match="all different"):
        load_files(tmp_path / "a.arff", labels="")
    (tmp_path / "a.xml").write_text("<labels>")
    with pytest.raises(ValueError, match=r"a.xml: not a readable XML"):
        load_files(tmp_path / "a.arff", labels="")
    with pytest.raises(FileNotFoundError, match=r"gone.xml: no such file"):
        load_files(tmp_path / "a.arff", labels="gone.xml")


@pytest.mark.parametrize(("count", "names"), [(2, ("l_0", "l_1")), (-2, ("b", "c"))])
def test_meka_labels(count, names, tmp_path, random):
    frame = table(random)[["l_0", "l_1", "a", "b", "c"]]
    frame["b"] = frame["c"] = 1
    write_arff(tmp_path / "a.arff", frame)
    text = (tmp_path / "a.arff").read_text()
    (tmp_path / "a.arff").write_text(text.replace("@relation t", f"@relation 't: -C {count}'"))
    assert load_files(tmp_path / "a.arff", labels="").label_names == names


def test_nominal_attributes(tmp_path):
    (tmp_path / "a.arff").write_text(
        "% a comment\n@RELATION t\n@ATTRIBUTE 'the colour' {red, green, blue}\n"
        "@ATTRIBUTE flag {false, true}\n@ATTRIBUTE size REAL\n@ATTRIBUTE l {0,1}\n@DATA\n"
        "% another\n\nred, true, 1.5, 0\ngreen, false, 2, 1\nblue, true, 3, 1\n"
    )
    loaded = load_files(tmp_path / "a.arff", labels="l", validation=str(tmp_path / "a.arff"))
    assert loaded.preprocess.feature_names == (
        *("the colour=red", "the colour=green", "the colour=blue"),
        *("flag", "size"),
    )
    x = np.stack([row["x"] for row in loaded.test])
    raw = x * loaded.preprocess.std + loaded.preprocess.mean
    expected = [[1, 0, 0, 1, 1.5], [0, 1, 0, 0, 2], [0, 0, 1, 1, 3]]
    np.testing.assert_allclose(raw, expected, atol=1e-6)


def test_sparse_nominal_attributes_default_to_the_first_value(tmp_path):
    (tmp_path / "a.arff").write_text(
        "@relation t\n@attribute c {x, y}\n@attribute l {0,1}\n@data\n{0 y, 1 1}\n{1 1}\n{}\n"
    )
    path = tmp_path / "a.arff"
    loaded = load_files(path, labels="l", validation=str(path))
    x = np.stack([row["x"] for row in loaded.test])
    np.testing.assert_array_equal(x[:, 0] > 0, [False, True, True])
    np.testing.assert_array_equal(loaded.test.labels[:, 0], [1, 1, 0])


def test_string_attributes_are_refused(tmp_path):
    (tmp_path / "a.arff").write_text(
        "@relation t\n@attribute s string\n@attribute n real\n@attribute l {0,1}\n@data\nhm,1,0\n"
    )
    with pytest.raises(ValueError, match="feature 's' is not a number: 'hm' in row 0"):
        load_files(tmp_path / "a.arff", labels="l")


def test_wrong_arff_values(tmp_path):
    (tmp_path / "a.arff").write_text(
        "@relation t\n@attribute n real\n@attribute l {0,1}\n@data\n1,0\n2,7\n"
    )
    with pytest.raises(ValueError, match=r"a.arff: cannot be read as ARFF.*7"):
        load_files(tmp_path / "a.arff", labels="l")


# JSON lines


def test_jsonl_with_lists(tmp_path):
    rows = [
        {"features": [1, 2.5], "labels": ["b", "a"], "id": 10},
        {"features": [3, 4], "labels": [], "id": 11},
        {"features": [5, 7], "labels": ["b"], "id": 12},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_files(path, labels="", validation=str(path))
    assert loaded.label_names == ("a", "b")
    np.testing.assert_array_equal(loaded.train.labels, [[1, 1], [0, 0], [0, 1]])
    assert data.read_inputs(str(path), loaded.preprocess)[1] == ["10", "11", "12"]
    named = load_files(path, labels="b, c, a", validation=str(path))
    np.testing.assert_array_equal(named.train.labels, [[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    rows[2]["labels"] = ["z"]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"not among the 2 known ones: 'z'.*data.labels"):
        load_files(path, tmp_path / "b.jsonl", labels="")


def test_jsonl_with_multi_hot_lists(tmp_path):
    rows = [{"x": [1, 2], "y": [0, 1]}, {"x": [2, 1], "y": [1, 1]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_files(path, labels="", validation=str(path))
    np.testing.assert_array_equal(loaded.test.labels, [[0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"x": [1, 2]', "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
        ('{"x": [1, 2]}', "field 'y' is absent in row 1"),
        ('{"x": [1], "y": [1]}', "input has 1 numbers in row 1"),
        ('{"x": 3, "y": [1]}', "field 'x' is 3 in row 1"),
        ('{"x": [1, "p"], "y": [1]}', "input must be numbers"),
        ('{"x": [1, 2], "y": [2]}', "label 'label_0' is 2.0 in row 1"),
    ],
)
def test_wrong_jsonl(line, error, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": [1, 2], "y": [1]}\n' + line)
    with pytest.raises(ValueError, match=error):
        load_files(path, labels="")


# Images


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 3), (6, 8, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_image_arrays(name, shape, dtype, tmp_path, random):
    images = random.integers(0, 256, (ROWS, *shape)).astype(dtype)
    write_images(tmp_path / name, images, random)
    loaded = load_files(tmp_path / name)
    assert loaded.preprocess.kind == "image"
    assert loaded.input_spec.shape == (*shape, 1)[:3]
    x = np.stack([row["x"] for row in loaded.train])
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, rtol=1e-4)
    inputs, _ = data.read_inputs(str(tmp_path / name), loaded.preprocess)
    np.testing.assert_array_equal(inputs[2], loaded.test[2]["x"])
    resized = load_files(tmp_path / name, image_size=4)
    assert resized.test[0]["x"].shape == (4, 4, *loaded.input_spec.shape[2:])
    inputs, _ = data.read_inputs(str(tmp_path / name), resized.preprocess)
    np.testing.assert_array_equal(inputs[2], resized.test[2]["x"])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_raw_images_of_another_size_are_resized_as_in_training(dtype, tmp_path, random):
    images = random.integers(0, 256, (ROWS, 6, 8, 3)).astype(dtype)
    write_images(tmp_path / "a.npz", images, random)
    loaded = load_files(tmp_path / "a.npz", image_size=4)
    expected = np.stack([row["x"] for row in loaded.test])
    np.testing.assert_array_equal(loaded.preprocess(images), expected)
    for one_rank_off in (images[3], images[None]):
        with pytest.raises(ValueError, match=r"shape \[N, 4, 4, 3\], got "):
            loaded.preprocess(one_rank_off)
    assert loaded.preprocess(images[:0]).shape == (0, 4, 4, 3)
    with pytest.raises(ValueError, match=r"shape \[N, 4, 4, 3\], got \(20, 6, 8, 2\)"):
        loaded.preprocess(images[..., :2])
    kept = load_files(tmp_path / "a.npz").preprocess
    with pytest.raises(ValueError, match=r"shape \[N, 6, 8, 3\], got \(20, 5, 8, 3\)"):
        kept(images[:, 1:])


def write_images(path, images, random):
    labels = random.integers(0, 2, (len(images), 2))
    if path.suffix == ".npz":
        np.savez(path, images=images, labels=labels)
        return
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = images, labels


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((ROWS, 3, 64, 64), np.uint8), "channels last"),
        (np.zeros((ROWS, 8, 8), np.int64), "uint8 or float"),
        (np.zeros(ROWS), "vectors"),
        (np.zeros((ROWS, 0)), "vectors"),
        (np.full((ROWS, 8, 8), np.nan), r"input \(0, 0, 0\) is nan in row 0"),
        (np.full((ROWS, 8), "a"), "must be numbers"),
    ],
)
def test_wrong_image_arrays(images, error, tmp_path, random):
    write_images(tmp_path / "a.npz", images, random)
    with pytest.raises(ValueError, match=error):
        load_files(tmp_path / "a.npz")


def test_images_must_be_like_those_of_training(tmp_path, random):
    images = random.integers(0, 256, (ROWS, 6, 6)).astype(np.uint8)
    write_images(tmp_path / "a.npz", images, random)
    write_images(tmp_path / "b.npz", images / np.float32(255), random)
    write_images(tmp_path / "c.npz", images[:, :5], random)
    np.savez(tmp_path / "d.npz", x=np.ones((ROWS, 6)), labels=np.ones((ROWS, 2)))
    with pytest.raises(ValueError, match="must be uint8 as the training images are"):
        load_files(tmp_path / "a.npz", tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"\(5, 6, 1\), and \(6, 6, 1\).*data.image_size"):
        load_files(tmp_path / "a.npz", tmp_path / "c.npz")
    with pytest.raises(ValueError, match="the inputs are vectors, those of training images"):
        load_files(tmp_path / "a.npz", tmp_path / "d.npz")
    with pytest.raises(ValueError, match="image_size must be 0 or more"):
        load_files(tmp_path / "a.npz", image_size=-1)


@pytest.fixture
def pictures(tmp_path, random):
    """A .jsonl file of grey pictures, their paths seen from its folder."""
    os.mkdir(tmp_path / "pictures")
    rows = []
    for k in range(6):
        pixels = random.integers(0, 256, (8, 8)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{k}.png")
        rows.append(json.dumps({"image": f"pictures/{k}.png", "labels": ["a"] * (k % 2)}))
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_pictures(pictures):
    path = pictures / "a.jsonl"
    loaded = load_files(path, labels="")
    assert loaded.input_spec.shape == (8, 8, 1)
    pixels = np.asarray(Image.open(pictures / "pictures" / "3.png"))[..., None]
    np.testing.assert_array_equal(loaded.test[3]["x"], loaded.preprocess(pixels[None])[0])
    assert load_files(path, labels="", image_size=5).input_spec.shape == (5, 5, 1)
    x, ids = data.read_inputs(str(path), loaded.preprocess)
    assert ids == [f"pictures/{k}.png" for k in range(6)]
    folder, names = data.read_inputs(str(pictures / "pictures"), loaded.preprocess)
    assert names == [f"{k}.png" for k in range(6)]
    np.testing.assert_array_equal(folder, x)
    one, _ = data.read_inputs(str(pictures / "pictures" / "2.png"), loaded.preprocess)
    np.testing.assert_array_equal(one, x[2:3])


def test_wrong_pictures(pictures):
    path, folder = pictures / "a.jsonl", pictures / "pictures"
    Image.fromarray(np.zeros((4, 9), np.uint8)).save(folder / "5.png")
    with pytest.raises(ValueError, match=r"image 5 is 4x9 and others are 8x8: set data.image_size"):
        load_files(path, labels="", validation=str(path))
    (folder / "5.png").write_bytes((folder / "4.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"cannot decode .*5.png"):
        load_files(path, labels="", validation=str(path))
    os.remove(folder / "5.png")
    with pytest.raises(FileNotFoundError, match=r"1 image files are missing.*5.png"):
        load_files(path, labels="")
