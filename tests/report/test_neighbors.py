"""Queries with their neighbours: tables, and pictures where rows are images."""

import numpy as np
import pytest

from sdjax import LabelIndices
from sdjax.report import neighbors
from sdjax.report.neighbors import Query, Row

LABELS = np.array([[1, 0], [0, 0], [1, 1], [0, 1]])


@pytest.mark.parametrize("labels", [LABELS, LabelIndices.from_multi_hot(LABELS)])
def test_queries_have_a_label(labels):
    assert neighbors.choose(labels, 5).tolist() == [0, 2, 3]
    chosen = neighbors.choose(labels, 2).tolist()
    assert len(chosen) == 2 and set(chosen) < {0, 2, 3}
    assert not len(neighbors.choose(labels, 0))


def query(*contents):
    rows = [Row("7", ("a|b", "c"), contents[0]), Row("x_1", ("d", "c"), contents[1])]
    return Query(rows[0], (rows[1], Row("9", (), contents[2])), (0.98765, -0.5))


def test_shared_labels_are_bold_and_come_first():
    (table,) = neighbors.sections([query(None, None, None)])
    assert table.splitlines() == [
        "| row | cosine | Jaccard | labels |",
        "| :-- | --: | --: | :-- |",
        "| test 7 |  |  | a\\|b, c |",
        "| x\\_1 | 0.988 | 0.33 | **c**, d |",
        "| 9 | -0.500 | 0.00 | *no label* |",
    ]
    assert neighbors.pictures([query(None, None, None)]) is None
    assert neighbors.pictures([]) is None


def test_texts_stand_beside_their_labels():
    (table,) = neighbors.sections([query("Some *text*\nin lines", "", "long " * 99)])
    lines = table.splitlines()
    assert lines[0].endswith("| labels | text |")
    assert lines[2].endswith("| Some \\*text\\* in lines |")
    assert lines[4].endswith("long… |") and len(lines[4]) < 300


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_with_shared_labels_in_colour(channels):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 6, 5, channels), np.uint8)
    figure = neighbors.pictures([query(*images), query(*images.astype(np.float32) - 9)])
    axes = figure.axes
    assert len(axes) == 6 and all(each.images for each in axes)
    for each in axes:
        pixels = each.images[0].get_array()
        assert pixels.min() >= 0 and pixels.max() <= 1
    texts = {text.get_text(): text.get_color() for text in axes[1].texts}
    assert texts == {"c": neighbors.figures.GREEN, "d": neighbors.figures.DARK_GRAY}
    assert [text.get_text() for text in axes[2].texts] == ["no label"]
