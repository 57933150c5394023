"""The report of a study: `report.md` with its figures, and the same as one page, `report.html`."""

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure

from sdjax.report import figures as common
from sdjax.report import gradients, html
from sdjax.report.markdown import NONE, facts_list, plain, table
from sdjax.study import factors, figures, statistics
from sdjax.study.by_relation import Seen
from sdjax.study.progress import duration
from sdjax.study.statistics import CONFIDENCE, Frame

METRICS = {
    "mAP": "test.mAP",
    "micro-F1": "test_tuned.micro_f1",
    "macro-F1": "test_tuned.macro_f1",
    "nDCG": "retrieval.h.ndcg_at_*",
    "exact": "retrieval.h.exact_at_*",
    "kNN mAP": "retrieval.h.knn_mAP",
    "linear mAP": "retrieval.h.linear_mAP",
}
DRAWN = ("mAP", "micro-F1", "nDCG", "exact")
GROUPS = {f"{name} labels": f"test.{name}.mAP" for name in ("head", "medium", "tail")}
LEVEL = 0.05
STATISTICS = "statistics.csv"

_ABOUT = (
    "Figures of test, mean ± standard deviation over seeds. F1 is at the one threshold that was "
    "tuned on validation; mAP is the mean over labels of average precision; neighbours are those "
    "of test rows among the rows of train, by the cosine of the encoder's embeddings h: nDCG has "
    "the Jaccard gain of the label sets, exact is the share of neighbours with just the same "
    "labels, kNN mAP that of their votes; linear mAP is that of a linear classifier on h. Seconds "
    "are the median of a run's."
)
_SEEDS = (
    "Over seeds the data are the same: intervals (95 %, BCa bootstrap) and tests tell how much is "
    "chance in training. Whether a method is better on other data is told by the tests over data "
    "sets."
)


class _Report:
    """The parts of the report, in order, and what several of them are made of.

    Args:
      folder: for its files.
      frame: of `sdjax.study.table.make`.
      reference: method that the others are tested against.
    """

    def __init__(self, folder: Path, frame: Frame, reference: str):
        self.folder, self.frame, self.reference = folder, frame, reference
        self.parts, self.figures = list[str](), list[str]()
        self.methods = list(dict.fromkeys(frame["method"]))
        self.metrics = titled(frame)
        self.drawn = {t: m for t, m in self.metrics.items() if t.partition("@")[0] in DRAWN}
        self.groups = {t: m for t, m in GROUPS.items() if m in frame and frame[m].notna().any()}
        everything = {**self.metrics, **self.groups}
        self.summaries = {t: statistics.summary(frame, m) for t, m in everything.items()}
        self.tests = {t: statistics.over_seeds(frame, m, reference) for t, m in everything.items()}

    def add(self, *texts: str) -> None:
        """Adds paragraphs; empty ones are left out."""
        self.parts += filter(None, texts)

    def draw(
        self, name: str, figure: Figure | None, alt: str, caption: str, *, marks: bool = False
    ) -> None:
        """Adds a figure, if there is one; of very many `marks` it is not SVG, which were large."""
        if figure is not None:
            file = re.sub(r"\W+", "_", name) + (".png" if marks else ".svg")
            (figures.save_small if marks else figures.save)(figure, self.folder / file)
            self.figures.append(file)
            self.add(f"![{plain(alt)}]({file})", f"*{plain(caption)}*")

    def linked(self, method: str) -> str:
        """The name of a method, as a link to its commands."""
        return f"[{plain(method)}](#{self.anchor(method)})"

    def anchor(self, method: str) -> str:
        """Where its commands stand."""
        return f"m{self.methods.index(method)}"


