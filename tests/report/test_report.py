"""The report of a run, on good data and on data at the edge."""

import dataclasses
import json
import tracemalloc

import matplotlib
import numpy as np
import pandas as pd
import pytest
from imports import assert_not_loaded
from matplotlib.image import imread

from sdjax import LabelIndices, metrics
from sdjax.report import embedding, figures, label_scatter, report

FIGURES = {report.LEARNING, report.SHARES, report.WEIGHTS, report.LABELS, report.MAP}


def history():
    train = [
        {"step": s, "epoch": s, "phase": "joint", "split": "train", "loss": 1 / s, "bce": 0.5 / s}
        for s in range(1, 20)
    ]
    validation = [
        {"step": s, "epoch": s, "phase": "joint", "split": "validation", "mAP": s / 40}
        for s in range(5, 20, 5)
    ]
    return train + validation


def make_inputs(examples=80, labels=5, dim=6, rate=0.4, seed=0, **changes):
    rng = np.random.default_rng(seed)
    truth = rng.random((2 * examples, labels)) < rate
    scores = np.clip(0.5 * truth + 0.5 * rng.random(truth.shape), 0, 1)
    train, test = truth[:examples], truth[examples:]
    train_counts = train.sum(axis=0)
    result = metrics.evaluate(test, scores[examples:], train_counts=train_counts)
    inputs = report.ReportInputs(
        title="toy",
        loss="sd",
        label_names=[f"label {c}" for c in range(labels)],
        history=history(),
        train_labels=train,
        test_labels=test,
        test_scores=scores[examples:],
        test_embeddings=rng.normal(size=(examples, dim)),
        results={"test": result, "test_tuned": result, "validation": result},
        config={"recipe": "joint", "seed": 3, "batch_size": 8, "loss": {"threshold": 0.3}},
    )
    return dataclasses.replace(inputs, **changes)


@pytest.fixture
def unsaved(monkeypatch):
    """Builds the figures, and leaves their files empty."""
    monkeypatch.setattr(figures, "save", lambda figure, path: path.touch())


@pytest.fixture
def coarse(monkeypatch):
    """Draws with few pixels, for tests in which none is looked at."""
    monkeypatch.setattr(figures, "DPI", 30)


def written_figures(path):
    return {figure.name for figure in path.parent.glob("*.png")}


def test_a_report_has_all_figures_and_names_no_other(tmp_path):
    inputs = make_inputs()
    path = report.write_report(tmp_path / "run", inputs)
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report" / "report.md"
    assert written_figures(path) == FIGURES
    for name in FIGURES:
        assert f"]({name})" in text
        image = imread(path.parent / name)[..., :3]
        assert image.shape[1] >= 700
        assert image.std() > 0.01  # something is drawn
    assert f"mAP **{inputs.results['test']['mAP']:.4f}**" in text
    assert "seed `3`" in text
    assert json.dumps(inputs.config, indent=2) in text


def test_the_same_inputs_give_the_same_report(coarse, tmp_path):
    first = report.write_report(tmp_path / "a", make_inputs())
    second = report.write_report(tmp_path / "b", make_inputs())
    for name in (*FIGURES, "report.md"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_writing_again_takes_figures_away_that_no_longer_apply(tmp_path, unsaved):
    report.write_report(tmp_path, make_inputs())
    path = report.write_report(tmp_path, make_inputs(history=[]))
    assert written_figures(path) == FIGURES - {report.LEARNING}
    assert "no learning curves" in path.read_text(encoding="utf-8")


def test_collapsed_embeddings_are_said_to_be(tmp_path, unsaved):
    path = report.write_report(tmp_path, make_inputs(test_embeddings=np.ones((80, 6), np.float32)))
    assert report.MAP not in written_figures(path)
    assert "the encoder has collapsed" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("shape", "left_out"),
    [
        ({"labels": 1}, set()),
        ({"labels": 1, "rate": 0.0}, {report.LABELS, report.MAP}),
        ({"labels": 3, "rate": 1.0}, set()),
        ({"examples": 5, "dim": 1}, set()),
        ({"examples": 1, "rate": 1.0}, {report.SHARES, report.WEIGHTS, report.MAP}),
        ({"labels": 400, "rate": 0.01, "dim": 300}, set()),
    ],
)
def test_shapes_at_the_edge(coarse, tmp_path, shape, left_out):
    path = report.write_report(tmp_path, make_inputs(**shape))
    assert written_figures(path) == FIGURES - left_out


