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

The definitions are scikit-learn's, and the tests hold every figure against it. Its functions are
not called: they check and sort a label or a row at a time, and hold several copies of the scores.
Here scores are sorted a block of labels or of rows at a time, in their own dtype, and only the
positives are then looked up in what was sorted: multi-label data have few of them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from sdjax import checks, label_sets
from sdjax import labels as labels_lib
from sdjax.errors import InputError
from sdjax.labels import LabelIndices

TOP_KS = (1, 3, 5)
GROUPS = ("head", "medium", "tail")
METRICS = (
    *("mAP", "micro_f1", "macro_f1", "example_f1", "micro_auc", "macro_auc"),
    *(f"p_at_{k}" for k in TOP_KS),
    *("ranking_loss", "lrap", "hamming_loss", "subset_accuracy", "counts", "groups"),
)
LOWER_IS_BETTER = ("ranking_loss", "hamming_loss")
DEFAULT_THRESHOLD = 0.5
BLOCK_SIZE = 4_000_000  # scores at a time: 16 MB of float32, and as much again sorted

Floats = NDArray[np.floating]
Counts = NDArray[np.integer]
# Multi-hot [R, K], or a sparse matrix of bool in rows.
Truth = NDArray[Any] | sparse.csr_array


def evaluate(
    labels: ArrayLike | LabelIndices,
    scores: ArrayLike,
    thresholds: ArrayLike = DEFAULT_THRESHOLD,
    train_counts: ArrayLike | None = None,
    *,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """All metrics of one split, as a dict that `json.dumps` takes.

    Args:
      labels: multi-hot [N, C], 0 or 1; or `LabelIndices` [N, L] over C labels.
      scores: [N, C] in [0, 1].
      thresholds: one number, or one for each label [C].
      train_counts: [C], how often each label occurs in the training set; asks for "groups".
      only: names of the metrics that are wanted, of `METRICS`; no others are computed.

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
      InputError: if a shape or a value is not as above, or a name in `only` is unknown.
      TypeError: if `LabelIndices` are not integers.
    """
    wanted = _check_only(only, train_counts)
    measures = _Measures(_check_split(labels, scores), thresholds)
    num_labels = measures.split.scores.shape[1]
    compute: dict[str, Callable[[], Any]] = {
        "mAP": lambda: _mean(measures.by_label.average_precision),
        "micro_f1": lambda: _micro_f1(measures.decisions),
        "macro_f1": lambda: _mean(measures.label_f1),
        "example_f1": lambda: _example_f1(measures.decisions),
        "micro_auc": lambda: _micro_auc(measures.split),
        "macro_auc": lambda: _mean(measures.by_label.auc),
        **{
            f"p_at_{k}": lambda k=k: _mean(measures.by_row.precision_at[k])
            for k in TOP_KS
            if k <= num_labels
        },
        "ranking_loss": lambda: _mean(measures.by_row.ranking_loss),
        "lrap": lambda: _mean(measures.by_row.lrap),
        "hamming_loss": lambda: _hamming_loss(measures.decisions),
        "subset_accuracy": lambda: _subset_accuracy(measures.decisions),
        "counts": lambda: _counts(measures.split),
    }
    if train_counts is not None:
        counts = _check_counts(train_counts, num_labels)
        compute["groups"] = lambda: _group_metrics(measures, counts)
    return {name: value() for name, value in compute.items() if name in wanted}


def per_label(
    labels: ArrayLike | LabelIndices,
    scores: ArrayLike,
    thresholds: ArrayLike = DEFAULT_THRESHOLD,
) -> dict[str, list[Any]]:
    """The metrics of each label by itself.

    Args:
      labels: multi-hot [N, C], 0 or 1; or `LabelIndices` [N, L] over C labels.
      scores: [N, C] in [0, 1].
      thresholds: one number, or one for each label [C].

    Returns:
      Lists of length C: "average_precision", "auc" and "f1" (None where undefined; F1 too is
      undefined for a label without a positive), and the counts "positives" and "predicted".

    Raises:
      InputError: if a shape or a value is not as above.
      TypeError: if `LabelIndices` are not integers.
    """
    measures = _Measures(_check_split(labels, scores), thresholds)
    return {
        "average_precision": _or_none(measures.by_label.average_precision),
        "auc": _or_none(measures.by_label.auc),
        "f1": _or_none(measures.label_f1),
        "positives": measures.decisions.of_labels.true.tolist(),
        "predicted": measures.decisions.of_labels.predicted.tolist(),
    }


def tune_threshold(labels: ArrayLike | LabelIndices, scores: ArrayLike) -> float:
    """The one threshold that maximises F1 over all decisions. For the validation split only.

    Which is taken of several is said at `tune_thresholds`. Where labels are rare it does better
    than thresholds of their own, which follow the chance scores of a few positives.

    Args:
      labels: multi-hot [N, C], 0 or 1; or `LabelIndices` [N, L] over C labels.
      scores: [N, C] in [0, 1].

    Returns:
      In [0, 1].

    Raises:
      InputError: if a shape or a value is not as above.
      TypeError: if `LabelIndices` are not integers.
    """
    return float(_threshold_of_all(_check_split(labels, scores)))


def tune_thresholds(
    labels: ArrayLike | LabelIndices, scores: ArrayLike, min_positives: int = 5
) -> NDArray[np.float64]:
    """The threshold of each label that maximises its F1. For the validation split only.

    A label with fewer positives than `min_positives`, which would be fitted to their chance
    scores, takes the threshold that maximises F1 over all labels and examples together.

    A threshold lies midway between two neighbouring scores, or between the lowest score and 0.
    Of several with the same F1 the one nearest to 0.5 is taken, and of two equally near the
    higher. Without any positive it is 0.5.

    Args:
      labels: multi-hot [N, C], 0 or 1; or `LabelIndices` [N, L] over C labels.
      scores: [N, C] in [0, 1].
      min_positives: see above.

    Returns:
      float64 [C] in [0, 1].

    Raises:
      InputError: if a shape or a value is not as above.
      TypeError: if `LabelIndices` are not integers.
    """
    split = _check_split(labels, scores)
    positives = _num_positives(split.by_label)
    thresholds = np.full(len(positives), DEFAULT_THRESHOLD)
    few = positives < min_positives
    if few.any():
        thresholds[few] = _threshold_of_all(split)
    tuned = np.flatnonzero(~few & (positives > 0))
    for block in _blocks(split.by_label, split.scores.T, tuned):
        ranks = _rank_positives(block)
        for i, label in enumerate(block.rows):
            own = slice(ranks.ends[i], ranks.ends[i + 1])
            below = _value_below(ranks.ordered[i], ranks.below[own])
            at_least = len(ranks.ordered[i]) - ranks.below[own]
            thresholds[label] = _best_threshold(
                ranks.values[own], below, at_least, ranks.positives_at_least[own]
            )
    return thresholds


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


class _Split(NamedTuple):
    """Scores [N, C] and what is true, by row [N, C] and by label [C, N]."""

    scores: Floats
    by_row: Truth
    by_label: Truth


class _Measures:
    """What the metrics of one split are made of, each computed once, when it is first needed."""

    def __init__(self, split: _Split, thresholds: ArrayLike):
        self.split = split
        self.thresholds = _check_thresholds(thresholds, split.scores)

    @functools.cached_property
    def decisions(self) -> "_Decisions":
        return _decide(self.split, self.thresholds)

    @functools.cached_property
    def label_f1(self) -> Floats:
        """F1 of each label [C]; NaN for a label without a positive."""
        counts = self.decisions.of_labels
        return np.where(counts.true > 0, _f1(counts), np.nan)

    @functools.cached_property
    def by_label(self) -> "_LabelRanking":
        return _rank_examples(self.split)

    @functools.cached_property
    def by_row(self) -> "_RowRanking":
        return _rank_labels(self.split)


class _Outcome(NamedTuple):
    """How many decisions are true, predicted, and both; of each label [C] or of each row [N]."""

    true: Counts
    predicted: Counts
    hits: Counts


class _Decisions(NamedTuple):
    """Outcomes of all N·C decisions, summed both ways."""

    of_labels: _Outcome
    of_rows: _Outcome


class _LabelRanking(NamedTuple):
    """How well each label [C] ranks the examples; NaN where that is undefined."""

    average_precision: Floats
    auc: Floats


class _RowRanking(NamedTuple):
    """How well each example [N] ranks the labels; NaN where that is undefined."""

    lrap: Floats
    ranking_loss: Floats
    precision_at: dict[int, Floats]


class _Block(NamedTuple):
    """Some rows of scores [R, K] (labels or examples), and where in it the P positives are."""

    rows: NDArray[np.intp]  # [R], which rows
    scores: Floats
    row: NDArray[np.integer]  # [P], rising
    place: NDArray[np.integer]  # [P]


class _Ranks(NamedTuple):
    """Where the P positives of a block stand among the scores of their rows."""

    ordered: Floats  # [R, K], each row rising
    ends: NDArray[np.intp]  # [R + 1]; positives ends[r] to ends[r + 1] are of row r
    row: NDArray[np.integer]  # [P]
    values: Floats  # [P], rising in each row
    below: Counts  # [P], scores of the row that are lower
    positives_at_least: Counts  # [P], positives of the row that are as high or higher

    def at_least(self) -> Counts:
        """Scores of the row that are as high or higher, [P]."""
        return self.ordered.shape[1] - self.below

    def total(self, values: NDArray[Any]) -> Floats:
        """Sums [R] of `values` [P] over the positives of each row."""
        sums = np.bincount(self.row, values, minlength=len(self.ordered))
        return sums.astype(np.float64, copy=False)


def _blocks(
    truth: Truth, scores: Floats, chosen: NDArray[np.intp] | None = None
) -> Iterator[_Block]:
    """All rows of `truth` and `scores` [R, K], or the `chosen` ones, some at a time."""
    height = _height(scores)
    count = len(scores) if chosen is None else len(chosen)
    for start in range(0, count, height):
        stop = min(start + height, count)
        rows = np.arange(start, stop) if chosen is None else chosen[start:stop]
        at = slice(start, stop) if chosen is None else rows
        part = truth[at]
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part, np.bool_)
        yield _Block(rows, np.ascontiguousarray(scores[at]), *part.nonzero())