def write_report(
    workdir: Path,
    frame: Frame,
    *,
    title: str,
    axes: Sequence[str] = (),
    reference: str = "",
    facts: Mapping[str, str] | None = None,
    trials: Frame | None = None,
    relations: Mapping[str, Seen] | None = None,
) -> Path:
    """Writes `report/` of a study, and returns the path of its `report.html`.

    Args:
      workdir: of the study.
      frame: of `sdjax.study.table.make`, a row at least.
      title: of the study.
      axes: fields of the grid.
      reference: method that the others are tested against; "" takes the first that is binary
        cross-entropy alone, else the first.
      facts: how the study was made, the "Command" among them.
      trials: of tuning, with columns "data", "method", "number", "value" and "overrides".
      relations: what there is to show of the five relations, by data set.
    """
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    report = _Report(folder, frame, reference or default_reference(frame))
    report.add(f"# {plain(title)}", facts_list({**_facts(frame), **(facts or {})}))
    report.add(_data_sets(frame), _ABOUT)
    _overview(report)
    for data in dict.fromkeys(frame["data"]):
        _data_set(report, data)
        if relations and data in relations:
            _gradients(report, data, relations[data])
            _maps(report, data, relations[data])
    _tests(report)
    _sensitivity(report, axes)
    _factors(report)
    _tuning(report, trials)
    _commands(report)
    _runs(report)
    for old in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if old.name not in report.figures:
            old.unlink()
    _statistics(report).to_csv(folder / STATISTICS, index=False)
    path = folder / "report.md"
    path.write_text("\n\n".join(report.parts) + "\n", encoding="utf-8")
    return html.write_page(path)


def titled(frame: Frame) -> dict[str, str]:
    """The metrics that the frame has, by titles that say how many neighbours were looked at."""
    found = {}
    for title, pattern in METRICS.items():
        columns = [name for name in frame.columns if fnmatch.fnmatch(name, pattern)]
        columns = [name for name in columns if frame[name].notna().any()]
        if columns:
            numbers = re.findall(r"_at_(\d+)$", columns[0]) if len(columns) == 1 else []
            found[title + "".join(f"@{n}" for n in numbers)] = pattern
    return found


def default_reference(frame: Frame) -> str:
    """The first method that is binary cross-entropy alone, else the first."""
    methods = list(dict.fromkeys(frame["method"]))
    return next((name for name in methods if "bce" in name.split()), methods[0])


def _facts(frame: Frame) -> dict[str, str]:
    failed = int((frame["status"] == "failed").sum())
    return {
        "Methods": str(frame["method"].nunique()),
        "Runs": f"{len(frame):,}" + (f", {failed:,} of which failed" if failed else ""),
        "Runs took": f"{duration(frame['seconds'].sum())} in all",
    }


def _data_sets(frame: Frame) -> str:
    columns = {f"{name} rows": f"rows.{name}" for name in ("train", "validation", "test")}
    columns["labels"] = "labels"
    rows = [
        [plain(row["data"]), *(f"{int(row[column]):,}" for column in columns.values())]
        for _, row in frame.drop_duplicates("data").iterrows()
    ]
    return table(["data set", *columns], rows)


def _overview(report: _Report) -> None:
    report.add("## Overview")
    found = {t: statistics.ranks(report.frame, m) for t, m in report.metrics.items()}
    ranked = {title: ranks for title, ranks in found.items() if ranks is not None}
    if ranked:
        first = next(iter(ranked.values()))
        rows = [
            [report.linked(method)]
            + [_number(each.average.get(method), 2) for each in ranked.values()]
            for method in sorted(report.methods, key=lambda m: first.average.get(m, math.inf))
        ]
        text = f"Mean ranks over {first.blocks} {first.over}, 1 the best:"
        report.add(text, table(["method", *ranked], rows))
    report.add(_ahead(report))
    for place, (title, ranks) in enumerate(ranked.items()):
        if title in report.drawn and len(ranks.average) > 2:
            figure = figures.rank_diagram(ranks, title)
            alt, caption = f"Ranks by {title}", _rank_caption(title, ranks)
            report.draw(f"ranks_{place}", figure, alt, caption)


def _rank_caption(title: str, ranks: statistics.Ranks) -> str:
    text = f"Mean ranks by {title} over {ranks.blocks} {ranks.over}."
    if not math.isnan(ranks.friedman):
        text += (
            f" Friedman's test that all methods are alike: p {_p(ranks.friedman)}. A bar joins "
            "methods whose ranks differ by no more than the critical difference of Nemenyi's "
            f"test, {ranks.critical_difference:.2f}, at a level of {LEVEL}."
        )
    if ranks.left_out:
        text += f" Left out, for want of some of them: {', '.join(ranks.left_out)}."
    return text


