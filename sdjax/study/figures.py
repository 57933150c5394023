"""The figures of a study's report."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from sdjax.report import embedding
from sdjax.report import figures as common
from sdjax.report.embedding import Plane
from sdjax.study import statistics
from sdjax.study.statistics import Frame, Ranks

COLORS = (
    *(common.BLUE, common.ORANGE, common.GREEN, common.PURPLE, common.VERMILION),
    *("#56B4E9", "#7A6A00", "#404040", "#8A8A8A", "#882255"),
)
MOST_BARS = 10
_ROW = 0.26  # inches
_LABEL = 44  # characters


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as SVG, the same bytes for the same figure."""
    metadata: Any = {"Date": None}
    with rc_context({"svg.hashsalt": "sdjax"}):
        figure.savefig(path, format="svg", facecolor="white", metadata=metadata)


def save_small(figure: Figure, path: Path) -> None:
    """Writes `figure` as a PNG of 64 colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def intervals(
    frame: Frame, data: str, metrics: Mapping[str, str], found: Mapping[str, Frame]
) -> Figure | None:
    """Mean and interval of each method on one data set, a panel a metric, its runs as pale dots.

    Args:
      frame: of `sdjax.study.table.make`.
      data: name of the data set.
      metrics: columns or patterns, by title.
      found: `statistics.summary` of them, by title.
    """
    done = frame[(frame["data"] == data) & (frame["status"] == "done")]
    methods = list(dict.fromkeys(done["method"]))
    place = {method: number for number, method in enumerate(methods)}
    drawn = [t for t in metrics if data in found[t].index.get_level_values("data")]
    if not drawn:
        return None
    figure = common.new_figure(0.9 + _ROW * len(methods), 11.0)
    panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    colors = {m: common.BLUE if _is_own(done, m) else common.GRAY for m in methods}
    for axes, title in zip(panels, drawn, strict=True):
        table = found[title].loc[data]
        y, color = table.index.map(place), [colors[method] for method in table.index]
        each = statistics.column(done, metrics[title])
        axes.scatter(
            each, done["method"].map(place), s=9, c=done["method"].map(colors), alpha=0.3, lw=0
        )
        axes.hlines(y, table["low"], table["high"], colors=color, linewidth=2)
        axes.scatter(table["mean"], y, s=26, c=color, zorder=3)
        common.panel_title(axes, title)
        common.tidy(axes, "both")
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_yticks(range(len(methods)), [common.drawable(m, _LABEL) for m in methods])
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    _literal(panels[0])
    return figure


def _is_own(frame: Frame, method: str) -> bool:
    return bool((frame.loc[frame["method"] == method, "baseline"] == "").all())


def _literal(axes: Axes) -> None:
    """Takes dollar signs in the names on the axis as they are."""
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def differences(tested: Frame, title: str, reference: str, order: Sequence[str]) -> Figure | None:
    """Mean difference of each method from the reference, with its interval; a group a data set.

    None of more methods than can be told apart by colour.

    Args:
      tested: of `statistics.over_seeds`, a row at least.
      title: of the metric.
      reference: the method.
      order: of all methods, by which they have their colours.
    """
    sets = list(dict.fromkeys(tested.index.get_level_values("data")))
    methods = list(dict.fromkeys(tested.index.get_level_values("method")))
    if len(methods) > MOST_BARS:
        return None
    others = [method for method in order if method != reference]
    colored = others if len(others) <= MOST_BARS else methods
    figure = common.new_figure(3.4 + 0.22 * math.ceil(len(methods) / 3), 11.0)
    axes = figure.subplots()
    width = 0.84 / len(methods)
    for place, method in enumerate(methods):
        rows = tested.reindex([(data, method) for data in sets])
        x = np.arange(len(sets)) + (place - (len(methods) - 1) / 2) * width
        mean = rows["difference"].to_numpy()
        ends = np.nan_to_num([mean - rows["low"], rows["high"] - mean], nan=0.0).clip(0)
        color = COLORS[colored.index(method)]
        axes.bar(x, mean, 0.92 * width, color=color, label=common.drawable(method, _LABEL))
        axes.errorbar(x, mean, ends, fmt="none", ecolor="#202020", elinewidth=1, capsize=2)
    axes.axhline(0, color=common.DARK_GRAY, linewidth=0.8)
    axes.set_xticks(range(len(sets)), [common.drawable(data) for data in sets])
    common.panel_title(axes, f"{title}: difference from {common.drawable(reference, _LABEL)}")
    common.tidy(axes)
    legend = figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def rank_diagram(ranks: Ranks, title: str) -> Figure:
    """Demšar's diagram: methods at their mean ranks; bars join those that are not told apart."""
    names, places = list(ranks.average.index), ranks.average.to_numpy()
    groups = []
    if not math.isnan(ranks.critical_difference):
        groups = statistics.cliques(places.tolist(), ranks.critical_difference)
    half = math.ceil(len(names) / 2)
    figure = common.new_figure(1.2 + 0.24 * (half + len(groups)), 11.0)
    axes = figure.subplots()
    low, high = 1, len(names)
    top = -1.0 * len(groups)
    for depth, (first, last) in enumerate(groups):
        y = -0.6 - depth
        axes.plot([places[first] - 0.04, places[last] + 0.04], [y, y], color=common.VERMILION, lw=3)
    for order, (name, place) in enumerate(zip(names, places, strict=True)):
        left = order < half
        y = top - 1.2 - (order if left else len(names) - 1 - order)
        end = low - 0.03 * (high - low) if left else high + 0.03 * (high - low)
        axes.plot([place, place, end], [0, y, y], color=common.DARK_GRAY, lw=1, clip_on=False)
        axes.text(
            end, y, f" {common.drawable(name, _LABEL)} ({place:.2f}) ", va="center", fontsize=9,
            ha="right" if left else "left", parse_math=False,
        )  # fmt: skip
    if not math.isnan(ranks.critical_difference):
        end = min(low + ranks.critical_difference, high)
        axes.plot([low, end], [1.3, 1.3], color="#202020", lw=2)
        text = f"critical difference {ranks.critical_difference:.2f}"
        axes.text(low, 1.55, text, fontsize=9, va="bottom")
    axes.set_xlim(low, high)
    axes.set_ylim(top - half - 1, 2.6)
    axes.xaxis.set_ticks_position("top")
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    axes.spines["top"].set_position(("data", 0))
    axes.set_yticks([])
    axes.locator_params(axis="x", integer=True)
    common.panel_title(axes, f"Mean rank by {title}", bold=True)
    return figure