def test_an_empty_training_set_and_no_results(tmp_path, unsaved):
    inputs = make_inputs(train_labels=np.zeros((0, 5)), results={}, config={}, history=[])
    path = report.write_report(tmp_path, inputs)
    assert written_figures(path) == {report.LABELS, report.MAP}
    assert "No results." in path.read_text(encoding="utf-8")


def test_labels_that_never_occur_are_counted(tmp_path, undrawn):
    inputs = make_inputs()
    train, test = np.array(inputs.train_labels), np.array(inputs.test_labels)
    train[:, [0, 1]], test[:, [1, 2]] = 0, 0
    path = report.write_report(
        tmp_path, dataclasses.replace(inputs, train_labels=train, test_labels=test)
    )
    text = path.read_text(encoding="utf-8")
    assert "2 of 5 labels have no positive test example" in text
    assert "1 labels are evaluated that have no training example" in text
    row = next(line for line in text.splitlines() if line.startswith("| label 1 "))
    assert row.count("–") == 3  # AP, AUC and F1


def test_any_name_can_be_drawn_and_written(coarse, tmp_path):
    names = ["$x_{", "日本語 🎉", "a|b<c>*d*", "new\nline\ttab", "long " * 40]
    path = report.write_report(tmp_path, make_inputs(label_names=names, title="a_b|*c*"))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# a\\_b\\|\\*c\\*: sd\n")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert any("| 日本語 🎉 |" in line for line in table)
    assert any("| a\\|b&lt;c>\\*d\\* |" in line for line in table)


def test_tables_hold_the_results(tmp_path, undrawn):
    inputs = make_inputs()
    tuned = {**inputs.results["test"], "micro_f1": 0.1234, "macro_f1": None}
    results = {"test": inputs.results["test"], "test_tuned": tuned, "seconds": 3}
    text = report.write_report(tmp_path, make_inputs(results=results)).read_text(encoding="utf-8")
    assert "| metric | test, thresholds 0.5 | test, tuned thresholds |" in text
    assert f"| micro\\_f1 | {results['test']['micro_f1']:.4f} | 0.1234 |" in text
    assert f"| macro\\_f1 | {results['test']['macro_f1']:.4f} | – |" in text
    head = results["test"]["groups"]["head"]
    assert f"| head | 2 of 2 | {head['min_train_count']} to {head['max_train_count']} |" in text


def test_long_label_tables_are_cut(tmp_path, undrawn):
    inputs = make_inputs(labels=130, rate=0.05)
    test = np.array(inputs.test_labels)
    test[0], test[:, :10] = 1, 0
    path = report.write_report(tmp_path, dataclasses.replace(inputs, test_labels=test))
    text = path.read_text(encoding="utf-8")
    folded = text.partition("<details>")[2]
    rows = [line for line in folded.splitlines() if line.startswith("| label ")]
    assert len(rows) == 101  # and the header
    assert not any("–" in row for row in rows)
    title = "50 most frequent and the 50 rarest of the 120 of 130 labels that have a test example"
    assert title in text
    test[:, :100] = 0
    path = report.write_report(tmp_path, dataclasses.replace(inputs, test_labels=test))
    assert "The 30 of 130 labels that have a test example" in path.read_text(encoding="utf-8")


def test_the_best_and_the_worst_of_many_labels_are_listed(tmp_path, undrawn):
    inputs = make_inputs(examples=400, labels=150, rate=0.05)
    each = metrics.per_label(inputs.test_labels, inputs.test_scores)
    ap = np.array(each["average_precision"], np.float64)
    best, worst = label_scatter.extremes(ap, np.array(each["positives"]))
    text = report.write_report(tmp_path, inputs).read_text(encoding="utf-8")
    for title, order in (("The 8 best labels:", best), ("The 8 worst, the very", worst)):
        lines = text.partition(title)[2].splitlines()[4:12]
        assert [line.split(" | ")[0] for line in lines] == [f"| label {c}" for c in order]
        assert [line.split(" | ")[4] for line in lines] == [f"{ap[c]:.4f}" for c in order]
    assert "Named are the best and the worst of the labels with at least 5 test" in text
    few = report.write_report(tmp_path, make_inputs()).read_text(encoding="utf-8")
    assert "best labels" not in few
    assert "Named are" not in few


def test_the_tested_step_is_said(tmp_path, undrawn):
    def text(**changes):
        path = report.write_report(tmp_path, make_inputs(**changes))
        return path.read_text(encoding="utf-8")

    assert "**Tested**: step 1,900, the last." in text(tested_step=1900)
    by_validation = text(tested_step=15, tested_by="mAP")
    assert "**Tested**: step 15, the best by validation mAP." in by_validation
    assert "**Tested**" not in text()


