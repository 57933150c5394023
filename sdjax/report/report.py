"""The report of one run: report.md, its figures and report.html, from plain arrays and records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from sdjax import label_sets, metrics
from sdjax import labels as labels_lib
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices
from sdjax.report import (
    captions,
    curves,
    embedding,
    figures,
    html,
    label_scatter,
    markdown,
    neighbors,
    pairs,
    remarks,
)

PER_LABEL = "per_label.csv"
LEARNING, SHARES, WEIGHTS, LABELS, MAP, PROJECTION_MAP, NEIGHBORS = (
    "learning_curves.png",
    "relation_shares.png",
    "relation_weights.png",
    "labels.png",
    "embedding_map.png",
    "projection_map.png",
    "neighbors.png",
)
MAPS = {"h": MAP, "z": PROJECTION_MAP}


@dataclass
class ReportInputs:
    """What a report is made of.

    Attributes:
      title: name of the data set, the report's heading.
      loss: name of the run's loss ("sd", "mulsupcon", "bce", ...).
      label_names: C names.
      history: records of metrics.jsonl: "step", "phase", "split" ("train" or "validation") and
        numbers such as "loss", "contrastive", "bce", "mAP", "micro_f1".
      train_labels: multi-hot [M, C], or `LabelIndices` over C labels.
      test_labels: multi-hot [N, C], or `LabelIndices` over C labels.
      test_scores: [N, C] in [0, 1].
      test_embeddings: [N, D].
      results: of `metrics.evaluate`, for each of "test", "test_tuned" (with thresholds tuned on
        validation) and "validation", where there is one; "baselines" as of `baselines.compare`.
      config: the run's configuration, as `json.dumps` takes it.
      tested_step: step of the last phase whose parameters "test" and the test arrays are of.
      tested_by: name of the validation metric that chose that step ("mAP"); "" for the last step.
      test_projections: [N, D], what the contrastive loss compares, where there is one.
      facts: how the run was made, as {"Devices": "8 TPU v5e", ...}; the "Command" among them.
      queries: test rows with their nearest rows of train, by h.
    """

    title: str
    loss: str
    label_names: Sequence[str]
    history: Sequence[Mapping[str, Any]]
    train_labels: ArrayLike | LabelIndices
    test_labels: ArrayLike | LabelIndices
    test_scores: ArrayLike
    test_embeddings: ArrayLike
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    tested_step: int | None = None
    tested_by: str = ""
    test_projections: ArrayLike | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    queries: Sequence[neighbors.Query] = ()


@dataclass
class _Checked:
    """The arrays of `ReportInputs`, seen to fit each other."""

    train_labels: LabelSets
    train_counts: NDArray[np.integer]
    test_labels: LabelSets
    num_test: int
    embeddings: dict[str, NDArray[Any]]  # of test, "h" and, where there are any, projections "z"
    per_label: dict[str, list[Any]]

    @property
    def average_precision(self) -> NDArray[np.float64]:
        """Of each label; NaN where it is not defined."""
        return np.array(self.per_label["average_precision"], np.float64)

    @property
    def extremes(self) -> tuple[list[int], list[int]]:
        """The best labels and the worst ones, where the figure cannot name all."""
        positives = np.array(self.per_label["positives"])
        if (positives > 0).sum() <= label_scatter.ANNOTATE_UP_TO:
            return [], []
        return label_scatter.extremes(self.average_precision, positives)


def write_report(workdir: str | Path, inputs: ReportInputs) -> Path:
    """Writes report/report.md, its figures, and all in one page, report.html, under `workdir`.

    They take the place of an earlier report.

    Args:
      workdir: the run's directory; made if need be.
      inputs: see `ReportInputs`.

    Returns:
      The path of report.md.

    Raises:
      InputError: if the arrays do not fit each other, or hold values that they may not.
    """
    data = _check(inputs)
    directory = Path(workdir) / "report"
    directory.mkdir(parents=True, exist_ok=True)
    table = pairs.pair_table(data.train_labels)
    drawn = {
        LEARNING: curves.learning_curves(inputs.history, inputs.tested_step),
        SHARES: pairs.relation_shares(table),
        WEIGHTS: pairs.relation_weights(table, inputs.loss, _jaccard_threshold(inputs.config)),
        LABELS: _label_figure(data, inputs.label_names),
        NEIGHBORS: neighbors.pictures(inputs.queries),
    }
    for name, file in MAPS.items():
        found = data.embeddings.get(name)
        drawn[file] = (
            found
            if found is None
            else embedding.embedding_map(data.test_labels, found, inputs.label_names)
        )
    for name, figure in drawn.items():
        _write_figure(directory / name, figure)
    shown = {name for name, figure in drawn.items() if figure is not None}
    _per_label_frame(inputs, data).to_csv(directory / PER_LABEL, index=False)
    path = directory / "report.md"
    path.write_text(_text(inputs, data, table, shown), encoding="utf-8")
    html.write_page(path)
    return path


def _write_figure(path: Path, figure: Figure | None) -> None:
    if figure is None:
        path.unlink(missing_ok=True)
    else:
        figures.save(figure, path)


def _jaccard_threshold(config: Mapping[str, Any]) -> float:
    loss = config.get("loss")
    value = loss.get("threshold") if isinstance(loss, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.5


def _label_figure(data: _Checked, names: Sequence[str]) -> Figure | None:
    return label_scatter.label_scatter(
        data.train_counts.astype(np.float64),
        np.array(data.per_label["positives"]) / data.num_test,
        data.average_precision,
        names,
        [place for part in data.extremes for place in part],
    )


def _per_label_frame(inputs: ReportInputs, data: _Checked) -> pd.DataFrame:
    """All that is known of each label, a row each: the report's table shows a choice of them."""
    names, tuned = list(inputs.label_names), inputs.results.get("thresholds")
    columns = {
        "label": names,
        "train_count": data.train_counts,
        "test_count": data.per_label["positives"],
    }
    columns |= {k: data.per_label[k] for k in ("average_precision", "auc", "f1", "predicted")}
    if tuned:
        columns["tuned_threshold"] = [tuned[name] for name in names]
    return pd.DataFrame(columns)


