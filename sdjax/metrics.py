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

The metrics themselves are scikit-learn's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

TOP_KS = (1, 3, 5)
GROUPS = ("head", "medium", "tail")
LOWER_IS_BETTER = ("ranking_loss", "hamming_loss")
DEFAULT_THRESHOLD = 0.5

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
        "micro_auc": _auc(truth.ravel(), scores.ravel()),
        "macro_auc": _mean(each["auc"]),
        **{f"p_at_{k}": _precision_at(k, truth, scores) for k in TOP_KS if k <= truth.shape[1]},
        **_ranking(truth, scores),
        "hamming_loss": float(sk.hamming_loss(truth, predicted)),
        "subset_accuracy": float(sk.accuracy_score(truth, predicted)),
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
    columns = list(zip(truth.T, scores.T, predicted.T, strict=True))
    positives, predictions = truth.sum(axis=0), predicted.sum(axis=0)
    return {
        "average_precision": [
            float(sk.average_precision_score(t, s)) if t.any() else None for t, s, _ in columns
        ],
        "auc": [_auc(t, s) for t, s, _ in columns],
        "f1": [float(sk.f1_score(t, p)) if t.any() else None for t, _, p in columns],
        "positives": positives.tolist(),
        "predicted": predictions.tolist(),
    }


def tune_thresholds(
    labels: ArrayLike, scores: ArrayLike, min_positives: int = 5
) -> NDArray[np.float64]:
    """The threshold of each label that maximises its F1. For the validation split only.

    A label with fewer positives than `min_positives`, which would be fitted to their chance
    scores, takes the threshold that maximises F1 over all labels and examples together.

    A threshold lies midway between two neighbouring scores, or between the lowest score and 0.
    Of several with the same F1 the one nearest to 0.5 is taken, and of two equally near the
    higher. Without any positive it is 0.5.

    Args:
      labels: multi-hot [N, C], 0 or 1.
      scores: [N, C] in [0, 1].
      min_positives: see above.

    Returns:
      float64 [C] in [0, 1].

    Raises:
      ValueError: if a shape or a value is not as above.
    """
    truth, scores = _check_split(labels, scores)
    together = _best_threshold(truth.ravel(), scores.ravel())
    enough = truth.sum(axis=0) >= min_positives
    columns = zip(truth.T, scores.T, enough, strict=True)
    return np.array([_best_threshold(t, s) if tuned else together for t, s, tuned in columns])


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


def _auc(truth: Bools, scores: Floats) -> float | None:
    """Probability that a positive scores above a negative, ties counted half."""
    return None if truth.all() or not truth.any() else float(sk.roc_auc_score(truth, scores))


def _best_threshold(truth: Bools, scores: Floats) -> float:
    if not truth.any():
        return DEFAULT_THRESHOLD
    precision, recall, values = sk.precision_recall_curve(truth, scores)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)
    below = np.concatenate([[0.0], values[:-1]])
    middle = (below + values) / 2
    # Between neighbouring floats there is no middle: rounding down would let `below` in.
    middle = np.where(middle > below, middle, values)
    best = middle[f1 >= f1.max() - 1e-12]
    distance = np.abs(best - DEFAULT_THRESHOLD)
    return float(best[distance == distance.min()].max())


def _micro_f1(truth: Bools, predicted: Bools) -> float | None:
    if not truth.any() and not predicted.any():
        return None
    return float(sk.f1_score(truth.ravel(), predicted.ravel()))


def _example_f1(truth: Bools, predicted: Bools) -> float:
    if truth.shape[1] == 1:  # scikit-learn takes a single column for a binary problem
        return float((truth == predicted).mean())
    options: Any = {"average": "samples", "zero_division": 1}
    return float(sk.f1_score(truth, predicted, **options))


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
    rows = truth.any(axis=1) & ~truth.all(axis=1)
    if not rows.any():
        return {"ranking_loss": None, "lrap": None}
    return {
        "ranking_loss": float(sk.label_ranking_loss(truth[rows], scores[rows])),
        "lrap": float(sk.label_ranking_average_precision_score(truth[rows], scores[rows])),
    }


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
