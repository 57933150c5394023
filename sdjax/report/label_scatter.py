"""Average precision of each label against its frequency in training."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from sdjax.report import figures

ANNOTATE_UP_TO = 60  # labels
STEMS_UP_TO = 120
LOG_FROM = 20  # ratio of the largest to the smallest count
BINS = 8
EXTREMES = 8  # best and worst labels that are named where not all are
FEWEST_POSITIVES = 5  # of a label whose average precision is more than chance

Floats = NDArray[np.floating]


def extremes(
    average_precision: Floats, positives: NDArray[np.integer]
) -> tuple[list[int], list[int]]:
    """The labels of highest, and of lowest average precision, the very best and worst first.

    They are of the labels with at least 5 test positives, of which half at most are either.

    Args:
      average_precision: [C]; NaN where it is not defined.
      positives: test examples with the label, [C].
    """
    known = np.flatnonzero(np.isfinite(average_precision) & (positives >= FEWEST_POSITIVES))
    order = known[np.argsort(-average_precision[known], kind="stable")].tolist()
    number = min(EXTREMES, len(order) // 2)
    return order[:number], order[::-1][:number]


def label_scatter(
    train_counts: Floats,
    base_rates: Floats,
    average_precision: Floats,
    names: Sequence[str],
    named: Sequence[int] = (),
) -> Figure | None:
    """Average precision against training frequency, with the base rate as reference.

    Args:
      train_counts: [C], training examples of each label.
      base_rates: [C], share of the test examples that have the label.
      average_precision: [C]; NaN for labels without a test positive, which are left out.
      names: C label names.
      named: labels to name where there are too many to name them all.

    Returns:
      The figure, or None when no label has a test positive.
    """
    known = np.flatnonzero(np.isfinite(average_precision))
    if not len(known):
        return None
    counts, base, ap = train_counts[known], base_rates[known], average_precision[known]
    figure = figures.new_figure(5.2)
    axes = figure.subplots()
    few = len(known) <= STEMS_UP_TO
    size, alpha = (36, 1.0) if few else (14, 0.5)
    if few:
        axes.vlines(counts, base, ap, color=figures.LIGHT_GRAY, linewidth=1.2, zorder=1)
    axes.scatter(counts, base, marker="_", s=1.6 * size, color=figures.VERMILION, alpha=alpha,
                 zorder=2, label="base rate in test (AP of a random ranking)")  # fmt: skip
    axes.scatter(counts, ap, s=size, color=figures.BLUE, edgecolor="white",
                 linewidth=0.5 if few else 0.2, alpha=alpha, zorder=3,
                 label="average precision of a label")  # fmt: skip
    _scale_counts(axes, counts)
    if not few:
        middle, mean_ap, mean_base = _binned_means(counts, ap, base)
        axes.plot(middle, mean_ap, color="black", marker="s", markersize=4, zorder=4,
                  label="mean AP of labels of like frequency")  # fmt: skip
        axes.plot(middle, mean_base, color="black", linestyle=":", zorder=4,
                  label="their mean base rate")  # fmt: skip
    top = max(0.02, float(ap.max()), float(base.max()))
    axes.set_ylim(-0.03 * top, 1.05 * top)
    axes.set_xlabel("training examples with the label", fontsize=9)
    axes.set_ylabel("average precision on test", fontsize=9)
    axes.tick_params(labelsize=8)
    figures.tidy(axes, "both")
    legend = figure.legend(loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    texts = [names[int(c)] for c in known]
    if len(known) <= ANNOTATE_UP_TO:
        _annotate(figure, axes, counts, ap, base, texts)
    elif len(named):
        _annotate_some(figure, axes, counts, ap, texts, np.flatnonzero(np.isin(known, named)))
    return figure


def _scale_counts(axes: Axes, counts: Floats) -> None:
    """A logarithmic axis with plain numbers, where the counts differ enough."""
    positive = counts[counts > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1, 1)
    if high / low < LOG_FROM:
        axes.margins(x=0.08)
        if counts.min() == counts.max():
            axes.set_xlim(counts[0] - max(1, counts[0] / 2), counts[0] + max(1, counts[0] / 2))
        return
    zeros = bool((counts == 0).any())
    if zeros:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    else:
        axes.set_xscale("log")
    steps = (1, 2, 5) if high / low < 3000 else (1,)
    ticks = [s * 10**k for k, s in itertools.product(range(9), steps)]
    shown = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
    axes.set_xticks([0] * zeros + shown, ["0"] * zeros + [f"{tick:,}" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.35 if zeros else low / 1.4, high * 1.4)


def _binned_means(counts: Floats, *values: Floats) -> list[list[float]]:
    """Means of the counts and of each of `values` in bins of equal width in log(1 + count)."""
    place = np.log1p(counts)
    edges = np.linspace(place.min(), place.max(), BINS + 1)[1:-1]
    bins = [np.flatnonzero(np.digitize(place, edges) == b) for b in range(BINS)]
    return [[float(v[b].mean()) for b in bins if len(b)] for v in (counts, *values)]


def _annotate(
    figure: Figure, axes: Axes, counts: Floats, ap: Floats, base: Floats, names: Sequence[str]
) -> None:
    """Names the points, each where it covers nothing; a name without such a place is left out."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inside = axes.get_window_extent()
    pixel = figure.dpi / 72
    points = axes.transData.transform(np.column_stack([counts, ap]))
    marks = axes.transData.transform(np.column_stack([counts, base]))
    taken = [_box(x, y, 3.5 * pixel, 3.5 * pixel) for x, y in points]
    taken += [_box(x, y, 4 * pixel, 1.5 * pixel) for x, y in marks]
    taken += [Bbox([p, (m[0] + 1, m[1])]) for p, m in zip(points, marks, strict=True)]  # stems
    # The lowest last: they crowd.
    for i in np.argsort(-ap, kind="stable"):
        text = axes.annotate(figures.drawable(names[int(i)], 24), (counts[i], ap[i]), xytext=(0, 0),
                             textcoords="offset points", fontsize=7.5, color=figures.DARK_GRAY,
                             parse_math=False, annotation_clip=False)  # fmt: skip
        extent = text.get_window_extent()
        for dx, dy in _offsets(extent.width / pixel, extent.height / pixel):
            box = extent.translated(dx * pixel, dy * pixel)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
            if within and box.y0 >= inside.y0 and not box.count_overlaps(taken):
                text.set_position((dx, dy))
                taken.append(box)
                break
        else:
            text.remove()


