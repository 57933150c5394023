"""Queries with their nearest neighbours: what an embedding takes to be alike."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdjax import label_sets
from sdjax.label_sets import LabelSets
from sdjax.report import figures, markdown, pairs

_TEXT = 240  # characters that are shown
_LINES = 4  # labels below a picture
_SIDE = 1.4  # inches of a picture


class Row(NamedTuple):
    """A row of the data.

    Attributes:
      name: its id, or its number in the file.
      labels: their names.
      content: an image [H, W, channels], a text, or None for what has no looks.
    """

    name: str
    labels: tuple[str, ...]
    content: Any = None


class Query(NamedTuple):
    """A row of test, and its nearest of train with their similarities, the nearest first."""

    row: Row
    nearest: tuple[Row, ...]
    similarities: tuple[float, ...]


def choose(labels: LabelSets, count: int) -> np.ndarray:
    """At most `count` rows that have a label, drawn at random, the same each time."""
    with_label = np.flatnonzero(label_sets.sizes(labels))
    return with_label[pairs.sample_rows(len(with_label), count)] if count else with_label[:0]


def sections(queries: Sequence[Query]) -> list[str]:
    """A table for each query: its neighbours' labels below its own, those they share in bold."""
    return [_table(query) for query in queries]


def _table(query: Query) -> str:
    own = set(query.row.labels)
    texts = isinstance(query.row.content, str)
    rows = [[f"test {markdown.plain(query.row.name)}", "", "", _names(query.row.labels, set())]]
    for row, similarity in zip(query.nearest, query.similarities, strict=True):
        either = len(own | set(row.labels))
        jaccard = len(own & set(row.labels)) / either if either else 0.0
        cells = [markdown.plain(row.name), f"{similarity:.3f}", f"{jaccard:.2f}"]
        rows.append([*cells, _names(row.labels, own)])
    header = ["row", "cosine", "Jaccard", "labels"]
    if texts:
        header.append("text")
        for cells, row in zip(rows, (query.row, *query.nearest), strict=True):
            cells.append(_shortened(row.content))
    marks = [":--", "--:", "--:", *[":--"] * (len(header) - 3)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, marks, *rows])


def _names(labels: Sequence[str], shared: set[str]) -> str:
    """Shared labels come first, in bold."""
    if not labels:
        return "*no label*"
    ordered = sorted(labels, key=lambda name: name not in shared)
    plain = [(markdown.plain(name), name in shared) for name in ordered]
    return ", ".join(f"**{name}**" if bold else name for name, bold in plain)


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return markdown.plain(line if len(line) <= _TEXT else line[: _TEXT - 1].rstrip() + "…")


def pictures(queries: Sequence[Query]) -> Figure | None:
    """The queries' images, to the left, and beside each those of its neighbours; None of others."""
    if not queries or np.ndim(queries[0].row.content) != 3:
        return None
    columns = 1 + max(len(query.nearest) for query in queries)
    width = max(columns * (_SIDE + 0.1), 7)
    figure = figures.new_figure(len(queries) * (_SIDE + 0.65) + 0.2, width)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, query in zip(grid, queries, strict=True):
        own = set(query.row.labels)
        _draw(line[0], query.row, "test", own)
        for axes, row, cosine in zip(line[1:], query.nearest, query.similarities, strict=False):
            _draw(axes, row, f"{cosine:.3f}", own)
    return figure


def _draw(axes: Axes, row: Row, title: str, shared: set[str]) -> None:
    image = np.asarray(row.content, np.float64)
    low, high = (0.0, 255.0) if row.content.dtype == np.uint8 else (image.min(), image.max())
    image = (image - low) / max(high - low, 1e-12)
    axes.imshow(
        image[..., 0] if image.shape[-1] < 3 else image[..., :3], cmap="gray", vmin=0, vmax=1
    )
    figures.panel_title(axes, title)
    ordered = sorted(row.labels, key=lambda name: name not in shared)
    shown = ordered if len(ordered) <= _LINES else ordered[: _LINES - 1]
    lines = [(figures.drawable(name, 18), name in shared) for name in shown]
    if len(ordered) > len(shown):
        lines.append((f"+{len(ordered) - len(shown)} more", False))
    for place, (text, bold) in enumerate(lines or [("no label", False)]):
        axes.annotate(
            text,
            *((0, 0), (0, -3 - 9 * place)),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=7,
            parse_math=False,
            color=figures.GREEN if bold else figures.DARK_GRAY,
            fontweight="bold" if bold else "normal",
        )
