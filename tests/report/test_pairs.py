"""Relations and weights counted over pairs."""

import numpy as np
import pytest

from sdjax.report import pairs

# Sets {0,1}, {0,1}, {2}, {1,2}, {0}, {}.
LABELS = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])


def slow_relation(s, t):
    if not s & t:
        return 1
    if s == t:
        return 2
    return 4 if t < s else 5 if s < t else 3


def slow_pairs(labels):
    sets = [frozenset(np.flatnonzero(row).tolist()) for row in labels]
    return [(s, t) for i, s in enumerate(sets) for j, t in enumerate(sets) if i != j]


@pytest.mark.parametrize("seed", range(3))
def test_totals_are_those_of_all_ordered_pairs(seed):
    labels = np.random.default_rng(seed).random((30, 4)) < 0.4
    expected = np.bincount([slow_relation(s, t) for s, t in slow_pairs(labels)], minlength=6)
    assert pairs.pair_table(labels).totals().tolist() == expected[1:].tolist()


def test_a_pair_of_a_row_with_itself_does_not_count():
    assert pairs.pair_table(np.eye(4)).totals().tolist() == [12, 0, 0, 0, 0]
    assert pairs.pair_table(np.ones((1, 2))).totals().tolist() == [0] * 5


def test_many_rows_are_sampled_and_always_the_same():
    labels = np.random.default_rng(0).random((500, 4)) < 0.4
    table, again = pairs.pair_table(labels, 100), pairs.pair_table(labels, 100)
    assert (table.rows, table.of_rows, table.count.sum()) == (100, 500, 100 * 99)
    assert table.totals().tolist() == again.totals().tolist()
    whole = pairs.pair_table(labels).totals() / (500 * 499)
    assert table.totals() / 9900 == pytest.approx(whole, abs=0.05)


def test_the_spread_of_a_weight_is_that_over_the_pairs():
    table = pairs.pair_table(LABELS)
    spreads = pairs.weight_spread(table, pairs.all_weights(table)["sd"])
    by_relation: dict[int, list[float]] = {}
    for s, t in slow_pairs(LABELS):
        weight = len(s & t) / max(len(s), 1) / (1 + len(t - s))
        by_relation.setdefault(slow_relation(s, t), []).append(weight)
    assert set(spreads) == set(by_relation)
    for code, weights in by_relation.items():
        spread = spreads[code]
        assert spread.low == pytest.approx(min(weights))
        assert spread.high == pytest.approx(max(weights))
        assert spread.mean == pytest.approx(np.mean(weights))
        quarters = np.quantile(weights, [0.25, 0.75], method="inverted_cdf")
        assert [spread.quarter, spread.three_quarters] == pytest.approx(quarters)


def test_the_jaccard_threshold_is_the_runs():
    table = pairs.pair_table(LABELS)
    assert pairs.all_weights(table, 0.0)["jaccard"].tolist() == pytest.approx(
        pairs.all_weights(table)["soft_jaccard"].tolist()
    )
    figure = pairs.relation_weights(table, "jaccard", 0.25)
    marked = [axes for axes in figure.axes if any(t.get_text() == "this run" for t in axes.texts)]
    assert [axes.get_title(loc="left") for axes in marked] == ["jaccard ≥ 0.25"]


def test_every_weight_has_a_panel_and_missing_relations_are_named():
    figure = pairs.relation_weights(pairs.pair_table(np.eye(3)[[0, 0, 1]]))
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == 8
    for axes in panels:
        assert sum(text.get_text() == "no pairs" for text in axes.texts) == 3


def test_shares_are_written_out():
    _, parts = pairs.relation_shares(pairs.pair_table(LABELS)).axes
    texts = [text.get_text() for text in parts.texts]
    # 14 of the 30 pairs share a label: 2 R2, 4 R3, 4 + 4 of R4 and R5.
    share = [sum(slow_relation(s, t) == code for s, t in slow_pairs(LABELS)) for code in (2, 3, 4)]
    positive = sum(slow_relation(s, t) > 1 for s, t in slow_pairs(LABELS))
    assert texts[:3] == [
        f"{100 * n / positive:.3g} %  ({100 * n / 30:.3g} % of all)" for n in share
    ]


@pytest.mark.parametrize("labels", [LABELS, np.ones((5, 2)), np.eye(3)[[0, 0, 1]]])
def test_percentages_end_at_100(labels):
    _, parts = pairs.relation_shares(pairs.pair_table(labels)).axes
    ticks = [*parts.get_xticks(), *parts.get_xticks(minor=True)]
    assert 0 <= min(ticks) < max(ticks) <= 100
    low, high = parts.spines["bottom"].get_bounds()
    assert (low, high <= 100) == (0, True)


def test_without_pairs_there_is_nothing_to_draw():
    table = pairs.pair_table(np.ones((1, 2)))
    assert pairs.relation_shares(table) is None
    assert pairs.relation_weights(table) is None
