"""The baselines: the models that they say they are, on labels at the edge, and in bounded time."""

import types

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression

from sdjax import LabelIndices, metrics
from sdjax.report import baselines

TREES = 30


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(baselines, "TREES", TREES)
    monkeypatch.setattr(baselines, "TREES_AT_ONCE", 7)


def make_rows(seed=0, rows=60, labels=3):
    """(x, labels, x_test, test_labels), separable but for noise."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((2 * rows, labels)) < 0.4).astype(np.uint8)
    x = truth @ rng.normal(size=(labels, 5)) + 0.3 * rng.normal(size=(2 * rows, 5))
    x = x.astype(np.float32)
    return x[:rows], truth[:rows], x[rows:], truth[rows:]


def test_metrics_are_those_of_one_forest_and_of_a_regression_a_label():
    x, labels, x_test, test_labels = make_rows()
    counts = labels.sum(axis=0)
    found = baselines.compare(x, labels, x_test, test_labels, seconds=60, train_counts=counts)
    forest = ExtraTreesClassifier(TREES, random_state=np.random.RandomState(0)).fit(x, labels)
    trees = np.stack([each[:, 1] for each in forest.predict_proba(x_test)], axis=1)
    logistic = [
        LogisticRegression(C=0.1, tol=1e-8).fit(x, column).predict_proba(x_test)[:, 1]
        for column in labels.T
    ]
    for name, scores in (
        ("extra_trees", trees),
        ("logistic_regression", np.stack(logistic, axis=1)),
    ):
        expected = metrics.evaluate(test_labels, scores, train_counts=counts)
        assert found[name].keys() == expected.keys()
        assert found[name]["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)
        assert found[name]["mAP"] > 0.85
        assert found[name]["groups"]["head"]["labels"] == 1


@pytest.mark.parametrize("fitted", [0, 1, 2])
def test_labels_that_all_or_no_rows_have_are_not_fitted(fitted):
    x, labels, x_test, test_labels = make_rows(labels=4)
    labels[:, fitted:2], labels[:, 2], labels[:, 3] = 0, 0, 1
    for name in baselines.ALL_NAMES:
        scores = baselines.scores(name, x, labels, x_test)
        assert scores.shape == test_labels.shape
        assert (scores[:, 2] == 0).all()
        assert (scores[:, 3] == 1).all()
        for label in range(fitted):
            assert metrics.evaluate(test_labels[:, [label]], scores[:, [label]])["mAP"] > 0.6


def test_label_indices_are_label_sets():
    x, labels, x_test, test_labels = make_rows()
    lists = [
        LabelIndices([np.flatnonzero(row) for row in part], 3) for part in (labels, test_labels)
    ]
    multi_hot = baselines.compare(x, labels, x_test, test_labels, seconds=60)
    assert baselines.compare(x, lists[0], x_test, lists[1], seconds=60) == multi_hot


def test_what_would_take_too_long_is_left_out_after_a_part(monkeypatch):
    parts, now = [], [0.0]

    def slow(x, labels, x_test, seed):
        for part in range(1, 11):
            now[0] += 3
            parts.append(part)
            yield part / 10, np.zeros((len(x_test), labels.shape[1]))

    monkeypatch.setattr(baselines, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setitem(baselines._MODELS, "extra_trees", slow)
    x, labels, x_test, test_labels = make_rows()
    found = baselines.compare(x, labels, x_test, test_labels, seconds=20)
    assert parts == [1]
    text = found["extra_trees"]["left_out"]
    assert text.startswith("Extra trees would take about 30 seconds here, more than report.")
    # The other one is not held up by it.
    assert found["logistic_regression"]["mAP"] > 0.85
    parts.clear()
    found = baselines.compare(x, labels, x_test, test_labels, seconds=31)
    assert parts == list(range(1, 11))
    assert found["extra_trees"]["subset_accuracy"] < 0.5


def test_what_is_known_is_not_fitted_again():
    x, labels, x_test, test_labels = make_rows()
    known = {"extra_trees": {"mAP": 0.125}, "logistic_regression": {"left_out": "No time."}}
    found = baselines.compare(x, labels, x_test, test_labels, seconds=60, known=known)
    assert found["extra_trees"] == {"mAP": 0.125}
    assert found["logistic_regression"]["mAP"] > 0.85
    assert baselines.all_known(found)
    assert not baselines.all_known(known)
    assert not baselines.all_known({})


def test_rows_that_do_not_fit():
    assert baselines.too_large(22_000, 1_000, 300) == ""
    assert "22,000 rows of 10,000 features" in baselines.too_large(22_000, 10_000, 300)
    assert "1,000 labels" in baselines.too_large(22_000, 100, 1_000)


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        (0.5, {"extra_trees": {"mAP": 0.4}}, []),
        (0.5, {"extra_trees": {"mAP": 0.52}}, ["Ahead of this run in mAP: extra trees, by 0.0200"]),
        (
            0.5,
            {"extra_trees": {"mAP": 0.6}, "logistic_regression": {"mAP": 0.51}},
            ["extra trees, by 0.1000; logistic regression, by 0.0100."],
        ),
        (None, {"extra_trees": {"mAP": None}}, []),
        (
            0.5,
            {"extra_trees": {"left_out": "Why."}, "logistic_regression": {"left_out": "Why."}},
            ["Baselines left out: Why."],
        ),
        (0.5, None, []),
    ],
)
def test_remarks(own, others, expected):
    found = baselines.remarks({"test": {"mAP": own}, "baselines": others})
    assert len(found) == len(expected)
    for text, part in zip(found, expected):
        assert part in text
