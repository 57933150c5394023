"""sdjax.metrics against the definitions written out, against scikit-learn, and in corner cases."""

import itertools
import json
import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from sdjax import LabelIndices, metrics
from sdjax.errors import InputError

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


# Small blocks make many of them of the few scores of a test: of 1 row, of some, of all.
BLOCK_SIZES = (1, 100, 10**6)
SPLITS = {
    "many ties": dict(levels=10),
    "few ties": dict(levels=10**6),
    "one example": dict(examples=1, labels=9),
    "one label": dict(labels=1),
    "few positives": dict(examples=90, labels=40, rate=0.02),
    "many positives": dict(rate=0.9),
}


def edge_split(seed=0, **options):
    """`random_split`, where it is large enough with an empty and a full row and column."""
    truth, scores = random_split(seed, **options)
    if min(truth.shape) > 4:
        truth[3], truth[4] = 0, 1
        truth[:, 1], truth[:, 2] = 0, 1
    return truth, scores


def sklearn_evaluate(truth, scores, thresholds):
    """What scikit-learn gives for what the conventions of sdjax.metrics leave in."""
    predicted = (scores >= thresholds).astype(int)
    rows = truth.any(axis=1) & ~truth.all(axis=1)
    columns = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    both = [c for c in columns if not truth[:, c].all()]

    def mean(function, columns, values):
        return np.mean([function(truth[:, c], values[:, c]) for c in columns]) if columns else None

    has_both = 0 < truth.sum() < truth.size
    return {
        "mAP": mean(sk.average_precision_score, columns, scores),
        "macro_auc": mean(sk.roc_auc_score, both, scores),
        "macro_f1": mean(sk.f1_score, columns, predicted),
        "micro_f1": sk.f1_score(truth.ravel(), predicted.ravel()),
        "micro_auc": sk.roc_auc_score(truth.ravel(), scores.ravel()) if has_both else None,
        "ranking_loss": sk.label_ranking_loss(truth[rows], scores[rows]) if any(rows) else None,
        "lrap": sk.label_ranking_average_precision_score(truth[rows], scores[rows])
        if any(rows)
        else None,
        "hamming_loss": sk.hamming_loss(truth, predicted),
        "subset_accuracy": sk.accuracy_score(truth, predicted),
    }


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", SPLITS.values(), ids=SPLITS)
def test_evaluate_equals_scikit_learn(monkeypatch, options, dtype, block_size):
    monkeypatch.setattr(metrics, "BLOCK_SIZE", block_size)
    labels, scores = edge_split(**options)
    scores = scores.astype(dtype)
    thresholds = np.linspace(0.3, 0.7, labels.shape[1])
    got = metrics.evaluate(labels, scores, thresholds)
    for name, value in sklearn_evaluate(labels, scores, thresholds).items():
        if value is None:
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("options", SPLITS.values(), ids=SPLITS)
def test_lists_of_indices_give_the_figures_of_multi_hot_labels(monkeypatch, options, block_size):
    labels, scores = edge_split(**options)
    thresholds, counts = np.linspace(0.3, 0.7, labels.shape[1]), labels.sum(axis=0)
    expected = (
        metrics.evaluate(labels, scores, thresholds, counts),
        metrics.per_label(labels, scores, thresholds),
        metrics.tune_thresholds(labels, scores).tolist(),
    )
    monkeypatch.setattr(metrics, "BLOCK_SIZE", block_size)
    rows = [np.flatnonzero(row).tolist() for row in labels]
    sets = LabelIndices([row + row[:1] for row in rows], labels.shape[1])  # a repeat counts once
    assert metrics.evaluate(sets, scores, thresholds, counts) == expected[0]
    assert metrics.per_label(sets, scores, thresholds) == expected[1]
    assert metrics.tune_thresholds(sets, scores).tolist() == expected[2]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int64, np.bool_])
def test_scores_of_other_dtypes_count_at_their_value(dtype):
    labels, scores = random_split(8)
    scores = (scores if np.dtype(dtype).itemsize == 2 else scores.round()).astype(dtype)
    expected = metrics.evaluate(labels, scores.astype(np.float64), 0.3)
    assert metrics.evaluate(labels, scores, 0.3) == expected


def test_labels_may_have_any_dtype():
    labels, scores = random_split(9)
    expected = metrics.evaluate(labels, scores)
    for dtype in (np.bool_, np.uint8, np.int64, np.float32):
        assert metrics.evaluate(labels.astype(dtype), scores) == expected
    assert metrics.evaluate(np.asfortranarray(labels), scores.copy(order="F")) == expected


def test_only_gives_the_figures_that_are_asked_for():
    labels, scores = random_split(10)
    counts = labels.sum(axis=0)
    whole = metrics.evaluate(labels, scores, train_counts=counts)
    assert set(whole) == set(metrics.METRICS)
    for name, value in whole.items():
        assert metrics.evaluate(labels, scores, train_counts=counts, only=[name]) == {name: value}
    three = metrics.evaluate(labels, scores, only=("macro_f1", "mAP", "micro_f1"))
    assert three == {name: whole[name] for name in three}
    assert list(three) == ["mAP", "micro_f1", "macro_f1"]
    assert metrics.evaluate(labels, scores, only=()) == {}


