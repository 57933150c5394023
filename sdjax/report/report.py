"""The report of one run: report.md and its figures, from plain arrays and records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from sdjax.report import curves, embedding, figures, label_scatter, markdown, pairs

PER_LABEL = "per_label.csv"
LEARNING, SHARES, WEIGHTS, LABELS, MAP = (
    "learning_curves.png",
    "relation_shares.png",
    "relation_weights.png",
    "labels.png",
    "embedding_map.png",
)


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


@dataclass
class _Checked:
    """The arrays of `ReportInputs`, seen to fit each other."""

    train_labels: LabelSets
    train_counts: NDArray[np.integer]
    test_labels: LabelSets
    num_test: int
    test_embeddings: NDArray[Any]
    per_label: dict[str, list[Any]]


def write_report(workdir: str | Path, inputs: ReportInputs) -> Path:
    """Writes report/report.md and its figures under `workdir`, in place of an earlier report.

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
        MAP: embedding.embedding_map(data.test_labels, data.test_embeddings, inputs.label_names),
    }
    for name, figure in drawn.items():
        _write_figure(directory / name, figure)
    shown = {name for name, figure in drawn.items() if figure is not None}
    _per_label_frame(inputs.label_names, data).to_csv(directory / PER_LABEL, index=False)
    path = directory / "report.md"
    path.write_text(_text(inputs, data, table, shown), encoding="utf-8")
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
        np.array(data.per_label["average_precision"], np.float64),
        names,
    )


def _per_label_frame(label_names: Sequence[str], data: _Checked) -> pd.DataFrame:
    """All that is known of each label, a row each: the report's table shows a choice of them."""
    columns = {"label": list(label_names), "train_count": data.train_counts}
    return pd.DataFrame(
        {
            **columns,
            "test_count": data.per_label["positives"],
            **{
                name: data.per_label[name]
                for name in ("average_precision", "auc", "f1", "predicted")
            },
        }
    )


def _check(inputs: ReportInputs) -> _Checked:
    num_labels = len(inputs.label_names)
    train = _check_labels("train_labels", inputs.train_labels, num_labels)
    test = _check_labels("test_labels", inputs.test_labels, num_labels)
    num_test = label_sets.num_rows(test)
    embeddings = np.asarray(inputs.test_embeddings)
    if embeddings.ndim != 2 or len(embeddings) != num_test:
        raise InputError(
            f"test_embeddings must be [{num_test}, D], a row for each of test_labels; "
            f"got shape {embeddings.shape}."
        )
    if not np.isfinite(embeddings).all():
        row, column = np.argwhere(~np.isfinite(embeddings))[0]
        raise InputError(f"test_embeddings must be finite; row {row}, column {column} is not.")
    each = metrics.per_label(test, inputs.test_scores)
    return _Checked(train, label_sets.counts(train), test, num_test, embeddings, each)


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
    sections = [
        f"# {markdown.plain(inputs.title)}: {markdown.plain(inputs.loss)}",
        markdown.summary(
            inputs.results,
            inputs.config,
            data.train_labels,
            data.test_labels,
            markdown.tested(inputs.tested_step, inputs.tested_by),
        ),
        "## Results",
        markdown.results_table(inputs.results),
        markdown.baselines_text(inputs.results),
        markdown.groups_table(inputs.results),
        "## Training",
        _figure(shown, LEARNING, "Learning curves", _LEARNING_TEXT,
                "The history holds no loss and no validation metric: no learning curves."),
        "## Labels",
        _figure(shown, LABELS, "Average precision of each label", _labels_text(data),
                "No label has a positive test example: nothing to show."),
        f"All labels: [{PER_LABEL}]({PER_LABEL}), F1 at a threshold of 0.5.",
        markdown.label_table(inputs.label_names, data.train_counts.tolist(), data.per_label,
                             data.num_test),
        "## Relations between the label sets",
        _figure(shown, SHARES, "Share of the five relations", _shares_text(table),
                "The training set has fewer than two examples: no pairs."),
        _figure(shown, WEIGHTS, "Weights of the relations", _WEIGHTS_TEXT, ""),
        "## Embeddings",
        _figure(shown, MAP, "Map of the test embeddings", _map_text(data.num_test),
                "" if MAP in shown else _no_map(data)),
        _similarity_section(data),
        "## Configuration",
        markdown.config_block(inputs.config),
    ]  # fmt: skip
    return "\n\n".join(section for section in sections if section) + "\n"


