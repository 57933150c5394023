"""The numbers and the pictures that a run ends with."""

import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from sdjax import __version__, label_sets, retrieval
from sdjax import metrics as metrics_lib
from sdjax.config import ReportConfig
from sdjax.data import Dataset, Source
from sdjax.label_sets import LabelSets
from sdjax.report import baselines as baselines_lib
from sdjax.training import workdir as workdir_lib
from sdjax.training.evaluate import Outputs
from sdjax.training.gallery import names_of
from sdjax.training.logbook import RECORDS, read_records
from sdjax.training.setup import Setup
from sdjax.training.state import TrainState

if TYPE_CHECKING:
    from sdjax.report import neighbors

PROBED = 20_000_000  # rows times labels, up to which a linear probe is fitted
RETRIEVED = (50, 10)  # neighbours in a ranking, and those that vote
NEAREST = 5  # neighbours that the report shows
HEADLINES = ("mAP", "micro_f1", "macro_f1", "example_f1", "micro_auc", "macro_auc", "p_at_1")


def test_results(
    dataset: Dataset, validation_scores: np.ndarray, test_scores: np.ndarray, per_label: bool
) -> dict[str, Any]:
    """The content of `results.json`.

    "validation" and "test" hold metrics at a threshold of 0.5, "test_tuned" those of test at the
    "thresholds" that were tuned on validation: one for all labels, or one `per_label`.
    "few_examples" is what few-example mode left of train.
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
        **({} if dataset.few is None else {"few_examples": dataclasses.asdict(dataset.few)}),
    }


def retrieval_results(dataset: Dataset, tested: Outputs, gallery: Outputs) -> dict[str, Any]:
    """Retrieval metrics of test queries among the rows of train, by h and, if there is one, z."""
    k, few = (min(number, len(dataset.train)) for number in RETRIEVED)
    vectors = {"h": (tested.embeddings, gallery.embeddings)}
    if tested.projections is not None and gallery.projections is not None:
        vectors["z"] = (tested.projections, gallery.projections)
    labels, others = dataset.test.labels, dataset.train.labels
    results = {}
    for name, (queries, rows) in vectors.items():
        results[name] = retrieval.evaluate(queries, labels, rows, others, k=k, few=few)
        if len(rows) > 1 and len(rows) * label_sets.num_classes(others) <= PROBED:
            results[name]["linear_mAP"] = retrieval.linear_probe(queries, labels, rows, others)
    return results


def nearest_rows(
    dataset: Dataset, tested: Outputs, gallery: Outputs, count: int
) -> "list[neighbors.Query]":
    """Some test rows with their nearest rows of train by h, for people to look at."""
    from sdjax.report import neighbors

    chosen = neighbors.choose(dataset.test.labels, count)
    if not len(chosen):
        return []
    few = min(NEAREST, len(dataset.train))
    places, cosines = retrieval.neighbors(tested.embeddings[chosen], gallery.embeddings, k=few)

    def shown(source: Source, rows: np.ndarray) -> list[neighbors.Row]:
        names = names_of(label_sets.take(source.labels, rows), dataset.label_names)
        contents = source.contents(rows)
        contents = [None] * len(rows) if contents is None else contents
        return [
            neighbors.Row(str(name), labels, content)
            for name, labels, content in zip(source.names[rows], names, contents, strict=True)
        ]

    return [
        neighbors.Query(row, tuple(shown(dataset.train, near)), tuple(map(float, cosine)))
        for row, near, cosine in zip(shown(dataset.test, chosen), places, cosines, strict=True)
    ]


def with_baselines(
    results: dict[str, Any],
    config: ReportConfig,
    dataset: Dataset,
    fitted: Sequence[Source],
    workdir: Path,
) -> dict[str, Any]:
    """`results`, written to `workdir`, and once they are fitted the test metrics of the baselines.

    They are fitted on all rows of the sources `fitted`. Those that an earlier test of the run has
    written are taken from there.
    """
    known = _saved_baselines(workdir, dataset)
    workdir_lib.write_json(workdir / workdir_lib.RESULTS, results)
    baselines = _baselines(config, dataset, fitted, known)
    if baselines is not None:
        results = {**results, "baselines": baselines}
        workdir_lib.write_json(workdir / workdir_lib.RESULTS, results)
    return results


def _saved_baselines(workdir: Path, dataset: Dataset) -> dict[str, Any]:
    """The "baselines" of `results.json`, if they are of this data."""
    paths = workdir / workdir_lib.DATA, workdir / workdir_lib.RESULTS
    if not all(path.exists() for path in paths):
        return {}
    data, results = (json.loads(path.read_text()) for path in paths)
    here = workdir_lib.describe_data(dataset)
    same = all(data[split] == here[split] for split in workdir_lib.SPLITS)
    return results.get("baselines", {}) if same else {}


def _baselines(
    config: ReportConfig, dataset: Dataset, fitted: Sequence[Source], known: dict[str, Any]
) -> dict[str, Any] | None:
    """As `baselines.compare`, fitted on the rows of `fitted`; None where there are to be none.

    They are for vectors. Models that are `known` are not fitted again.
    """
    spec = dataset.input_spec
    if not (config.baselines and baselines_lib.takes(spec)):
        return None
    test = dataset.test
    rows = sum(map(len, fitted))
    reason = baselines_lib.too_large(rows + len(test), spec.shape[0], dataset.num_classes)
    if rows > config.baseline_rows:
        reason = f"{rows:,} rows are more than report.baseline_rows ({config.baseline_rows:,})."
    if reason:
        return {
            name: known.get(name, {baselines_lib.LEFT_OUT: reason}) for name in baselines_lib.NAMES
        }
    if not baselines_lib.all_known(known):
        names = " and ".join(baselines_lib.NAMES.values())
        seconds = f"{config.baseline_seconds:g}"
        print(f"Baselines: {names}, {seconds} seconds at most.", file=sys.stderr, flush=True)
    return baselines_lib.compare(
        np.concatenate([source.inputs(np.arange(len(source))) for source in fitted]),
        label_sets.concatenate([source.labels for source in fitted]),
        test.inputs(np.arange(len(test))),
        test.labels,
        seconds=config.baseline_seconds,
        train_counts=label_sets.counts(dataset.train.labels),
        known=known,
    )


def write_report(
    workdir: Path,
    setup: Setup,
    state: TrainState,
    outputs: Outputs,
    results: dict[str, Any],
    command: str = "",
    gallery: Outputs | None = None,
) -> Path:
    """Writes `report/` on `state`, and returns the path of its `report.md`.

    Neighbours are shown where the outputs of train are given, as `gallery`.
    """
    # Plotting is imported where it is used: a model that only predicts needs none of it.
    from sdjax.report import report

    config, dataset = setup.config, setup.dataset
    inputs = report.ReportInputs(
        title=dataset.name,
        loss=config.supervised.name if config.recipe == "bce" else config.loss.name,
        label_names=dataset.label_names,
        # Of a run on train and validation the curves of the one before, which show validation.
        history=read_records((setup.refit.parent if setup.refit else workdir) / RECORDS),
        train_labels=dataset.train.labels,
        test_labels=dataset.test.labels,
        test_scores=outputs.scores,
        test_embeddings=outputs.embeddings,
        results=results,
        config=dataclasses.asdict(config),
        tested_step=None if setup.refit else int(state.step),
        tested_by=config.select_by,
        test_projections=outputs.projections,
        facts=_facts(workdir, setup, state, command),
        queries=()
        if gallery is None
        else nearest_rows(dataset, outputs, gallery, config.report.neighbors),
    )
    return report.write_report(workdir, inputs)


def _facts(workdir: Path, setup: Setup, state: TrainState, command: str) -> dict[str, str]:
    """How the run was made: its command, versions, time, parameters and devices."""
    seconds = _seconds(workdir / RECORDS)
    others = sum(map(_seconds, (workdir / workdir_lib.SELECTION).glob(f"*/{RECORDS}")))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    members, processes = setup.config.model.members, jax.process_count()
    python = platform.python_version()
    facts = {
        "Command": command,
        "Training rows": str(setup.dataset.few or ""),
        "Versions": f"sdjax {__version__}, jax {jax.__version__}, Python {python}",
        "Training took": f"{seconds:,.1f} seconds, with compilation and validation"
        + (f"; candidates before it {others:,.1f} seconds" if others else ""),
        "Parameters": f"{parameters:,}" + (f", of {members} members" if members > 1 else ""),
        "Devices": f"{setup.mesh.size} {jax.devices()[0].device_kind}"
        + (f", in {processes} processes" if processes > 1 else ""),
    }
    return {name: text for name, text in facts.items() if text}


def _seconds(records: Path) -> float:
    """What the training took whose records these are, over all attempts."""
    return sum(record.get("seconds", 0.0) for record in read_records(records))


def print_results(results: dict[str, Any], console: Console) -> None:
    """Prints a table of the main test metrics, of the run and of its baselines."""
    table = Table(title="Test", title_justify="left")
    table.add_column("metric")
    columns = {"threshold 0.5": results["test"], "tuned on validation": results["test_tuned"]}
    columns |= baselines_lib.metrics_of(results)
    for title in columns:
        table.add_column(title, justify="right")
    for name in HEADLINES:
        values = [column.get(name) for column in columns.values()]
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
    for text in baselines_lib.remarks(results):
        console.print(text, highlight=False, soft_wrap=True)