def test_only_computes_no_more(monkeypatch):
    def unwanted(*_):
        raise AssertionError

    monkeypatch.setattr(metrics, "_rank_labels", unwanted)
    monkeypatch.setattr(metrics, "_micro_auc", unwanted)
    labels, scores = random_split(11)
    assert len(metrics.evaluate(labels, scores, only=("mAP", "micro_f1", "macro_f1"))) == 3
    monkeypatch.setattr(metrics, "_rank_examples", unwanted)
    assert len(metrics.evaluate(labels, scores, only=("hamming_loss", "macro_f1"))) == 2


@pytest.mark.parametrize(
    ("only", "text"),
    [
        (["mAP", "macro_f"], "Unknown metric in only 'macro_f'. Did you mean 'macro_f1'"),
        ("mAP", "only must be a list of names, got the text 'mAP'"),
        (["groups"], "'groups', which need train_counts"),
    ],
)
def test_a_wrong_name_is_named(only, text):
    with pytest.raises(InputError, match=text):
        metrics.evaluate([[1]], [[0.5]], only=only)


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


def threshold_by_scikit_learn(truth, scores):
    """The best of all thresholds of the precision-recall curve."""
    if not truth.any():
        return 0.5
    precision, recall, values = sk.precision_recall_curve(truth, scores.astype(np.float64))
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    below = np.concatenate([[0.0], values[:-1]])
    middle = (below + values) / 2
    middle = np.where(middle > below, middle, values)
    best = middle[f1 >= f1.max() - 1e-12]
    distance = np.abs(best - 0.5)
    return best[distance == distance.min()].max()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", SPLITS.values(), ids=SPLITS)
def test_tuned_thresholds_are_those_of_the_precision_recall_curve(
    monkeypatch, options, dtype, block_size
):
    monkeypatch.setattr(metrics, "BLOCK_SIZE", block_size)
    for seed in range(2):
        labels, scores = edge_split(seed, **options)
        scores = scores.astype(dtype)
        for min_positives in (0, 5, 100):
            together = threshold_by_scikit_learn(labels.ravel(), scores.ravel())
            expected = [
                threshold_by_scikit_learn(t, s) if t.sum() >= min_positives else together
                for t, s in zip(labels.T, scores.T, strict=True)
            ]
            got = metrics.tune_thresholds(labels, scores, min_positives)
            assert got.tolist() == expected


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
    with pytest.raises(InputError, match=text):
        metrics.evaluate(labels, scores, **options)


def test_bad_values_are_named_in_any_block(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_SIZE", 4)
    scores = np.zeros((9, 2), np.float32)
    scores[7, 1] = 1.5
    with pytest.raises(InputError, match="got 1.5 in row 7, column 1"):
        metrics.evaluate(np.zeros((9, 2)), scores)


@pytest.mark.parametrize(
    ("indices", "shape", "text"),
    [
        ([[0], [2]], (2, 2), r"labels.indices must lie in \[0, 2\).*got 2 in row 1"),
        (np.zeros((0, 1), int), (0, 2), r"N, C > 0.*\(0, 2\)"),
        ([[0], [1]], (2, 3), r"scores must have the shape of labels.*\(2, 3\)"),
    ],
)
def test_bad_lists_of_indices_are_named(indices, shape, text):
    with pytest.raises(ValueError, match=text):
        metrics.evaluate(LabelIndices(indices, 2), np.zeros(shape))


def test_lists_of_many_labels_are_never_made_multi_hot(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_SIZE", 100_000)
    rng = np.random.default_rng(0)
    scores = rng.random((400, 20_000), dtype=np.float32)
    labels = LabelIndices(rng.integers(0, 20_000, (400, 3), np.int32), 20_000)
    tracemalloc.start()
    metrics.evaluate(labels, scores, only=("mAP", "micro_f1", "macro_f1", "lrap"))
    metrics.tune_thresholds(labels, scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < scores.size  # the bytes of multi-hot labels; float64 scores have 8 times as many


def test_the_one_threshold_is_that_of_all_decisions_together():
    rng = np.random.default_rng(5)
    for _ in range(20):
        labels, scores = rng.random((30, 4)) < 0.3, rng.integers(0, 8, (30, 4)) / 8
        together = metrics.tune_thresholds(labels.reshape(-1, 1), scores.reshape(-1, 1), 0)
        assert metrics.tune_threshold(labels, scores) == together[0]
        best = metrics.evaluate(labels, scores, together[0], only=["micro_f1"])["micro_f1"]
        for other in np.linspace(0, 1, 33):
            figures = metrics.evaluate(labels, scores, other, only=["micro_f1"])
            assert (figures["micro_f1"] or 0) <= best + 1e-12
