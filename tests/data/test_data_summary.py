"""What is told of the data before training, and what is warned of."""

import re

import numpy as np
import pytest

from sdjax import LabelIndices
from sdjax.config import DataConfig
from sdjax.data import ArraySource, Dataset, load, summarise
from sdjax.data.examples import Examples
from sdjax.data.preprocess import Preprocess
from sdjax.data.sources import make_source

ROWS = 60


@pytest.fixture
def random():
    return np.random.default_rng(0)


def dataset(x, labels, names=(), label_names=None):
    classes = labels.num_classes if isinstance(labels, LabelIndices) else labels.shape[1]
    label_names = label_names or tuple(f"label {k}" for k in range(classes))
    examples = Examples("t", np.asarray(x, np.float32), labels, label_names, tuple(names))
    preprocess = Preprocess.fit(examples)
    train = make_source(examples, preprocess)
    return Dataset("toy", train, train, train, label_names, preprocess)


def warnings(*args, **kwargs):
    lines = summarise(dataset(*args, **kwargs))
    return [line for line in lines if line.startswith("Warning: ")]


def plain(random, features=3, classes=4):
    """Inputs and labels that give no cause for a warning."""
    return random.normal(size=(ROWS, features)), (random.random((ROWS, classes)) < 0.5).astype("u1")


def as_indices(labels):
    lists = [np.flatnonzero(row) for row in labels]
    indices = np.full((len(lists), labels.shape[1]), -1, np.int32)
    for row, places in enumerate(lists):
        indices[row, : len(places)] = places
    return LabelIndices(indices, labels.shape[1])


@pytest.mark.parametrize("convert", [lambda labels: labels, as_indices])
def test_lines_say_what_was_read(convert, random):
    x = random.normal(size=(8, 2))
    labels = np.zeros((8, 3), np.uint8)
    labels[:6, 1] = labels[:3, 0] = labels[:1, 2] = 1
    lines = summarise(dataset(x, convert(labels), ("a", "b")), {"Workdir": "runs/toy"})
    assert lines == [
        "Data     toy; 8 train, 8 validation, 8 test rows",
        "Inputs   2 features: 'a', 'b'",
        "Labels   3, 1.25 a row, 2 rows without; rarest 'label 2' (1 rows), "
        "most frequent 'label 1' (6)",
        "Workdir  runs/toy",
    ]


def test_bundled_data_give_no_warning():
    lines = summarise(load(DataConfig()))
    assert lines == [
        "Data    yeast; 1,200 train, 300 validation, 917 test rows",
        "Inputs  103 features",
        "Labels  14, 4.24 a row, 0 rows without; rarest 'Class14' (19 rows), "
        "most frequent 'Class12' (903)",
    ]


def test_images_and_pytrees(random):
    labels = plain(random)[1]
    images = dataset(random.integers(0, 256, (ROWS, 4, 5, 3)), labels)
    assert summarise(images)[1] == "Inputs  images 4 x 5 x 3"
    tree = ArraySource({"ids": np.zeros((ROWS, 7), np.int32), "mask": np.ones((ROWS, 7))}, labels)
    lines = summarise(Dataset("t", tree, tree, tree, tuple("abcd")))
    assert lines[1] == "Inputs  int32 (7,), float64 (7,)"
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("a", np.arange(ROWS)),
        ("a", -3 * np.arange(ROWS)),
        ("user_id", np.random.default_rng(1).permutation(ROWS)),
        ("userId", np.random.default_rng(1).permutation(ROWS)),
        ("Sample Number", np.random.default_rng(1).permutation(ROWS)),
    ],
)
def test_identifiers(name, column, random):
    x, labels = plain(random)
    (warning,) = warnings(np.column_stack([x, column]), labels, ("x", "y", "z", name))
    assert f"identifiers: {name!r};" in warning


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("a", np.random.default_rng(1).permutation(ROWS)),  # neither sorted nor named so
        ("acid", np.random.default_rng(1).permutation(ROWS)),
        ("id", np.arange(ROWS) + 0.5),  # not whole
        ("id", np.arange(ROWS)[::-1] // 2),  # not all different
    ],
)
def test_no_identifiers(name, column, random):
    x, labels = plain(random)
    assert not warnings(np.column_stack([x, column]), labels, ("x", "y", "z", name))


