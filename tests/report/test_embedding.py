"""The map of the embeddings and the similarities beside it."""

import numpy as np
import pytest

from sdjax import relations
from sdjax.report import embedding


def random_data(seed=0, examples=60, labels=5, dim=8):
    rng = np.random.default_rng(seed)
    truth = rng.random((examples, labels)) < 0.4
    return truth, rng.normal(size=(examples, dim))


def test_similarity_by_relation_is_the_mean_cosine():
    labels, z = random_data()
    codes = np.asarray(relations.relation(labels, labels))
    cosine = (z @ z.T) / np.outer(np.linalg.norm(z, axis=1), np.linalg.norm(z, axis=1))
    other = ~np.eye(len(z), dtype=bool)
    got = embedding.similarity_by_relation(labels, z)
    assert set(got) == set(np.unique(codes[other]))
    for code, (mean, deviation) in got.items():
        values = cosine[other & (codes == code)]
        assert mean == pytest.approx(values.mean())
        assert deviation == pytest.approx(values.std())


def test_the_plane_keeps_distances_of_flat_data():
    directions = np.linspace(0, 1.5, 20)
    z = np.stack([np.cos(directions), np.sin(directions), np.zeros(20)], axis=1)
    flat = embedding.plane(5 * z)
    expected = np.linalg.norm(z[:, None] - z[None], axis=-1)
    got = np.linalg.norm(flat.points[:, None] - flat.points[None], axis=-1)
    assert got == pytest.approx(expected, abs=1e-9)
    assert sum(flat.explained) == pytest.approx(1)


def test_embeddings_of_one_dimension_lie_on_a_line():
    flat = embedding.plane(np.array([[1.0], [-1.0], [2.0]]))
    assert np.ptp(flat.points[:, 1]) == 0
    assert flat.explained == (pytest.approx(1), 0)


def test_collapse_is_of_directions():
    one = np.array([1.0, 2.0, 3.0])
    assert embedding.has_collapsed(np.outer([1, 2, 5], one))
    assert embedding.has_collapsed(np.zeros((3, 2)))
    assert not embedding.has_collapsed(np.stack([one, -one]))


def test_anchors_have_different_label_sets_and_at_least_one_label():
    labels, _ = random_data(1)
    labels[:10] = 0
    anchors = embedding.choose_anchors(labels)
    assert len(anchors) == 4
    assert len({tuple(labels[a]) for a in anchors}) == 4
    assert labels[anchors].any(axis=1).all()


def test_the_first_anchor_sees_every_relation():
    # {0,1} has all of R1 to R5; no other set has.
    sets = [[1, 1, 0, 0]] * 2 + [[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 0, 1], [0, 0, 0, 1]]
    first = embedding.choose_anchors(np.array(sets))[0]
    assert sets[first] == [1, 1, 0, 0]


def test_as_many_anchors_as_label_sets():
    assert len(embedding.choose_anchors(np.ones((9, 1)))) == 1
    assert embedding.choose_anchors(np.zeros((9, 3))) == []


def test_each_panel_counts_the_relations_to_its_anchor():
    labels, z = random_data(2)
    figure = embedding.embedding_map(labels, z, [f"l{c}" for c in range(5)])
    anchors = embedding.choose_anchors(labels)
    codes = np.asarray(relations.relation(labels[anchors], labels))
    for axes, anchor, code in zip(figure.axes, anchors, codes, strict=True):
        present = np.bincount(np.delete(code, anchor), minlength=6)
        assert axes.get_xlabel().split() == [
            part for r in range(1, 6) for part in (f"R{r}", str(present[r]))
        ]
        drawn = [len(points.get_offsets()) for points in axes.collections]
        assert sorted(drawn) == sorted(present[1:])
        own = ", ".join(f"l{c}" for c in np.flatnonzero(labels[anchor]))
        assert axes.get_title(loc="left") == f"anchor: {own}"


def test_many_examples_are_sampled(monkeypatch):
    monkeypatch.setattr(embedding, "MAX_POINTS", 25)
    labels, z = random_data(3)
    figure = embedding.embedding_map(labels, z, "abcde")
    assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == 24
