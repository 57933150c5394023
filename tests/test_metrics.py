"""sdjax.metrics against the definitions written out, against scikit-learn, and in corner cases."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sdjax import metrics

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 6))
# Few distinct scores, so that ties are common.
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0])


@st.composite
def splits(draw):
    shape = draw(SHAPES)
    labels = draw(hnp.arrays(np.int8, shape, elements=st.integers(0, 1)))
    return labels, draw(hnp.arrays(np.float64, shape, elements=SCORES))


def random_split(seed, examples=60, labels=7, rate=0.4, levels=20):
    rng = np.random.default_rng(seed)
    truth = (rng.random((examples, labels)) < rate).astype(np.int8)
    return truth, np.clip(rng.integers(0, levels, truth.shape) / levels + 0.05 * truth, 0, 1)


def slow_ap(truth, scores):
    positives, area, recall = truth.sum(), 0.0, 0.0
    if positives == 0:
        return None
    for threshold in sorted(set(scores), reverse=True):
        kept = scores >= threshold
        hits = truth[kept].sum()
        area += (hits / positives - recall) * hits / kept.sum()
        recall = hits / positives
    return area


def slow_auc(truth, scores):
    pairs = [(p, n) for p in scores[truth == 1] for n in scores[truth == 0]]
    if not pairs:
        return None
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


def slow_f1(truth, predicted) -> Any:
    hits = sum(t and p for t, p in zip(truth, predicted, strict=True))
    size = sum(map(bool, truth)) + sum(map(bool, predicted))
    return 2 * hits / size if size else None


def slow_ranking_loss(truth, scores):
    pairs = [(p, n) for p in scores[truth == 1] for n in scores[truth == 0]]
    return sum(p <= n for p, n in pairs) / len(pairs) if pairs else None


def slow_lrap(truth, scores):
    true = scores[truth == 1]
    if len(true) in (0, len(truth)):
        return None
    return np.mean([(true >= s).sum() / (scores >= s).sum() for s in true])


def slow_precision_at(k, truth, scores):
    """Mean over every order in which ties may fall."""
    if not truth.any():
        return None
    precisions = []
    for order in itertools.permutations(range(len(truth))):
        best = sorted(order, key=lambda c: -scores[c])[:k]
        precisions.append(truth[best].mean())
    return np.mean(precisions)


def mean_of(values):
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def slow_evaluate(truth, scores, threshold):
    predicted, columns = scores >= threshold, range(truth.shape[1])
    rows = range(len(truth))
    f1 = [slow_f1(truth[:, c], predicted[:, c]) if truth[:, c].any() else None for c in columns]
    example_f1 = [slow_f1(truth[i], predicted[i]) for i in rows]
    return {
        "mAP": mean_of([slow_ap(truth[:, c], scores[:, c]) for c in columns]),
        "micro_f1": slow_f1(truth.ravel(), predicted.ravel()),
        "macro_f1": mean_of(f1),
        "example_f1": np.mean([1.0 if f is None else f for f in example_f1]),
        "micro_auc": slow_auc(truth.ravel(), scores.ravel()),
        "macro_auc": mean_of([slow_auc(truth[:, c], scores[:, c]) for c in columns]),
        "ranking_loss": mean_of([slow_ranking_loss(truth[i], scores[i]) for i in rows]),
        "lrap": mean_of([slow_lrap(truth[i], scores[i]) for i in rows]),
        "hamming_loss": np.mean([truth[i, c] != predicted[i, c] for i in rows for c in columns]),
        "subset_accuracy": np.mean([(truth[i] == predicted[i]).all() for i in rows]),
        **{
            f"p_at_{k}": mean_of([slow_precision_at(k, truth[i], scores[i]) for i in rows])
            for k in (1, 3, 5)
            if k <= truth.shape[1]
        },
    }


@settings(max_examples=60, deadline=None)
@given(splits(), st.sampled_from([0.25, 0.5, 0.6]))
def test_evaluate_equals_the_definitions(split, threshold):
    labels, scores = split
    got = metrics.evaluate(labels, scores, threshold)
    expected = slow_evaluate(labels, scores, threshold)
    assert set(got) == {*expected, "counts"}
    for name, value in expected.items():
        if value is None:
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(value, abs=1e-12), name
    json.dumps(got, allow_nan=False)


def test_labels_without_a_positive_or_a_negative_are_left_out_and_counted():
    labels, scores = random_split(1)
    labels[:, 2], labels[:, 4] = 0, 1
    got = metrics.evaluate(labels, scores)
    with_positive, with_both = [0, 1, 3, 4, 5, 6], [0, 1, 3, 5, 6]
    assert got["mAP"] == pytest.approx(
        np.mean([slow_ap(labels[:, c], scores[:, c]) for c in with_positive])
    )
    assert got["macro_f1"] == pytest.approx(
        np.mean([slow_f1(labels[:, c], scores[:, c] >= 0.5) for c in with_positive])
    )
    assert got["macro_auc"] == pytest.approx(
        np.mean([slow_auc(labels[:, c], scores[:, c]) for c in with_both])
    )
    assert got["counts"] == {
        "examples": 60,
        "examples_without_label": 0,
        "labels": 7,
        "labels_evaluated": 6,
        "labels_without_positive": 1,
        "labels_without_negative": 1,
    }


def test_wrong_predictions_of_a_label_without_a_positive_cost_micro_f1_only():
    labels = np.array([[1, 0], [0, 0]])
    got = metrics.evaluate(labels, [[0.9, 0.9], [0.1, 0.9]])
    assert got["macro_f1"] == 1.0
    assert got["micro_f1"] == pytest.approx(2 * 1 / (1 + 3))


def test_examples_without_a_label():
    labels = np.array([[0, 0, 0], [1, 0, 0]])
    scores = np.array([[0.1, 0.2, 0.3], [0.9, 0.2, 0.1]])
    got = metrics.evaluate(labels, scores)
    assert got["counts"]["examples_without_label"] == 1
    # Nothing true and nothing predicted is right; there is nothing to rank.
    assert got["example_f1"] == got["subset_accuracy"] == got["p_at_1"] == got["lrap"] == 1.0
    assert got["ranking_loss"] == 0.0
    assert metrics.evaluate(labels, scores, 0.3)["example_f1"] == 0.5


def test_a_split_without_any_label():
    got = metrics.evaluate(np.zeros((3, 2)), np.full((3, 2), 0.2), train_counts=[1, 0])
    undefined = {name for name, value in got.items() if value is None}
    assert undefined == {
        *("mAP", "micro_f1", "macro_f1", "micro_auc", "macro_auc"),
        *("p_at_1", "ranking_loss", "lrap"),
    }
    assert got["hamming_loss"] == 0.0
    assert got["counts"]["labels_evaluated"] == 0
    json.dumps(got, allow_nan=False)


def test_one_label_column_has_no_ranking():
    labels = np.array([[1], [0], [1], [0]])
    scores = np.array([[0.9], [0.8], [0.4], [0.1]])
    got = metrics.evaluate(labels, scores)
    assert got["mAP"] == pytest.approx((1 + 2 / 3) / 2)
    assert got["micro_f1"] == got["macro_f1"] == pytest.approx(0.5)
    assert got["micro_auc"] == got["macro_auc"] == pytest.approx(0.75)
    assert got["ranking_loss"] is None
    assert got["lrap"] is None
    assert "p_at_1" in got
    assert "p_at_3" not in got


def test_a_single_example():
    got = metrics.evaluate([[1, 0, 1]], [[0.9, 0.6, 0.5]])
    assert got["mAP"] == 1.0
    assert got["macro_auc"] is None
    assert got["micro_auc"] == pytest.approx(0.5)
    assert got["micro_f1"] == pytest.approx(0.8)
    assert got["ranking_loss"] == pytest.approx(0.5)


def test_constant_scores_give_chance_not_the_order_of_the_columns():
    labels, _ = random_split(3, labels=6)
    got = metrics.evaluate(labels, np.full(labels.shape, 0.5, np.float32))
    rows = labels[labels.any(axis=1)]
    assert got["mAP"] == pytest.approx(labels.mean(axis=0).mean())
    assert got["macro_auc"] == got["micro_auc"] == pytest.approx(0.5)
    for k in (1, 3, 5):
        assert got[f"p_at_{k}"] == pytest.approx(rows.mean())
    assert got["ranking_loss"] == 1.0


def test_a_score_at_its_threshold_is_predicted_in_the_precision_of_the_threshold():
    labels = np.array([[1, 0], [1, 1]])
    assert metrics.evaluate(labels, [[0.5, 0.2], [0.5, 0.3]], [0.5, 0.3])["macro_f1"] == 1.0
    below = np.full((2, 2), 0.7, np.float32)  # float32(0.7) < 0.7
    assert metrics.per_label(labels, below, 0.7)["predicted"] == [0, 0]


def test_one_threshold_for_each_label():
    labels, scores = random_split(5)
    thresholds = np.linspace(0.2, 0.8, 7)
    each = metrics.per_label(labels, scores, thresholds)
    for c in range(7):
        expected = slow_f1(labels[:, c], scores[:, c] >= thresholds[c])
        assert each["f1"][c] == pytest.approx(expected)
    assert metrics.evaluate(labels, scores, thresholds)["macro_f1"] == pytest.approx(
        np.mean(each["f1"])
    )


def test_per_label():
    labels, scores = random_split(6)
    labels[:, 1], labels[:, 3] = 0, 1
    each = metrics.per_label(labels, scores, 0.4)
    assert each["positives"] == labels.sum(axis=0).tolist()
    assert each["predicted"] == (scores >= 0.4).sum(axis=0).tolist()
    assert each["average_precision"][1] is None
    assert each["f1"][1] is None
    assert each["auc"][1] is None
    assert each["auc"][3] is None
    assert each["average_precision"][3] == 1.0
    for c in (0, 2, 4, 5, 6):
        assert each["average_precision"][c] == pytest.approx(slow_ap(labels[:, c], scores[:, c]))
        assert each["auc"][c] == pytest.approx(slow_auc(labels[:, c], scores[:, c]))
    json.dumps(each, allow_nan=False)


def test_frequency_groups_are_thirds_by_falling_count():
    groups = metrics.frequency_groups([5, 9, 0, 5, 7, 1, 2])
    assert {name: members.tolist() for name, members in groups.items()} == {
        "head": [1, 4, 0],
        "medium": [3, 6],
        "tail": [5, 2],
    }
    assert [len(members) for members in metrics.frequency_groups([3, 4]).values()] == [1, 1, 0]


def test_group_metrics_are_means_over_their_labels():
    labels, scores = random_split(7)
    labels[:, 0] = 0
    counts = np.array([5, 9, 0, 5, 7, 1, 2])
    got = metrics.evaluate(labels, scores, train_counts=counts)
    each = metrics.per_label(labels, scores)
    for name, members in metrics.frequency_groups(counts).items():
        known = [c for c in members if c != 0]
        group = got["groups"][name]
        assert group["mAP"] == pytest.approx(np.mean([each["average_precision"][c] for c in known]))
        assert group["macro_f1"] == pytest.approx(np.mean([each["f1"][c] for c in known]))
        assert (group["labels"], group["labels_evaluated"]) == (len(members), len(known))
        assert group["min_train_count"] == counts[members].min()
        assert group["max_train_count"] == counts[members].max()


def test_empty_groups_are_none():
    groups = metrics.evaluate([[1], [0]], [[0.9], [0.1]], train_counts=[1])["groups"]
    assert groups["head"]["mAP"] == 1.0
    assert groups["tail"] == {
        "labels": 0,
        "labels_evaluated": 0,
        "min_train_count": None,
        "max_train_count": None,
        "mAP": None,
        "macro_f1": None,
    }


@settings(max_examples=60, deadline=None)
@given(splits())
def test_tuned_thresholds_reach_the_best_f1_and_are_nearest_to_a_half(split):
    labels, scores = split
    thresholds = metrics.tune_thresholds(labels, scores, min_positives=0)
    assert thresholds.shape == (labels.shape[1],)
    assert thresholds.dtype == np.float64
    for truth, score, threshold in zip(labels.T, scores.T, thresholds, strict=True):
        if not truth.any():
            assert threshold == 0.5
            continue
        levels = sorted({0.0, *score})
        middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)] + [0.0] * (0.0 in score)
        f1 = {middle: slow_f1(truth, score >= middle) for middle in middles}
        best = [middle for middle in middles if f1[middle] == max(f1.values())]
        assert slow_f1(truth, score >= threshold) == max(f1.values())
        assert threshold in best
        assert abs(threshold - 0.5) == min(abs(middle - 0.5) for middle in best)


def test_of_two_thresholds_equally_near_a_half_the_higher_is_taken():
    # F1 is 2/3 above 0.75 (1 of 1 found, 1 missed) and above 0.25 (2 of 2 found, 2 wrong).
    labels, scores = [[1], [0], [0], [1]], [[1.0], [0.5], [0.5], [0.5]]
    assert slow_f1([1, 0, 0, 1], [1, 0, 0, 0]) == slow_f1([1, 0, 0, 1], [1, 1, 1, 1])
    assert metrics.tune_thresholds(labels, scores, 1).tolist() == [0.75]


def test_a_label_with_few_positives_takes_the_threshold_of_all_together():
    labels = np.zeros((12, 2), int)
    labels[:6, 0] = labels[0, 1] = 1
    scores = np.where(labels, 0.8, 0.2)
    scores[:, 1] = np.linspace(0.02, 0.3, 12)  # its only positive scores lowest
    thresholds = metrics.tune_thresholds(labels, scores)
    assert thresholds[1] == metrics.tune_thresholds(labels.reshape(-1, 1), scores.reshape(-1, 1))
    assert thresholds[1] > 0.3
    assert metrics.tune_thresholds(labels, scores, min_positives=1)[1] == pytest.approx(0.01)
    assert metrics.tune_thresholds(0 * labels, scores).tolist() == [0.5, 0.5]


def test_a_threshold_between_neighbouring_floats_separates_them():
    low = 0.3
    high = math.nextafter(low, 1)
    threshold = metrics.tune_thresholds([[0], [1]], [[low], [high]])
    assert low < threshold[0] <= high


def test_float32_scores_are_separated_after_tuning():
    low = np.float32(0.3)
    scores = np.array([[low], [np.nextafter(low, np.float32(1))]])
    threshold = metrics.tune_thresholds([[0], [1]], scores)
    assert metrics.evaluate([[0], [1]], scores, threshold)["macro_f1"] == 1.0


GOOD = np.array([[1, 0], [0, 1]])


@pytest.mark.parametrize(
    ("labels", "scores", "options", "text"),
    [
        (GOOD[0], GOOD[0], {}, r"labels must be multi-hot \[N, C\].*\(2,\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, r"N, C > 0.*\(0, 2\)"),
        (GOOD, np.zeros((2, 3)), {}, r"scores must have the shape of labels.*\(2, 3\)"),
        ([[1, 2], [0, 1]], GOOD, {}, "labels must be 0 or 1; got 2 in row 0, column 1"),
        ([[1, np.nan], [0, 1]], GOOD, {}, "labels must be 0 or 1; got nan in row 0, column 1"),
        (GOOD, [[0, 0], [np.nan, 0]], {}, r"\[0, 1\]; got nan in row 1, column 0"),
        (GOOD, [[0, 0], [0, -3.5]], {}, r"\[0, 1\]; got -3.5 in row 1, column 1"),
        (GOOD, GOOD, {"thresholds": [0.5] * 3}, r"each of the 2 labels; got shape \(3,\)"),
        (GOOD, GOOD, {"thresholds": np.nan}, "thresholds must be finite"),
        (GOOD, GOOD, {"train_counts": [1]}, r"each of the 2 labels; got shape \(1,\)"),
        (GOOD, GOOD, {"train_counts": [1, -1]}, "not negative"),
    ],
)
def test_bad_input_is_named(labels, scores, options, text):
    with pytest.raises(ValueError, match=text):
        metrics.evaluate(labels, scores, **options)