def _check(inputs: ReportInputs) -> _Checked:
    num_labels = len(inputs.label_names)
    train = _check_labels("train_labels", inputs.train_labels, num_labels)
    test = _check_labels("test_labels", inputs.test_labels, num_labels)
    num_test = label_sets.num_rows(test)
    embeddings = {"h": _check_embeddings("test_embeddings", inputs.test_embeddings, num_test)}
    if inputs.test_projections is not None:
        z = _check_embeddings("test_projections", inputs.test_projections, num_test)
        embeddings["z"] = z
    each = metrics.per_label(test, inputs.test_scores)
    return _Checked(train, label_sets.counts(train), test, num_test, embeddings, each)


def _check_embeddings(name: str, given: ArrayLike, num_test: int) -> NDArray[Any]:
    embeddings = np.asarray(given)
    if embeddings.ndim != 2 or len(embeddings) != num_test:
        raise InputError(
            f"{name} must be [{num_test}, D], a row for each of test_labels; "
            f"got shape {embeddings.shape}."
        )
    if not np.isfinite(embeddings).all():
        row, column = np.argwhere(~np.isfinite(embeddings))[0]
        raise InputError(f"{name} must be finite; row {row}, column {column} is not.")
    return embeddings


def _check_labels(name: str, labels: ArrayLike | LabelIndices, num_labels: int) -> LabelSets:
    if isinstance(labels, LabelIndices):
        sets = LabelIndices(np.asarray(labels.indices), labels.num_classes)
        shape = label_sets.num_rows(labels), labels.num_classes
    else:
        sets = np.asarray(labels)
        shape = sets.shape
    if len(shape) != 2 or shape[1] != num_labels:
        raise InputError(
            f"{name} must be multi-hot [N, {num_labels}], or LabelIndices over {num_labels} "
            f"labels, as there are {num_labels} label_names; got shape {shape}."
        )
    labels_lib.check_labels(name, sets)
    return sets


