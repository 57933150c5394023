"""Statistics against known cases and against scipy on the figures themselves."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sdjax.study import statistics


def make_frame(table, baselines=()):
    """Rows of runs: table[data][method] are figures, one a seed."""
    return pd.DataFrame(
        [
            {"data": d, "method": m, "seed": s, "test.mAP": value, "status": "done"}
            | {"baseline": m if m in baselines else ""}
            for d, methods in table.items()
            for m, found in methods.items()
            for s, value in enumerate(found)
        ]
    )


RNG = np.random.default_rng(0)
MEANS = {"sd": 0.6, "any": 0.58, "bce": 0.59}
TABLE = {d: {m: RNG.normal(mean, 0.01, 6) for m, mean in MEANS.items()} for d in "abcdefg"}
FRAME = make_frame(TABLE)


def test_means_deviations_and_intervals():
    found = statistics.summary(FRAME, "test.mAP")
    assert list(found.index[:3]) == [("a", "sd"), ("a", "any"), ("a", "bce")]
    row, x = found.loc[("b", "any")], TABLE["b"]["any"]
    assert (row["n"], row["mean"], row["std"]) == (6, x.mean(), x.std(ddof=1))
    assert x.min() < row["low"] < x.mean() < row["high"] < x.max()
    # Of many normal values the interval is that of the normal distribution.
    x = np.random.default_rng(1).normal(size=400)
    error = 1.96 * x.std(ddof=1) / 20
    expected = (x.mean() - error, x.mean() + error)
    assert statistics.interval(x) == pytest.approx(expected, abs=0.1 * error)


def test_intervals_at_the_edge():
    assert np.isnan(statistics.interval([0.5])).all()
    assert statistics.interval([0.5, 0.5]) == (0.5, 0.5)
    low, high = statistics.interval([0.4, 0.6])
    assert 0.4 <= low < high <= 0.6


def test_paired_tests_are_those_of_scipy_with_holms_correction():
    found = statistics.over_seeds(FRAME, "test.mAP", "bce")
    assert len(found) == 14
    expected = stats.ttest_rel(TABLE["c"]["sd"], TABLE["c"]["bce"]).pvalue
    assert found.loc[("c", "sd"), "p"] == pytest.approx(expected)
    over = statistics.over_data(FRAME, "test.mAP", "bce")
    means = {m: [TABLE[d][m].mean() for d in TABLE] for m in ("any", "bce")}
    assert over.loc["any", "p"].item() == stats.wilcoxon(means["any"], means["bce"]).pvalue
    assert over.loc["any", "n"].item() == 7
    np.testing.assert_allclose(over["p_holm"], np.minimum(statistics.holm(over["p"]), 1))


def test_holm():
    # Holm's procedure by hand: 4 × .005, 3 × .01, 2 × .03, and no less than the one before.
    np.testing.assert_allclose(
        statistics.holm([0.01, 0.04, math.nan, 0.03, 0.005]), [0.03, 0.06, math.nan, 0.06, 0.02]
    )
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1, 1])


def test_only_seeds_that_both_have_are_paired():
    table = {"sd": [0.5, 0.6, 0.7], "bce": [0.4, 0.55], "trees": [0.45]}
    frame = make_frame({"a": table}, ["trees"])
    frame.loc[0, "status"] = "failed"
    found = statistics.over_seeds(frame, "test.mAP", "bce")
    assert found.loc[("a", "sd"), ["n", "difference"]].tolist() == [1, pytest.approx(0.05)]
    assert math.isnan(found.loc[("a", "sd"), "p"])
    # Without a seed it has its one figure for all.
    assert found.loc[("a", "trees"), "n"] == 2
    assert statistics.summary(frame, "test.mAP").loc[("a", "trees"), "n"] == 1
    same = make_frame({"a": {"sd": [0.5, 0.6], "bce": [0.5, 0.6], "any": [0.75, 0.85]}})
    assert statistics.over_seeds(same, "test.mAP", "bce")["p"].tolist() == [1, pytest.approx(0)]


def test_ranks_and_the_critical_difference():
    # Demšar 2006, section 3.2.2: four classifiers on 14 data sets.
    assert statistics.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    # His table 5: k = 2, 3, 10.
    for k, q in ((2, 1.960), (3, 2.343), (10, 3.164)):
        found = statistics.critical_difference(k, 1) / math.sqrt(k * (k + 1) / 6)
        assert found == pytest.approx(q, abs=0.0011)
    found = statistics.ranks(FRAME, "test.mAP")
    means = pd.DataFrame({d: {m: x.mean() for m, x in TABLE[d].items()} for d in TABLE}).T
    expected = means.rank(axis=1, ascending=False).mean()
    assert found.average.to_dict() == expected.to_dict() and found.average.is_monotonic_increasing
    assert found.friedman == stats.friedmanchisquare(*means.to_numpy().T).pvalue
    assert (found.blocks, found.over, found.left_out) == (7, "data sets", ())


def test_ranks_at_the_edge():
    one = statistics.ranks(FRAME[FRAME["data"] == "a"], "test.mAP")
    assert (one.blocks, one.over) == (6, "seeds")
    lacking = FRAME[(FRAME["data"] != "a") | (FRAME["method"] != "any")]
    found = statistics.ranks(lacking, "test.mAP")
    assert found.left_out == ("any",) and math.isnan(found.friedman)
    alike = make_frame({d: {m: [0.5] for m in ("x", "y", "z")} for d in "ab"})
    assert statistics.ranks(alike, "test.mAP").friedman == 1
    assert statistics.ranks(FRAME[:0], "test.mAP") is None
    assert statistics.ranks(FRAME, "test.nothing") is None


def test_cliques():
    assert statistics.cliques([1.0, 1.5, 2.6, 3.0], 1.2) == [(0, 1), (1, 2), (2, 3)]
    assert statistics.cliques([1.0, 1.5, 2.6, 3.0], 2.0) == [(0, 3)]
    assert statistics.cliques([1.0, 3.0], 1.0) == []


def test_a_metric_by_a_pattern_and_in_any_order():
    frame = FRAME.rename(columns={"test.mAP": "ndcg_at_50"})
    frame["ndcg_at_48"] = np.where(frame["data"] == "a", 0.1, np.nan)
    frame.loc[frame["data"] == "a", "ndcg_at_50"] = np.nan
    found = statistics.values(frame.sample(frac=1, random_state=0), "ndcg_at_*")
    assert (found.loc["a"] == 0.1).all(axis=None)
    assert found.loc["b"]["sd"].tolist() == TABLE["b"]["sd"].tolist()
