"""Average precision against frequency: points, axes, and names that do not overlap."""

import itertools

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from sdjax.report import figures, label_scatter


def draw(counts, seed=0, names=None):
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts, float)
    ap = rng.random(len(counts))
    names = names or [f"label number {c}" for c in range(len(counts))]
    figure = label_scatter.label_scatter(counts, ap * 0.3, ap, names)
    return figure, figure.axes[0], ap


def names_in(axes):
    return [text for text in axes.texts if isinstance(text, Annotation)]


def test_points_are_at_frequency_and_average_precision():
    _, axes, ap = draw([5, 10, 20])
    base, points = axes.collections[1:]
    assert points.get_offsets().tolist() == [list(p) for p in zip([5, 10, 20], ap, strict=True)]
    assert base.get_offsets()[:, 1].tolist() == pytest.approx((ap * 0.3).tolist())


def test_labels_without_a_test_positive_are_left_out():
    nan = float("nan")
    figure = label_scatter.label_scatter(
        np.array([1.0, 2.0]), np.array([0.0, 0.5]), np.array([nan, 0.7]), ["a", "b"]
    )
    assert figure.axes[0].collections[-1].get_offsets().tolist() == [[2.0, 0.7]]
    assert [text.get_text() for text in names_in(figure.axes[0])] == ["b"]
    nothing = np.array([nan])
    assert label_scatter.label_scatter(np.ones(1), np.zeros(1), nothing, ["a"]) is None


@pytest.mark.parametrize(
    ("counts", "scale"),
    [([5, 6, 50], "linear"), ([2, 7, 900], "log"), ([0, 1, 40], "symlog"), ([0, 0], "linear"),
     ([7], "linear")],
)  # fmt: skip
def test_the_axis_is_logarithmic_where_it_helps(counts, scale):
    _, axes, _ = draw(counts)
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    assert low < min(counts) <= max(counts) < high


@pytest.mark.parametrize("seed", range(3))
def test_names_overlap_neither_each_other_nor_a_point(seed):
    counts = np.random.default_rng(seed).integers(1, 400, 40)
    figure, axes, ap = draw(counts, seed)
    texts = names_in(axes)
    assert 10 < len(texts) <= 40
    boxes = [text.get_window_extent() for text in texts]
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for x, y in axes.transData.transform(np.column_stack([counts, ap])):
        assert not any(box.contains(x, y) for box in boxes)
    for box in boxes:
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1
    figure.canvas.draw()
    assert [text.get_window_extent().bounds for text in texts] == [box.bounds for box in boxes]


def test_a_few_labels_are_all_named():
    _, axes, _ = draw([10, 40, 160, 640])
    assert len(names_in(axes)) == 4


def test_many_labels_have_means():
    counts = np.random.default_rng(0).integers(0, 900, 500)
    _, axes, ap = draw(counts)
    assert names_in(axes) == []
    mean, base = (line.get_ydata() for line in axes.lines)
    assert ap.min() < mean.min() <= mean.max() < ap.max()
    assert base == pytest.approx(0.3 * mean)


def test_the_best_and_the_worst_of_many_labels_are_named():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 900, 374).astype(float)
    ap, positives = rng.random(374), rng.integers(0, 30, 374)
    ap[positives == 0] = np.nan
    best, worst = label_scatter.extremes(ap, positives)
    enough = positives >= 5
    assert len(best) == len(worst) == label_scatter.EXTREMES
    assert ap[best].tolist() == np.sort(ap[enough])[::-1][:8].tolist()
    assert ap[worst].tolist() == np.sort(ap[enough])[:8].tolist()
    names = [f"label number {c}" for c in range(374)]
    figure = label_scatter.label_scatter(counts, positives / 100, ap, names, [*best, *worst])
    (axes,) = figure.axes
    texts = names_in(axes)
    assert {text.get_text() for text in texts} == {names[c] for c in (*best, *worst)}
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in texts]
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert axes.bbox.y0 <= box.y0 < box.y1 <= axes.bbox.y1


def test_no_label_is_both_best_and_worst():
    assert label_scatter.extremes(np.array([0.5, 0.2, 0.9]), np.array([9, 9, 9])) == ([2], [1])
    assert label_scatter.extremes(np.array([0.5]), np.array([9])) == ([], [])
    assert label_scatter.extremes(np.full(20, np.nan), np.zeros(20, int)) == ([], [])


def test_names_in_one_place_are_all_drawn():
    ap = np.full(100, 0.5)
    positives = np.full(100, 9)
    named = list(range(16))
    names = [f"the same place {c}" for c in range(100)]
    figure = label_scatter.label_scatter(np.full(100, 30.0), positives / 50, ap, names, named)
    assert len(names_in(figure.axes[0])) == 16


def test_names_are_cut_and_drawable():
    assert figures.drawable("ab  c\n\td") == "ab c d"
    assert figures.drawable("x" * 50, 10) == "x" * 9 + "…"
    assert figures.drawable("日本é") == "□□é"
    assert figures.set_names([]) == "no label"
    assert figures.set_names(["a", "b"]) == "a, b"
    assert figures.set_names(["alpha", "beta", "gamma"], 21) == "alpha, beta +1 more"
    assert figures.set_names(["y" * 60, "b"], 19) == "y" * 9 + "… +1 more"
