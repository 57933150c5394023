"""Classical models on the rows of a run, beside which its own figures are to be read.

They are scikit-learn's, untuned: a forest of 500 extra trees, a logistic regression for each label
with C = 0.1, and, in studies, the share of the 10 nearest rows by the cosine that have a label.
scikit-learn, which takes a second to import, is imported where one of them is fitted.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from sdjax import checks, label_sets, metrics
from sdjax.label_sets import LabelSets

TREES = 500
TREES_AT_ONCE = 20
INVERSE_REGULARISATION = 0.1
NEIGHBORS = 10
# Those that a run has beside it, by their names in `results.json`.
NAMES = {"extra_trees": "extra trees", "logistic_regression": "logistic regression"}
ALL_NAMES = {**NAMES, "nearest_neighbors": "k nearest neighbours"}
DRAWN = ("extra_trees",)  # what depends on a seed
LEFT_OUT = "left_out"  # in place of metrics: why there are none
# Of all rows together, fitted and tested: 256 MB of inputs, and 128 MB of scores.
MOST_INPUTS = 1 << 26
MOST_DECISIONS = 1 << 24
_NODE_BYTES = 1 << 29  # of the trees that are held at once
_TRIAL = 0.1  # share of the time after which the rest is judged by what was done

Floats = NDArray[np.floating]
# After each part of the fitting: the share of it that is done, and scores once it is 1.
Parts = Iterator[tuple[float, Floats]]


def compare(
    x: Floats,
    labels: LabelSets,
    x_test: Floats,
    test_labels: LabelSets,
    *,
    seconds: float,
    train_counts: ArrayLike | None = None,
    known: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Test metrics of the baselines, at a threshold of 0.5.

    Args:
      x: inputs to fit on, float32 [N, F].
      labels: of these rows, multi-hot [N, C] or `LabelIndices`.
      x_test: inputs to test on, float32 [M, F].
      test_labels: of these rows, likewise.
      seconds: for all of them; one that would not be ready by then is left out.
      train_counts: see `metrics.evaluate`.
      known: what an earlier call returned on the same data; its metrics are taken over.

    Returns:
      For each of `NAMES`, what `metrics.evaluate` gives, or {"left_out": a sentence}.
    """
    deadline = time.monotonic() + seconds
    results = {}
    for name in NAMES:
        found = (known or {}).get(name)
        if not found or LEFT_OUT in found:
            found = scores(name, x, labels, x_test, seconds=deadline - time.monotonic())
            if not isinstance(found, str):
                found = metrics.evaluate(test_labels, found, train_counts=train_counts)
        results[name] = {LEFT_OUT: found} if isinstance(found, str) else dict(found)
    return results


def all_known(known: Mapping[str, Any]) -> bool:
    """Whether `known` holds metrics of every baseline."""
    return all(LEFT_OUT not in known.get(name, {LEFT_OUT: ""}) for name in NAMES)


def metrics_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Metrics of the baselines that were fitted, by the names that people know them by.

    Args:
      results: of a run; its "baselines" are those of `compare`.
    """
    found = results.get("baselines") or {}
    return {
        title: found[name]
        for name, title in NAMES.items()
        if LEFT_OUT not in found.get(name, {LEFT_OUT: ""})
    }


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Sentences: which baselines are ahead of the run, and which were left out, and why."""
    own = results["test"]["mAP"] if "test" in results else None
    ahead = [
        f"{name}, by {each['mAP'] - own:.4f}"
        for name, each in metrics_of(results).items()
        if own is not None and each["mAP"] is not None and each["mAP"] > own
    ]
    left_out = [each.get(LEFT_OUT, "") for each in (results.get("baselines") or {}).values()]
    return [
        *([f"Ahead of this run in mAP: {'; '.join(ahead)}."] if ahead else []),
        *(f"Baselines left out: {text}" for text in dict.fromkeys(filter(None, left_out))),
    ]


def takes(inputs: Any) -> bool:
    """Whether they can be fitted on inputs of that shape and dtype: on vectors of real numbers."""
    return len(getattr(inputs, "shape", ())) == 1 and np.issubdtype(inputs.dtype, np.floating)


def too_large(rows: int, features: int, labels: int) -> str:
    """A sentence where so many rows, fitted and tested ones, do not fit; "" where they do."""
    if rows * features <= MOST_INPUTS and rows * labels <= MOST_DECISIONS:
        return ""
    return f"{rows:,} rows of {features:,} features and {labels:,} labels are too much to fit here."


