"""Splits that share examples: the same file twice is an error, some equal rows are a warning."""

import json
import shutil
import time

import numpy as np
import pytest
from absl import logging
from PIL import Image

from sdjax import LabelIndices, data
from sdjax.config import DataConfig
from sdjax.data import hashing
from sdjax.data.images import EncodedImages
from sdjax.data.rows import Subset


@pytest.fixture
def warnings(monkeypatch):
    """The lines that are logged as warnings."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


def write(path, rows, seed=0, labels=None):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    if labels is None:
        labels = random.integers(0, 2, (rows, 2))
    np.savez(path, x=x, labels=labels)
    return x, labels


def load(folder, train="train.npz", test="test.npz", validation=""):
    paths = {"train": train, "test": test, "validation": validation}
    return data.load(
        DataConfig(name="files", **{k: str(folder / v) if v else "" for k, v in paths.items()})
    )


def test_one_file_for_two_splits(tmp_path):
    write(tmp_path / "train.npz", 20)
    write(tmp_path / "test.npz", 20, seed=1)
    with pytest.raises(ValueError, match=r"data.test '.*train.npz' is the file of data.train"):
        load(tmp_path, test="train.npz")
    with pytest.raises(ValueError, match=r"data.test '.*test.npz' is the file of data.validation"):
        load(tmp_path, validation="test.npz")
    (tmp_path / "link.npz").symlink_to(tmp_path / "train.npz")
    with pytest.raises(ValueError, match=r"link.npz' is the file of data.train.*would mislead"):
        load(tmp_path, test="link.npz")


@pytest.mark.parametrize("validation", ["", "test.npz"])
def test_files_of_one_content(tmp_path, validation):
    x, labels = write(tmp_path / "train.npz", 20)
    write(tmp_path / "test.npz", 20, seed=1)
    shutil.copy(tmp_path / "train.npz", tmp_path / "copy.npz")
    with pytest.raises(ValueError, match=r"data.test: .*copy.npz holds the same examples as .*tra"):
        load(tmp_path, test="copy.npz", validation=validation)
    with pytest.raises(ValueError, match=r"data.validation: .*copy.npz holds the same examples"):
        load(tmp_path, validation="copy.npz")
    # In another format, the labels in another order.
    rows = [
        {"features": list(x[k]), "labels": {"label_1": int(bits[1]), "label_0": int(bits[0])}}
        for k, bits in enumerate(labels)
    ]
    (tmp_path / "copy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"data.test: .*copy.jsonl holds the same examples"):
        load(tmp_path, test="copy.jsonl")


def test_other_labels_are_another_set(tmp_path, warnings):
    _, labels = write(tmp_path / "train.npz", 20)
    write(tmp_path / "test.npz", 20, labels=1 - labels)
    load(tmp_path)
    assert len(warnings) == 1


def test_equal_rows_are_counted(tmp_path, warnings):
    x, labels = write(tmp_path / "train.npz", 20)
    other, _ = write(tmp_path / "validation.npz", 8, seed=1)
    new, _ = write(tmp_path / "test.npz", 10, seed=2)
    load(tmp_path, validation="validation.npz")
    assert warnings == []
    new[3:6] = x[[7, 7, 2]]
    new[8] = other[1]
    np.savez(tmp_path / "test.npz", x=new, labels=labels[:10])
    load(tmp_path, validation="validation.npz")
    assert warnings == [
        "Data train: equal inputs in two splits: 3 of 10 test rows are also train rows; "
        "1 of 10 test rows are also validation rows. Scores on them may mislead."
    ]


def test_rows_of_a_validation_split_that_is_drawn(tmp_path, warnings):
    x, labels = write(tmp_path / "train.npz", 10)
    write(tmp_path / "test.npz", 10, seed=1)
    np.savez(tmp_path / "train.npz", x=np.tile(x, (5, 1)), labels=np.tile(labels, (5, 1)))
    load(tmp_path)
    assert len(warnings) == 1
    assert "10 of 10 validation rows are also train rows" in warnings[0]


def test_pictures_are_compared_by_their_files(tmp_path, warnings, monkeypatch):
    random = np.random.default_rng(0)
    for split, names in (("train", "abcdefgh"), ("test", "xyzw")):
        rows = []
        for name in names:
            pixels = random.integers(0, 256, (4, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
            rows.append(json.dumps({"image": f"{name}.png", "labels": {"l": 1}}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    load(tmp_path, "train.jsonl", "test.jsonl")
    assert warnings == []
    shutil.copy(tmp_path / "x.png", tmp_path / "a.png")
    load(tmp_path, "train.jsonl", "test.jsonl")
    assert len(warnings) == 1
    assert "1 of 4 test rows are also" in warnings[0]
    monkeypatch.setattr(hashing, "MOST_HASHED_IMAGES", 3)
    load(tmp_path, "train.jsonl", "test.jsonl")
    assert len(warnings) == 1


@pytest.mark.parametrize("name", ["yeast", "digits"])
def test_bundled_sets_have_no_equal_rows(name, warnings, tmp_path):
    data.load(DataConfig(name=name))
    assert warnings == []


def test_hashes_are_of_all_inputs():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    mask = np.ones((4, 2), bool)
    first = hashing.row_hashes({"x": x, "mask": mask})
    assert len(set(first.tolist())) == 4
    other = mask.copy()
    other[2, 1] = False
    second = hashing.row_hashes({"x": x, "mask": other})
    assert (first != second).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(hashing.row_hashes(x[::-1]), hashing.row_hashes(x)[::-1])


def test_fingerprints_are_of_the_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def made(folder, change=lambda x, labels: None):
        for seed, split in enumerate(("train", "validation", "test")):
            x, labels = write(tmp_path / folder / f"{split}.npz", 20, seed)
            if split == "test":
                change(x, labels)
            np.savez(tmp_path / folder / f"{split}.npz", x=x, labels=labels)
        loaded = load(tmp_path / folder, validation="validation.npz")
        return [getattr(loaded, split).fingerprint for split in ("train", "validation", "test")]

    def swap(x, labels):
        x[:2], labels[:2] = x[1::-1].copy(), labels[1::-1].copy()

    def other_label(x, labels):
        labels[7, 1] = 1 - labels[7, 1]

    def other_input(x, labels):
        x[7, 1] += 1e-6

    first = made("a")
    assert made("b") == first
    assert {len(bytes.fromhex(each)) for each in first} == {16}
    changed = [made("b", change) for change in (swap, other_label, other_input)]
    assert all(each[:2] == first[:2] for each in changed)
    assert len({each[2] for each in (first, *changed)}) == 4


def test_fingerprints_of_sources():
    x, truth = np.arange(30.0).reshape(10, 3), np.eye(10, 4, dtype=np.uint8)

    class Own(data.Source):
        labels = truth

        def inputs(self, rows):
            return x[rows]

    first = Own().fingerprint
    x[9, 2] += 1
    assert Own().fingerprint != first
    indices = LabelIndices(np.full((10, 1), 3), 5)
    more = LabelIndices(indices.indices, 6)
    prints = [data.ArraySource(x, each).fingerprint for each in (truth, indices, more)]
    assert len(set(prints)) == 3


def test_fingerprints_of_many_images_are_of_a_sample(monkeypatch):
    reads = []

    def read(row):
        reads.append(row)
        return str(row).encode()

    monkeypatch.setattr(EncodedImages, "_decode", lambda self, row: np.zeros((4, 4, 1)))
    images = EncodedImages(read, 100, channels=1, image_size=4, origin="t")
    monkeypatch.setattr(hashing, "MOST_HASHED_IMAGES", 10)
    labels = np.ones((100, 1))
    first = data.ArraySource(images, labels).fingerprint
    assert reads == np.linspace(0, 99, 10).astype(int).tolist()
    assert data.ArraySource(Subset(images, np.arange(100)), labels).fingerprint == first
    assert data.ArraySource(Subset(images, np.arange(100)[::-1]), labels).fingerprint != first


def test_hashing_is_quick():
    x = np.random.default_rng(0).normal(size=(100_000, 100)).astype(np.float32)
    started = time.process_time()
    hashes = hashing.row_hashes(x)
    assert time.process_time() - started < 1
    assert len(np.unique(hashes)) == 100_000
