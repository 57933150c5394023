"""What the runs of a study say with which certainty: intervals, paired tests, ranks.

Over seeds the data are the same: intervals and tests tell how much of a difference is chance in
training (initialisation, order, dropout). Whether it holds on other data is for the tests over data
sets to say.
"""

import fnmatch
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
Frame = Any  # a pd.DataFrame, of whose results pyright knows too little
_ROUNDING = 1e-12  # of figures of about 1


def values(frame: Frame, metric: str) -> Frame:
    """The figures of a metric, a row for each (data, seed), a column for each method.

    A model that has no seed, and so one row a data set, has that figure for each seed.

    Args:
      frame: of `sdjax.study.table.make`.
      metric: a column, or a pattern such as "retrieval.h.ndcg_at_*": of the columns that fit, the
        first that a run has.
    """
    done = frame[frame["status"] == "done"] if len(frame) else frame
    found = done[[name for name in ("data", "method", "seed", "baseline") if name in done]].copy()
    found["value"] = column(done, metric)
    if found["value"].isna().all():
        return pd.DataFrame()
    methods = list(dict.fromkeys(found["method"]))
    sets = list(dict.fromkeys(found["data"]))
    table = found.pivot_table("value", ["data", "seed"], "method", sort=False, dropna=False)
    table = table.reindex(columns=methods).sort_index(level="seed").reindex(sets, level="data")
    for name in found.loc[found["baseline"] != "", "method"].unique():
        for each in sets:
            known = table.loc[each, name].dropna()
            if len(known) == 1:
                table.loc[each, name] = known.iloc[0]
    return table.dropna(how="all").dropna(axis=1, how="all")


def column(frame: Frame, metric: str) -> Frame:
    """The figures of a metric, a row a run; NaN where a run has none. See `values`."""
    columns = [name for name in frame.columns if fnmatch.fnmatch(name, metric)]
    if not columns:
        return pd.Series(math.nan, frame.index)
    return frame[columns].astype(float).bfill(axis=1).iloc[:, 0]


def summary(frame: Frame, metric: str) -> Frame:
    """Mean, standard deviation and bootstrap interval over seeds, a row for each (data, method).

    Columns: "n", "mean", "std" (of the sample; NaN of one), "low", "high" (see `interval`).
    """
    rows = {}
    runs = frame.assign(value=column(frame, metric)).dropna(subset="value")
    runs = runs[runs["status"] == "done"]
    for (data, method), each in runs.groupby(["data", "method"], sort=False)["value"]:
        found = each.to_numpy()
        std = found.std(ddof=1) if len(found) > 1 else math.nan
        rows[data, method] = (len(found), found.mean(), std, *interval(found))
    index = pd.MultiIndex.from_tuples(list(rows), names=["data", "method"])
    return pd.DataFrame(list(rows.values()), index, ["n", "mean", "std", "low", "high"])


def interval(sample: ArrayLike) -> tuple[float, float]:
    """The 95 % interval of the mean by the bootstrap (BCa); NaN of fewer than two values.

    References:
      Efron, Better bootstrap confidence intervals, JASA 1987.
    """
    return _interval(tuple(np.asarray(sample, float).tolist()))


