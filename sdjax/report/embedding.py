"""Where the embeddings put the examples, seen from single anchors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from sdjax import label_sets, relations
from sdjax.label_sets import LabelSets
from sdjax.labels import Labels
from sdjax.report import figures, pairs

MAX_POINTS = 3000
MAX_CANDIDATES = 300  # anchors are chosen among these
MAX_ANCHORS = 4
ENOUGH = 20  # rows in a relation that make an anchor worth showing
SIMILARITY_ROWS = 1000

Floats = NDArray[np.floating]


def unit_rows(embeddings: NDArray[Any]) -> NDArray[np.float64]:
    """Rows scaled to unit length; zero rows stay zero."""
    rows = np.asarray(embeddings, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)


def has_collapsed(embeddings: NDArray[Any]) -> bool:
    """Whether all directions are the same, up to rounding in float32."""
    directions = unit_rows(embeddings)
    return bool(np.ptp(directions, axis=0).max(initial=0) < 1e-5)


def similarity_by_relation(
    labels: LabelSets, embeddings: NDArray[Any]
) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation of the cosine similarity in each relation that occurs."""
    rows = pairs.sample_rows(label_sets.num_rows(labels), SIMILARITY_ROWS)
    sample, directions = label_sets.take(labels, rows), unit_rows(np.asarray(embeddings)[rows])
    cosine = directions @ directions.T
    codes = np.where(np.eye(len(rows), dtype=bool), 0, pairs.relation_codes(sample, sample))
    result = {}
    for code in figures.RELATIONS:
        values = cosine[codes == code]
        if len(values):
            result[code] = float(values.mean()), float(values.std())
    return result


def _jaccard(labels: Labels) -> jax.Array:
    return relations.soft_jaccard(relations.overlap(labels, labels))


class Plane(NamedTuple):
    """The two main directions of the embeddings."""

    points: Floats  # [N, 2]
    explained: tuple[float, float]  # share of the variance along each


def plane(embeddings: NDArray[Any]) -> Plane:
    """Principal components of the unit-length rows; a missing second one is zero."""
    directions = unit_rows(embeddings)
    size = min(2, *directions.shape)
    pca = PCA(size, random_state=0)
    points = np.zeros((len(directions), 2))
    points[:, :size] = pca.fit_transform(directions)
    explained = [*map(float, pca.explained_variance_ratio_), 0.0]
    return Plane(points, (explained[0], explained[1]))


def choose_anchors(labels: LabelSets, at_most: int = MAX_ANCHORS) -> list[int]:
    """Rows that are worth looking from: many relations occur, and their label sets differ.

    A row scores by how many others stand to it in each of R2..R5, up to `ENOUGH`, less its largest
    Jaccard overlap with a row chosen before. Rows without a label, or with a label set that was
    chosen before, are passed over.
    """
    with_label = np.flatnonzero(label_sets.sizes(labels))
    candidates = with_label[pairs.sample_rows(len(with_label), MAX_CANDIDATES)]
    if not len(candidates):
        return []
    sets = label_sets.take(labels, candidates)
    codes = pairs.relation_codes(sets, labels)
    present = np.stack([(codes == code).sum(axis=1) for code in (2, 3, 4, 5)], axis=1)
    score = np.minimum(present / ENOUGH, 1).sum(axis=1)
    jaccard = pairs.compute(_jaccard, sets)
    chosen: list[int] = []
    closest = np.zeros(len(candidates))
    while len(chosen) < at_most and closest.min() < 1:
        worth = np.where(closest < 1, score - closest, -np.inf)
        best = int(worth.argmax())
        chosen.append(best)
        closest = np.maximum(closest, jaccard[best])
    return [int(candidates[i]) for i in chosen]


def embedding_map(
    labels: LabelSets, embeddings: NDArray[Any], names: Sequence[str]
) -> Figure | None:
    """The embeddings in a plane, once for each of some anchors, coloured by relation to it.

    Args:
      labels: multi-hot [N, C] or `LabelIndices` [N, L].
      embeddings: [N, D].
      names: C label names.

    Returns:
      The figure, or None when the embeddings have collapsed or no example has a label.
    """
    rows = pairs.sample_rows(label_sets.num_rows(labels), MAX_POINTS)
    labels, embeddings = label_sets.take(labels, rows), np.asarray(embeddings)[rows]
    anchors = choose_anchors(labels)
    if not anchors or len(rows) < 2 or has_collapsed(embeddings):
        return None
    flat = plane(embeddings)
    codes = pairs.relation_codes(label_sets.take(labels, np.array(anchors)), labels)
    columns = 3 if len(anchors) == 3 else min(2, len(anchors))
    lines = -(-len(anchors) // columns)
    panel = figures.WIDTH / max(columns, 2)
    figure = figures.new_figure(lines * (panel + 0.1) + 0.7, max(columns * panel, 7))
    grid = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"hspace": 0.03})
    for axes, anchor, code in zip(grid.flat, anchors, codes, strict=True):
        draw_relations(axes, flat.points, anchor, code)
        own = [names[int(c)] for c in np.flatnonzero(label_sets.rows(labels, anchor, anchor + 1))]
        figures.panel_title(axes, "anchor: " + figures.set_names(own, 40 if columns < 3 else 28))
    figure.supxlabel(f"component 1 ({flat.explained[0]:.0%} of the variance)", fontsize=9)
    figure.supylabel(f"component 2 ({flat.explained[1]:.0%})", fontsize=9)
    figure.legend(handles=legend(), loc="outside upper center", ncols=6, fontsize=8.5,
                  frameon=False, handletextpad=0.1, columnspacing=1.2)  # fmt: skip
    return figure


def draw_relations(axes: Axes, points: Floats, anchor: int, codes: NDArray[np.integer]) -> None:
    """The points [N, 2] of a map, coloured by their relation `codes` [N] to the anchor."""
    present = np.bincount(np.delete(codes, anchor), minlength=6)
    size = float(np.clip(12000 / len(points), 7, 30))
    # R1 lies below; of the others the rarer ones lie on top, and are larger where few.
    for code in (1, *sorted((2, 3, 4, 5), key=lambda code: -present[code])):
        style = figures.RELATIONS[code]
        at = (codes == code) & (np.arange(len(points)) != anchor)
        scale = 0.7 if code == 1 else 1.4 if present[code] > len(points) / 5 else 3.0
        axes.scatter(*points[at].T, s=scale * size, color=style.color, marker=style.marker,
                     alpha=0.85, edgecolor="white", linewidth=0.2)  # fmt: skip
    axes.plot(*points[anchor], "*", color="black", markersize=17, markeredgecolor="white",
              markeredgewidth=1.2)  # fmt: skip
    counts = "   ".join(f"R{code} {present[code]}" for code in figures.RELATIONS)
    axes.set_xlabel(counts, fontsize=8, color=figures.DARK_GRAY)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(figures.LIGHT_GRAY)


def legend() -> list[Line2D]:
    """What the marks of `draw_relations` stand for."""
    handles = [Line2D([], [], color="black", marker="*", markersize=12, linestyle="",
                      label="anchor")]  # fmt: skip
    return handles + [
        Line2D([], [], color=s.color, marker=s.marker, markersize=6, linestyle="", label=s.name)
        for s in figures.RELATIONS.values()
    ]