def scores(
    name: str,
    x: Floats,
    labels: LabelSets,
    x_test: Floats,
    *,
    seconds: float = math.inf,
    seed: int = 0,
) -> Floats | str:
    """Scores of the test rows by one of `ALL_NAMES`.

    Labels that all or no rows have are not fitted: their scores are 1 or 0.

    Args:
      name: of the model.
      x: inputs to fit on, float32 [N, F].
      labels: of these rows, multi-hot [N, C] or `LabelIndices`.
      x_test: inputs to test on, float32 [M, F].
      seconds: that it may take.
      seed: of the models in `DRAWN`.

    Returns:
      Scores in [0, 1], float32 [M, C], or a sentence where they would take too long.
    """
    model = _MODELS[checks.one_of("baseline", name, _MODELS)]
    counts, rows = label_sets.counts(labels), len(x)
    fitted = np.flatnonzero((counts > 0) & (counts < rows))
    result = np.zeros((len(x_test), len(counts)), np.float32)
    result[:, counts == rows] = 1
    if not len(fitted):
        return result
    multi_hot = label_sets.rows(labels, 0, rows)[:, fitted].astype(np.uint8)
    start = time.monotonic()
    for done, part in model(x, multi_hot, x_test, seed):
        spent = time.monotonic() - start
        if done == 1:
            result[:, fitted] = np.clip(part, 0, 1)
        elif spent > _TRIAL * seconds and spent / done > seconds:
            return (
                f"{ALL_NAMES[name].capitalize()} would take about {_about(spent / done)} here, "
                "more than report.baseline_seconds leaves."
            )
    return result


def _extra_trees(x: Floats, labels: NDArray[np.uint8], x_test: Floats, seed: int) -> Parts:
    """The mean of the trees' probabilities; a few trees are grown at a time, and then let go."""
    from sklearn.ensemble import ExtraTreesClassifier

    # Trees draw from one stream: all of them together are one forest.
    stream = np.random.RandomState(seed)
    at_once = min(TREES_AT_ONCE, max(1, _NODE_BYTES // (32 * labels.size)))
    total = np.zeros((len(x_test), labels.shape[1]))
    grown = 0
    while grown < TREES:
        number = min(at_once, TREES - grown)
        forest = ExtraTreesClassifier(number, random_state=stream, n_jobs=-1)
        forest.fit(x, labels if labels.shape[1] > 1 else labels[:, 0])
        # One thread: the order of a sum decides its last bits.
        found: Any = forest.set_params(n_jobs=1).predict_proba(x_test)
        each = found if isinstance(found, list) else [found]
        total += number * np.stack([probability[:, 1] for probability in each], axis=1)
        grown += number
        yield grown / TREES, total / grown


def _logistic_regressions(x: Floats, labels: NDArray[np.uint8], x_test: Floats, _: int) -> Parts:
    """The probabilities of one model a label."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scores = np.zeros((len(x_test), labels.shape[1]))
    for place, column in enumerate(labels.T):
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=1000)
        # One thread: on busy cores more of them wait for each other at every small product.
        with warnings.catch_warnings(), threadpool_limits(1, "blas"):
            warnings.simplefilter("ignore", ConvergenceWarning)  # near enough for a comparison
            model.fit(x, column)
        scores[:, place] = model.predict_proba(x_test)[:, 1]
        yield (place + 1) / labels.shape[1], scores


def _nearest_neighbors(x: Floats, labels: NDArray[np.uint8], x_test: Floats, _: int) -> Parts:
    """The share of the nearest rows that have a label."""
    from sklearn.exceptions import DataConversionWarning
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(NEIGHBORS, len(x)), metric="cosine", algorithm="brute")
    with warnings.catch_warnings():
        # One label is given as one column, as several are.
        warnings.simplefilter("ignore", DataConversionWarning)
        model.fit(x, labels)
    found: Any = model.predict_proba(x_test)
    each = found if isinstance(found, list) else [found]
    yield 1, np.stack([probability[:, 1] for probability in each], axis=1)


_MODELS: dict[str, Callable[..., Parts]] = {
    "extra_trees": _extra_trees,
    "logistic_regression": _logistic_regressions,
    "nearest_neighbors": _nearest_neighbors,
}


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.0f} hours"
