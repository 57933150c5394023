"""Remarks where a figure is not what it should be, and silence where it is."""

import numpy as np
import pytest

from sdjax.report import pairs, remarks

# Sets {0,1}, {0,1}, {2}, {1,2}, {0}, {}: every relation occurs.
LABELS = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]])


def test_weights_are_the_means_over_the_pairs():
    table = pairs.pair_table(LABELS)
    weights = remarks.weights_by_relation("sd", table, 0.5)
    assert weights[1] == 0
    assert weights[2] == 1
    assert weights[3] == pytest.approx(1 / 4)  # half of the labels, and one more
    assert weights[4] == pytest.approx(1 / 2)
    assert weights[5] == pytest.approx(1 / 2)
    jaccard = remarks.weights_by_relation("jaccard", table, 0.4)
    assert jaccard[3] == 0
    assert jaccard[4] == pytest.approx(1 / 2)


@pytest.mark.parametrize("loss", ["mulsupcon", "supcon", "bce"])
def test_of_other_losses_only_the_ends_are_known(loss):
    assert remarks.weights_by_relation(loss, pairs.pair_table(LABELS), 0.5) == {1: 0, 2: 1}
    assert remarks.weights_by_relation(loss, pairs.pair_table(np.eye(3)), 0.5) == {1: 0}


WEIGHTS = {1: 0.0, 2: 1.0, 3: 0.2, 5: 0.4}


@pytest.mark.parametrize(
    ("similarity", "text"),
    [
        ({1: 0.1, 2: 0.9, 3: 0.4, 5: 0.5}, ""),
        ({1: 0.1, 2: 0.9, 3: 0.509, 5: 0.5}, ""),  # no more than chance
        ({3: 0.4}, ""),
        (
            {1: 0.1, 2: 0.9, 3: 0.55, 5: 0.5},
            "In z the order of similarities is not that of the weights: R5 superset (weight 0.40) "
            "is less similar than R3 overlapping (0.20), 0.500 against 0.550.",
        ),
        (
            {1: 0.95, 2: 0.9},
            "In z the order of similarities is not that of the weights: R2 identical (weight 1.00) "
            "is less similar than R1 disjoint (0.00), 0.900 against 0.950.",
        ),
    ],
)
def test_the_order_of_similarities(similarity, text):
    given = {code: (mean, 0.1) for code, mean in similarity.items()}
    assert remarks.order_of_similarities("z", given, WEIGHTS) == text


def test_equal_weights_have_no_order():
    given = {3: (0.1, 0.1), 4: (0.9, 0.1)}
    assert remarks.order_of_similarities("h", given, {3: 1.0, 4: 1.0}) == ""


def test_labels_worse_than_chance():
    precision = np.array([0.5, 0.09, 0.05, 0.001, np.nan])
    positives = np.array([10, 10, 10, 1, 0])
    text = remarks.worse_than_chance("abcde", precision, positives, 100)
    assert text == (
        "Of the labels with at least 5 test examples, 2 are ranked worse than at random: c, b."
    )
    assert remarks.worse_than_chance("a", precision[:1], positives[:1], 100) == ""