def _height(array: NDArray[Any]) -> int:
    """Rows of a block of `array` [R, K]."""
    return max(1, BLOCK_SIZE // array.shape[1])


def _rank_positives(block: _Block) -> _Ranks:
    ordered = np.sort(block.scores, axis=1)
    values = block.scores[block.row, block.place]
    ends = np.searchsorted(block.row, np.arange(len(ordered) + 1))
    for row in np.flatnonzero(np.diff(ends)):
        values[ends[row] : ends[row + 1]].sort()
    below = _search(ordered, ends, values, "left")
    # The first of a run of equal positives has the whole run at or above it.
    starts = np.ones(len(values), np.bool_)
    starts[1:] = (values[1:] != values[:-1]) | (block.row[1:] != block.row[:-1])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(values)), 0))
    return _Ranks(ordered, ends, block.row, values, below, ends[block.row + 1] - first)


def _search(
    ordered: Floats, ends: NDArray[np.intp], values: Floats, side: Literal["left", "right"]
) -> Counts:
    """`np.searchsorted` of the `values` of each row in that row of `ordered`, [P]."""
    # A loop, but of one call a row, in which rising values are found fast.
    found = np.empty(len(values), np.intp)
    for row in np.flatnonzero(np.diff(ends)):
        own = slice(ends[row], ends[row + 1])
        found[own] = ordered[row].searchsorted(values[own], side)
    return found


