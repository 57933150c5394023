"""Texts: read from a column, tokenised, and batched by length."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from published_models import FOLDER

from sdjax import LabelIndices, data
from sdjax.config import DataConfig
from sdjax.data.dataset import read_preprocess
from sdjax.data.tokens import WIDTHS, Tokenizer, Tokens
from sdjax.errors import InputError

MODEL = str(FOLDER / "bert")
TEXTS = ["The cat sat.", "a big, red dog\nran", "", "NA", 'it was "good"', "night; day", "12"]
LABELS = ["pet", "pet;big", "", "none", "good", "day;night", "none"]


def frame(count=28):
    rows = range(count)
    return pd.DataFrame(
        {
            "id": [f"k{row}" for row in rows],
            "text": [TEXTS[row % 7] + " cat" * (row // 7) for row in rows],
            "tags": [LABELS[row % 7] for row in rows],
            "is_short": [int(row % 7 in (2, 3, 6)) for row in rows],
            "has_pet": [int(row % 7 in (0, 1)) for row in rows],
            "other": [0.5 * row for row in rows],
        }
    )


def write(path, table):
    suffix = path.name.split(".", 1)[1]
    if suffix.startswith(("csv", "tsv")):
        table.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ",")
    elif suffix == "parquet":
        table.to_parquet(path)
    else:
        lists = [text.split(";") if text else [] for text in table["tags"]]
        rows = table.assign(labels=lists).drop(columns="tags").to_dict("records")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, **options):
    options = {"text": "text", "tokenizer": MODEL, **options}
    return data.load(DataConfig(name="files", train=path, validation="", test="", **options))


def rows_of(source):
    """{tokens of a text: its labels}, of all rows."""
    batch = source.fetch(np.arange(len(source)))
    ids, mask = batch["x"]["ids"], batch["x"]["mask"]
    return {tuple(row[kept]): tuple(y) for row, kept, y in zip(ids, mask, batch["labels"])}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("labels", ["columns", "names"])
def test_texts_and_labels_are_those_of_the_file(tmp_path, name, labels):
    options = {"labels": "is_short,has_pet"}
    if labels == "names":
        options = {"labels": "tags", "label_separator": ";"} if name != "a.jsonl" else {}
    table = frame()
    if labels == "columns" and name == "a.jsonl":
        lines = [json.dumps(row) for row in table.drop(columns="tags").to_dict("records")]
        (tmp_path / name).write_text("\n".join(lines))
        loaded = load(str(tmp_path / name), **options)
    else:
        loaded = load(write(tmp_path / name, table), **options)
    tokenizer = Tokenizer.of_model(MODEL)
    tokens = tokenizer(table["text"].tolist(), 100)
    names = loaded.label_names
    if labels == "columns":
        wanted = table[list(names)].to_numpy()
        assert names == ("is_short", "has_pet")
    else:
        assert names == ("big", "day", "good", "night", "none", "pet")
        wanted = np.array([[name in tags.split(";") for name in names] for tags in table["tags"]])
    ids = [tuple(tokens.ids[a:b]) for a, b in zip(tokens.starts, tokens.starts[1:])]
    expected = {key: tuple(y) for key, y in zip(ids, wanted.astype(int))}
    found = rows_of(loaded.train) | rows_of(loaded.validation) | rows_of(loaded.test)
    assert found == expected
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 28


def test_new_texts_are_read_as_those_of_training(tmp_path):
    loaded = load(write(tmp_path / "a.csv", frame()), labels="is_short", max_length=5)
    preprocess = loaded.preprocess
    again = read_preprocess(json.loads(json.dumps(preprocess.to_json())))
    assert again == preprocess and "tokenizer" not in repr(preprocess)
    new = pd.DataFrame({"id": [5, 6], "text": ["a cat", "NA " * 9]})
    for name in ("new.csv", "new.parquet"):
        new.to_csv(tmp_path / name) if name == "new.csv" else new.to_parquet(tmp_path / name)
        tokens, ids = data.read_inputs(str(tmp_path / name), again)
        assert ids == ["5", "6"] if name == "new.parquet" else ids is not None
        assert tokens.lengths.tolist() == [4, 5]
    assert tokens.num_cut == 1
    assert again(new).ids.tolist() == again(new["text"].tolist()).ids.tolist()
    assert again(new["text"].to_numpy()).ids.tolist() == tokens.ids.tolist()
    other = new.rename(columns={"text": "note"})
    other.to_csv(tmp_path / "other.csv")
    with pytest.raises(InputError, match=r"data.text 'text' is no column. Columns: .*'note'"):
        data.read_inputs(str(tmp_path / "other.csv"), again)
    assert len(data.read_inputs(str(tmp_path / "other.csv"), again, "note")[0]) == 2


@pytest.mark.parametrize(
    "options, text",
    [
        ({"text": "txt"}, r"data.text 'txt' is no column"),
        ({"tokenizer": ""}, "data.text needs data.tokenizer"),
        ({"tokenizer": "no such"}, "no such file or folder"),
        ({"max_length": 2}, "max_length must be above 2"),
        ({"text": "other"}, r"the text 'other' is 0.0 in row 0"),
        ({"labels": "nope"}, "data.labels 'nope' matches no column"),
    ],
)
def test_what_cannot_be_read(tmp_path, options, text):
    path = write(tmp_path / "a.parquet", frame())
    with pytest.raises(InputError, match=text):
        load(path, **{"labels": "is_short", **options})


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_missing_texts(tmp_path, name):
    table = frame()
    table.loc[3, "text"] = None
    path = write(tmp_path / name, table)
    with pytest.raises(InputError, match="the text 'text' is missing in row 3"):
        load(path, **({"labels": "is_short"} if name == "a.parquet" else {}))
    if name == "a.jsonl":
        with pytest.raises(InputError, match="data.text 'txt' is not there"):
            load(path, text="txt")


def test_other_data_has_no_text_column(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), labels=np.eye(4))
    with pytest.raises(InputError, match=r"data.text is a column of .csv, .tsv, .parquet, .jsonl"):
        load(str(tmp_path / "a.npz"))


def test_equal_texts_in_two_splits_are_found(tmp_path, caplog):
    path = write(tmp_path / "a.csv", frame())
    other = write(tmp_path / "b.csv", frame().iloc[:5].assign(is_short=1))
    config = DataConfig(
        name="files", train=path, validation=other, test="", labels="is_short", text="text",
        tokenizer=MODEL,
    )  # fmt: skip
    data.load(config)
    assert "of 5 validation rows are also train rows" in caplog.text
    shutil.copy(path, tmp_path / "c.csv")
    config.test, config.validation = str(tmp_path / "c.csv"), ""
    with pytest.raises(InputError, match="holds the same examples"):
        data.load(config)


def test_the_summary_tells_lengths(tmp_path):
    loaded = load(write(tmp_path / "a.csv", frame()), labels="is_short", max_length=6)
    lines = "\n".join(data.summarise(loaded))
    assert "texts of column 'text': 2 to 6 tokens, 6 in the median; " in lines
    assert "cut to 6" in lines


# --- sources and batches ------------------------------------------------------------------------


def ragged(count=203, seed=0, listed=False):
    """A source of texts whose first token is the row's number."""
    random = np.random.default_rng(seed)
    lengths = random.geometric(0.08, count) + 1
    tokens = Tokens.of([[row] + [7] * (n - 1) for row, n in enumerate(lengths.tolist())], 60)
    lengths = np.minimum(lengths, 60)
    tokens = Tokens.of([[row] + [7] * (n - 1) for row, n in enumerate(lengths.tolist())], 60)
    labels = (np.arange(count)[:, None] >> np.arange(9)) % 2
    if listed:
        labels = LabelIndices(np.stack([np.arange(count), np.full(count, -1)], 1), count)
    return data.TextSource(tokens, labels)