@pytest.mark.parametrize("convert", [lambda labels: labels, as_indices])
@pytest.mark.parametrize("leak", [lambda y: y, lambda y: 5 - 2.0 * y, lambda y: y + 1e-3])
def test_features_that_determine_a_label(leak, convert, random):
    x, labels = plain(random)
    x[:, 1] = leak(labels[:, 2])
    (warning,) = warnings(x, convert(labels), ("a", "b", "c"))
    assert "feature 'b' nearly determines label 'label 2'" in warning
    x[:5, 1] += 9  # no longer
    assert not warnings(x, convert(labels))


def test_a_label_of_one_row_equals_features_by_chance(random):
    x, labels = plain(random)
    labels[:, 0] = x[:, 0] = np.arange(ROWS) == 7
    assert not warnings(x, labels)


def test_missing_values_do_not_hide_a_leak(random):
    x, labels = plain(random)
    x[:, 1] = labels[:, 2]
    x[3, 0] = np.nan
    train = ArraySource(x, labels)
    lines = summarise(Dataset("t", train, train, train, tuple("abcd")))
    assert [line for line in lines if "feature '1' nearly determines label 'c'" in line]


def test_huge_one_hots(random):
    x, labels = plain(random, 1)
    codes = random.integers(0, 51, ROWS)
    one_hot = codes[:, None] == np.arange(51)
    one_hot[0] = True  # no value is constant
    one_hot[1] = False
    names = ["x", *(f"accession=P{k}" for k in range(51))]
    (warning,) = warnings(np.column_stack([x, one_hot]), labels, names)
    assert "'accession' is one-hot of 51 values" in warning
    assert not warnings(np.column_stack([x, one_hot[:, 1:]]), labels, ["x", *names[2:]])
    # Names of another kind may hold an equals sign too.
    assert not warnings(np.column_stack([x, one_hot * 2.0]), labels, names)


def test_constants_and_absent_labels(random):
    x, labels = plain(random, classes=9)
    x[:, :2] = 4
    labels[:, 3:] = 0
    constant, absent = warnings(x, labels)
    assert constant == "Warning: constant features, in the 60 rows looked at: 2."
    assert re.search(r"labels without a positive in train: 6: 'label 3', .* 'label 8'\.", absent)
    assert absent.count("'label ") == 5


def test_a_label_that_was_left_out_of_the_list(random):
    x, labels = plain(random)
    names = ("a", "label_7", "b")
    (warning,) = warnings(x, labels, names, ("label_0", "label_1", "label_2", "label_3"))
    assert warning == "Warning: features that are named like the labels: 'label_7'."
    assert not warnings(x, labels, names, ("sea", "sky", "sun", "label_8"))


def test_rows_are_sampled_and_label_lists_stay_lists():
    """A million rows of a hundred thousand labels: multi-hot they would be 100 GB."""
    rows, classes = 1_000_000, 100_000
    x = np.lib.stride_tricks.as_strided(np.ones(4, np.float32), (rows, 4), (0, 4))

    class Counted:
        shape, dtype, asked = x.shape, x.dtype, 0

        def __len__(self):
            return rows

        def __getitem__(self, index):
            values = x[index]
            Counted.asked += len(values)
            return values

    indices = np.full((rows, 2), -1, np.int32)
    indices[:, 0] = np.arange(rows) % classes
    train = ArraySource(Counted(), LabelIndices(indices, classes))
    lines = summarise(Dataset("t", train, train, train, tuple(map(str, range(classes)))))
    assert "100,000, 1.00 a row, 0 rows without; rarest '0' (10 rows)" in lines[2]
    assert Counted.asked <= 10_100