def _figure(shown: set[str], name: str, alt: str, caption: str, otherwise: str) -> str:
    return f"![{alt}]({name})\n\n*{caption}*" if name in shown else otherwise


def _similarity_section(data: _Checked) -> str:
    similarity = embedding.similarity_by_relation(data.test_labels, data.test_embeddings)
    return markdown.similarity_table(similarity) if similarity else ""


def _no_map(data: _Checked) -> str:
    if data.num_test > 1 and embedding.has_collapsed(data.test_embeddings):
        return (
            "All test embeddings point in the same direction: **the encoder has collapsed**, and "
            "there is no map to draw."
        )
    return "Fewer than two test examples, or none with a label: no map."


_LEARNING_TEXT = (
    "Above: the training loss of each phase, on its own scale; where a phase adds two losses, "
    "their sum and each of them. A value is the mean over the steps since the one before; where "
    "there are many, the pale line holds them and the dark one their running mean. Below: metrics "
    "on the validation split; the star marks the best mAP, the dashed line, where it is known, the "
    "step that was tested, and phases, where there are several, are named at the top of their "
    "stretch."
)
_WEIGHTS_TEXT = (
    "What each loss of the family makes of the training pairs, a panel a weight function. Dot and "
    "number: mean weight over the pairs of that relation; thick bar: the middle half; thin line: "
    "from least to greatest. R1 has weight 0 in all of them. MulSupCon is missing because its "
    "weights depend on the batch."
)


def _labels_text(data: _Checked) -> str:
    num_labels = sum(count > 0 for count in data.per_label["positives"])
    text = (
        "Each dot is a label that has a positive test example; labels to the left are rare in "
        "training. The red dash is the label's share of the test examples, which is the average "
        "precision of a random ranking: what lies between the two is what the model has learnt."
    )
    if num_labels > label_scatter.STEMS_UP_TO:
        return text + " The lines are means over labels of like frequency."
    if num_labels <= label_scatter.ANNOTATE_UP_TO:
        return text + " A name that would cover something is left out; the table has them all."
    return text


def _shares_text(table: pairs.PairTable) -> str:
    sampled = (
        f" Counted in {table.rows:,} of {table.of_rows:,} rows, drawn at random."
        if table.rows < table.of_rows
        else ""
    )
    meanings = "; ".join(f"{s.name}: {s.meaning}" for s in figures.RELATIONS.values())
    return (
        "Every ordered pair (anchor, candidate) of training examples stands in one of five "
        f"relations. {meanings}. Above: all pairs; below: only the pairs that share a label, "
        f"which a contrastive loss pulls together. R4 and R5 mirror each other.{sampled}"
    )


def _map_text(num_examples: int) -> str:
    sampled = (
        f" Shown are {embedding.MAX_POINTS:,} of {num_examples:,} examples, drawn at random."
        if num_examples > embedding.MAX_POINTS
        else ""
    )
    return (
        "The test embeddings, scaled to unit length, on their first two principal components: the "
        "same points in every panel, coloured by their relation to that panel's anchor (star). "
        "Below each panel: how many examples stand in each relation. A good embedding has R2 next "
        "to the star, R3 to R5 around it by how much they share, R1 (gray) far off. Two "
        "components show only the stated part of the variance; the table below is of the full "
        f"embedding.{sampled}"
    )