def take(batches, count):
    return [batch for batch, _ in zip(batches, range(count))]


def numbers(batch):
    return batch["x"]["ids"][batch["where"], 0]


def test_a_source_of_texts():
    source = ragged()
    spec = source.input_spec
    assert spec["ids"] == jax.ShapeDtypeStruct((60,), np.int32)
    assert spec["mask"] == jax.ShapeDtypeStruct((60,), bool)
    rows = np.array([5, 3, 5])
    batch = source.fetch(rows)
    assert batch["x"]["ids"].shape == (3, source.widths[rows].max())
    assert batch["x"]["ids"][:, 0].tolist() == [5, 3, 5]
    assert batch["x"]["mask"].sum(axis=1).tolist() == source.tokens.lengths[rows].tolist()
    assert source.fetch(rows, 60)["x"]["mask"].shape == (3, 60)
    assert source[5]["x"]["ids"].shape == (source.widths[5],)
    with pytest.raises(InputError, match="there are 203 texts, and 2 rows of labels"):
        data.TextSource(source.tokens, np.eye(2))


def test_fingerprints_are_of_tokens_and_labels():
    source = ragged()
    assert source.fingerprint == ragged().fingerprint != ragged(seed=1).fingerprint
    other = data.TextSource(source.tokens, 1 - np.asarray(source.labels))
    assert other.fingerprint != source.fingerprint


