"""The five relations in the data: how common each is, and what each loss makes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdjax import label_sets, relations
from sdjax.label_sets import LabelSets
from sdjax.labels import Labels
from sdjax.report import figures

MAX_ROWS = 1500  # 2.2 million ordered pairs


class PairTable(NamedTuple):
    """The ordered pairs of a sample of rows, a line for each distinct kind of pair.

    Attributes:
      rows: how many rows the pairs are of.
      of_rows: how many rows there were to draw from.
      relation, shared, anchor_size, candidate_size: int [K].
      count: pairs of that kind, int [K].
    """

    rows: int
    of_rows: int
    relation: NDArray[np.integer]
    shared: NDArray[np.integer]
    anchor_size: NDArray[np.integer]
    candidate_size: NDArray[np.integer]
    count: NDArray[np.integer]

    def totals(self) -> NDArray[np.int64]:
        """Number of pairs in each of the five relations, [5]."""
        return np.bincount(self.relation, self.count, minlength=6)[1:].astype(np.int64)


def sample_rows(num_rows: int, at_most: int, seed: int = 0) -> NDArray[np.intp]:
    """Indices of all rows, or of `at_most` of them drawn without replacement, rising."""
    if num_rows <= at_most:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, at_most, replace=False))


def compute(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function` of pytrees of numpy arrays, compiled, as numpy arrays; transfers are explicit."""
    return jax.device_get(jax.jit(function)(*jax.device_put(arrays)))


def relation_codes(anchors: LabelSets, candidates: LabelSets) -> NDArray[np.int32]:
    """`relations.relation` [A, R] of label sets, as a numpy array."""
    return compute(relations.relation, anchors, candidates)


def _relate(labels: Labels) -> tuple[jax.Array, relations.Overlap]:
    return relations.relation(labels, labels), relations.overlap(labels, labels)


def pair_table(labels: LabelSets, max_rows: int = MAX_ROWS) -> PairTable:
    """The ordered pairs of two different rows of `labels`, of at most `max_rows` rows."""
    num_rows = label_sets.num_rows(labels)
    rows = sample_rows(num_rows, max_rows)
    relation, overlap = compute(_relate, label_sets.take(labels, rows))
    relation = relation.astype(np.int64)
    shared, anchor, candidate = (part.astype(np.int64) for part in overlap)
    base = int(anchor.max(initial=0)) + 1
    code = ((relation * base + shared) * base + anchor) * base + candidate
    kinds, count = np.unique(code[~np.eye(len(rows), dtype=bool)], return_counts=True)
    rest, candidate_size = np.divmod(kinds, base)
    rest, anchor_size = np.divmod(rest, base)
    relation_code, shared_labels = np.divmod(rest, base)
    return PairTable(
        len(rows), num_rows, relation_code, shared_labels, anchor_size, candidate_size, count
    )


def relation_shares(table: PairTable) -> Figure | None:
    """How common each relation is: of all pairs, and of the pairs that share a label."""
    totals = table.totals()
    if not totals.sum():
        return None
    share, positive = totals / totals.sum(), max(int(totals[1:].sum()), 1)
    figure = figures.new_figure(3.5)
    whole, parts = figure.subplots(2, 1, height_ratios=[1, 3.2])
    _stacked_bar(whole, share)
    figures.panel_title(whole, f"all {totals.sum():,} ordered pairs of {table.rows:,} rows")
    codes = [2, 3, 4, 5]
    bars = parts.barh(
        [figures.RELATIONS[c].name for c in codes],
        [100 * totals[c - 1] / positive for c in codes],
        color=[figures.RELATIONS[c].color for c in codes],
        height=0.7,
    )
    texts = [
        f"{_percent(totals[c - 1] / positive)}  ({_percent(share[c - 1])} of all)" for c in codes
    ]
    parts.bar_label(bars, texts, padding=4, fontsize=9)
    parts.invert_yaxis()
    parts.set_xlim(0, 125 * max(totals[1:].max() / positive, 0.01))
    parts.set_xticks([tick for tick in parts.get_xticks() if 0 <= tick <= 100])
    parts.spines["bottom"].set_bounds(0, min(100, parts.get_xlim()[1]))
    parts.set_xlabel("% of the pairs that share a label", fontsize=9)
    figures.panel_title(parts, f"the {totals[1:].sum():,} pairs that share a label (positives)")
    parts.tick_params(labelsize=9)
    figures.tidy(parts, "x")
    return figure


def _stacked_bar(axes: Axes, share: NDArray[np.floating]) -> None:
    left = 0.0
    for name, value, color in (
        (figures.RELATIONS[1].name, share[0], figures.LIGHT_GRAY),
        ("share a label", share[1:].sum(), figures.DARK_GRAY),
    ):
        axes.barh([0], [value], left=left, color=color, height=0.8)
        text = f"{name} {_percent(value)}"
        dark = color == figures.DARK_GRAY
        if value > 0.25:
            axes.text(left + value / 2, 0, text, ha="center", va="center", fontsize=9,
                      color="white" if dark else "black")  # fmt: skip
        elif value > 0:
            axes.text(1.01 if dark else -0.01, 0, text, fontsize=9, va="center",
                      ha="left" if dark else "right")  # fmt: skip
        left += value
    axes.set_xlim(0, 1)
    axes.set_axis_off()


