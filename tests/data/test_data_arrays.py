"""Arrays from files: memory-mapped where they are large, and labels as lists of indices."""

import json

import h5py
import numpy as np
import pytest
from array_files import write_arrays

from sdjax import LabelIndices, data
from sdjax.config import DataConfig
from sdjax.data.readers import mapped
from sdjax.data.readers.files import read_examples
from sdjax.data.readers.options import ReadOptions
from sdjax.data.rows import Computed, Subset

ROWS = 40


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def map_all(monkeypatch):
    """Arrays of any size are mapped."""
    monkeypatch.setattr(mapped, "MAP_BYTES", 1)


def load(folder, suffix, **fields):
    paths = {split: str(folder / f"{split}{suffix}") for split in ("train", "test")}
    return data.load(DataConfig(name="files", **paths, validation="", **fields))


def leaf(source):
    """The array that a source reads rows of, below views and conversions."""
    array = source._inputs
    while isinstance(array, Subset | Computed):
        array = array.base
    return array


# Large arrays


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, ">f4", np.float16])
@pytest.mark.parametrize("shape", [(5,), (6, 8, 3), (6, 8)])
def test_mapping_changes_no_value(suffix, dtype, shape, tmp_path, random, monkeypatch):
    for split in ("train", "test"):
        x = random.integers(0, 200, (ROWS, *shape)).astype(dtype)
        labels = random.integers(0, 2, (ROWS, 3)).astype(bool)
        write_arrays(tmp_path / f"{split}{suffix}", x=x, labels=labels)
    fields = {} if len(shape) == 1 else {"image_size": 4}
    expected = load(tmp_path, suffix, **fields)
    assert not isinstance(leaf(expected.train), np.memmap)
    monkeypatch.setattr(mapped, "MAP_BYTES", 1)
    found = load(tmp_path, suffix, **fields)
    for split in ("train", "validation", "test"):
        source = getattr(found, split)
        assert isinstance(leaf(source), np.memmap)
        rows = np.arange(len(source))[::-1]
        want = getattr(expected, split)
        np.testing.assert_array_equal(source.inputs(rows), want.inputs(rows))
        np.testing.assert_array_equal(source.labels, want.labels)
        assert source.inputs(rows).dtype == np.float32
    assert found.preprocess == expected.preprocess


def test_what_is_mapped(map_all, tmp_path, random):
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    y = random.integers(0, 2, (ROWS, 3)).astype(np.uint8)
    options = ReadOptions()

    def read(path):
        examples = read_examples(str(path), options)
        np.testing.assert_array_equal(examples.inputs[:], x)
        np.testing.assert_array_equal(examples.labels, y)
        return [isinstance(array, np.memmap) for array in (examples.inputs, examples.labels)]

    np.savez(tmp_path / "a.npz", x=x, y=y)
    assert read(tmp_path / "a.npz") == [True, True]
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(x), y=y > 0)
    assert read(tmp_path / "a.npz") == [False, True]
    np.savez_compressed(tmp_path / "a.npz", x=x, y=y)
    assert read(tmp_path / "a.npz") == [False, False]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = x
        file.create_dataset("y", data=y, chunks=(8, 3), compression="gzip")
    assert read(tmp_path / "a.h5") == [True, False]


def test_small_arrays_are_read(tmp_path, random):
    """A file that is overwritten during a run does no harm."""
    path = tmp_path / "a.npz"
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    np.savez(path, x=x, y=np.ones((ROWS, 1)))
    examples = read_examples(str(path), ReadOptions())
    path.write_bytes(bytes(len(path.read_bytes())))
    np.testing.assert_array_equal(examples.inputs, x)


def test_nothing_is_copied(map_all, tmp_path, random):
    """Neither by splitting validation off, nor by features in another order."""
    names = np.array(list("abcd"))
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    labels = random.integers(0, 2, (ROWS, 3)).astype(np.uint8)
    write_arrays(tmp_path / "train.npz", x=x, labels=labels, feature_names=names)
    write_arrays(
        tmp_path / "test.npz", x=x[:20, ::-1], labels=labels[:20], feature_names=names[::-1]
    )
    loaded = load(tmp_path, ".npz")
    assert isinstance(leaf(loaded.train), np.memmap)
    assert leaf(loaded.train) is leaf(loaded.validation)
    assert isinstance(leaf(loaded.test), np.memmap)
    np.testing.assert_array_equal(loaded.test.inputs(np.arange(20)), loaded.preprocess(x[:20]))


