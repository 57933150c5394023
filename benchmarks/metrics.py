"""Seconds of `sdjax.metrics`, beside scikit-learn's functions on the same scores.

    python benchmarks/metrics.py [--sizes=10000x200,2000x2000] [--positives=3] [--noscikit_learn]

A size is rows x labels; a row has `--positives` labels on average. Prints a Markdown table.
"""

import functools
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags
from peers.tables import markdown
from sklearn import metrics as sk

from sdjax import metrics

SIZES = flags.DEFINE_list("sizes", ["10000x200", "2000x2000"], "Rows x labels of each run.")
POSITIVES = flags.DEFINE_float("positives", 3.0, "Mean number of labels of a row.")
SCIKIT_LEARN = flags.DEFINE_bool("scikit_learn", True, "Time scikit-learn as well.")


def split(rows: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Multi-hot bool labels and float32 scores that tell something of them."""
    rng = np.random.default_rng(0)
    truth = np.empty((rows, labels), bool)
    scores = rng.random((rows, labels), np.float32)
    for row in range(rows):
        truth[row] = rng.random(labels, np.float32) < POSITIVES.value / labels
        scores[row] = 0.3 * truth[row] + 0.7 * scores[row]
    return truth, scores


def by_label(function: Callable[..., Any], truth: np.ndarray, values: np.ndarray) -> None:
    for own, value in zip(truth.T, values.T, strict=True):
        if own.any() and not own.all():
            function(own, value)


def scikit_learn() -> dict[str, Callable[[np.ndarray, np.ndarray], Any]]:
    """Calls that give one metric each."""
    return {
        "mAP": lambda t, s: by_label(sk.average_precision_score, t, s),
        "macro_auc": lambda t, s: by_label(sk.roc_auc_score, t, s),
        "micro_auc": lambda t, s: sk.roc_auc_score(t.ravel(), s.ravel()),
        "micro_f1": lambda t, s: sk.f1_score(t.ravel(), s.ravel() >= 0.5),
        "macro_f1": lambda t, s: by_label(sk.f1_score, t, s >= 0.5),
        "example_f1": lambda t, s: sk.f1_score(t, s >= 0.5, average="samples", zero_division=1),
        "ranking_loss": sk.label_ranking_loss,
        "lrap": sk.label_ranking_average_precision_score,
        "hamming_loss": lambda t, s: sk.hamming_loss(t, s >= 0.5),
        "subset_accuracy": lambda t, s: sk.accuracy_score(t, s >= 0.5),
    }


def time_each(
    functions: list[Callable[..., Any]], truth: np.ndarray, scores: np.ndarray
) -> list[float]:
    """Seconds of the first, which is sdjax's, and of scikit-learn's where it is asked for."""
    result = []
    for function in functions[: 1 + SCIKIT_LEARN.value]:
        start = time.perf_counter()
        function(truth, scores)
        result.append(time.perf_counter() - start)
    return result


def measure(truth: np.ndarray, scores: np.ndarray) -> dict[str, list[float]]:
    """Seconds of sdjax, and of scikit-learn where it is asked for, of each metric and of all."""
    table = {}
    for name, call in scikit_learn().items():
        functions = [functools.partial(metrics.evaluate, only=[name]), call]
        table[name] = time_each(functions, truth, scores)
    totals = [sum(times) for times in zip(*table.values(), strict=True)]
    whole = time_each([metrics.evaluate], truth, scores)
    table["all of `evaluate`"] = [*whole, *totals[1:]]
    tuning = [metrics.tune_thresholds, functools.partial(by_label, sk.precision_recall_curve)]
    table["`tune_thresholds`"] = time_each(tuning, truth, scores)
    return table


def main(argv: list[str]) -> None:
    del argv
    for size in SIZES.value:
        rows, labels = map(int, size.split("x"))
        truth, scores = split(rows, labels)
        inputs = (truth.nbytes + scores.nbytes) / 2**20
        cells = [
            [name, *(f"{t:.3f}" for t in times), *(f"{t / times[0]:.0f}" for t in times[1:])]
            for name, times in measure(truth, scores).items()
        ]
        header = ["metric", "sdjax, s", *(["scikit-learn, s", "ratio"] * SCIKIT_LEARN.value)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\n{rows:,} rows, {labels:,} labels: inputs of {inputs:,.0f} MiB, ", end="")
        print(f"at most {peak:,.0f} MiB in the process so far\n\n{markdown(header, cells)}")


if __name__ == "__main__":
    app.run(main)
