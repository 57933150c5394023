"""Relations and weights: against Python sets, and the properties that METHOD promises of them."""

import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdjax
from sdjax import relations

ROWS, CLASSES = 6, 7
bits = st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)
matrices = st.lists(bits, min_size=ROWS, max_size=ROWS).map(lambda rows: np.array(rows, bool))
subsets = st.sets(st.integers(0, 5))


def as_pairs(function, anchors, candidates):
    """Applies a function of two sets to every pair of rows."""
    rows, columns = reference.label_sets(anchors), reference.label_sets(candidates)
    return np.array([[function(s, t) for t in columns] for s in rows])


def weigh(name, anchors, candidates):
    return np.asarray(relations.WEIGHTS[name](relations.overlap(anchors, candidates)))


def weight_of(name, shared, anchor_only, candidate_only):
    """The weight of one pair, from the sizes of S∩T, S\\T and T\\S."""
    o = relations.Overlap(
        shared=jnp.full((1, 1), shared, jnp.float32),
        anchor_size=jnp.full((1, 1), shared + anchor_only, jnp.float32),
        candidate_size=jnp.full((1, 1), shared + candidate_only, jnp.float32),
    )
    return float(relations.WEIGHTS[name](o)[0, 0])


# --- overlap and relation ---------------------------------------------------------------------


@pytest.mark.parametrize("label_format", cases.FORMATS)
@given(matrices, matrices)
@settings(max_examples=30)
def test_overlap_counts(label_format, anchors, candidates):
    rng = np.random.default_rng(0)
    candidates = candidates[:4]
    o = relations.overlap(
        cases.to_format(anchors, label_format, rng, 2 * CLASSES),
        cases.to_format(candidates, label_format, rng, 2 * CLASSES),
    )
    assert {x.dtype for x in o} == {jnp.dtype("float32")}
    assert [x.shape for x in o] == [(ROWS, 4), (ROWS, 1), (1, 4)]
    np.testing.assert_array_equal(o.shared, as_pairs(lambda s, t: len(s & t), anchors, candidates))
    np.testing.assert_array_equal(o.anchor_size[:, 0], anchors.sum(axis=1))
    np.testing.assert_array_equal(o.candidate_size[0], candidates.sum(axis=1))


@given(matrices, matrices)
@settings(max_examples=50)
def test_relation_partitions_the_pairs(anchors, candidates):
    r = relations.relation(anchors, candidates)
    assert r.dtype == jnp.int32 and r.shape == (ROWS, ROWS)
    np.testing.assert_array_equal(r, as_pairs(reference.relation, anchors, candidates))
    # Exactly one of the five conditions of the table, in numbers, holds for each pair.
    o = relations.overlap(anchors, candidates)
    low = jnp.minimum(o.anchor_size, o.candidate_size)
    conditions = jnp.stack(
        [
            o.shared == 0,
            (o.shared == o.anchor_size) & (o.shared == o.candidate_size) & (o.shared > 0),
            (o.shared > 0) & (o.shared < low),
            (o.shared == o.candidate_size) & (o.shared < o.anchor_size) & (o.shared > 0),
            (o.shared == o.anchor_size) & (o.shared < o.candidate_size) & (o.shared > 0),
        ]
    )
    np.testing.assert_array_equal(conditions.sum(axis=0), 1)
    np.testing.assert_array_equal(conditions.argmax(axis=0) + 1, r)


def test_relation_swaps_subset_and_superset():
    matrix = cases.label_matrix("curated", np.random.default_rng(0))
    r = np.asarray(relations.relation(matrix, matrix))
    assert set(np.unique(r)) == {1, 2, 3, 4, 5}
    swapped = np.array([0, 1, 2, 3, 5, 4])[r]
    np.testing.assert_array_equal(r.T, swapped)


def test_empty_sets_are_disjoint_from_everything():
    matrix = cases.multi_hot([set(), {0}, set()])
    r = relations.relation(matrix, matrix)
    np.testing.assert_array_equal(r, [[1, 1, 1], [1, 2, 1], [1, 1, 1]])
    for name in relations.WEIGHTS:
        weight = weigh(name, matrix, matrix)
        expected = np.zeros((3, 3))
        expected[1, 1] = 1
        np.testing.assert_array_equal(weight, expected, err_msg=name)