def _ahead(report: _Report) -> str:
    """On how many data sets each method is ahead of the reference, level and behind."""
    counts: dict[str, dict[str, str]] = {}
    for title in report.metrics:
        for method, rows in report.tests[title].groupby(level="method", sort=False):
            sure = rows["p_holm"] < LEVEL
            ahead, behind = (int((sure & (rows["difference"] * s > 0)).sum()) for s in (1, -1))
            level = len(rows) - ahead - behind
            counts.setdefault(method, {})[title] = f"{ahead} / {level} / {behind}"
    if not counts:
        return ""
    rows = [
        [report.linked(method), *(each.get(title, NONE) for title in report.metrics)]
        for method, each in counts.items()
    ]
    return (
        f"On how many data sets a method is ahead of **{plain(report.reference)}** / not told "
        f"apart from it / behind it, by a paired t-test over seeds (p < {LEVEL} after Holm's "
        f"correction):\n\n{table(['method', *report.metrics], rows)}"
    )


def _data_set(report: _Report, data: str) -> None:
    frame = report.frame
    done = frame[(frame["data"] == data) & (frame["status"] == "done")]
    report.add(f"## {plain(data)}")
    if not len(done):
        report.add("No run has ended well.")
        return
    counts, seconds = done.groupby("method").size(), done.groupby("method")["seconds"].median()
    methods = list(dict.fromkeys(done["method"]))
    rows = [
        [*_means(report, data, m, report.metrics), str(counts[m]), f"{seconds[m]:.1f}"]
        for m in methods
    ]
    report.add(table(["method", *report.metrics, "runs", "seconds"], rows))
    caption = (
        "Large dots are means, lines their 95 % intervals, pale dots runs. Gray: models of "
        "scikit-learn, untuned. Axes do not begin at 0."
    )
    figure = figures.intervals(frame, data, report.drawn, report.summaries)
    report.draw(f"results_{data}", figure, f"Results on {data}", caption)
    if report.groups:
        caption = (
            "mAP over thirds of the labels: the most frequent ones in train, those in the middle, "
            "and the rarest."
        )
        figure = figures.intervals(frame, data, report.groups, report.summaries)
        report.draw(f"frequency_{data}", figure, f"mAP by label frequency on {data}", caption)
        rows = [_means(report, data, method, report.groups) for method in methods]
        report.add(_folded("The same as a table", table(["method", *report.groups], rows)))


def _gradients(report: _Report, data: str, seen: Seen) -> None:
    """Which relations of a pair each loss pulls together and pushes apart."""
    if not seen.losses:
        return
    at = "" if seen.temperature is None else f" at a temperature of {seen.temperature:.3g}"
    caption = (
        "Whom each loss pulls together, and whom it pushes apart, by the relation of a pair: the "
        "share of the sum of |∂L/∂s| over the ordered pairs, where descent makes s, the similarity "
        "of anchor and candidate, larger (left) and smaller (right). The embedding is the same for "
        f"all: the inputs of {seen.rows:,} rows of train, scaled to unit length{at}; no run has a "
        f"part in it. Above ({gradients.PAIRS}) how common the relations are: among the pairs that "
        "share a label, and among all."
    )
    if seen.left_out:
        caption += f" Left out: {', '.join(seen.left_out)}."
    figure = gradients.gradient_shares(seen.counts, seen.losses)
    report.draw(f"gradients_{data}", figure, f"Gradient by relation on {data}", caption)
    common_pairs = gradients.of_counts(seen.counts)
    rows = [
        [plain(loss), direction]
        + [f"{100 * share:.1f}" for share in gradients.shares(getattr(each, direction))]
        for direction in gradients.DIRECTIONS
        for loss, each in {gradients.PAIRS: common_pairs, **seen.losses}.items()
    ]
    header = ["loss", "direction", *(style.name for style in common.RELATIONS.values())]
    report.add(_folded("The same as a table, in %", table(header, rows)))


def _maps(report: _Report, data: str, seen: Seen) -> None:
    """Rows of test before and after training, coloured by their relation to one of them."""
    if seen.anchor is None or not seen.after:
        return
    before = {} if seen.before is None else {"inputs": seen.before}
    caption = (
        f"Before and after training: {len(seen.codes):,} rows of test by their inputs and by the "
        "encoder's embeddings h of the first run of each method, scaled to unit length, on their "
        "first two principal components; the same rows in each panel, coloured by their relation "
        "to the anchor (star), a row with many others in each relation."
    )
    title = f"anchor: {common.set_names(seen.anchor_labels, 90)}"
    figure = figures.relation_maps({**before, **seen.after}, seen.anchor, seen.codes, title)
    report.draw(f"maps_{data}", figure, f"Maps of {data}, {title}", caption, marks=True)


