"""Learning curves from the records of metrics.jsonl."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec

from sdjax.config import SUPERVISED
from sdjax.report import figures

Record = Mapping[str, Any]

VALIDATION_METRICS = {"mAP": figures.BLUE, "micro_f1": figures.ORANGE, "macro_f1": figures.GREEN}
COMPONENTS = ("contrastive", *SUPERVISED)
SMOOTH_FROM = 60  # points from which a running mean is drawn
LOSS_PANELS_A_ROW = 3


class Panel(NamedTuple):
    """One loss of one phase."""

    phase: str
    key: str
    title: str


def learning_curves(history: Sequence[Record], tested_step: int | None = None) -> Figure | None:
    """Training loss, a panel a phase and component, above the validation metrics.

    Args:
      history: records with "step", "phase", "split" and numbers.
      tested_step: step of the last phase that the test results are of; marked where it is known.

    Returns:
      The figure, or None when no record holds a loss or a validation metric.
    """
    records = timeline(history)
    panels = _loss_panels(records)
    metrics = [name for name in VALIDATION_METRICS if _points(records, "validation", name)]
    if not panels and not metrics:
        return None
    columns = max(1, min(LOSS_PANELS_A_ROW, len(panels)))
    loss_rows = -(-len(panels) // columns)
    rows = loss_rows + bool(metrics)
    figure = figures.new_figure(2.7 * rows + 0.2)
    grid = GridSpec(rows, columns, figure=figure)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        _draw_loss(axes, [r for r in records if r["phase"] == panel.phase], panel)
    if metrics:
        tested = None if tested_step is None else tested_step + records[-1]["moved"]
        _draw_validation(figure.add_subplot(grid[loss_rows, :]), records, metrics, tested)
    return figure


def timeline(history: Sequence[Record]) -> list[dict[str, Any]]:
    """The records in order of a step that never starts again.

    Records of one phase, split and step are one: a resumed run repeats some, and the later
    values hold. A phase that counts its steps from the start is moved behind the one before, by
    as many steps as its records then hold under "moved".
    Records without a step are left out.
    """
    merged: dict[tuple[str, str, int], dict[str, Any]] = {}
    for record in history:
        if not isinstance(record.get("step"), int | float):
            continue
        phase, split = str(record.get("phase", "training")), str(record.get("split", "train"))
        known = merged.setdefault((phase, split, int(record["step"])), {})
        known.update({**record, "phase": phase, "split": split})
    result: list[dict[str, Any]] = []
    end = -math.inf
    for phase in dict.fromkeys(phase for phase, _, _ in merged):
        part = sorted((r for r in merged.values() if r["phase"] == phase), key=_step)
        offset = end if _step(part[0]) < end else 0
        result += [{**record, "step": record["step"] + offset, "moved": offset} for record in part]
        end = _step(result[-1])
    return result


def _step(record: Record) -> float:
    return record["step"]


def _points(records: Sequence[Record], split: str, key: str) -> list[tuple[float, float]]:
    """(step, value) of the records of `split` that hold a finite number under `key`."""
    return [
        (r["step"], float(r[key]))
        for r in records
        if r["split"] == split and isinstance(r.get(key), int | float) and math.isfinite(r[key])
    ]


def _loss_panels(records: Sequence[Record]) -> list[Panel]:
    """The total loss of each phase, and its components where there is more than one."""
    panels = []
    for phase in dict.fromkeys(r["phase"] for r in records):
        own = [r for r in records if r["phase"] == phase]
        parts = [key for key in COMPONENTS if _points(own, "train", key)]
        total = ["loss"] if _points(own, "train", "loss") else []
        if len(parts) == 1 and total:
            name = "loss" if parts[0] == phase else f"{parts[0]} loss"
            panels.append(Panel(phase, "loss", f"{phase}: {name}"))
        else:
            keys = [*total, *parts]
            titles = {"loss": "total loss" if parts else "loss"}
            panels += [Panel(phase, k, f"{phase}: {titles.get(k, f'{k} loss')}") for k in keys]
    return panels


def _draw_loss(axes: Axes, records: Sequence[Record], panel: Panel) -> None:
    steps, values = np.array(_points(records, "train", panel.key)).T
    style = {"color": figures.BLUE, "linewidth": 1.5, "label": "train"}
    if len(values) >= SMOOTH_FROM:
        axes.plot(steps, values, color=figures.BLUE, alpha=0.35, linewidth=0.8)
        axes.plot(*_running_mean(steps, values), **style)
    else:
        axes.plot(steps, values, **style, marker="." if len(values) < 30 else "")
    validation = _points(records, "validation", panel.key)
    if validation:
        axes.plot(*np.array(validation).T, color=figures.VERMILION, marker=".", label="validation")
        axes.legend(fontsize=8, frameon=False)
    figures.panel_title(axes, figures.drawable(panel.title, 36))
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.08)
    figures.tidy(axes, "both")


def _running_mean(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    width = max(5, len(values) // 40)
    window = np.full(width, 1 / width)
    middle = (width - 1) // 2
    return steps[middle : middle + len(values) - width + 1], np.convolve(values, window, "valid")


def _draw_validation(
    axes: Axes, records: Sequence[Record], metrics: Sequence[str], tested: float | None
) -> None:
    phases = {r["phase"] for r in records if r["split"] == "validation"}
    records = [r for r in records if r["phase"] in phases]
    _mark_phases(axes, records)
    for name in metrics:
        steps, values = np.array(_points(records, "validation", name)).T
        marker = "o" if len(values) <= 40 else ""
        axes.plot(
            steps, values, color=VALIDATION_METRICS[name], marker=marker, markersize=4, label=name
        )
        if name == "mAP":
            best = int(values.argmax())
            label = f"best mAP {values[best]:.3f} (step {steps[best]:.0f})"
            star = {"marker": "*", "markersize": 13, "markeredgecolor": "white", "linestyle": ""}
            axes.plot(steps[best], values[best], color=figures.BLUE, label=label, **star)
    if tested is not None:
        line = {"color": figures.DARK_GRAY, "linestyle": "--", "linewidth": 1.2, "zorder": 1}
        axes.axvline(tested, label="tested", **line)
    phase = f" ({figures.drawable(phases.pop(), 20)})" if len(phases) == 1 else ""
    figures.panel_title(axes, f"validation{phase}")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.2)
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.98),
        ncols=5,
        columnspacing=1.2,
    )
    figures.tidy(axes, "both")


def _mark_phases(axes: Axes, records: Sequence[Record]) -> None:
    """Shades every second phase, and names each at the top of its stretch."""
    phases = list(dict.fromkeys(r["phase"] for r in records))
    if len(phases) < 2:
        return
    start = min(r["step"] for r in records)
    for i, phase in enumerate(phases):
        end = max(r["step"] for r in records if r["phase"] == phase)
        axes.axvspan(start, end, color="#F3F3F3" if i % 2 else "white", linewidth=0, zorder=0)
        axes.annotate(
            figures.drawable(phase, 20),
            ((start + end) / 2, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            fontweight="bold",
            color=figures.GRAY,
            parse_math=False,
        )
        start = end
