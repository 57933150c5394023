"""What the two factors of the SD weight, and the place of the weight, change in a study."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from sdjax.study import statistics
from sdjax.study.statistics import Frame

FACTORS = ("any", "similarity_only", "dissimilarity_only", "sd")
# What sd becomes without a part of it.
REMOVED = {
    "dissimilarity_only": "without similarity (dissimilarity_only)",
    "similarity_only": "without dissimilarity (similarity_only)",
    "any": "without either (any)",
}
INSIDE = "weight inside the logarithm (form in)"
ALL_SETS = "mean of all"


def settings(frame: Frame, field: str = "loss.name") -> dict[str, dict[str, str]]:
    """{what else the methods are: {value of the field: method}}."""
    found: dict[str, dict[str, str]] = {}
    leaf = field.rpartition(".")[2]
    for method, value in dict(zip(frame["method"], frame[field], strict=True)).items():
        own = (value, f"{leaf}={value}", f"{field}={value}")
        rest = " ".join(word for word in method.split() if word not in own)
        found.setdefault(rest, {})[value] = method
    return found


def changes(frame: Frame, metric: str) -> Frame:
    """What the loss without a factor, or of the other form, changes in a metric from that of sd.

    Rows (data, change); columns "n" (seeds that both have), "difference" (mean over seeds and over
    what else the methods are), "low" and "high" (its interval over seeds). With several data sets
    the last rows are their mean, n is their number, and the interval is over them.

    Args:
      frame: of `sdjax.study.table.make`.
      metric: a column or a pattern, see `statistics.values`.
    """
    own = frame[frame["loss.name"].isin(FACTORS)] if "loss.name" in frame else frame[:0]
    values = statistics.values(own, metric)
    rows: dict[tuple[str, str], tuple[Any, ...]] = {}
    for change, pairs in _compared(own):
        known = [values[a] - values[b] for a, b in pairs if {a, b} <= set(values)]
        if not known:
            continue
        each: Frame = pd.concat(known, axis=1).mean(axis=1).dropna()
        for data, found in each.groupby(level="data", sort=False):
            rows[str(data), change] = _row(found)
        means: Frame = each.groupby(level="data", sort=False).mean()
        if len(means) > 1:
            rows[ALL_SETS, change] = _row(means)
    index = pd.MultiIndex.from_tuples(list(rows), names=["data", "change"])
    return pd.DataFrame(list(rows.values()), index, ["n", "difference", "low", "high"])


def _row(found: Frame) -> tuple[Any, ...]:
    return len(found), found.mean(), *statistics.interval(found.to_numpy())


def _compared(own: Frame) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """What is changed, and the pairs (changed, sd) of methods that differ in it alone."""
    if not len(own):
        return
    two = "loss.form" in own and own["loss.form"].nunique() > 1
    outside = own[own["loss.form"] == "out"] if two else own
    for loss, change in REMOVED.items():
        yield change, _pairs(settings(outside), loss, "sd")
    if two:
        yield INSIDE, _pairs(settings(own[own["loss.name"] == "sd"], "loss.form"), "in", "out")


def _pairs(found: Mapping[str, Mapping[str, str]], value: str, base: str) -> list[tuple[str, str]]:
    return [(each[value], each[base]) for each in found.values() if {value, base} <= each.keys()]