def _decide(split: _Split, thresholds: Floats) -> _Decisions:
    of_rows, of_labels = (
        _Outcome(*np.zeros((3, length), np.int64)) for length in split.scores.shape
    )
    for block in _blocks(split.by_row, split.scores):
        predicted = block.scores >= thresholds
        hit = predicted[block.row, block.place]
        of_rows.true[block.rows] = _times(block.row, predicted.shape[0])
        of_rows.predicted[block.rows] = predicted.sum(axis=1)
        of_rows.hits[block.rows] = _times(block.row[hit], predicted.shape[0])
        of_labels.true[:] += _times(block.place, predicted.shape[1])
        of_labels.predicted[:] += predicted.sum(axis=0)
        of_labels.hits[:] += _times(block.place[hit], predicted.shape[1])
    return _Decisions(of_labels, of_rows)


def _times(indices: NDArray[np.integer], length: int) -> Counts:
    """How often each of 0 to `length` - 1 occurs."""
    return np.bincount(indices, minlength=length)


def _rank_examples(split: _Split) -> _LabelRanking:
    average_precision, auc = np.full((2, split.scores.shape[1]), np.nan)
    for block in _blocks(split.by_label, split.scores.T):
        ranks = _rank_positives(block)
        positives = np.diff(ranks.ends)
        negatives = block.scores.shape[1] - positives
        precision = ranks.positives_at_least / ranks.at_least()
        average_precision[block.rows] = _ratio(ranks.total(precision), positives)
        # Scores below a positive, and half of those equal to it, without the positives, of which
        # all pairs together make half of their number squared.
        not_above = _search(ranks.ordered, ranks.ends, ranks.values, "right")
        wins = (ranks.total(ranks.below + not_above) - positives**2) / 2
        auc[block.rows] = _ratio(wins, positives * negatives)
    return _LabelRanking(average_precision, auc)


