"""What a study shows of the five relations, and what it keeps of it."""

import numpy as np
import pytest

from sdjax.config import Config, LossConfig
from sdjax.data import ArraySource
from sdjax.report.embedding import Plane
from sdjax.study import by_relation
from sdjax.study.by_relation import Run, Sample

RNG = np.random.default_rng(0)
LABELS = (RNG.random((16, 4)) < 0.4).astype(np.uint8)
X = RNG.normal(size=(16, 20)).astype(np.float32)
SAMPLE = Sample(X, LABELS, X[:9], LABELS[:9], ("a", "b", "c", "d"), "dense")


def make_run(loss, recipe="joint", quality=0.5, after=None):
    name = f"{recipe} {loss}"
    return Run(name, Config(recipe=recipe, loss=LossConfig(name=loss)), 0, quality, after)


@pytest.fixture
def asked():
    return []


@pytest.fixture
def see(tmp_path, asked):
    def get_sample():
        asked.append(1)
        return SAMPLE

    def see(runs, checksum="1"):
        return by_relation.see(tmp_path / "data.json", {"train": checksum}, runs, get_sample)

    return see


def test_what_was_seen_is_kept(see, asked, tmp_path):
    runs = [make_run("any"), make_run("any", "probe"), make_run("any", "bce")]
    first = see(runs)
    assert list(first.losses) == ["any"] and first.temperature == 0.07 and first.rows == 16
    assert first.anchor_labels == ["abcd"[i] for i in np.flatnonzero(LABELS[first.anchor])]
    assert first.before.points.shape == (9, 2) and first.counts.sum() == 16 * 15
    asked.clear()
    second = see(runs)
    assert asked == []
    np.testing.assert_equal(second.losses["any"], first.losses["any"])
    # Only what is new is computed, of prototypes too; a loss without pairs is named.
    third = see([*runs, make_run("msc"), make_run("prototype")])
    assert list(third.losses) == ["any", "msc"] and third.left_out == ("prototype",)
    assert asked == [1] and np.abs(third.losses["msc"].attraction[1:]).sum() > 0
    asked.clear()
    see([make_run("any", "bce")], checksum="2")
    see([make_run("any", "bce")], checksum="2")
    assert asked == [1]


def test_losses_are_named_by_what_tells_them_apart():
    losses = [LossConfig(), LossConfig(name="all", temperature=0.12345), LossConfig(form="in")]
    assert list(by_relation.named([*losses, losses[0]])) == [
        "sd temperature=0.07 form=out",
        "all temperature=0.123 form=out",
        "sd temperature=0.07 form=in",
    ]
    config = Config(recipe="joint", candidates=("dense: recipe=bce", "dense: loss.temperature=0.5"))
    assert Run("", config, 0, 0.0, None).loss("dense") is None
    assert Run("", config, 1, 0.0, None).loss("dense").temperature == 0.5


def test_of_many_methods_the_best_of_each_loss_are_mapped(see, monkeypatch):
    plane = Plane(np.zeros((9, 2)), (0.5, 0.25))
    runs = [
        make_run("sd", "bce", 0.3, plane),
        make_run("sd", "joint", 0.4, plane),
        make_run("sd", "probe", 0.6, plane),
        make_run("sd", "finetune", 0.5, plane._replace(points=np.zeros((8, 2)))),
    ]
    assert list(see(runs).after) == ["bce sd", "joint sd", "probe sd"]
    monkeypatch.setattr(by_relation, "MAPPED_METHODS", 2)
    assert list(see(runs).after) == ["bce sd", "probe sd"]


def test_a_map_is_read_as_it_was_written(tmp_path):
    by_relation.save_map(tmp_path, X)
    read, plane = by_relation.read_map(tmp_path), by_relation.embedding.plane(X)
    np.testing.assert_allclose(read.points, plane.points, atol=5e-4)
    assert read.explained == plane.explained
    by_relation.save_map(tmp_path, np.ones_like(X))
    assert by_relation.read_map(tmp_path) is None and by_relation.read_map(tmp_path / "no") is None


def test_inputs_become_vectors():
    rows = np.arange(2)
    images = RNG.random((2, 64, 40, 3), np.float32)
    found = by_relation.vectors(ArraySource(images, LABELS[:2]), rows)
    np.testing.assert_array_equal(found, images[:, ::2, ::2].reshape(2, -1))
    tokens = {"ids": np.array([[7, 9, 9, 0], [7, 5, 0, 0]]), "mask": np.zeros((2, 4), bool)}
    tokens["mask"][0, :3] = tokens["mask"][1, :2] = True
    found = by_relation.vectors(ArraySource(tokens, LABELS[:2]), rows)
    # Columns are the tokens 0, 5, 7 and 9; what both have counts less.
    assert ((found > 0) == [[0, 0, 1, 1], [0, 1, 1, 0]]).all() and found[1, 1] > found[1, 2]
    other = ArraySource({"a": X[:2]}, LABELS[:2])
    assert by_relation.vectors(other, rows) is None
