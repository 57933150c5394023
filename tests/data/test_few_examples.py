"""Few-example mode: which rows of train are kept, of every source."""

import dataclasses

import numpy as np
import pytest
import tfds_test_builders  # noqa: F401 (registers the sets)

from sdjax import LabelIndices, data, label_sets
from sdjax.config import DataConfig
from sdjax.data import few_examples, rows
from sdjax.data.examples import Examples
from sdjax.errors import InputError


def plainly(sets, num_classes, k, seed):
    """The definition of `draw`, label by label and row by row."""
    order = sorted(
        range(len(sets)), key=list(np.random.default_rng(seed).permutation(len(sets))).__getitem__
    )
    carriers = {c: [row for row in order if c in sets[row]] for c in range(num_classes)}
    taken = set()
    for c in sorted(carriers, key=lambda c: len(carriers[c])):
        for row in carriers[c]:
            if sum(c in sets[each] for each in taken) >= k:
                break
            taken.add(row)
    return sorted(taken)


@pytest.mark.parametrize("listed", [False, True])
def test_rows_are_those_of_a_plain_loop(listed, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_ELEMENTS", 40)
    random = np.random.default_rng(3)
    shares = np.array([0.5, 0.3, 0.02, 0.1, 0.0, 0.6])
    for seed, k in ((0, 1), (1, 4), (2, 9)):
        multi_hot = (random.random((90, 6)) < shares).astype(np.uint8)
        sets = [set(np.flatnonzero(row).tolist()) for row in multi_hot]
        labels = multi_hot
        if listed:
            padded = [[*each, *[-1] * (6 - len(each))] for each in map(sorted, sets)]
            labels = LabelIndices(np.array(padded, np.int32), 6)
        found = few_examples.draw(labels, k, seed)
        assert found.tolist() == plainly(sets, 6, k, seed)
        counts = multi_hot.sum(0)
        assert (label_sets.counts(label_sets.take(labels, found)) >= np.minimum(counts, k)).all()
        assert len(found) <= np.minimum(counts, k).sum()
    assert few_examples.draw(labels, k, 5).tolist() != found.tolist()


def test_splits_other_than_train_are_whole(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(80, 3)), np.eye(4, dtype=int)[np.arange(80) % 4]
    for name, size in (("train", 80), ("test", 20)):
        np.savez(tmp_path / f"{name}.npz", x=x[:size] + (name == "test"), y=y[:size])
    config = DataConfig(
        name="files",
        train=str(tmp_path / "train.npz"),
        validation="",
        test=str(tmp_path / "test.npz"),
    )
    whole = data.load(config)
    few = data.load(dataclasses.replace(config, examples_per_label=3))
    assert few.train.labels.sum(0).tolist() == [3] * 4
    for split in ("validation", "test"):
        assert getattr(few, split).fingerprint == getattr(whole, split).fingerprint
    raw = few.train.raw_inputs(np.arange(12))
    np.testing.assert_array_equal(raw, x[few.train.names].astype(np.float32))
    assert not set(few.train.names) & set(few.validation.names)
    assert str(few.few) == "few examples, 3 a label: 12 of 64"
    assert next(line for line in data.summarise(few) if str(few.few) in line).startswith("Train")
    again = data.load(dataclasses.replace(config, examples_per_label=3))
    assert again.train.fingerprint == few.train.fingerprint
    other = data.load(dataclasses.replace(config, examples_per_label=3, split_seed=1))
    assert other.train.fingerprint != few.train.fingerprint
    assert data.load(dataclasses.replace(config, examples_per_label=99)).few.short == 4


def test_images_of_a_catalogue_set(tmp_path):
    few = data.load(
        DataConfig(name="sdjax_voc", data_dir=str(tmp_path), image_size=8, examples_per_label=1)
    )
    assert len(few.train) <= 3
    assert few.train.labels.sum(0).min() == 1
    assert few.train.inputs(np.arange(len(few.train))).shape[1:] == (8, 8, 3)
    assert (len(few.validation), len(few.test)) == (4, 6)


def test_no_row_with_a_label():
    examples = Examples("t", np.zeros((3, 2)), np.zeros((3, 2), np.uint8), ("a", "b"))
    with pytest.raises(InputError, match="t: no row has a label, so that data.ex.*=2"):
        few_examples.take(examples, 2, 0)