@pytest.mark.parametrize("drop", [True, False])
def test_every_text_once_an_epoch_in_batches_of_like_lengths(drop):
    source = ragged()
    steps = data.steps_per_epoch(203, 8, drop)
    batches = take(data.training_batches(source, 8, seed=1, drop_remainder=drop), 3 * steps)
    epochs = [np.concatenate([*map(numbers, batches[k * steps :][:steps])]) for k in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == len(epoch) == (200 if drop else 203)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    padding = 1 - sum(b["x"]["mask"].sum() for b in batches) / sum(
        b["x"]["mask"].size for b in batches
    )
    assert padding < 0.3  # one width for all has 79 %
    for batch in batches:
        width = source.widths[numbers(batch)].max()
        assert batch["x"]["ids"].shape == batch["x"]["mask"].shape == (8, width)
        assert width in (*WIDTHS, 60)
        lengths = source.tokens.lengths[numbers(batch)]
        assert batch["x"]["mask"].sum(axis=1)[batch["where"]].tolist() == lengths.tolist()
        assert not batch["x"]["mask"][~batch["where"]].any()
        if not drop:
            assert batch["where"].sum() in (7, 8)
    # Batches of a width that only some texts have are of that width but for one at its border.
    mixed = [len(set(source.widths[numbers(b)].tolist())) > 1 for b in batches[:steps]]
    assert sum(mixed) < len(set(source.widths.tolist()))


def test_batches_follow_each_other_at_random():
    source = ragged()
    batches = take(data.training_batches(source, 8, seed=1, drop_remainder=False), 26)
    widths = [batch["x"]["ids"].shape[1] for batch in batches]
    assert len(set(widths)) > 4
    correlation = np.corrcoef(np.arange(26), widths)[0, 1]
    assert abs(correlation) < 0.6
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


@pytest.mark.parametrize("start", [0, 1, 25, 26, 27, 60])
def test_resuming_equals_never_stopping(start):
    source = ragged(listed=True)
    whole = take(data.training_batches(source, 8, seed=3, drop_remainder=False), 70)
    resumed = data.training_batches(source, 8, seed=3, drop_remainder=False, start=start)
    for expected, batch in zip(whole[start:], resumed, strict=False):
        jax.tree.map(np.testing.assert_array_equal, batch, expected)


@pytest.mark.parametrize("evaluation", [True, False])
def test_processes_share_batches_of_one_width(evaluation):
    """Each fetches some of a batch's rows, which may all be short, or padding."""
    source = ragged(count=29)

    def batches(rows=None):
        if evaluation:
            return list(data.evaluation_batches(source, 8, rows=rows))
        return take(data.training_batches(source, 8, seed=3, drop_remainder=False, rows=rows), 9)

    parts = [batches(np.arange(k, k + 2)) for k in range(0, 8, 2)]
    for whole, *some in zip(batches(), *parts, strict=True):
        joined = jax.tree.map(lambda *x: np.concatenate(x), *some)
        jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_joined_sources_of_texts():
    first, second = ragged(30), ragged(20, seed=1)
    joined = data.JoinedSource(first, second)
    np.testing.assert_array_equal(joined.widths, [*first.widths, *second.widths])
    assert joined.input_spec["ids"].shape == (max(joined.widths),)
    rows = np.array([31, 2, 49, 0])
    batch = joined.fetch(rows)["x"]
    assert batch["ids"].shape == (4, joined.widths[rows].max())
    assert batch["ids"][:, 0].tolist() == [1, 2, 19, 0]
    assert joined.fetch(rows[1:2], 60)["x"]["ids"].shape == (1, 60)
    batches = take(data.training_batches(joined, 8, seed=0, drop_remainder=False), 7)
    seen = np.concatenate([*map(numbers, batches)])
    assert sorted(seen.tolist()) == sorted([*range(30), *range(20)])


def test_evaluation_visits_all_texts_by_width():
    source = ragged()
    batches = list(data.evaluation_batches(source, 32))
    seen = np.concatenate([*map(numbers, batches)])
    assert np.array_equal(seen, data.evaluation_order(source))
    assert sorted(seen.tolist()) == list(range(203))
    widths = [batch["x"]["ids"].shape[1] for batch in batches]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    plain = data.ArraySource(np.zeros((5, 2)), np.eye(5))
    assert data.evaluation_order(plain).tolist() == [0, 1, 2, 3, 4]


def test_texts_are_tokenised_once(tmp_path, monkeypatch, caplog):
    path, kept = write(tmp_path / "a.csv", frame()), str(tmp_path / "kept")
    options = {"labels": "tags", "label_separator": ";", "ignore": "other", "data_dir": kept}
    options |= {"test_fraction": 0.25, "validation_fraction": 0.25}
    expected = load(path, **{**options, "data_dir": ""})
    assert not (tmp_path / "kept").exists()
    calls = []
    monkeypatch.setattr(
        Tokenizer,
        "__call__",
        lambda *args, call=Tokenizer.__call__: calls.append(1) or call(*args),
    )

    def same(found):
        for split in ("train", "validation", "test"):
            ours, theirs = getattr(found, split), getattr(expected, split)
            assert rows_of(ours) == rows_of(theirs)
            assert ours.fingerprint == theirs.fingerprint
        return True

    assert same(load(path, **options)) and len(calls) == 3
    assert same(load(path, **options)) and len(calls) == 3
    # Another length, and what is damaged, is made anew; the rest stays.
    load(path, **options, max_length=4)
    assert len(calls) == 6
    for each in (tmp_path / "kept").glob("*/ids.npy"):
        each.write_bytes(each.read_bytes()[:-4])
    assert same(load(path, **options)) and len(calls) == 9
    assert "is made anew" in caplog.text
    assert same(load(path, **options)) and len(calls) == 9


def test_a_run_goes_on_where_tokens_cannot_be_kept(tmp_path, caplog):
    path, blocked = write(tmp_path / "a.csv", frame()), tmp_path / "blocked"
    blocked.write_text("a file")
    found = load(path, labels="tags", label_separator=";", ignore="other", data_dir=str(blocked))
    assert len(found.train)
    assert "Tokens are not kept" in caplog.text
