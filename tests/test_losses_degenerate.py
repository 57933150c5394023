"""Rows, batches and numbers at the edge: the loss stays finite, and exactly 0 where it must be."""

import functools
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

import sdjax

KEEP = np.array([True, True, False, True, True, True, False, True])
MIXED = [{0, 1}, {0}, {0, 1}, {0, 1}, {1, 2}, set(), {2}, {3}]  # 2 and 6 are padding


def labels_of(name, matrix):
    return jnp.asarray(cases.class_ids(matrix) if name == "supcon" else matrix)


def batch(dtype=np.float64, rows=cases.BATCH):
    return jnp.asarray(cases.embeddings(np.random.default_rng(0), rows, dtype))


def mixed(name):
    matrix = cases.multi_hot(MIXED[: cases.BATCH])
    if name == "supcon":
        return jnp.asarray([0, 0, 0, 1, 1, -1, 0, 2])
    return jnp.asarray(matrix)


def exact_mixed(name, z, form, **kw):
    sets = (
        reference.class_sets(np.asarray(mixed(name)))
        if name == "supcon"
        else reference.label_sets(cases.multi_hot(MIXED))
    )
    return reference.loss(name, np.asarray(z).astype(np.float64), sets, form=form, **kw)


HALF = list(zip(cases.LOSS_NAMES, itertools.cycle(cases.FORMS)))
OTHER_HALF = list(zip(cases.LOSS_NAMES, itertools.cycle(cases.FORMS[::-1])))

# --- nothing to compare with: exactly 0 --------------------------------------------------------


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", ["sd", "mulsupcon", "soft_jaccard", "supcon"])
def test_no_positive_gives_exactly_0(name, form):
    @cases.jit
    def run(z, labels, where, candidate_where):
        kwargs = dict(form=form, where=where, candidate_where=candidate_where)
        loss = sdjax.LOSSES[name]
        rows = loss(z, labels, reduction="none", **kwargs)
        return *jax.value_and_grad(loss)(z, labels, **kwargs), rows

    ids, all_rows = jnp.arange(cases.BATCH), np.ones(cases.BATCH, bool)
    disjoint = jnp.asarray(cases.label_matrix("disjoint", np.random.default_rng(0)))
    alone = ids if name == "supcon" else disjoint
    nothing = jnp.full_like(ids, -1) if name == "supcon" else jnp.zeros_like(alone)
    shared = jnp.zeros_like(ids) if name == "supcon" else jnp.ones_like(alone)
    for labels, where, candidate_where in (
        (alone, all_rows, all_rows),
        (nothing, all_rows, all_rows),
        (shared, ~all_rows, all_rows),
        (shared, ids == 4, all_rows),
        (shared, all_rows, ~all_rows),
    ):
        for x in run(batch(), labels, where, candidate_where):
            assert not np.any(x), x
    assert run(batch(), shared, all_rows, all_rows)[0] > 0


def call_with(loss, targets, form, reduction, *arrays):
    arguments = [a for pair in zip(arrays, targets, strict=True) for a in pair]
    return loss(*arguments, form=form, reduction=reduction)


def family(rows, queue_rows=None):
    """{loss: (values, gradients)} of whole batches that share one label, compiled together."""
    sizes = (rows,) if queue_rows is None else (rows, queue_rows)

    def run(arrays):
        out = {}
        for name, form in HALF:
            targets = [
                jnp.zeros(n, jnp.int32) if name == "supcon" else jnp.ones((n, 3), bool)
                for n in sizes
            ]

            call = functools.partial(call_with, sdjax.LOSSES[name], targets, form)
            out[name] = cases.value_and_gradients(call, arrays, jnp.ones(rows))
        return out

    return cases.jit(run)(tuple(batch(rows=n) for n in sizes))


@pytest.mark.parametrize("sizes", [(1,), (0,), (0, 2), (2, 0), (0, 0)], ids=str)
def test_too_few_rows_to_compare_give_exactly_0(sizes):
    """A batch of one; and no rows at all, as an empty queue has."""
    for name, (values, gradients) in family(*sizes).items():
        for x in (*values.values(), *gradients):
            assert not np.any(x), f"{name}: {x}"


def test_one_anchor_with_one_candidate():
    """The one candidate is the one positive, with probability 1."""
    for name, (values, gradients) in family(1, 1).items():
        for x in (*values.values(), *gradients):
            np.testing.assert_allclose(x, 0, atol=1e-12, err_msg=name)


