"""Markdown tables of measurements."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from peers.case import Case
from peers.schedule import Measurement
from peers.subjects import BASELINE, BY_NAME

Cell = Callable[[Measurement], str]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    align = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    lines = [header, align, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def seconds_text(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def bytes_text(number: float) -> str:
    mebibytes = number / 2**20
    if mebibytes < 1024:
        return f"{mebibytes:,.3g} MiB" if mebibytes < 100 else f"{mebibytes:,.0f} MiB"
    return f"{mebibytes / 1024:.3g} GiB"


def report(measurements: list[Measurement], machine: dict[str, Any]) -> str:
    """All tables, with what they mean."""
    by_case: dict[tuple[str, str], Measurement] = {}
    for m in measurements:
        by_case[m.subject, str(m.case)] = m
    parts = ["# Losses: speed and memory\n", _machine_text(machine)]
    for title, text, cell in (
        ("Time of value and gradient", _TIME, _time_cell),
        ("Times the time of " + BASELINE, _RATIO, _ratio_cell(by_case)),
        ("Peak memory above the inputs", _MEMORY, _memory_cell),
    ):
        parts += [f"\n## {title}\n", text, _grid(measurements, by_case, cell)]
    parts += ["\n## Same loss?\n", _CHECK, _checks(measurements)]
    notes = _notes(measurements)
    if notes:
        parts += ["\n## Not measured\n", notes]
    return "\n".join(parts)


_TIME = (
    "Median over rounds, and the least of all calls. Labels enter each call as the batch has them "
    "(indices or multi-hot), and weights and masks are made from them within it. "
    "† other programs took part of the machine.\n"
)
_RATIO = "Median over rounds of the ratio within a round; above 1 is slower.\n"
_MEMORY = (
    "Growth of the process during a call, and what the compiler planned (temporaries and "
    "outputs).\n"
)
_CHECK = (
    "Relative errors against each subject's own loss in float64, at the smallest size: a check "
    "that each computes what it says.\n"
)


def _machine_text(machine: dict[str, Any]) -> str:
    return "; ".join(f"{key}: {value}" for key, value in machine.items()) + "\n"


def _names(measurements: list[Measurement]) -> list[str]:
    present = {m.subject for m in measurements}
    return [name for name in BY_NAME if name in present]


def _cases(measurements: list[Measurement]) -> list[Case]:
    return list({str(m.case): m.case for m in measurements}.values())


def _grid(
    measurements: list[Measurement], by_case: dict[tuple[str, str], Measurement], cell: Cell
) -> str:
    cases = _cases(measurements)
    rows = []
    for name in _names(measurements):
        row = [name]
        for case in cases:
            m = by_case.get((name, str(case)))
            row.append("" if m is None else cell(m))
        rows.append(row)
    return markdown(["", *map(str, cases)], rows)


def _failed(m: Measurement) -> str:
    return m.status.split(":")[0] if m.status != "ok" else "–"


def _time_cell(m: Measurement) -> str:
    if m.median_seconds is None or m.min_seconds is None:
        return _failed(m)
    mark = " †" if m.disturbed else ""
    return f"{seconds_text(m.median_seconds)} ({seconds_text(m.min_seconds)}){mark}"


def _ratio_cell(by_case: dict[tuple[str, str], Measurement]) -> Cell:
    def cell(m: Measurement) -> str:
        base = by_case.get((BASELINE, str(m.case)))
        if base is None or not m.rounds or not base.rounds:
            return _failed(m)
        pairs = zip(m.rounds, base.rounds, strict=False)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"

    return cell


def _memory_cell(m: Measurement) -> str:
    peak, planned = m.facts.get("peak_bytes"), m.facts.get("compiled_bytes")
    text = _failed(m) if peak is None else bytes_text(peak)
    return text if planned is None else f"{text} (compiler {bytes_text(planned)})"


def _checks(measurements: list[Measurement]) -> str:
    rows = []
    for m in measurements:
        loss = BY_NAME[m.subject].loss
        if "value_error" in m.facts and loss is not None:
            errors = (f"{m.facts[key]:.1e}" for key in ("value_error", "gradient_error"))
            rows.append([m.subject, str(loss), *errors])
    return markdown(["", "loss", "error of value", "error of gradient"], rows, text_columns=2)


def _notes(measurements: list[Measurement]) -> str:
    lines = [f"- {m.subject}, {m.case}: {m.status}" for m in measurements if m.status != "ok"]
    return "\n".join(lines) + "\n" if lines else ""