def _rank_labels(split: _Split) -> _RowRanking:
    num_rows, num_labels = split.scores.shape
    lrap, ranking_loss = np.full((2, num_rows), np.nan)
    precision_at = {k: np.full(num_rows, np.nan) for k in TOP_KS if k <= num_labels}
    for block in _blocks(split.by_row, split.scores):
        ranks = _rank_positives(block)
        positives = np.diff(ranks.ends)
        pairs = positives * (num_labels - positives)
        precision = ranks.total(ranks.positives_at_least / ranks.at_least())
        lrap[block.rows] = _ratio(precision, np.where(pairs > 0, positives, 0))
        wrong = ranks.total(ranks.at_least() - ranks.positives_at_least)
        ranking_loss[block.rows] = _ratio(wrong, pairs)
        for k, precisions in precision_at.items():
            precisions[block.rows] = _precision_at(k, ranks)
    return _RowRanking(lrap, ranking_loss, precision_at)


def _precision_at(k: int, ranks: _Ranks) -> Floats:
    """Expected precision of the k best labels, labels tied for the last places drawn at random."""
    best = ranks.ordered[:, -k:]
    last = best[:, :1]
    places = k - (best > last).sum(axis=1)
    tied = (ranks.ordered == last).sum(axis=1)
    last_of_row = last[ranks.row, 0]
    above, level = (ranks.total(is_so) for is_so in (
        ranks.values > last_of_row, ranks.values == last_of_row
    ))  # fmt: skip
    hits = above + places * level / tied
    return np.where(np.diff(ranks.ends) > 0, hits / k, np.nan)


def _micro_auc(split: _Split) -> float | None:
    """Probability that a positive scores above a negative, ties counted half."""
    positives = _positive_scores(split)
    num_positives, num_negatives = len(positives), split.scores.size - len(positives)
    if not num_positives or not num_negatives:
        return None
    # As in `_rank_examples`, in whole numbers.
    twice = -(num_positives**2)
    for ordered in _ordered_parts(split.scores, num_positives):
        for side in ("left", "right"):
            twice += int(ordered.searchsorted(positives, side).sum())
    return twice / (2 * num_positives * num_negatives)


def _positive_scores(split: _Split) -> Floats:
    """Scores of all positives, rising."""
    blocks = _blocks(split.by_row, split.scores)
    values = np.concatenate([block.scores[block.row, block.place] for block in blocks])
    values.sort()
    return values