@functools.lru_cache(maxsize=1 << 16)  # The same intervals stand in figures, tables and tests.
def _interval(sample: tuple[float, ...]) -> tuple[float, float]:
    x = np.array(sample)
    if len(x) < 2:
        return math.nan, math.nan
    if np.ptp(x) <= _ROUNDING:
        return float(x[0]), float(x[0])
    found = stats.bootstrap(
        (x,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def over_seeds(frame: Frame, metric: str, reference: str) -> Frame:
    """Each method against the reference on each data set, by a paired t-test over seeds.

    Rows (data, method); columns "n" (seeds that both have), "difference" (mean), "low", "high" (its
    interval), "p", and "p_holm", corrected for all tests of the table.
    """
    rows = {}
    for data, each in values(frame, metric).groupby(level="data", sort=False):
        for method in each.columns:
            if reference not in each.columns or method == reference:
                continue
            difference = (each[method] - each[reference]).dropna().to_numpy()
            if len(difference):
                ends, p = interval(difference), _t_test(difference)
                rows[data, method] = (len(difference), difference.mean(), *ends, p)
    return _tested(rows, ["data", "method"])


def _t_test(difference: NDArray[np.floating]) -> float:
    if len(difference) < 2:
        return math.nan
    if np.ptp(difference) <= _ROUNDING:
        return 1.0 if abs(difference[0]) <= _ROUNDING else 0.0
    return _p_value(stats.ttest_1samp(difference, 0.0))


def _p_value(result: Any) -> float:
    return float(result.pvalue)


def over_data(frame: Frame, metric: str, reference: str) -> Frame:
    """Each method against the reference by Wilcoxon's signed-rank test over data sets.

    Of each data set the mean over the seeds counts. Rows are methods, columns as of `over_seeds`.

    References:
      Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006.
    """
    means = values(frame, metric).groupby(level="data", sort=False).mean()
    rows = {}
    for method in means.columns:
        if reference not in means.columns or method == reference:
            continue
        difference = (means[method] - means[reference]).dropna().to_numpy()
        if len(difference):
            p = math.nan
            if len(difference) > 1:
                p = _p_value(stats.wilcoxon(difference)) if difference.any() else 1.0
            rows[(method,)] = (len(difference), difference.mean(), *interval(difference), p)
    return _tested(rows, ["method"])


def _tested(rows: dict[tuple[str, ...], tuple[Any, ...]], names: list[str]) -> Frame:
    index = pd.MultiIndex.from_tuples(list(rows), names=names)
    table = pd.DataFrame(list(rows.values()), index, ["n", "difference", "low", "high", "p"])
    table["p_holm"] = holm(table["p"])
    return table


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """P-values corrected for their number; NaN, of what was not tested, stays and does not count.

    The i-th smallest of m becomes the largest of (m - j + 1) p_j over j ≤ i, at most 1.

    References:
      Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    given = np.asarray(p, np.float64)
    result = np.full(given.shape, math.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(factors * given[order]), 1)
    return result


class Ranks(NamedTuple):
    """How methods rank on the same blocks.

    Attributes:
      average: mean rank of each method, 1 the best, in order.
      blocks: number of data sets, or of seeds where there is one data set.
      over: "data sets" or "seeds".
      friedman: p-value of the hypothesis that all are alike; NaN of fewer than three methods.
      critical_difference: of two mean ranks, at a level of 0.05 (Nemenyi); NaN likewise.
      left_out: methods that lack a block.
    """

    average: Any  # a pd.Series
    blocks: int
    over: str
    friedman: float
    critical_difference: float
    left_out: tuple[str, ...]


def ranks(frame: Frame, metric: str) -> Ranks | None:
    """The ranks of the methods that have a figure on every data set; None of fewer than two.

    Blocks are data sets, by their means over seeds; with one data set its seeds.

    References:
      Friedman, The use of ranks to avoid the assumption of normality, 1937; Nemenyi, 1963; Demšar,
      JMLR 2006.
    """
    table = values(frame, metric)
    if not len(table):
        return None
    means = table.groupby(level="data", sort=False).mean()
    over = "data sets"
    if len(means) == 1:
        means, over = table, "seeds"
    complete = means.dropna(axis=1)
    if complete.shape[1] < 2:
        return None
    n, k = complete.shape
    # Nothing is told apart by differences that are rounding.
    each = complete.round(12).rank(axis=1, ascending=False)
    average = each.mean().sort_values(kind="stable")
    friedman = critical = math.nan
    if k > 2 and n > 1:
        # All ranks tied: nothing differs, and the statistic is 0/0.
        alike = bool((each.std(axis=1) == 0).all())
        friedman = 1.0 if alike else _p_value(stats.friedmanchisquare(*complete.to_numpy().T))
        critical = critical_difference(k, n)
    left_out = tuple(name for name in means.columns if name not in complete.columns)
    return Ranks(average, n, over, friedman, critical, left_out)


def critical_difference(methods: int, blocks: int, level: float = 0.05) -> float:
    """q √(k (k + 1) / (6 N)), with q the studentised range over √2 (Nemenyi)."""
    q = stats.studentized_range.ppf(1 - level, methods, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(methods * (methods + 1) / (6 * blocks)))


def cliques(average: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """First and last place of the largest groups of ranks, in order, that are not told apart."""
    found: list[tuple[int, int]] = []
    for first in range(len(average)):
        last = first
        while last + 1 < len(average) and average[last + 1] - average[first] <= critical:
            last += 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