def test_a_row_without_a_positive_is_0_and_gets_gradient_as_a_candidate_only():
    @cases.jit
    def run(z):
        out = {}
        for name in cases.LOSS_NAMES:
            loss = sdjax.LOSSES[name]

            def row(z, name=name, loss=loss):
                rows = loss(z, mixed(name), reduction="none")
                return rows[5], rows

            out[name] = *jax.grad(row, has_aux=True)(z), jax.grad(loss)(z, mixed(name))
        return out

    for name, (own, rows, gradient) in run(batch(np.float64)).items():
        assert rows[5] == 0 and rows[7] == 0, name
        assert not np.any(own), name
        assert np.any(gradient[5]) and np.any(gradient[7]), name


# --- every kind of equality --------------------------------------------------------------------


@pytest.mark.parametrize("name,form", OTHER_HALF)
def test_all_rows_equal(name, form):
    """Equal similarities: q is uniform, so the value is known; the gradient vanishes."""
    z = jnp.tile(jnp.asarray([[3.0, -4.0, 0.0, 1.0]]), (cases.BATCH, 1))
    same = cases.multi_hot([{0, 2, 3}] * cases.BATCH)
    same = labels_of(name, same)
    value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(z, same, form=form)
    np.testing.assert_allclose(value, np.log(cases.BATCH - 1), rtol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)
    value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(z, mixed(name), form=form)
    result = exact_mixed(name, z, form)
    assert result.positives.any()
    cases.assert_close(value, result.mean, 1e-10, "value")
    cases.assert_close(gradient, result.gradient()[0], 1e-10, "gradient")