def test_overlap_is_exact_with_many_labels():
    """Counts past the 256 and 2048 that bfloat16 and float16 can count to."""
    rng = np.random.default_rng(0)
    matrix = rng.random((4, 5003)) < 0.7
    for labels in (matrix, sdjax.LabelIndices.from_multi_hot(matrix)):
        o = jax.jit(relations.overlap)(labels, labels)
        np.testing.assert_array_equal(o.shared, as_pairs(lambda s, t: len(s & t), matrix, matrix))
        np.testing.assert_array_equal(o.anchor_size[:, 0], matrix.sum(axis=1))


@pytest.mark.parametrize("num_entries", [1, 2, 5])
def test_overlap_of_label_indices_with_multi_hot(num_entries):
    """The two formats mix, and rows of one entry (also -1) mean the same as longer ones."""
    rng = np.random.default_rng(num_entries)
    indices = rng.integers(-1, CLASSES, (ROWS, num_entries)).astype(np.int32)
    matrix = cases.multi_hot([{i for i in row if i >= 0} for row in indices.tolist()], CLASSES)
    sparse = sdjax.LabelIndices(jnp.asarray(indices), CLASSES)
    expected = as_pairs(lambda s, t: len(s & t), matrix, matrix)
    for anchors in (sparse, matrix):
        for candidates in (sparse, matrix):
            o = relations.overlap(anchors, candidates)
            np.testing.assert_array_equal(o.shared, expected)
            np.testing.assert_array_equal(o.anchor_size[:, 0], matrix.sum(axis=1))
            np.testing.assert_array_equal(o.candidate_size[0], matrix.sum(axis=1))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_label_and_index_dtypes(dtype):
    matrix = cases.label_matrix("curated", np.random.default_rng(0))
    expected = as_pairs(lambda s, t: len(s & t), matrix, matrix)
    o = relations.overlap(matrix.astype(dtype), matrix.astype(dtype))
    np.testing.assert_array_equal(o.shared, expected)
    if dtype != "uint8":  # -1 pads
        rows = sdjax.LabelIndices.from_multi_hot(matrix)
        rows = sdjax.LabelIndices(np.asarray(rows.indices).astype(dtype), rows.num_classes)
        np.testing.assert_array_equal(relations.overlap(rows, rows).shared, expected)


def test_from_multi_hot_round_trip():
    for kind in cases.LABEL_KINDS:
        matrix = cases.label_matrix(kind, np.random.default_rng(0))
        rows = sdjax.LabelIndices.from_multi_hot(matrix)
        assert rows.indices.dtype == jnp.int32 and rows.num_classes == cases.CLASSES
        back = cases.multi_hot([{i for i in row if i >= 0} for row in rows.indices.tolist()])
        np.testing.assert_array_equal(back, matrix, err_msg=kind)


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", reference.WEIGHTS)
@given(matrices, matrices)
@settings(max_examples=30)
def test_weight_matches_sets(name, anchors, candidates):
    weight = weigh(name, anchors, candidates)
    assert weight.dtype == np.float32
    expected = as_pairs(reference.WEIGHTS[name], anchors, candidates)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    np.testing.assert_array_equal(weight > 0, expected > 0)


def test_weight_functions_carry_their_names():
    for name, function in relations.WEIGHTS.items():
        long_names = {"sd": "similarity_dissimilarity", "any": "share_any", "all": "share_all"}
        public = long_names.get(name, name)
        assert function is getattr(relations, public)


@pytest.mark.parametrize("name", reference.WEIGHTS)
@given(matrices)
@settings(max_examples=30)
def test_every_weight_is_in_the_unit_interval_and_0_if_disjoint(name, matrix):
    weight, r = weigh(name, matrix, matrix), np.asarray(relations.relation(matrix, matrix))
    assert np.all((weight >= 0) & (weight <= 1))
    assert np.all(weight[r == 1] == 0)
    assert np.all(weight[r == 2] == 1)


@given(matrices, matrices)
@settings(max_examples=100)
def test_sd_weight_is_1_iff_identical_and_0_iff_disjoint(anchors, candidates):
    weight = weigh("sd", anchors, candidates)
    r = np.asarray(relations.relation(anchors, candidates))
    np.testing.assert_array_equal(weight == 1, r == 2)
    np.testing.assert_array_equal(weight == 0, r == 1)
    assert np.all((weight >= 0) & (weight <= 1))