def _means(report: _Report, data: str, method: str, titles: Iterable[str]) -> list[str]:
    """The cells of a method: its name, and mean ± standard deviation of each metric."""
    found = [report.summaries[title] for title in titles]
    cells = [
        _mean(each.loc[(data, method)]) if (data, method) in each.index else NONE for each in found
    ]
    return [report.linked(method), *cells]


def _tests(report: _Report) -> None:
    report.add(f"## Against {plain(report.reference)}", _SEEDS)
    for place, (title, tested) in enumerate(report.tests.items()):
        if not len(tested):
            continue
        if title in report.drawn:
            caption = f"Mean difference in {title} and its 95 % interval, by method and data set."
            figure = figures.differences(tested, title, report.reference, report.methods)
            report.draw(f"differences_{place}", figure, f"Differences in {title}", caption)
        rows = [
            [report.linked(method), plain(data), *_test_cells(row)]
            for (data, method), row in tested.iterrows()
        ]
        header = ["method", "data", "seeds", "difference", "interval", "p", "p (Holm)"]
        report.add(_folded(f"{title}: paired t-tests over seeds", table(header, rows)))
        metric = {**report.metrics, **report.groups}[title]
        over = statistics.over_data(report.frame, metric, report.reference)
        if len(over) and over["n"].max() > 1:
            rows = [
                [report.linked(method), *_test_cells(row)] for (method,), row in over.iterrows()
            ]
            header = ["method", "data sets", "difference", "interval", "p", "p (Holm)"]
            text = f"{title}: Wilcoxon's signed-rank test over data sets"
            report.add(_folded(text, table(header, rows)))


def _test_cells(row: Frame) -> list[str]:
    return [str(int(row["n"])), *_difference_cells(row), _p(row["p"]), _p(row["p_holm"])]


def _difference_cells(row: Frame) -> list[str]:
    ends = NONE if math.isnan(row["low"]) else f"[{row['low']:+.4f}, {row['high']:+.4f}]"
    return [f"{row['difference']:+.4f}", ends]


def _sensitivity(report: _Report, axes: Sequence[str]) -> None:
    numeric = figures.numeric_axes(report.frame, axes)
    if numeric:
        report.add("## Sensitivity")
    found = {title: report.summaries[title] for title in report.drawn}
    for axis in numeric:
        caption = f"Mean and 95 % interval along {axis}; a line joins what differs in it alone."
        figure = figures.curves(report.frame, axis, found)
        report.draw(f"along_{axis}", figure, f"Along {axis}", caption)


def _factors(report: _Report) -> None:
    """What similarity and dissimilarity, the factors of the SD weight, and its place change."""
    found = {title: factors.changes(report.frame, m) for title, m in report.drawn.items()}
    found = {title: each for title, each in found.items() if len(each)}
    rows = _additions(report)
    if not (found or rows):
        return
    report.add("## Factors of the weight")
    if found:
        caption = (
            "What the loss sd gains or loses without a factor of its weight, or with the weight in "
            "another place: mean difference from sd and its 95 % interval, of methods that differ "
            "in nothing else. To the left of 0 what was taken away had helped. Over seeds; the "
            f"rows {factors.ALL_SETS!r}, where there are any, over data sets."
        )
        alt = "Difference from sd without a factor"
        report.draw("factors", figures.changes(found), alt, caption)
        cells = [
            [change, plain(data), title, str(int(row["n"])), *_difference_cells(row)]
            for title, each in found.items()
            for (data, change), row in each.iterrows()
        ]
        header = ["change", "data", "metric", "n", "difference", "interval"]
        report.add(_folded("The same as a table", table(header, cells)))
    if rows:
        report.add(
            "Mean difference of each factor alone, and of both (sd), from the weight 1 of every "
            "pair that shares a label (any), with what else is the same; over the data sets, with "
            "the number of them on which it is positive.",
            table(["factors", "with", *report.drawn], rows),
        )