@pytest.mark.parametrize("name,form", HALF)
def test_anchors_that_their_only_positive_coincides_with(name, form):
    """Loss near 0, and no gradient from 0 times infinity."""
    ids = np.repeat(np.arange(cases.BATCH // 2), 2)
    z = jnp.asarray(np.eye(cases.BATCH // 2, cases.DIM)[ids])
    labels = jnp.asarray(ids) if name == "supcon" else cases.multi_hot([{i} for i in ids])
    value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(z, labels, form=form, temperature=0.01)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


# --- extremes of numbers -----------------------------------------------------------------------


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_low_temperatures(dtype, form):
    z, name_matrix = batch(cases.DTYPES[dtype]), cases.multi_hot(MIXED)
    plain = np.asarray(z).astype(np.float64)
    tolerance, rounding = cases.tolerances(cases.DTYPES[dtype])
    names = ("sd", "mulsupcon")

    @cases.jit
    def run(z, temperature):
        options = {"temperature": temperature, "form": form}
        losses = (jax.value_and_grad(sdjax.LOSSES[name]) for name in names)
        return [loss(z, name_matrix, **options) for loss in losses]

    # The gradient of one row reaches 1/temperature: more than float16 holds from 1e-5 on.
    for temperature in (0.05, 0.01, 1e-3, 1e-4):
        for name, (value, gradient) in zip(names, run(z, temperature)):
            expected = reference.loss(
                name, plain, reference.label_sets(name_matrix), temperature=temperature, form=form
            )
            np.testing.assert_allclose(value, expected.mean, rtol=1e-5)
            exact = expected.gradient()[0]
            # A similarity of 1/τ is rounded by 6e-8/τ, and e^s is off by as much of itself.
            cases.assert_close(
                gradient, exact, tolerance + 2e-7 / temperature, "gradient", rounding
            )


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_scales_at_which_squares_overflow_or_vanish(name, form, scale):
    z, labels = batch(np.float32), mixed(name)
    scaled = z * np.float32(scale)
    value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(scaled, labels, form=form)
    expected, expected_gradient = jax.value_and_grad(sdjax.LOSSES[name])(z, labels, form=form)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    rescaled = np.asarray(gradient, np.float64) * scale
    np.testing.assert_allclose(rescaled, expected_gradient, rtol=1e-4, atol=1e-4)


def test_rows_of_wildly_unequal_scale():
    z, labels = batch(np.float32), mixed("sd")
    scale = np.float32([1e30, 1e-30, 1, 1e20, 1e-20, 1e10, 1, 1e-10])[:, None]
    value, gradient = jax.value_and_grad(sdjax.sd_loss)(z * scale, labels)
    np.testing.assert_allclose(value, sdjax.sd_loss(z, labels), rtol=1e-5)
    expected = jax.grad(sdjax.sd_loss)(z, labels)
    rescaled = np.asarray(gradient, np.float64) * scale
    np.testing.assert_allclose(rescaled, expected, rtol=1e-4, atol=1e-4)


def test_one_large_entry_beside_small_ones():
    z = np.asarray(batch(np.float32)).copy()
    z[0, 0], z[1, 2], z[3, 1] = 1e30, -1e30, 1e-30
    labels = cases.multi_hot(MIXED)
    value, gradient = jax.value_and_grad(sdjax.sd_loss)(jnp.asarray(z), jnp.asarray(labels))
    result = reference.loss("sd", z, reference.label_sets(labels))
    np.testing.assert_allclose(value, result.mean, rtol=1e-5)
    # Gradients are as long as rows are short: those of the two long rows are of 1e-30.
    length = np.linalg.norm(z.astype(np.float64), axis=1, keepdims=True)
    scaled = np.asarray(gradient, np.float64) * length
    cases.assert_close(scaled, result.gradient()[0] * length, 1e-5, "gradient")


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_zero_embedding(name, form, dtype):
    """It stays zero, with similarity 0 to everything, and gets no gradient itself."""
    z = np.asarray(batch(cases.DTYPES[dtype])).copy()
    z[3] = 0
    labels = mixed(name)
    value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(jnp.asarray(z), labels, form=form)
    sets = reference.label_sets(cases.multi_hot(MIXED))
    if name == "supcon":
        sets = reference.class_sets(np.asarray(labels))
    result = reference.loss(name, z.astype(np.float64), sets, form=form)
    np.testing.assert_allclose(value, result.mean, rtol=1e-5)
    gradient = np.asarray(gradient).astype(np.float64)
    np.testing.assert_array_equal(gradient[3], 0)
    tolerance, rounding = cases.tolerances(cases.DTYPES[dtype])
    cases.assert_close(gradient, result.gradient()[0], tolerance, "gradient", rounding)


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@pytest.mark.parametrize("normalize", [True, False])
def test_zero_embeddings(name, form, normalize):
    zeros = jnp.zeros((cases.BATCH, cases.DIM))
    value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(
        zeros, mixed(name), form=form, normalize=normalize
    )
    # All similarities are 0, as those of equal rows.
    cases.assert_close(
        value, exact_mixed(name, zeros, form, normalize=normalize).mean, 1e-10, "value"
    )
    assert not np.any(gradient)


# --- padding may hold anything ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,form,normalize,jitted",
    [
        ("sd", "out", True, True),
        ("sd", "in", False, True),
        ("mulsupcon", "out", False, False),
        ("mulsupcon", "in", True, False),
        ("soft_jaccard", "in", True, False),
        ("supcon", "out", True, False),
        ("supcon", "in", False, False),
    ],
)
def test_contents_of_padding_do_not_matter(name, form, normalize, jitted):
    z, labels = batch(), mixed(name)
    kwargs = dict(where=KEEP, form=form, normalize=normalize)

    def everything(z):
        rows = sdjax.LOSSES[name](z, labels, reduction="none", **kwargs)
        return jax.value_and_grad(sdjax.LOSSES[name])(z, labels, **kwargs), rows

    everything = cases.jit(everything) if jitted else everything
    expected = everything(z)
    (_, gradient), rows = expected
    assert not np.any(gradient[~KEEP]) and not np.any(rows[~KEEP]) and np.any(gradient[KEEP])
    for junk in (np.nan, np.inf, -np.inf, 0.0, 1e308):
        actual = everything(jnp.where(KEEP[:, None], z, junk))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", ["sd", "mulsupcon", "supcon"])
def test_contents_of_masked_candidates_do_not_matter(name, form):
    z, labels = batch(), mixed(name)
    queue = jnp.asarray(cases.embeddings(np.random.default_rng(1)))
    both = jax.value_and_grad(sdjax.LOSSES[name], argnums=(0, 2))
    expected = both(z, labels, queue, labels, candidate_where=KEEP, form=form)
    dirty = jnp.where(KEEP[:, None], queue, jnp.nan)
    actual = both(z, labels, dirty, labels, candidate_where=KEEP, form=form)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert np.all(actual[1][1][~KEEP] == 0)


@pytest.mark.parametrize("name", ["sd", "mulsupcon"])
def test_labels_of_padding_do_not_matter_under_jit(name):
    z, matrix = batch(), cases.multi_hot(MIXED)
    loss = cases.jit(jax.value_and_grad(sdjax.LOSSES[name]))
    expected = loss(z, matrix.astype(np.float32), where=KEEP)
    for junk in (np.nan, np.inf, 7.0, -1.0):
        dirty = np.where(KEEP[:, None], matrix, junk).astype(np.float32)
        actual = loss(z, dirty, where=KEEP)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    indices = np.asarray(sdjax.LabelIndices.from_multi_hot(matrix).indices)
    for junk in (10**6, -7, cases.CLASSES):
        dirty = np.where(KEEP[:, None], indices, junk).astype(np.int32)
        actual = loss(z, sdjax.LabelIndices(dirty, cases.CLASSES), where=KEEP)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_class_ids_of_padding_do_not_matter():
    z, ids = batch(), np.asarray(mixed("supcon"))
    expected = sdjax.supcon_loss(z, ids, where=KEEP)
    for junk in (0, -1, 5):
        actual = sdjax.supcon_loss(z, np.where(KEEP, ids, junk), where=KEEP)
        np.testing.assert_array_equal(actual, expected)
    dirty = jnp.where(KEEP, ids, -9)
    np.testing.assert_array_equal(cases.jit(sdjax.supcon_loss)(z, dirty, where=KEEP), expected)


# --- own weights at the edge --------------------------------------------------------------------


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("normalizer", reference.NORMALIZERS)
def test_own_weight_on_empty_sets(normalizer, form):
    """A weight that makes positives for an anchor without labels, whatever divides it."""
    z, labels = batch(np.float64), mixed("sd")
    kwargs = dict(normalizer=normalizer, form=form)
    # An anchor whose normalizer is 0 has no loss, and the reference would divide by it.
    some = np.asarray(labels).any(axis=1) | (normalizer in ("positives", "weights"))
    everything = jax.value_and_grad(sdjax.contrastive_loss)
    value, gradient = everything(z, labels, weight=lambda o: 1 + o.shared, **kwargs)
    rows = sdjax.contrastive_loss(
        z, labels, weight=lambda o: 1 + o.shared, reduction="none", **kwargs
    )
    result = reference.contrastive(
        z,
        reference.label_sets(labels),
        weight=lambda s, t: (1 + len(s & t)) * bool(s or some.all()),
        **kwargs,
    )
    cases.assert_close(rows, result.rows, 1e-10, "rows")
    cases.assert_close(value, result.mean, 1e-10, "value")
    cases.assert_close(gradient, result.gradient()[0], 1e-10, "gradient")


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("weight", [1e-30, 1e30])
def test_own_weight_of_any_size(weight, form):
    z, labels = batch(), mixed("sd")
    for normalizer in ("positives", "weights"):
        value, gradient = jax.value_and_grad(sdjax.contrastive_loss)(
            z,
            labels,
            weight=lambda o: weight * (o.shared > 0).astype(o.shared.dtype),
            normalizer=normalizer,
            form=form,
        )
        result = reference.contrastive(
            z,
            reference.label_sets(labels),
            weight=lambda s, t: weight * bool(s & t),
            normalizer=normalizer,
            form=form,
        )
        np.testing.assert_allclose(value, result.mean, rtol=1e-10)
        exact = result.gradient()[0]
        np.testing.assert_allclose(gradient, exact, rtol=1e-8, atol=1e-10 * np.abs(exact).max())


# --- nothing of this hides a NaN ----------------------------------------------------------------


@pytest.mark.parametrize("name,form", HALF)
def test_degenerate_rows_pass_debug_nans(name, form):
    """No NaN appears anywhere on the way, under jit or op by op."""
    z = np.asarray(batch(np.float64)).copy()
    z[4] = 0
    z[1] = z[0]
    with jax.debug_nans(True):
        loss = jax.value_and_grad(sdjax.LOSSES[name])
        value, _ = loss(jnp.asarray(z), mixed(name), form=form, where=KEEP)
        assert value > 0
        if name in ("sd", "mulsupcon", "soft_jaccard"):  # one of each normalizer
            compiled = cases.jit(lambda z, where: loss(z, mixed(name), form=form, where=where))
            for where in (KEEP, np.zeros(cases.BATCH, bool)):
                compiled(jnp.asarray(z), where)


def test_a_nan_in_a_valid_row_is_not_hidden():
    z, labels = batch(), mixed("sd")
    assert np.isnan(sdjax.sd_loss(z.at[0, 0].set(jnp.nan), labels))
