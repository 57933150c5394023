"""The numbers and the pictures that a run ends with."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from sdjax import label_sets
from sdjax import metrics as metrics_lib
from sdjax.config import Config
from sdjax.data import Dataset
from sdjax.label_sets import LabelSets
from sdjax.training.evaluate import Outputs
from sdjax.training.logbook import RECORDS, read_records

HEADLINES = ("mAP", "micro_f1", "macro_f1", "example_f1", "micro_auc", "macro_auc", "p_at_1")


def test_results(
    dataset: Dataset, validation_scores: np.ndarray, test_scores: np.ndarray, per_label: bool
) -> dict[str, Any]:
    """The content of `results.json`.

    "validation" and "test" hold metrics at a threshold of 0.5, "test_tuned" those of test at the
    "thresholds" that were tuned on validation: one for all labels, or one `per_label`.
    """
    validation_labels, test_labels = dataset.validation.labels, dataset.test.labels
    counts = label_sets.counts(dataset.train.labels)
    given = (validation_labels, validation_scores)
    if per_label:
        thresholds = metrics_lib.tune_thresholds(*given)
    else:
        thresholds = np.full(dataset.num_classes, metrics_lib.tune_threshold(*given))

    def evaluate(labels: LabelSets, scores: np.ndarray, at: float | np.ndarray) -> dict[str, Any]:
        return metrics_lib.evaluate(labels, scores, thresholds=at, train_counts=counts)

    return {
        "test": evaluate(test_labels, test_scores, 0.5),
        "test_tuned": evaluate(test_labels, test_scores, thresholds),
        "validation": evaluate(validation_labels, validation_scores, 0.5),
        "thresholds": dict(zip(dataset.label_names, map(float, thresholds), strict=True)),
    }


def write_report(
    workdir: Path,
    config: Config,
    dataset: Dataset,
    outputs: Outputs,
    results: dict[str, Any],
    step: int,
) -> Path:
    """Writes `report/` on the model of `step`, and returns the path of its `report.md`."""
    # Plotting is imported where it is used: a model that only predicts needs none of it.
    from sdjax.report import report

    inputs = report.ReportInputs(
        title=dataset.name,
        loss="bce" if config.recipe == "bce" else config.loss.name,
        label_names=dataset.label_names,
        history=read_records(workdir / RECORDS),
        train_labels=dataset.train.labels,
        test_labels=dataset.test.labels,
        test_scores=outputs.scores,
        test_embeddings=outputs.embeddings,
        results=results,
        config=dataclasses.asdict(config),
        tested_step=step,
        tested_by=config.select_by,
    )
    return report.write_report(workdir, inputs)


def print_results(results: dict[str, Any], console: Console) -> None:
    """Prints a table of the main test metrics."""
    table = Table(title="Test", title_justify="left")
    table.add_column("metric")
    table.add_column("threshold 0.5", justify="right")
    table.add_column("tuned on validation", justify="right")
    for name in HEADLINES:
        values = [results[split].get(name) for split in ("test", "test_tuned")]
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
