"""Targets in every form that scikit-learn users have, and back."""

import numpy as np
import pytest
from scipy import sparse

from sdjax import label_sets
from sdjax.data.targets import Targets, are_label_sets
from sdjax.errors import InputError

MULTI_HOT = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
NAMES = [{"a", "c"}, {"b"}, set(), {"a", "b", "c"}]


@pytest.mark.parametrize(
    ("y", "form"),
    [
        (MULTI_HOT, "array"),
        (MULTI_HOT.astype(bool), "array"),
        (MULTI_HOT.tolist(), "array"),
        (list(MULTI_HOT.astype(np.float32)), "array"),
        (sparse.csr_matrix(MULTI_HOT), "sparse"),
        (sparse.coo_array(MULTI_HOT.astype(float)), "sparse"),
        (NAMES, "sets"),
        ([[7, 3, 7], [5], (), (3, 5, 7)], "sets"),
        (np.array([*NAMES], object), "sets"),
        ([["a"], ["b"], ["a"], ["c"]], "sets"),
        ([[0], [1], [1], [0]], "sets"),  # one label each, not one column
        ([{0, 1}, {0, 1}, {1, 2}, {0, 1}], "sets"),
        (np.array(["b", "a", "c", "a"]), "classes"),
        ([2.0, 1.0, 1.0, 3.0], "classes"),
    ],
)
def test_every_form_and_back(y, form):
    targets = Targets.of(y)
    assert (targets.form, are_label_sets(y)) == (form, form == "sets")
    labels = targets.encode(y)
    assert labels.shape == (4, len(targets.classes)) and labels.dtype == np.uint8
    if form == "classes":
        np.testing.assert_array_equal(targets.classes[labels.argmax(axis=1)], y)
        assert (labels.sum(axis=1) == 1).all()
        return
    again = targets.decode(labels.astype(bool))
    if form == "sets":
        assert [set(row) for row in again] == [set(row) for row in y]
        assert again.dtype == object and again.shape == (4,)
    elif form == "sparse":
        assert sparse.issparse(again) and again.dtype == y.dtype
        np.testing.assert_array_equal(again.toarray(), y.toarray())
    else:
        assert again.dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(again, y)


def test_names_are_in_order_and_very_many_labels_stay_lists():
    assert Targets.of(NAMES).classes.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(Targets.of(NAMES).encode(NAMES), MULTI_HOT)
    many = [[row, row + 1] for row in range(1100)]
    labels = Targets.of(many).encode(many)
    assert not isinstance(labels, np.ndarray)
    assert label_sets.counts(labels)[:3].tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([set(), set()], "y holds no label: each of its label sets is empty"),
        ([{"a"}, {1}], "names and others that are numbers"),
        ([{"a"}, {None}], "Unknown label type: .* got None in row 1"),
        ([[0.5, 2.0], [0.25, 1.0]], "Unknown label type: .* got 0.5 in row 0"),
        (np.zeros((2, 2, 2)), r"y must be \[N\], or multi-hot \[N, C\], got shape \(2, 2, 2\)"),
    ],
)
def test_what_is_no_target(y, message):
    with pytest.raises(InputError, match=message):
        Targets.of(y)


def test_other_targets_than_those_of_fit():
    with pytest.raises(InputError, match="labels that fit has not seen: 'd', 'e'"):
        Targets.of(NAMES).encode([{"a", "e"}, {"d"}])
    with pytest.raises(InputError, match="must be a list of label sets, as it was in fit"):
        Targets.of(NAMES).encode(MULTI_HOT)
    with pytest.raises(InputError, match="y has 2 labels, and had 3 in fit"):
        Targets.of(MULTI_HOT).encode(MULTI_HOT[:, :2])
    with pytest.raises(InputError, match="label 1 is 2.0 in row 0"):
        Targets.of(MULTI_HOT).encode(2 * np.eye(3)[[1]])