@given(matrices, matrices)
@settings(max_examples=100)
def test_sd_weight_of_subsets_and_supersets(anchors, candidates):
    weight = weigh("sd", anchors, candidates)
    r = np.asarray(relations.relation(anchors, candidates))
    s = np.broadcast_to(anchors.sum(axis=1)[:, None], r.shape)
    t = np.broadcast_to(candidates.sum(axis=1)[None, :], r.shape)
    np.testing.assert_allclose(weight[r == 4], (t / np.maximum(s, 1))[r == 4], rtol=1e-6)
    np.testing.assert_allclose(weight[r == 5], (1 / (1 + np.maximum(t - s, 0)))[r == 5], rtol=1e-6)


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
@settings(max_examples=100)
def test_sd_weight_falls_strictly_with_foreign_labels(shared, anchor_only, foreign, more):
    name = "sd"
    few = weight_of(name, shared, anchor_only, foreign)
    many = weight_of(name, shared, anchor_only, foreign + more)
    assert 0 < many < few


@given(st.integers(2, 50), st.integers(0, 50), st.data())
@settings(max_examples=100)
def test_sd_weight_rises_strictly_with_overlap(anchor_size, foreign, data):
    low = data.draw(st.integers(0, anchor_size - 1))
    high = data.draw(st.integers(low + 1, anchor_size))
    name = "sd"
    assert weight_of(name, low, anchor_size - low, foreign) < weight_of(
        name, high, anchor_size - high, foreign
    )


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=100)
def test_which_weights_are_symmetric(shared, anchor_only, candidate_only):
    for name in ("symmetric", "soft_jaccard", "jaccard", "any", "all"):
        there = weight_of(name, shared, anchor_only, candidate_only)
        back = weight_of(name, shared, candidate_only, anchor_only)
        np.testing.assert_allclose(there, back, rtol=1e-6, err_msg=name)
    for name in ("similarity_only", "dissimilarity_only"):
        there = weight_of(name, shared, anchor_only, candidate_only)
        back = weight_of(name, shared, candidate_only, anchor_only)
        assert (there == back) == (anchor_only == candidate_only), name


def test_sd_weight_is_asymmetric():
    inner, outer = cases.multi_hot([{0, 1}]), cases.multi_hot([{0, 1, 2, 3}])
    np.testing.assert_allclose(weigh("sd", inner, outer), 1 / 3)
    np.testing.assert_allclose(weigh("sd", outer, inner), 1 / 2)
    left, right = cases.multi_hot([{0, 1, 2}], 6), cases.multi_hot([{1, 2, 3, 4, 5}], 6)
    np.testing.assert_allclose(weigh("sd", left, right), 1 / 6, rtol=1e-6)
    np.testing.assert_allclose(weigh("sd", right, left), 1 / 5, rtol=1e-6)


@pytest.mark.parametrize("numerator,denominator", [(1, 2), (1, 3), (2, 3), (3, 7), (1, 1)])
def test_jaccard_threshold_includes_its_boundary(numerator, denominator):
    threshold = numerator / denominator
    matrix = np.arange(CLASSES)[None, :] < np.array([[numerator], [denominator]])
    o = relations.overlap(matrix[:1], matrix[1:])
    np.testing.assert_allclose(relations.jaccard(o, threshold=threshold), threshold, rtol=1e-6)
    above = functools.partial(relations.jaccard, threshold=min(1.0, threshold + 1e-3))
    if threshold < 1:
        np.testing.assert_array_equal(above(o), 0)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [relations.overlap, relations.relation])
def test_overlap_and_relation_check_their_labels(function):
    good = np.ones((3, 4), bool)
    with pytest.raises(ValueError, match=re.escape("(3,)")):
        function(good[:, 0], good)
    with pytest.raises(ValueError, match="candidates.*0 or 1.*2"):
        function(good, 2 * good.astype(np.int32))
    with pytest.raises(ValueError, match="(?s)4.*5"):
        function(good, np.ones((3, 5), bool))
    with pytest.raises(ValueError, match="(?s)anchors.*4"):
        function(sdjax.LabelIndices(jnp.full((3, 2), 4), 4), good)