def label_lists(examples, labels, size, seed):
    """Label indices [examples, size], a few of them repeated and so left out."""
    rng = np.random.default_rng(seed)
    indices = np.sort(rng.integers(0, labels, (examples, size), np.int32), axis=1)
    indices[:, 1:][indices[:, 1:] == indices[:, :-1]] = -1
    indices[::50] = -1
    return indices


def test_label_indices_give_the_report_of_multi_hot_labels(coarse, tmp_path):
    inputs = make_inputs()
    lists = {
        name: LabelIndices([np.flatnonzero(row) for row in getattr(inputs, name)], 5)
        for name in ("train_labels", "test_labels")
    }
    first = report.write_report(tmp_path / "a", inputs)
    second = report.write_report(tmp_path / "b", dataclasses.replace(inputs, **lists))
    for name in (*FIGURES, "report.md"):
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes()


def test_a_report_of_many_labels_holds_nothing_as_large_as_the_scores(tmp_path, unsaved):
    labels, rng = 20_000, np.random.default_rng(0)
    scores = rng.random((500, labels), np.float32)
    inputs = make_inputs(
        label_names=[f"label {c}" for c in range(labels)],
        train_labels=LabelIndices(label_lists(1200, labels, 6, seed=1), labels),
        test_labels=LabelIndices(label_lists(500, labels, 6, seed=2), labels),
        test_scores=scores,
        test_embeddings=rng.normal(size=(500, 32)),
    )
    tracemalloc.start()
    try:
        path = report.write_report(tmp_path, inputs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written_figures(path) == FIGURES
    assert peak < 2 * scores.nbytes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"test_labels": LabelIndices([[0]], 4)},
            r"test_labels must be multi-hot \[N, 5\], or LabelIndices over 5.*\(1, 4\)",
        ),
        ({"test_labels": LabelIndices([[5]], 5)}, r"test_labels.indices must lie in \[0, 5\)"),
        ({"label_names": ["a"]}, r"train_labels must be multi-hot \[N, 1\].*\(80, 5\)"),
        ({"test_labels": np.zeros((3, 4))}, r"test_labels must be multi-hot \[N, 5\].*\(3, 4\)"),
        ({"train_labels": np.full((2, 5), 2)}, "train_labels must be 0 or 1"),
        ({"test_scores": np.zeros((3, 5))}, "scores must have the shape of labels"),
        ({"test_embeddings": np.zeros((3, 2))}, r"test_embeddings must be \[80, D\].*\(3, 2\)"),
        ({"test_embeddings": np.full((80, 2), np.nan)}, "finite; row 0, column 0"),
        ({"test_projections": np.zeros((3, 2))}, r"test_projections must be \[80, D\].*\(3, 2\)"),
    ],
)
def test_bad_inputs_are_named(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        report.write_report(tmp_path, make_inputs(**changes))
    assert not (tmp_path / "report").exists()


def test_samples_are_said_to_be(tmp_path, undrawn):
    path = report.write_report(tmp_path, make_inputs(examples=3200))
    text = path.read_text(encoding="utf-8")
    assert "Counted in 1,500 of 3,200 rows" in text
    assert "Shown are 3,000 of 3,200 examples" in text


def test_matplotlib_keeps_its_settings(coarse, tmp_path):
    # Reading the backend would choose one.
    def settings():
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    before = settings()
    report.write_report(tmp_path, make_inputs())
    assert settings() == before


def test_only_the_report_imports_matplotlib_and_never_pyplot():
    assert_not_loaded("sdjax.training.results", ["matplotlib", "sklearn"])
    assert_not_loaded("sdjax.report.report", ["matplotlib.pyplot"])


def text_of(tmp_path, **changes):
    return report.write_report(tmp_path, make_inputs(**changes)).read_text(encoding="utf-8")


def test_how_the_run_was_made_is_said(tmp_path, undrawn):
    facts = {"Command": "python train.py --config.data.labels='a_*'", "Devices": "8 TPU_v5"}
    text = text_of(tmp_path, facts=facts)
    assert "- **Command**: `python train.py --config.data.labels='a_*'`" in text
    assert "- **Devices**: 8 TPU\\_v5" in text
    assert "**Command**" not in text_of(tmp_path)


def test_thresholds_are_told_with_what_they_were_tuned_for(tmp_path, undrawn):
    inputs = make_inputs()
    test = {**inputs.results["test"], "micro_f1": 0.5, "macro_f1": 0.3}
    tuned = {**test, "micro_f1": 0.625, "macro_f1": 0.25}
    names = inputs.label_names
    results = {"test": test, "test_tuned": tuned, "thresholds": dict.fromkeys(names, 0.321)}
    text = text_of(tmp_path, results=results)
    assert "Tuned threshold: 0.3210 for all labels, which maximises micro-F1 on validation." in text
    assert "On test micro\\_f1 is 0.6250 with it, and 0.5000 at 0.5." in text
    frame = pd.read_csv(tmp_path / "report" / "per_label.csv")
    assert (frame["tuned_threshold"] == 0.321).all()
    results["thresholds"] = dict(zip(names, np.linspace(0.2, 0.6, 5).tolist()))
    text = text_of(tmp_path, results=results, config={"thresholds": "per_label"})
    assert "one for each label, from 0.2000 to 0.6000, that maximises the label's F1" in text
    assert "On test macro\\_f1 is 0.2500 with them, and 0.3000 at 0.5." in text
    assert "Tuned threshold" not in text_of(tmp_path)


def test_projections_have_a_map_and_similarities_of_their_own(tmp_path, undrawn):
    z = np.random.default_rng(1).normal(size=(80, 3))
    text = text_of(tmp_path, test_projections=z)
    assert written_figures(tmp_path / "report" / "report.md") == {*FIGURES, report.PROJECTION_MAP}
    assert f"]({report.PROJECTION_MAP})" in text
    assert "| mean cosine similarity of h | standard deviation | mean cosine similarity of z |" in (
        text
    )
    labels = make_inputs().test_labels
    mean, deviation = embedding.similarity_by_relation(labels, z)[1]
    row = next(line for line in text.splitlines() if line.startswith("| R1 disjoint | "))
    assert row.endswith(f"| {mean:.3f} | {deviation:.3f} |")
    assert "fine-tuning has changed the encoder" not in text
    stale = text_of(tmp_path, test_projections=z, config={"recipe": "finetune"})
    assert "fine-tuning has changed the encoder" in stale
    # A later report without them takes the map away.
    assert report.PROJECTION_MAP not in text_of(tmp_path)
    assert written_figures(tmp_path / "report" / "report.md") == FIGURES


def test_collapsed_projections_are_said_to_be(tmp_path, unsaved):
    text = text_of(tmp_path, test_projections=np.ones((80, 6)))
    assert "**the projection has collapsed**" in text
    assert "the encoder has collapsed" not in text


def test_a_figure_that_contradicts_theory_is_said_to(tmp_path, undrawn):
    labels = np.array([[1, 0]] * 20 + [[0, 1]] * 20 + [[1, 1]] * 40)
    # Disjoint sets lie together, and their union far off.
    z = np.array([[1.0, 0.0]] * 40 + [[0.0, 1.0]] * 40)
    z += 0.01 * np.random.default_rng(0).normal(size=z.shape)
    common = {"labels": 2, "test_labels": labels}
    text = text_of(tmp_path, test_embeddings=z, **common)
    assert "**In h the order of similarities is not that of the weights: " in text
    assert "R5 superset (weight 0.50) is less similar than R1 disjoint (0.00), " in text
    good = labels + 0.01 * np.random.default_rng(0).normal(size=z.shape)
    assert "not that of the weights" not in text_of(tmp_path, test_embeddings=good, **common)


def test_labels_that_are_ranked_worse_than_at_random_are_named(tmp_path, undrawn):
    inputs = make_inputs()
    scores = np.array(inputs.test_scores)
    scores[:, 3] = 1 - scores[:, 3]
    assert "1 are ranked worse than at random: label 3." in text_of(tmp_path, test_scores=scores)
    assert "worse than at random" not in text_of(tmp_path)


def test_every_label_is_in_a_file(tmp_path, undrawn):
    inputs = make_inputs()
    report.write_report(tmp_path, inputs)
    frame = pd.read_csv(tmp_path / "report" / "per_label.csv")
    each = metrics.per_label(inputs.test_labels, inputs.test_scores)
    assert frame["label"].tolist() == list(inputs.label_names)
    for name in ("average_precision", "auc", "f1"):
        wanted = np.array(each[name], np.float64)
        np.testing.assert_allclose(frame[name].to_numpy(np.float64), wanted, rtol=1e-12)
