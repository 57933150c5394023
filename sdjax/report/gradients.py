"""Which relations of a pair a loss pulls together and pushes apart, and how hard."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sdjax import label_sets, relations
from sdjax.label_sets import LabelSets
from sdjax.labels import Labels
from sdjax.report import figures, pairs

MAX_ROWS = 512
DIRECTIONS = ("attraction", "repulsion")
PAIRS = "pairs"
_LEAST_TOLD = 0.045  # of a bar, as wide as its number

Loss = Callable[..., jax.Array]


class Gradient(NamedTuple):
    """|∂L/∂s_ij| summed over the ordered pairs of each of the five relations, [5].

    Attributes:
      attraction: where the derivative is below 0, so that descent makes a pair more similar.
      repulsion: where it is above 0.
    """

    attraction: NDArray[np.floating]
    repulsion: NDArray[np.floating]


def by_relation(
    loss: Loss, z: NDArray[np.floating], labels: LabelSets, temperature: float
) -> Gradient:
    """The gradient that `loss` gives to the similarities s_ij of the pairs of each relation.

    Args:
      loss: of the family, with its own options; it must take candidates and ids.
      z: embeddings of unit length, [B, D].
      labels: multi-hot [B, C] or `LabelIndices` [B, L].
      temperature: of the loss.
    """
    arrays = z.astype(np.float32), labels, np.float32(temperature)
    sums = pairs.compute(functools.partial(_sums, loss), *arrays)
    return Gradient(*(np.asarray(each, np.float64)[1:] for each in sums))


def _sums(
    loss: Loss, z: jax.Array, labels: Labels, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    slope = similarity_gradient(loss, z, labels, temperature)
    codes = relations.relation(labels, labels).ravel()

    def total(values: jax.Array) -> jax.Array:
        return jnp.bincount(codes, values.ravel(), length=6)

    return total(jnp.maximum(-slope, 0)), total(jnp.maximum(slope, 0))


def similarity_gradient(
    loss: Loss, z: jax.Array, labels: Labels, temperature: jax.Array
) -> jax.Array:
    """∂L/∂s_ij [B, B] of each row with the others; see `by_relation`.

    Anchor i becomes (z_i, τ Δ_i) and candidate j becomes (z_j, e_j) with a unit vector e_j. So
    s_ij = z_i·z_j / τ + Δ_ij for any loss of embeddings, and the derivative is that to Δ at 0.
    """
    size = len(z)
    candidates = jnp.concatenate([z, jnp.eye(size, dtype=z.dtype)], axis=1)
    ids = jnp.arange(size)

    def value(offset: jax.Array) -> jax.Array:
        anchors = jnp.concatenate([z, temperature * offset], axis=1)
        return loss(
            *(anchors, labels, candidates, labels), temperature=temperature, normalize=False,
            ids=ids, candidate_ids=ids, implementation="dense",
        )  # fmt: skip

    return jax.grad(value)(jnp.zeros((size, size), z.dtype))


def pair_counts(labels: LabelSets) -> NDArray[np.int64]:
    """Number of the ordered pairs of two different rows in each relation, [5]."""
    return pairs.pair_table(labels, label_sets.num_rows(labels)).totals()


def of_counts(counts: NDArray[Any]) -> Gradient:
    """As if each pair were pushed alike, and each that shares a label pulled alike."""
    repulsion = np.asarray(counts, np.float64)
    return Gradient(np.array([0.0, *repulsion[1:]]), repulsion)


def shares(values: NDArray[Any]) -> NDArray[np.float64]:
    """`values` [5] as shares of their sum; zeros of a sum of 0."""
    total = float(np.sum(values))
    return np.asarray(values, np.float64) / (total or 1.0)


def gradient_shares(counts: NDArray[Any], found: Mapping[str, Gradient]) -> Figure:
    """Shares of attraction and repulsion that go to each relation, a bar a loss.

    Above them how common the relations are: among the pairs that share a label, and among all.

    Args:
      counts: number of pairs in each relation, [5].
      found: by the names of the losses.
    """
    figure = figures.new_figure(1.5 + 0.3 * (1 + len(found)), 11.0)
    panels = figure.subplots(1, 2, sharey=True)
    names = [PAIRS, *(figures.drawable(name, 44) for name in found)]
    for axes, direction in zip(panels, DIRECTIONS, strict=True):
        bars = [getattr(each, direction) for each in (of_counts(counts), *found.values())]
        _stacked(axes, np.array([shares(bar) for bar in bars]))
        axes.axhline(0.5, color=figures.GRAY, linewidth=0.8)
        axes.set_xlabel(f"% of the {direction}", fontsize=9)
        figures.panel_title(axes, {"attraction": "pulled together", "repulsion": "pushed apart"}[
            direction])  # fmt: skip
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    for label in panels[0].get_yticklabels():
        label.set_parse_math(False)
    handles = panels[0].get_legend_handles_labels()[0]
    names = [style.name for style in figures.RELATIONS.values()]
    figure.legend(handles, names, loc="outside lower left", ncols=5, frameon=False, fontsize=8.5)
    return figure


def _stacked(axes: Axes, rows: NDArray[np.float64]) -> None:
    """A bar for each of the `rows` [N, 5] of shares."""
    left, places = np.zeros(len(rows)), np.arange(len(rows))
    for code, style in figures.RELATIONS.items():
        width = rows[:, code - 1]
        bars = axes.barh(places, width, 0.78, left=left, color=style.color, label=style.name)
        texts = [f"{100 * share:.0f}" if share >= _LEAST_TOLD else "" for share in width]
        color = "white" if code == 4 else "black"
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color=color)
        left += width
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
