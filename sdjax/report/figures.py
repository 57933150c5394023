"""What all figures share: canvas, colours, and text that is safe to draw.

Figures are built through matplotlib's objects, never pyplot: nothing global is changed.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

DPI = 110
WIDTH = 9.0  # inches
BLUE, ORANGE, GREEN, PURPLE, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
GRAY, LIGHT_GRAY, DARK_GRAY = "#8A8A8A", "#D0D0D0", "#404040"


class RelationStyle(NamedTuple):
    """How one of the five relations is named and drawn."""

    name: str
    meaning: str
    color: str
    marker: str


# Okabe and Ito's colours, told apart by colour-blind readers too; markers differ as well.
RELATIONS = {
    1: RelationStyle("R1 disjoint", "no label in common", LIGHT_GRAY, "o"),
    2: RelationStyle("R2 identical", "the same labels", GREEN, "D"),
    3: RelationStyle("R3 overlapping", "some in common, each has others", ORANGE, "o"),
    4: RelationStyle("R4 subset", "the candidate has some of the anchor's labels", BLUE, "v"),
    5: RelationStyle("R5 superset", "the candidate has the anchor's labels and more", PURPLE, "^"),
}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, `width` by `height` inches, that arranges its axes by itself."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes `figure` as PNG."""
    figure.savefig(path, format="png", facecolor="white")


def tidy(axes: Axes, grid: str = "y") -> None:
    """Takes off the box and draws a faint grid along `grid` ("x", "y" or "both")."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, color="#EBEBEB", linewidth=0.8)  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def panel_title(axes: Axes, text: str, bold: bool = False) -> None:
    """A left-aligned title that takes dollar signs literally."""
    weight = "bold" if bold else "normal"
    axes.set_title(text, loc="left", fontsize=10, fontweight=weight, parse_math=False)


def drawable(text: str, width: int = 28) -> str:
    """`text` on one line, at most `width` characters, without glyphs that the font lacks."""
    line = " ".join(str(text).split())
    shown = "".join(ch if ord(ch) in _glyphs() else "□" for ch in line)
    return shown if len(shown) <= width else shown[: width - 1].rstrip() + "…"


def set_names(names: Sequence[str], width: int = 44) -> str:
    """The names of one label set, shortened to about `width` characters."""
    if not names:
        return "no label"
    shown: list[str] = []
    width -= 9 if len(names) > 1 else 0  # room for the rest
    for name in names:
        name = drawable(name, width)
        if shown and len(", ".join([*shown, name])) > width:
            break
        shown.append(name)
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" +{more} more" if more else "")


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points of the font that matplotlib ships."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(font_manager.get_font(str(path)).get_charmap())