def _percent(share: float) -> str:
    if share == 0:
        return "0 %"
    return "<0.01 %" if share < 1e-4 else f"{100 * share:.3g} %"


class Spread(NamedTuple):
    """Where the weights of one relation lie."""

    low: float
    quarter: float
    mean: float
    three_quarters: float
    high: float


def all_weights(table: PairTable, threshold: float = 0.5) -> dict[str, NDArray[np.floating]]:
    """Every weight of the family for each kind of pair, [K] each.

    Args:
      table: the pairs.
      threshold: of the jaccard weight.
    """
    sizes = np.stack([table.shared, table.anchor_size, table.candidate_size])
    number = sizes.shape[1]
    # One program does for any number up to 128, and so on.
    sizes = np.pad(sizes, ((0, 0), (0, -number % 128)))
    kinds = relations.Overlap(*sizes.astype(np.float32)[:, None])
    weights = compute(_weigh, kinds, np.float32(threshold))
    return {name: weight[0, :number] for name, weight in weights.items()}


def _weigh(kinds: relations.Overlap, threshold: jax.Array) -> dict[str, jax.Array]:
    weights = {name: weight(kinds) for name, weight in relations.WEIGHTS.items()}
    return {**weights, "jaccard": relations.jaccard(kinds, threshold)}


def weight_spread(table: PairTable, weights: NDArray[np.floating]) -> dict[int, Spread]:
    """Spread of the `weights` [K] over the pairs of each relation that occurs."""
    spreads = {}
    for code in figures.RELATIONS:
        of_code = table.relation == code
        if of_code.any():
            order = np.argsort(weights[of_code])
            values, count = weights[of_code][order], table.count[of_code][order]
            places = np.searchsorted(count.cumsum() / count.sum(), [0, 0.25, 0.75, 1 - 1e-9])
            low, quarter, three_quarters, high = values[places]
            mean = float(np.average(values, weights=count))
            spreads[code] = Spread(low, quarter, mean, three_quarters, high)
    return spreads


def relation_weights(table: PairTable, loss: str = "", threshold: float = 0.5) -> Figure | None:
    """What weight each loss of the family gives to the pairs of each relation.

    Args:
      table: the pairs.
      loss: name of the run's loss; its panel is marked.
      threshold: of the jaccard weight.

    Returns:
      The figure, or None when there are no pairs.
    """
    if not table.count.sum():
        return None
    weights = all_weights(table, threshold)
    columns = 4
    rows = -(-len(weights) // columns)
    figure = figures.new_figure(2.5 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(weights) :]:
        axes.set_axis_off()
    # Under jit a dict comes back sorted by name.
    for axes, name in zip(grid.flat, relations.WEIGHTS, strict=False):
        _draw_weight(axes, weight_spread(table, weights[name]))
        this = loss == name
        titles = {"sd": "similarity-dissimilarity", "jaccard": f"jaccard ≥ {threshold:g}"}
        figures.panel_title(axes, titles.get(name, name.replace("_", " ")), bold=this)
        if this:
            axes.text(1, 0.5, "this run", rotation=90, ha="center", va="center", fontsize=8,
                      fontweight="bold")  # fmt: skip
    for axes in grid[:, 0]:
        axes.set_ylabel("weight", fontsize=9)
    return figure


def _draw_weight(axes: Axes, spreads: dict[int, Spread]) -> None:
    for code, style in figures.RELATIONS.items():
        spread = spreads.get(code)
        if spread is None:
            axes.text(code, 0.04, "no pairs", rotation=90, ha="center", va="bottom", fontsize=8,
                      color=figures.GRAY)  # fmt: skip
            continue
        color = figures.GRAY if code == 1 else style.color
        axes.vlines(code, spread.low, spread.high, color=color, linewidth=1.5)
        axes.vlines(code, spread.quarter, spread.three_quarters, color=color, linewidth=8)
        axes.plot(code, spread.mean, "o", color=color, markeredgecolor="black", markersize=6)
        above = spread.mean < 0.85
        axes.annotate(_short(spread.mean), (code, spread.high if above else spread.low),
                      xytext=(0, 6 if above else -7), textcoords="offset points", ha="center",
                      va="bottom" if above else "top", fontsize=8)  # fmt: skip
    axes.set_xlim(0.4, 5.6)
    axes.set_ylim(-0.06, 1.12)
    axes.set_xticks(list(figures.RELATIONS), [f"R{code}" for code in figures.RELATIONS])
    axes.tick_params(labelsize=8)
    figures.tidy(axes)


def _short(weight: float) -> str:
    """A weight in [0, 1] to two places."""
    if weight in (0, 1):
        return f"{weight:.0f}"
    return "<.01" if weight < 0.01 else f"{min(weight, 0.99):.2f}".lstrip("0")