def _ordered_parts(scores: Floats, num_lookups: int) -> Iterator[Floats]:
    """All scores in parts, each rising; a part is no smaller than what is looked up in it."""
    height = max(_height(scores), -(-num_lookups // scores.shape[1]))
    for start in range(0, len(scores), height):
        yield np.sort(scores[start : start + height], axis=None)


def _threshold_of_all(split: _Split) -> float:
    """The threshold that maximises F1 over all decisions."""
    positives = _positive_scores(split)
    values, times = np.unique(positives, return_counts=True)
    if not len(values):
        return DEFAULT_THRESHOLD
    at_least, below = np.zeros(len(values), np.int64), np.zeros(len(values))
    for ordered in _ordered_parts(split.scores, len(values)):
        place = ordered.searchsorted(values)
        at_least += len(ordered) - place
        np.maximum(below, _value_below(ordered, place), out=below)
    return _best_threshold(values, below, at_least, times[::-1].cumsum()[::-1])


def _value_below(ordered: Floats, place: Counts) -> NDArray[np.float64]:
    """The scores just before each `place` of `ordered`; 0 before the first."""
    return np.where(place > 0, ordered[np.maximum(place, 1) - 1], 0.0).astype(np.float64)


def _best_threshold(
    values: Floats, below: NDArray[np.float64], at_least: Counts, hits: Counts
) -> float:
    """The threshold that maximises F1, of those halfway from `below` to `values`.

    Args:
      values: scores of the positives [P]. The best threshold lies just below a positive: any
        other takes in negatives alone, compared with the next higher.
      below: the next lower score of each, or 0.
      at_least: decisions that score at least `values`.
      hits: positives among them.
    """
    values = values.astype(np.float64)
    precision, recall = hits / at_least, hits / hits.max()
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    middle = (below + values) / 2
    # Between neighbouring floats there is no middle: rounding down would let `below` in.
    middle = np.where(middle > below, middle, values)
    best = middle[f1 >= f1.max() - 1e-12]
    distance = np.abs(best - DEFAULT_THRESHOLD)
    return float(best[distance == distance.min()].max())


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """The quotient, NaN where the denominator is 0."""
    undefined = np.full(len(denominator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _f1(outcome: _Outcome) -> NDArray[np.float64]:
    """NaN where nothing is true and nothing is predicted."""
    return _ratio(2 * outcome.hits, outcome.true + outcome.predicted)


def _mean(values: Floats) -> float | None:
    """Over the values that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _or_none(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _micro_f1(decisions: _Decisions) -> float | None:
    total = _Outcome(*(part.sum(keepdims=True) for part in decisions.of_rows))
    return _or_none(_f1(total))[0]


def _example_f1(decisions: _Decisions) -> float:
    return float(np.nan_to_num(_f1(decisions.of_rows), nan=1.0).mean())


def _hamming_loss(decisions: _Decisions) -> float:
    true, predicted, hits = (int(part.sum()) for part in decisions.of_rows)
    num_decisions = len(decisions.of_rows.true) * len(decisions.of_labels.true)
    return (true + predicted - 2 * hits) / num_decisions


def _subset_accuracy(decisions: _Decisions) -> float:
    true, predicted, hits = decisions.of_rows
    return float(((true == hits) & (predicted == hits)).mean())


def _num_positives(truth: Truth) -> Counts:
    """Positives of each row of `truth`."""
    if isinstance(truth, np.ndarray):
        return label_sets.sizes(truth)
    return np.diff(truth.indptr)


def _counts(split: _Split) -> dict[str, int]:
    of_labels, of_rows = _num_positives(split.by_label), _num_positives(split.by_row)
    num_rows, num_labels = split.scores.shape
    with_positive = int((of_labels > 0).sum())
    return {
        "examples": num_rows,
        "examples_without_label": int((of_rows == 0).sum()),
        "labels": num_labels,
        "labels_evaluated": with_positive,
        "labels_without_positive": num_labels - with_positive,
        "labels_without_negative": int((of_labels == num_rows).sum()),
    }


def _group_metrics(measures: _Measures, counts: Floats) -> dict[str, dict[str, Any]]:
    groups = {}
    for name, members in frequency_groups(counts).items():
        in_group = counts[members]
        groups[name] = {
            "labels": len(members),
            "labels_evaluated": int((measures.decisions.of_labels.true[members] > 0).sum()),
            "min_train_count": int(in_group.min()) if len(members) else None,
            "max_train_count": int(in_group.max()) if len(members) else None,
            "mAP": _mean(measures.by_label.average_precision[members]),
            "macro_f1": _mean(measures.label_f1[members]),
        }
    return groups


def _check_only(only: Sequence[str] | None, train_counts: ArrayLike | None) -> Sequence[str]:
    if only is None:
        return METRICS
    if isinstance(only, str):
        raise InputError(f"only must be a list of names, got the text {only!r}.")
    for name in only:
        checks.one_of("metric in only", name, METRICS)
    if "groups" in only and train_counts is None:
        raise InputError("only asks for 'groups', which need train_counts.")
    return only


def _check_split(labels: ArrayLike | LabelIndices, scores: ArrayLike) -> _Split:
    if isinstance(labels, LabelIndices):
        labels_lib.check_labels("labels", labels)
        shape = label_sets.num_rows(labels), label_sets.num_classes(labels)
        truth = label_sets.to_csr(labels) if shape[0] else None
    else:
        truth = np.asarray(labels)
        shape = truth.shape
    if truth is None or len(shape) != 2 or 0 in shape:
        raise InputError(
            "labels must be multi-hot [N, C], or LabelIndices over C labels, with N, C > 0; "
            f"got shape {shape}."
        )
    values = np.asarray(scores)
    if values.shape != shape:
        raise InputError(
            f"scores must have the shape of labels, got {values.shape} for labels {shape}."
        )
    if isinstance(truth, np.ndarray) and truth.dtype != np.bool_:
        _check_values(truth, lambda part: (part == 0) | (part == 1), "labels must be 0 or 1")
    values = values.astype(
        np.float32 if np.can_cast(values.dtype, np.float32) else np.float64, copy=False
    )
    # NaN compares false.
    _check_values(values, lambda part: (part >= 0) & (part <= 1), "scores must lie in [0, 1]")
    by_label = truth.T if isinstance(truth, np.ndarray) else truth.T.tocsr()
    return _Split(values, truth, by_label)


def _check_values(
    array: NDArray[Any], is_good: Callable[[NDArray[Any]], NDArray[np.bool_]], expected: str
) -> None:
    height = _height(array)
    for start in range(0, len(array), height):
        good = is_good(array[start : start + height])
        if not good.all():
            row, column = np.argwhere(~good)[0] + (start, 0)
            got = array[row, column]
            raise InputError(f"{expected}; got {got} in row {row}, column {column}.")


def _check_thresholds(thresholds: ArrayLike, scores: Floats) -> Floats:
    """The thresholds [C] in the dtype of `scores`, rounded up, which changes no comparison."""
    num_labels = scores.shape[1]
    array = np.asarray(thresholds, np.float64)
    if array.shape not in ((), (num_labels,)):
        raise InputError(
            f"thresholds must be one number, or one for each of the {num_labels} labels; "
            f"got shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise InputError(f"thresholds must be finite, got {array.tolist()}.")
    # No score lies outside [0, 1].
    array = np.clip(np.broadcast_to(array, num_labels), -1, 2)
    rounded = array.astype(scores.dtype)
    above = np.nextafter(rounded, np.asarray(np.inf, rounded.dtype))
    return np.where(rounded < array, above, rounded)


def _check_counts(train_counts: ArrayLike, num_labels: int) -> NDArray[np.float64]:
    counts = np.asarray(train_counts, np.float64)
    if counts.shape != (num_labels,):
        raise InputError(
            f"train_counts must hold one count for each of the {num_labels} labels; "
            f"got shape {counts.shape}."
        )
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise InputError(f"train_counts must be finite and not negative, got {counts.tolist()}.")
    return counts