def test_mapped_features_that_are_not_finite(map_all, tmp_path):
    for dtype in (np.float32, np.float64):
        x = np.ones((ROWS, 4), dtype)
        x[13, 2] = np.nan
        write_arrays(tmp_path / "a.npz", x=x, labels=np.ones((ROWS, 1)))
        with pytest.raises(ValueError, match=r"input \(2,\) is nan in row 13"):
            read_examples(str(tmp_path / "a.npz"), ReadOptions())


# Lists of label indices

INDICES = np.array([[0, 3], [4999, -1], [-1, -1], [7, 2]])


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_label_indices(suffix, dtype, tmp_path, random):
    for split, size in (("train", 10), ("test", 3)):
        x = random.normal(size=(4 * size, 3))
        labels = np.tile(INDICES, (size, 1)).astype(dtype)
        write_arrays(tmp_path / f"{split}{suffix}", x=x, labels=labels, num_classes=5000)
    loaded = load(tmp_path, suffix)
    assert loaded.num_classes == 5000
    assert loaded.label_names[4999] == "label_4999"
    for source in (loaded.train, loaded.validation, loaded.test):
        assert isinstance(source.labels, LabelIndices)
        assert source.labels.indices.dtype == np.int32
    np.testing.assert_array_equal(loaded.test.labels.indices, np.tile(INDICES, (3, 1)))
    batch = next(data.evaluation_batches(loaded.test, 16))
    assert batch["labels"].indices.shape == (16, 2)
    assert batch["labels"].num_classes == 5000


def test_label_indices_are_seen_by_their_names(tmp_path, random):
    names = [f"n{k}" for k in range(6)]
    labels = np.tile([[0, 5], [3, -1]], (10, 1))
    write_arrays(
        tmp_path / "train.npz", x=random.normal(size=(20, 3)), labels=labels, label_names=names
    )
    # In the test file the same names have other numbers: n0 is 5, n5 is 0.
    other = {"labels": labels, "label_names": names[::-1]}
    write_arrays(tmp_path / "test.npz", x=random.normal(size=(20, 3)), **other)
    loaded = load(tmp_path, ".npz")
    assert loaded.label_names == tuple(names)
    np.testing.assert_array_equal(loaded.test.labels.indices[:2], [[5, 0], [2, -1]])
    write_arrays(tmp_path / "test.npz", x=np.ones((20, 3)), labels=labels, num_classes=6)
    with pytest.raises(ValueError, match="6 labels, and 6 in .*absent here: 'n0'"):
        load(tmp_path, ".npz")


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        ({"num_classes": 4999}, r"lie in \[0, 4999\).*got 4999 in row 1.*there is num_classes"),
        ({"num_classes": 0}, "num_classes must be one integer above 0"),
        ({"num_classes": [3]}, "num_classes must be one integer above 0"),
        (
            {"num_classes": 5000, "label_names": ["a", "b"]},
            "2 label_names, and num_classes is 5000",
        ),
        ({"labels": np.eye(4), "num_classes": 4}, "must be integers"),
        # Multi-hot labels whose names are not as many: refused, not taken for indices.
        ({"labels": np.eye(4, dtype=int), "label_names": list("abc")}, "0 is repeated in row 0"),
        ({"labels": np.eye(4, dtype=int), "label_names": list("abcde")}, "5 label_names"),
    ],
)
def test_wrong_label_indices(arrays, error, tmp_path):
    write_arrays(tmp_path / "a.npz", **{"x": np.ones((4, 3)), "labels": INDICES, **arrays})
    with pytest.raises(ValueError, match=error):
        read_examples(str(tmp_path / "a.npz"), ReadOptions())


def test_many_label_names_in_json_lines(tmp_path):
    rows = [{"x": [k, 1], "labels": [f"n{k:04}", f"n{k // 2:04}"]} for k in range(1024)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"x": [5, 3], "labels": ["n0009"]}))
    few = load(tmp_path, ".jsonl")
    assert few.test.labels.shape == (1, 1024)
    rows.append({"x": [3, 4], "labels": ["n1024", "n1024"]})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    many = load(tmp_path, ".jsonl")
    assert many.num_classes == 1025
    np.testing.assert_array_equal(many.test.labels.indices, [[9]])
    whole = read_examples(str(tmp_path / "train.jsonl"), ReadOptions()).labels
    assert whole.num_classes == 1025
    np.testing.assert_array_equal(whole.indices[[0, 3, 1024]], [[0, -1], [1, 3], [1024, -1]])