def _annotate_some(
    figure: Figure,
    axes: Axes,
    counts: Floats,
    ap: Floats,
    names: Sequence[str],
    chosen: NDArray[np.intp],
) -> None:
    """Names the `chosen` points, each by a line to a place where it covers no other name."""
    axes.scatter(counts[chosen], ap[chosen], s=40, facecolor="none", edgecolor="black",
                 linewidth=0.9, zorder=5)  # fmt: skip
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    inside, pixel = axes.get_window_extent(), figure.dpi / 72
    points = axes.transData.transform(np.column_stack([counts[chosen], ap[chosen]]))
    taken = [_box(x, y, 4 * pixel, 4 * pixel) for x, y in points]
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for i in chosen[np.argsort(-ap[chosen], kind="stable")]:
        text = axes.annotate(figures.drawable(names[int(i)], 24), (counts[i], ap[i]), xytext=(0, 0),
                             textcoords="offset points", fontsize=7.5, color="black",
                             parse_math=False, annotation_clip=False, path_effects=halo, zorder=6,
                             arrowprops={"arrowstyle": "-", "linewidth": 0.6, "shrinkB": 3,
                                         "color": figures.DARK_GRAY})  # fmt: skip
        text.get_window_extent()  # finds its position; the extent itself has the line in it
        extent = Text.get_window_extent(text)
        box, place = _free_place(extent, pixel, inside, taken)
        text.set_position(place)
        taken.append(box)


def _free_place(
    extent: Bbox, pixel: float, inside: Bbox, taken: Sequence[Bbox]
) -> tuple[Bbox, tuple[float, float]]:
    """Where a text covers fewest of the boxes in `taken`, and of such places the nearest one."""
    found = []
    for offset in _offsets(extent.width / pixel, extent.height / pixel, (5, 10, 20, 35, 55, 80)):
        box = extent.translated(offset[0] * pixel, offset[1] * pixel)
        outside = not (
            inside.x0 <= box.x0
            and box.x1 <= inside.x1
            and inside.y0 <= box.y0
            and box.y1 <= inside.y1
        )
        found.append((outside, box.count_overlaps(taken), len(found), box, offset))
        if not outside and not found[-1][1]:
            break
    *_, box, offset = min(found)
    return box, offset


def _offsets(
    width: float, height: float, gaps: Sequence[float] = (5, 7)
) -> Iterator[tuple[float, float]]:
    """Where the lower left corner of a text may lie, in points from its mark; near ones first."""
    for gap in gaps:
        yield gap, -height / 2 + 1
        yield -gap - width, -height / 2 + 1
        yield -width / 2, gap
        yield -width / 2, -gap - height
        yield from itertools.product((gap, -gap - width), (gap / 2, -gap / 2 - height))


def _box(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    return Bbox([[x - half_width, y - half_height], [x + half_width, y + half_height]])
