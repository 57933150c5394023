"""Multi-label metrics: how well scores in [0, 1] recover label sets.

Conventions, the same in every function here:

  * A label is predicted where its score is at or above its threshold.
  * A label without a positive example is left out of every average over labels, and counted. A
    label without a negative example has no AUC: it is left out of `macro_auc`, and counted.
  * An example whose label set is empty is left out of `p_at_k`; one whose label set is empty or
    full has nothing to rank, and is left out of `ranking_loss` and `lrap`.
  * Ties are never broken by position: equal scores are one step of a precision-recall or ROC
    curve, count as wrong in `ranking_loss`, and share the places of `p_at_k` evenly.
  * A metric that nothing is left to define is None, never NaN.

Where scikit-learn defines the metric too, the values are scikit-learn's (the tests compare them).
Its functions take about 5 ms for each label and 0.1 ms for each example, which is minutes for
thousands of labels; here one sort for each label serves AP, AUC and the best threshold.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

TOP_KS = (1, 3, 5)
GROUPS = ("head", "medium", "tail")
LOWER_IS_BETTER = ("ranking_loss", "hamming_loss")
DEFAULT_THRESHOLD = 0.5
BLOCK_SIZE = 4_000_000

Bools = NDArray[np.bool_]
Floats = NDArray[np.floating]


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    thresholds: ArrayLike = DEFAULT_THRESHOLD,
    train_counts: ArrayLike | None = None,
) -> dict[str, Any]:
    """All metrics of one split, as a dict that `json.dumps` takes.

    Args:
      labels: multi-hot [N, C], 0 or 1.
      scores: [N, C] in [0, 1].
      thresholds: one number, or one for each label [C].
      train_counts: [C], how often each label occurs in the training set; asks for "groups".

    Returns:
      Metrics, each a float, or None where it is undefined (see the head of this module):
        mAP, macro_auc, macro_f1: means over labels of average precision, ROC AUC and F1.
        micro_auc, micro_f1: over all N·C decisions at once.
        example_f1: mean over examples of F1; 1 where no label is true and none is predicted.
        p_at_1, p_at_3, p_at_5: share of true labels among the k best; absent where k > C.
        ranking_loss: share of (true, false) pairs of labels in the wrong order, or tied.
        lrap: label ranking average precision.
        hamming_loss: share of wrong decisions.
        subset_accuracy: share of examples with every decision right.
      "counts": dict of int:
        examples, examples_without_label, labels, labels_evaluated (those with a positive),
        labels_without_positive, labels_without_negative.
      "groups": only with `train_counts`; for each of `frequency_groups` a dict of labels,
        labels_evaluated, min_train_count, max_train_count, mAP and macro_f1.

    Raises:
      ValueError: if a shape or a value is not as above.
    """
    truth, scores = _check_split(labels, scores)
    thresholds = _check_thresholds(thresholds, truth.shape[1])
    predicted = scores >= thresholds
    each = per_label(truth, scores, thresholds)
    metrics: dict[str, Any] = {
        "mAP": _mean(each["average_precision"]),
        "micro_f1": _micro_f1(truth, predicted),
        "macro_f1": _mean(each["f1"]),
        "example_f1": _example_f1(truth, predicted),
        "micro_auc": _auc(_curve(truth.ravel(), scores.ravel())),
        "macro_auc": _mean(each["auc"]),
        **{f"p_at_{k}": _precision_at(k, truth, scores) for k in TOP_KS if k <= truth.shape[1]},
        **_ranking(truth, scores),
        "hamming_loss": float((truth != predicted).mean()),
        "subset_accuracy": float((truth == predicted).all(axis=1).mean()),
        "counts": _counts(truth),
    }
    if train_counts is not None:
        metrics["groups"] = _group_metrics(each, _check_counts(train_counts, truth.shape[1]))
    return metrics


def per_label(
    labels: ArrayLike, scores: ArrayLike, thresholds: ArrayLike = DEFAULT_THRESHOLD
) -> dict[str, list[Any]]:
    """The metrics of each label by itself.

    Args:
      labels: multi-hot [N, C], 0 or 1.
      scores: [N, C] in [0, 1].
      thresholds: one number, or one for each label [C].

    Returns:
      Lists of length C: "average_precision", "auc" and "f1" (None where undefined; F1 too is
      undefined for a label without a positive), and the counts "positives" and "predicted".

    Raises:
      ValueError: if a shape or a value is not as above.
    """
    truth, scores = _check_split(labels, scores)
    predicted = scores >= _check_thresholds(thresholds, truth.shape[1])
    ap_and_auc = [_ap_and_auc(_curve(t, s)) for t, s in zip(truth.T, scores.T, strict=True)]
    positives, predictions = truth.sum(axis=0), predicted.sum(axis=0)
    hits = (truth & predicted).sum(axis=0)
    f1 = 2 * hits / np.maximum(positives + predictions, 1)
    return {
        "average_precision": [ap for ap, _ in ap_and_auc],
        "auc": [auc for _, auc in ap_and_auc],
        "f1": [float(f) if p else None for f, p in zip(f1, positives, strict=True)],
        "positives": positives.tolist(),
        "predicted": predictions.tolist(),
    }


def tune_thresholds(labels: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """The threshold of each label that maximises its F1. For the validation split only.

    A threshold lies midway between two neighbouring scores of the label, or between the lowest
    score and 0. Of several with the same F1 the one nearest to 0.5 is taken, and of two equally
    near the higher. A label without a positive keeps 0.5.

    Args:
      labels: multi-hot [N, C], 0 or 1.
      scores: [N, C] in [0, 1].

    Returns:
      float64 [C] in [0, 1].

    Raises:
      ValueError: if a shape or a value is not as above.
    """
    truth, scores = _check_split(labels, scores)
    return np.array([_best_threshold(_curve(t, s)) for t, s in zip(truth.T, scores.T, strict=True)])


def frequency_groups(train_counts: ArrayLike) -> dict[str, NDArray[np.intp]]:
    """Head, medium and tail: thirds of the labels by their frequency in training.

    Labels are ranked by falling count, equal counts by index, and cut into three runs whose
    lengths differ by at most one, the longer first. With fewer than three labels the tail, then
    the medium group, is empty.

    Args:
      train_counts: [C], how often each label occurs in the training set.

    Returns:
      Label indices of "head", "medium" and "tail".
    """
    order = np.argsort(-np.asarray(train_counts, np.float64), kind="stable")
    return dict(zip(GROUPS, np.array_split(order, len(GROUPS)), strict=True))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


class _Curve(NamedTuple):
    """What is found at or above each distinct score.

    Attributes:
      values: the distinct scores, rising, [K].
      hits: positives that score values[k] or more, [K + 1]; the last entry is 0.
      predicted: examples that score values[k] or more, [K + 1]; the last entry is 0.
    """

    values: NDArray[np.float64]
    hits: NDArray[np.float64]
    predicted: NDArray[np.float64]


def _curve(truth: Bools, scores: Floats) -> _Curve:
    values, place = np.unique(scores.astype(np.float64), return_inverse=True)

    def from_above(weights: Bools | None) -> NDArray[np.float64]:
        at_value = np.bincount(place, weights, minlength=len(values) + 1)
        return at_value[::-1].cumsum()[::-1].astype(np.float64)

    return _Curve(values, from_above(truth), from_above(None))


def _average_precision(curve: _Curve) -> float | None:
    """Mean precision at the recall steps, AP = Σ_k (R_k - R_{k+1}) P_k."""
    positives = curve.hits[0]
    if not positives:
        return None
    precision = curve.hits[:-1] / curve.predicted[:-1]
    return float((-np.diff(curve.hits) * precision).sum() / positives)


def _auc(curve: _Curve) -> float | None:
    """Probability that a positive scores above a negative, ties counted half."""
    misses = curve.predicted - curve.hits
    pairs = curve.hits[0] * misses[0]
    if not pairs:
        return None
    return float((-np.diff(misses) * (curve.hits[:-1] + curve.hits[1:])).sum() / (2 * pairs))


def _ap_and_auc(curve: _Curve) -> tuple[float | None, float | None]:
    return _average_precision(curve), _auc(curve)


def _best_threshold(curve: _Curve) -> float:
    if not curve.hits[0]:
        return DEFAULT_THRESHOLD
    f1 = 2 * curve.hits[:-1] / (curve.predicted[:-1] + curve.hits[0])
    below = np.concatenate([[0.0], curve.values[:-1]])
    middle = (below + curve.values) / 2
    # Between neighbouring floats there is no middle: rounding down would let `below` in.
    middle = np.where(middle > below, middle, curve.values)
    best = middle[f1 == f1.max()]
    distance = np.abs(best - DEFAULT_THRESHOLD)
    return float(best[distance == distance.min()].max())


def _micro_f1(truth: Bools, predicted: Bools) -> float | None:
    size = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / size if size else None


def _example_f1(truth: Bools, predicted: Bools) -> float:
    size = truth.sum(axis=1) + predicted.sum(axis=1)
    hits = (truth & predicted).sum(axis=1)
    return float(np.where(size > 0, 2 * hits / np.maximum(size, 1), 1.0).mean())


def _precision_at(k: int, truth: Bools, scores: Floats) -> float | None:
    """Expected precision of the k best labels, labels tied for the last places drawn at random."""
    rows = truth.any(axis=1)
    if not rows.any():
        return None
    truth, scores = truth[rows], scores[rows]
    last = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above, tied = scores > last, scores == last
    places = k - above.sum(axis=1)
    hits = (truth & above).sum(axis=1) + places * (truth & tied).sum(axis=1) / tied.sum(axis=1)
    return float(hits.mean() / k)


def _ranking(truth: Bools, scores: Floats) -> dict[str, float | None]:
    rows = np.flatnonzero(truth.any(axis=1) & ~truth.all(axis=1))
    if not len(rows):
        return {"ranking_loss": None, "lrap": None}
    # Blocks of rows bound the memory that ranks take.
    blocks = np.array_split(rows, -(-len(rows) * truth.shape[1] // BLOCK_SIZE))
    each = [_ranking_of_examples(truth[block], scores[block]) for block in blocks]
    loss, precision = np.concatenate(each, axis=1).mean(axis=1)
    return {"ranking_loss": float(loss), "lrap": float(precision)}


def _ranking_of_examples(truth: Bools, scores: Floats) -> NDArray[np.float64]:
    """Ranking loss and ranking average precision of each example, [2, N]."""
    # Of each label: how many labels, and how many true ones, score as high or higher.
    rank = stats.rankdata(-scores, method="max", axis=1)
    true_rank = stats.rankdata(np.where(truth, -scores, np.inf), method="max", axis=1)
    true, false = truth.sum(axis=1), (~truth).sum(axis=1)
    wrong = np.where(truth, rank - true_rank, 0).sum(axis=1)
    precision = np.where(truth, true_rank / rank, 0).sum(axis=1)
    return np.stack([wrong / (true * false), precision / true])


def _counts(truth: Bools) -> dict[str, int]:
    with_positive = int(truth.any(axis=0).sum())
    return {
        "examples": truth.shape[0],
        "examples_without_label": int((~truth.any(axis=1)).sum()),
        "labels": truth.shape[1],
        "labels_evaluated": with_positive,
        "labels_without_positive": truth.shape[1] - with_positive,
        "labels_without_negative": int(truth.all(axis=0).sum()),
    }


def _group_metrics(each: dict[str, list[Any]], counts: Floats) -> dict[str, dict[str, Any]]:
    groups = {}
    for name, members in frequency_groups(counts).items():
        in_group = counts[members]
        groups[name] = {
            "labels": len(members),
            "labels_evaluated": sum(each["positives"][c] > 0 for c in members),
            "min_train_count": int(in_group.min()) if len(members) else None,
            "max_train_count": int(in_group.max()) if len(members) else None,
            "mAP": _mean([each["average_precision"][c] for c in members]),
            "macro_f1": _mean([each["f1"][c] for c in members]),
        }
    return groups


def _check_split(labels: ArrayLike, scores: ArrayLike) -> tuple[Bools, Floats]:
    truth, values = np.asarray(labels), np.asarray(scores)
    if truth.ndim != 2 or 0 in truth.shape:
        raise ValueError(f"labels must be multi-hot [N, C] with N, C > 0, got shape {truth.shape}.")
    if values.shape != truth.shape:
        raise ValueError(
            f"scores must have the shape of labels, got {values.shape} for labels {truth.shape}."
        )
    if truth.dtype != np.bool_:
        _check_values(truth, (truth == 0) | (truth == 1), "labels must be 0 or 1")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    # NaN compares false.
    _check_values(values, (values >= 0) & (values <= 1), "scores must lie in [0, 1]")
    return truth.astype(np.bool_, copy=False), values


def _check_values(array: NDArray[Any], good: Bools, expected: str) -> None:
    if not good.all():
        row, column = np.argwhere(~good)[0]
        got = array[row, column]
        raise ValueError(f"{expected}; got {got} in row {row}, column {column}.")


def _check_thresholds(thresholds: ArrayLike, num_labels: int) -> NDArray[np.float64]:
    # float64, also for a single number: the comparison must not round it to the scores' dtype.
    array = np.asarray(thresholds, np.float64)
    if array.shape not in ((), (num_labels,)):
        raise ValueError(
            f"thresholds must be one number, or one for each of the {num_labels} labels; "
            f"got shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"thresholds must be finite, got {array.tolist()}.")
    return array


def _check_counts(train_counts: ArrayLike, num_labels: int) -> NDArray[np.float64]:
    counts = np.asarray(train_counts, np.float64)
    if counts.shape != (num_labels,):
        raise ValueError(
            f"train_counts must hold one count for each of the {num_labels} labels; "
            f"got shape {counts.shape}."
        )
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError(f"train_counts must be finite and not negative, got {counts.tolist()}.")
    return counts