def _text(inputs: ReportInputs, data: _Checked, table: pairs.PairTable, shown: set[str]) -> str:
    num_labels = sum(count > 0 for count in data.per_label["positives"])
    sections = [
        f"# {markdown.plain(inputs.title)}: {markdown.plain(inputs.loss)}",
        markdown.summary(
            inputs.results,
            inputs.config,
            data.train_labels,
            data.test_labels,
            markdown.tested(inputs.tested_step, inputs.tested_by),
        ),
        markdown.facts_list(inputs.facts),
        "## Results",
        markdown.results_table(inputs.results),
        markdown.thresholds_text(inputs.results, inputs.config),
        markdown.baselines_text(inputs.results),
        markdown.groups_table(inputs.results),
        "## Training",
        markdown.selection_text(inputs.results),
        _figure(shown, LEARNING, "Learning curves", captions.LEARNING,
                "The history holds no loss and no validation metric: no learning curves."),
        "## Labels",
        _figure(shown, LABELS, "Average precision of each label", captions.labels(num_labels),
                "No label has a positive test example: nothing to show."),
        _worse_than_chance(inputs, data),
        f"All labels: [{PER_LABEL}]({PER_LABEL}), F1 at a threshold of 0.5.",
        *markdown.label_tables(inputs.label_names, data.train_counts.tolist(), data.per_label,
                               data.num_test, data.extremes),
        "## Relations between the label sets",
        _figure(shown, SHARES, "Share of the five relations", captions.shares(table),
                "The training set has fewer than two examples: no pairs."),
        _figure(shown, WEIGHTS, "Weights of the relations", captions.WEIGHTS, ""),
        "## Embeddings",
        *_embedding_sections(inputs, data, shown),
        markdown.retrieval_table(inputs.results),
        *_neighbor_sections(inputs, shown),
        "## Configuration",
        markdown.config_block(inputs.config),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def _figure(shown: set[str], name: str, alt: str, caption: str, otherwise: str) -> str:
    return f"![{alt}]({name})\n\n*{caption}*" if name in shown else otherwise


def _worse_than_chance(inputs: ReportInputs, data: _Checked) -> str:
    positives = np.array(data.per_label["positives"])
    return remarks.worse_than_chance(
        inputs.label_names, data.average_precision, positives, data.num_test
    )


def _embedding_sections(inputs: ReportInputs, data: _Checked, shown: set[str]) -> list[str]:
    """Maps of h and z, their similarities by relation, and whether these are as they should be."""
    sections = []
    if len(data.embeddings) > 1:
        stale = captions.STALE_PROJECTION if inputs.config.get("recipe") == "finetune" else ""
        sections.append(captions.EMBEDDINGS + stale)
    similarities = {}
    table = pairs.pair_table(data.test_labels, embedding.SIMILARITY_ROWS)
    threshold = _jaccard_threshold(inputs.config)
    weights = remarks.weights_by_relation(inputs.loss, table, threshold)
    notes = []
    for name, embeddings in data.embeddings.items():
        caption = captions.embedding_map(name, data.num_test)
        otherwise = "" if MAPS[name] in shown else _no_map(name, embeddings)
        sections.append(
            _figure(shown, MAPS[name], f"Map of {name} of the test examples", caption, otherwise)
        )
        similarity = embedding.similarity_by_relation(data.test_labels, embeddings)
        if similarity:
            similarities[name] = similarity
            notes.append(remarks.order_of_similarities(name, similarity, weights))
    if similarities:
        sections.append(markdown.similarity_table(similarities))
    return [*sections, *(f"**{markdown.plain(note)}**" for note in notes if note)]


def _neighbor_sections(inputs: ReportInputs, shown: set[str]) -> list[str]:
    if not inputs.queries:
        return []
    return [
        "### Nearest neighbours",
        captions.NEIGHBORS,
        _figure(shown, NEIGHBORS, "Test rows and their neighbours", captions.PICTURES, ""),
        *neighbors.sections(inputs.queries),
    ]


def _no_map(name: str, embeddings: NDArray[Any]) -> str:
    part = {"h": "encoder", "z": "projection"}[name]
    if len(embeddings) > 1 and embedding.has_collapsed(embeddings):
        return (
            f"All test embeddings {name} point in the same direction: **the {part} has "
            "collapsed**, and there is no map to draw."
        )
    return "Fewer than two test examples, or none with a label: no map."