def _additions(report: _Report) -> list[list[str]]:
    """Rows of what each factor, and both, add to `any`, by what else the methods are."""
    if "loss.name" not in report.frame:
        return []
    own = report.frame[report.frame["loss.name"].isin(factors.FACTORS)]
    if "any" not in set(own["loss.name"]) or own["loss.name"].nunique() < 3:
        return []
    tables = [statistics.values(own, metric) for metric in report.drawn.values()]
    means = [each.groupby(level="data").mean() if len(each) else each for each in tables]
    rows = []
    for settings, members in factors.settings(own).items():
        for factor in factors.FACTORS[1:]:
            if {"any", factor} <= members.keys():
                cells = [_change(each, members[factor], members["any"]) for each in means]
                rows.append([plain(factor), plain(settings) or NONE, *cells])
    return rows


def _change(means: Frame, method: str, base: str) -> str:
    if method not in means or base not in means:
        return NONE
    change = (means[method] - means[base]).dropna()
    if not len(change):
        return NONE
    return f"{change.mean():+.4f} ({(change > 0).sum()} of {len(change)})"


def _tuning(report: _Report, trials: Frame | None) -> None:
    if trials is None or not len(trials):
        return
    report.add(
        "## Tuning",
        "Trials were judged by validation alone; each method had as many, the first of them the "
        "method as it is.",
    )
    rows = []
    for (data, method), each in trials.groupby(["data", "method"], sort=False):
        sound = each.dropna(subset="value")
        if not len(sound):
            continue
        best, first = sound.loc[sound["value"].idxmax()], each.iloc[0]
        chosen = f"`{best['overrides']}`" if best["overrides"] else "as it is"
        values = [_number(first["value"]), _number(best["value"])]
        rows.append([plain(method), plain(data), str(len(each)), *values, chosen])
    header = ["method", "data", "trials", "validation, as it is", "validation, best", "chosen"]
    report.add(table(header, rows))


def _commands(report: _Report) -> None:
    """How each number was made: the command of a run of each method on each data set."""
    report.add(
        "## Commands",
        "A command makes the first run of its method alone; other seeds by `--config.seed`. The "
        "`run.json` behind the name of a data set holds the whole config and all results.",
    )
    for method, runs in report.frame.groupby("method", sort=False):
        report.add(f'<a id="{report.anchor(method)}"></a>\n\n### {plain(method)}')
        lines = []
        for data, each in runs.groupby("data", sort=False):
            first = each.iloc[0]
            name = f"[{plain(data)}]({_link(first['run'])})"
            command = f"`python -m sdjax.train {first['command']}`"
            lines.append(f"- {name}: " + ("scikit-learn" if first["baseline"] else command))
        report.add("\n".join(lines))


def _link(run: str) -> str:
    return f"../{quote(run)}/run.json"


def _runs(report: _Report) -> None:
    """Failures, and every run with the file of its config."""
    frame = report.frame
    failed = frame[frame["status"] == "failed"]
    if len(failed):
        lines = [
            f"- [{plain(row['data'])}, {plain(row['method'])}, seed {row['seed']}]"
            f"({_link(row['run'])}): {plain(row['error'][:300])}"
            for _, row in failed.iterrows()
        ]
        report.add("## Runs that failed", "\n".join(lines))
    header = ["method", "data", "seed", *report.metrics, "seconds"]
    columns = [statistics.column(frame, metric) for metric in report.metrics.values()]
    rows = [
        [f"[{plain(row['method'])}]({_link(row['run'])})", plain(row["data"]), str(row["seed"])]
        + [_number(column.iloc[place]) for column in columns]
        + [f"{row['seconds']:.1f}"]
        for place, (_, row) in enumerate(frame.iterrows())
    ]
    report.add("## All runs", _folded(f"{len(frame):,} runs", table(header, rows)))


def _statistics(report: _Report) -> Frame:
    """All that the tables and figures say, a row a data set, method and metric."""
    names = {"low": "difference_low", "high": "difference_high"}
    parts = [
        found.join(report.tests[title].rename(columns=names).drop(columns="n"))
        .reset_index()
        .assign(metric=title, confidence=CONFIDENCE)
        for title, found in report.summaries.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{plain(title)}</summary>\n\n{text}\n\n</details>"


def _mean(row: Frame) -> str:
    spread = "" if math.isnan(row["std"]) else f" ± {row['std']:.4f}".replace("0.", ".", 1)
    return f"{row['mean']:.4f}{spread}"


def _number(value: object, digits: int = 4) -> str:
    known = isinstance(value, int | float) and not math.isnan(value)
    return f"{value:.{digits}f}" if known else NONE


def _p(value: float) -> str:
    if math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"