def relation_maps(
    planes: Mapping[str, Plane], anchor: int, codes: NDArray[np.integer], title: str
) -> Figure:
    """The same rows by several embeddings, coloured by their relation to one of them.

    Args:
      planes: by what they are of.
      anchor: row that is looked from.
      codes: relation to it, [N].
      title: what the anchor is.
    """
    columns = min(4, len(planes))
    lines = -(-len(planes) // columns)
    figure = common.new_figure(2.85 * lines + 0.9, 11.0)
    grid = figure.subplots(lines, 4, squeeze=False)
    for axes in list(grid.flat):
        axes.set_axis_off()
    places = [axes for row in grid for axes in row[:columns]]
    for axes, (name, plane) in zip(places, planes.items(), strict=False):
        axes.set_axis_on()
        embedding.draw_relations(axes, plane.points, anchor, codes)
        axes.set_xlabel(f"{sum(plane.explained):.0%} of the variance", fontsize=8)
        common.panel_title(axes, common.drawable(name, 32))
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
    figure.legend(handles=embedding.legend(), loc="outside lower left", ncols=6, fontsize=8.5,
                  frameon=False, handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    return figure


def changes(found: Mapping[str, Frame]) -> Figure:
    """Mean change and its interval, a panel a metric; rows are what was changed, by data set.

    Args:
      found: by title of the metric, of `factors.changes`.
    """
    index = next(iter(found.values())).index
    for table in found.values():
        index = index.union(table.index, sort=False)
    sets = list(dict.fromkeys(index.get_level_values("data")))
    kinds = list(dict.fromkeys(index.get_level_values("change")))
    rows = [(data, kind) for data in sets for kind in kinds if (data, kind) in index]
    gaps = {data: 0.5 * number for number, data in enumerate(sets)}
    y = np.array([number + gaps[data] for number, (data, _) in enumerate(rows)])
    figure = common.new_figure(1.0 + _ROW * (y[-1] + 1), 11.0)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    colors = [COLORS[kinds.index(kind) % len(COLORS)] for _, kind in rows]
    for axes, (title, table) in zip(panels, found.items(), strict=True):
        each = table.reindex(rows)
        axes.axvline(0, color=common.DARK_GRAY, linewidth=0.8)
        axes.hlines(y, each["low"], each["high"], colors=colors, linewidth=2)
        axes.scatter(each["difference"], y, s=26, c=colors, zorder=3)
        common.panel_title(axes, title)
        common.tidy(axes, "both")
        axes.locator_params(axis="x", nbins=3)
        axes.tick_params(axis="x", labelsize=8)
    several = len(sets) > 1
    names = [f"{common.drawable(data)}: {kind}" if several else kind for data, kind in rows]
    panels[0].set_yticks(y, names)
    panels[0].set_ylim(y[-1] + 0.5, -0.5)
    _literal(panels[0])
    return figure


def curves(frame: Frame, axis: str, found: Mapping[str, Frame]) -> Figure | None:
    """Metrics along a numeric axis of the grid: rows of panels are data sets, columns metrics.

    A line joins the methods that differ in this axis alone; the band is the interval.

    Args:
      frame: of `sdjax.study.table.make`.
      axis: a column of it.
      found: `statistics.summary` of the metrics, by title.
    """
    own = frame[(frame["baseline"] == "") & frame[axis].notna() & (frame["status"] == "done")]
    sets = list(dict.fromkeys(own["data"]))
    if not (sets and found):
        return None
    figure = common.new_figure(0.9 + 2.5 * len(sets), 11.0)
    grid = figure.subplots(len(sets), len(found), squeeze=False, sharex=True)
    lines: dict[str, str] = {}
    for row, data in enumerate(sets):
        for column, (title, table) in enumerate(found.items()):
            axes = grid[row][column]
            series = _series(own[own["data"] == data], axis)
            for name, points in series.items():
                color = lines.setdefault(name, COLORS[len(lines) % len(COLORS)])
                rows = [table.loc[(data, m)] for _, m in points if (data, m) in table.index]
                x = [value for value, m in points if (data, m) in table.index]
                axes.plot(x, [each["mean"] for each in rows], "o-", color=color, markersize=4)
                axes.fill_between(
                    x, [each["low"] for each in rows], [each["high"] for each in rows],
                    color=color, alpha=0.15, linewidth=0,
                )  # fmt: skip
            common.panel_title(axes, f"{common.drawable(data)}: {title}")
            common.tidy(axes, "both")
    ticks = sorted(set(own[axis]))
    for axes in grid[-1]:
        if ticks[0] > 0 and ticks[-1] / ticks[0] > 3:
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(axis)
    handles = [Line2D([], [], color=c, marker="o", markersize=4) for c in lines.values()]
    names = [common.drawable(name, _LABEL) for name in lines]
    figure.legend(handles, names, loc="outside lower left", ncols=3, frameon=False, fontsize=8)
    return figure


def _series(frame: Frame, axis: str) -> dict[str, list[tuple[float, str]]]:
    """(value, method) of the methods that differ in `axis` alone, in order, by what they share."""
    leaf = axis.rpartition(".")[2]
    found: dict[str, list[tuple[float, str]]] = {}
    for method, value in dict(zip(frame["method"], frame[axis], strict=True)).items():
        words = [w for w in method.split() if w.rpartition("=")[0] not in (leaf, axis)]
        found.setdefault(" ".join(words) or "all", []).append((float(value), method))
    return {name: sorted(points) for name, points in found.items() if len(points) > 1}


def numeric_axes(frame: Frame, axes: Sequence[str]) -> list[str]:
    """Those of `axes` that have at least three numbers in the frame."""
    return [
        name
        for name in axes
        if name in frame
        and pd.api.types.is_numeric_dtype(frame[name])
        and frame[name].dtype != bool
        and frame[name].nunique() >= 3
    ]
