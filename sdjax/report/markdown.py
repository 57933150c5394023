"""The text blocks of the report: tables, summary and configuration as Markdown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax import label_sets, metrics
from sdjax.label_sets import LabelSets
from sdjax.report import baselines, figures

SPLITS = {
    "test": "test, thresholds 0.5",
    "test_tuned": "test, tuned thresholds",
    "validation": "validation",
}
ORDER = (
    *("mAP", "micro_f1", "macro_f1", "example_f1", "micro_auc", "macro_auc"),
    *("p_at_1", "p_at_3", "p_at_5", "lrap", "subset_accuracy", "ranking_loss", "hamming_loss"),
)
LABELS_SHOWN = 100
NONE = "–"


def plain(text: object) -> str:
    """`text` on one line, with what Markdown or HTML would read as markup escaped."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + ch if ch in "\\`*_[]|~#$" else ch for ch in line)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    marks = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, marks, *rows])


def facts_list(facts: Mapping[str, str]) -> str:
    """How the run was made, an item each; a command as code."""
    return "\n".join(
        f"- **{plain(name)}**: " + (f"`{text}`" if name == "Command" else plain(text))
        for name, text in facts.items()
    )


def thresholds_text(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The tuned thresholds, what they were tuned for, and what they do on test."""
    tuned = list((results.get("thresholds") or {}).values())
    if not tuned:
        return ""
    if config.get("thresholds") == "per_label":
        text = (
            f"Tuned thresholds: one for each label, from {min(tuned):.4f} to {max(tuned):.4f}, "
            "that maximises the label's F1 on validation; for labels with fewer than 5 examples "
            "there, the one that maximises micro-F1."
        )
        metric, these = "macro_f1", "them"
    else:
        text = (
            f"Tuned threshold: {tuned[0]:.4f} for all labels, which maximises micro-F1 on "
            "validation."
        )
        metric, these = "micro_f1", "it"
    fixed, own = (results.get(split, {}).get(metric) for split in ("test", "test_tuned"))
    if not (_is_number(fixed) and _is_number(own)):
        return text
    return f"{text} On test {plain(metric)} is {own:.4f} with {these}, and {fixed:.4f} at 0.5."


def summary(
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    train_labels: LabelSets,
    test_labels: LabelSets,
    tested: str = "",
) -> str:
    """What ran, on how much data, which labels the numbers leave out, and the step `tested`."""
    train_counts, test_counts = label_sets.counts(train_labels), label_sets.counts(test_labels)
    num_train, num_test = label_sets.num_rows(train_labels), label_sets.num_rows(test_labels)
    num_labels = len(test_counts)
    without_label = int((label_sets.sizes(test_labels) == 0).sum())
    lines = [
        f"- **Data**: {num_train:,} training and {num_test:,} test examples, "
        f"{num_labels:,} labels; {train_counts.sum() / max(num_train, 1):.2f} labels a training "
        f"example, {without_label:,} test examples without a label.",
        f"- **Left out**: {int((test_counts == 0).sum()):,} of {num_labels:,} labels "
        "have no positive test example, and are in no average over labels. "
        f"{int(((test_counts > 0) & (train_counts == 0)).sum()):,} labels are evaluated that have "
        "no training example.",
    ]
    recipe = [f"{key} `{config[key]}`" for key in ("recipe", "seed", "batch_size") if key in config]
    if recipe:
        lines.insert(0, f"- **Run**: {', '.join(recipe)}.".replace("batch_size", "batch size"))
    if tested:
        lines.insert(0, f"- **Tested**: {tested}.")
    test = results.get("test", {})
    if _is_number(test.get("mAP")) and _is_number(test.get("micro_f1")):
        lines.insert(
            0, f"- **Test**: mAP **{test['mAP']:.4f}**, micro-F1 **{test['micro_f1']:.4f}**."
        )
    return "\n".join(lines)


def tested(step: int | None, by: str) -> str:
    """Which step was tested, and why that one: chosen `by` a validation metric, or the last."""
    if step is None:
        return ""
    return f"step {step:,}, the {f'best by validation {plain(by)}' if by else 'last'}"


def results_table(results: Mapping[str, Any]) -> str:
    """The metrics of the splits side by side."""
    columns = {
        title: results[split]
        for split, title in SPLITS.items()
        if isinstance(results.get(split), Mapping)
    }
    columns |= {f"{name}, test": each for name, each in baselines.metrics_of(results).items()}
    found = {
        name
        for column in columns.values()
        for name, value in column.items()
        if value is None or _is_number(value)
    }
    names = [*(n for n in ORDER if n in found), *sorted(found.difference(ORDER))]
    if not names:
        return "No results."
    rows = [
        [plain(name) + (" ↓" if name in metrics.LOWER_IS_BETTER else "")]
        + [_number(column.get(name)) for column in columns.values()]
        for name in names
    ]
    text = table(["metric", *columns], rows)
    return text + "\n\n*Higher is better, but for ↓. Only F1, hamming\\_loss and "\
        "subset\\_accuracy depend on the thresholds.*"  # fmt: skip


def baselines_text(results: Mapping[str, Any]) -> str:
    """What the baselines are, whether one is ahead, and why others were left out."""
    found = baselines.metrics_of(results)
    fitted = "train" if "few_examples" in results else "train and validation together"
    about = (
        f"Baselines, at thresholds of 0.5: {' and '.join(found)} of scikit-learn, untuned "
        f"({baselines.TREES} trees; C = {baselines.INVERSE_REGULARISATION}, a model for each "
        f"label), fitted on the rows of {fitted}."
    )
    remarks = [f"**{text}**" for text in baselines.remarks(results)]
    return " ".join([about] * bool(found) + remarks)


def selection_text(results: Mapping[str, Any]) -> str:
    """The candidates that were trained, and which one validation chose."""
    selection = results.get("selection")
    if not selection:
        return ""
    chosen = selection["candidates"][selection["chosen"]]
    refit = (
        f"The model that was tested was trained anew on train and validation together, for "
        f"{chosen['epochs']} epochs. The curves, the validation figures and the thresholds are of "
        "the run before, on train alone."
    )
    refit *= selection["refit"]
    if len(selection["candidates"]) < 2:
        return refit
    judged_by = selection["judged_by"]
    rows = [
        [
            plain(each["overrides"]) + " (chosen)" * (place == selection["chosen"]),
            str(each["epochs"]),
            _number(each["validation"].get(judged_by)),
        ]
        for place, each in enumerate(selection["candidates"])
    ]
    text = table(["candidate", "epochs", f"validation {plain(judged_by)}"], rows)
    return f"{text}\n\n{refit}".rstrip()


def groups_table(results: Mapping[str, Any]) -> str:
    """Head, medium and tail of the labels, where the results hold them."""
    groups = results.get("test", {}).get("groups")
    if not groups:
        return ""
    tuned = results.get("test_tuned", {}).get("groups", {})
    rows = []
    for name, group in groups.items():
        counts = [group["min_train_count"], group["max_train_count"]]
        rows.append(
            [
                plain(name),
                f"{group['labels_evaluated']} of {group['labels']}",
                NONE if counts[0] is None else f"{counts[0]:,} to {counts[1]:,}",
                _number(group["mAP"]),
                _number(group["macro_f1"]),
                *([_number(tuned.get(name, {}).get("macro_f1"))] if tuned else []),
            ]
        )
    header = ["labels by training frequency", "evaluated", "training examples", "mAP", "macro\\_f1"]
    return table(header + (["macro\\_f1, tuned"] if tuned else []), rows)


def label_tables(
    names: Sequence[str],
    train_counts: Sequence[int],
    each: Mapping[str, Any],
    examples: int,
    extremes: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> list[str]:
    """Each label's numbers, most frequent first, and before them those of the best and the worst.

    Of a long list, labels without a test example, which have no numbers, and then the middle are
    left out.
    """

    def rows(order: Sequence[int]) -> list[list[str]]:
        return [
            [
                plain(names[c]),
                f"{train_counts[c]:,}",
                f"{each['positives'][c]:,}",
                f"{each['positives'][c] / examples:.4f}",
                *(_number(each[key][c]) for key in ("average_precision", "auc", "f1")),
            ]
            for c in order
        ]

    header = ["label", "train", "test", "base rate", "AP", "AUC", "F1 at 0.5"]
    best, worst = extremes
    tables = []
    if best:
        tables.append(f"The {len(best)} best labels:\n\n{table(header, rows(best))}")
    if worst:
        heading = f"The {len(worst)} worst, the very worst first:"
        tables.append(f"{heading}\n\n{table(header, rows(worst))}")
    order = sorted(range(len(names)), key=lambda c: (-train_counts[c], c))
    title = f"All {len(names)} labels"
    if len(names) > LABELS_SHOWN:
        order = [c for c in order if each["positives"][c]]
        title = f"The {len(order):,} of {len(names):,} labels that have a test example"
    if len(order) > LABELS_SHOWN:
        half = LABELS_SHOWN // 2
        title = f"The {half} most frequent and the {half} rarest of {title[0].lower()}{title[1:]}"
        order = order[:half] + order[-half:]
    folded = f"<details><summary>{title}</summary>\n\n{table(header, rows(order))}\n\n</details>"
    return [*tables, folded]


def retrieval_table(results: Mapping[str, Any]) -> str:
    """The retrieval metrics of each embedding, side by side."""
    found = results.get("retrieval") or {}
    names = [name for name, value in next(iter(found.values()), {}).items() if _is_number(value)]
    if not names:
        return ""
    rows = [[plain(name), *(_number(each.get(name)) for each in found.values())] for name in names]
    note = (
        "*Test rows as queries among the rows of train, by the cosine (`sdjax.retrieval`). Higher "
        "is better, but for uniformity: lower is more even.*"
    )
    return f"{table(['neighbours', *found], rows)}\n\n{note}"


def similarity_table(similarities: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    """Cosine similarity of test pairs in each relation, of embeddings by their names."""
    header = ["relation"]
    for name in similarities:
        of = f" of {name}" if len(similarities) > 1 else ""
        header += [f"mean cosine similarity{of}", "standard deviation"]
    rows = []
    for code, style in figures.RELATIONS.items():
        cells = [style.name]
        for similarity in similarities.values():
            found = similarity.get(code)
            cells += [f"{x:.3f}" for x in found] if found else ["no pairs", ""]
        rows.append(cells)
    note = "*Pairs of test examples. R2 should lie highest and R1 lowest.*"
    return f"{table(header, rows)}\n\n{note}"


def config_block(config: Mapping[str, Any]) -> str:
    """The configuration as JSON, folded away."""
    text = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    return f"<details><summary>Configuration</summary>\n\n```json\n{text}\n```\n\n</details>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> str:
    return f"{value:.4f}" if _is_number(value) else NONE
