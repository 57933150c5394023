"""Log-log pictures of measurements."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from peers.case import Case
from peers.schedule import Measurement
from peers.subjects import BY_NAME

TYPICAL_CLASSES = 80
Number = Callable[[Measurement], float | None]


def write_plots(measurements: list[Measurement], folder: Path) -> list[Path]:
    """Time and memory against B, time against C."""
    over_batch, over_labels = _over_batch(measurements), _over_labels(measurements)
    plots = (
        ("time_by_batch.png", "seconds", "batch B", over_batch, _seconds, _batch),
        ("memory_by_batch.png", "peak GiB above the inputs", "batch B", over_batch, _gib, _batch),
        ("time_by_labels.png", "seconds", "labels C", over_labels, _seconds, _num_classes),
    )
    paths = []
    for name, y_label, x_label, chosen, number, size in plots:
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _lines(axes, chosen, number, size)
        axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        sizes = sorted({size(m.case) for m in chosen})
        axes.set_xticks(sizes, labels=[f"{x:,}" for x in sizes])
        axes.minorticks_off()
        if axes.lines:
            figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        figure.savefig(folder / name, dpi=130)
        paths.append(folder / name)
    return paths


def _lines(axes, measurements: list[Measurement], number: Number, size: Callable[[Case], int]):
    """One line a subject: ours thick, the others dashed."""
    markers = itertools.cycle("osD^v<>PX")
    for name, subject in BY_NAME.items():
        points = [(size(m.case), number(m)) for m in measurements if m.subject == name]
        points = sorted((x, y) for x, y in points if y is not None and y > 0)
        if not points or not subject.plotted:
            continue
        ours = name.startswith("sdjax")
        style = {"linestyle": "-" if ours else "--", "linewidth": 2.2 if ours else 1.2}
        axes.plot(*zip(*points, strict=True), label=name, marker=next(markers), ms=4, **style)


def _seconds(m: Measurement) -> float | None:
    return m.median_seconds


def _gib(m: Measurement) -> float | None:
    peak = m.facts.get("peak_bytes")
    return None if peak is None else peak / 2**30


def _batch(case: Case) -> int:
    return case.batch


def _num_classes(case: Case) -> int:
    return case.num_classes


def _over_batch(measurements: list[Measurement]) -> list[Measurement]:
    """For each B, the case whose number of labels is nearest to the typical one."""
    best: dict[int, int] = {}
    for m in measurements:
        known = best.setdefault(m.case.batch, m.case.num_classes)
        best[m.case.batch] = min(known, m.case.num_classes, key=_distance)
    return [m for m in measurements if m.case.num_classes == best[m.case.batch]]


def _distance(num_classes: int) -> float:
    return abs(math.log(num_classes / TYPICAL_CLASSES))


def _over_labels(measurements: list[Measurement]) -> list[Measurement]:
    """The cases of the B that comes with the most numbers of labels."""
    sizes: dict[int, set[int]] = {}
    for m in measurements:
        sizes.setdefault(m.case.batch, set()).add(m.case.num_classes)
    batch = max(sizes, key=lambda b: (len(sizes[b]), b))
    return [m for m in measurements if m.case.batch == batch]
