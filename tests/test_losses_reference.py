"""Every loss against the loops of `numpy_reference`, values and gradients, option by option."""

import functools
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import numpy_relatives as relatives
import pytest

import sdjax

SELF_OR_EXPLICIT = ("self", "explicit")


def problem(name, mode, matrix_kind, label_format, dtype, rng, queue=cases.BATCH):
    """Returns jax inputs (z, labels[, candidates, candidate_labels]) and the reference's.

    Tests that dispatch op by op keep to one size, for which each operation compiles once.
    """
    sizes = (cases.BATCH,) if mode == "self" else (cases.BATCH, queue)
    ours, theirs = [], []
    for rows in sizes:
        z = cases.embeddings(rng, rows, dtype)
        matrix = cases.label_matrix(matrix_kind, rng, rows)
        mine, plain = cases.labels_for(name, matrix, label_format, rng)
        ours += [jnp.asarray(z), mine]
        theirs += [z.astype(np.float64), plain]
    return ours, theirs


def run(function, ours, cotangent, reductions=cases.REDUCTIONS, **kwargs):
    """Evaluates `function` on (z, labels[, candidates, candidate_labels]) with all gradients."""

    def call(reduction, *arrays):
        arguments = [a for pair in zip(arrays, ours[1::2], strict=True) for a in pair]
        return function(*arguments, reduction=reduction, **kwargs)

    return cases.value_and_gradients(call, tuple(ours[0::2]), cotangent, reductions)


# --- the reference itself ---------------------------------------------------------------------


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("mode", SELF_OR_EXPLICIT)
@pytest.mark.parametrize("normalizer", reference.NORMALIZERS)
@pytest.mark.parametrize("normalize", [True, False])
def test_reference_gradient_matches_finite_differences(form, mode, normalizer, normalize):
    rng = np.random.default_rng(0)
    _, (z, labels, *rest) = problem("sd", mode, "random", "bool", np.float64, rng)
    kwargs = dict(form=form, normalizer=normalizer, normalize=normalize)
    kwargs |= cases.masks("both", rng)
    cotangent, step = rng.normal(size=len(z)), 1e-5
    arrays = [z] if mode == "self" else [z, rest[0]]

    def at(weight, arrays, temperature=0.3):
        arguments = [arrays[0], labels] + ([] if mode == "self" else [arrays[1], rest[1]])
        return reference.contrastive(*arguments, weight=weight, temperature=temperature, **kwargs)

    for weight in (*reference.WEIGHTS, "mulsupcon"):
        result = at(weight, arrays)
        exact = zip(result.gradient(), result.gradient(cotangent))
        for k, (of_mean, of_rows) in zip(range(len(arrays)), exact):
            for index in itertools.product(range(2), range(cases.DIM)):
                moved = [[a.copy() for a in arrays] for _ in range(2)]
                moved[0][k][index] += step
                moved[1][k][index] -= step
                up, down = (at(weight, m) for m in moved)
                slope = (up.mean - down.mean) / (2 * step)
                np.testing.assert_allclose(of_mean[index], slope, rtol=1e-6, atol=1e-8)
                slope = np.dot(cotangent, up.rows - down.rows) / (2 * step)
                np.testing.assert_allclose(of_rows[index], slope, rtol=1e-6, atol=1e-8)
        up, down = (at(weight, arrays, 0.3 + sign * step).mean for sign in (1, -1))
        slope = (up - down) / (2 * step)
        np.testing.assert_allclose(result.temperature_gradient(), slope, rtol=1e-6, atol=1e-8)


# --- the family -------------------------------------------------------------------------------


def test_the_family_is_complete():
    assert set(sdjax.LOSSES) == {*reference.LOSSES, *relatives.NAMES, *relatives.LABEL_WISE}
    assert set(sdjax.relations.WEIGHTS) == set(reference.WEIGHTS)
    for name, function in sdjax.LOSSES.items():
        assert function is getattr(sdjax, f"{name}_loss")


@functools.cache
def compiled_family(mode, form):
    """All losses in one program, which compiles far sooner than a program for each."""

    @cases.jit
    def compiled(arrays, labels, ids, cotangent, masks, temperature):
        out = {}
        for name in cases.LOSS_NAMES:
            targets = ids if name == "supcon" else labels
            ours = [a for pair in zip(arrays, targets, strict=True) for a in pair]
            out[name] = run(
                sdjax.LOSSES[name], ours, cotangent, form=form, temperature=temperature, **masks
            )
        return out

    return compiled


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("mode", SELF_OR_EXPLICIT)
def test_every_label_set_and_mask(name, form, mode):
    """Compiled once, then all kinds of label sets and masks (degenerate ones too) as values."""
    sizes = (cases.BATCH,) if mode == "self" else (cases.BATCH, cases.QUEUE)
    rng = np.random.default_rng(1)
    for label_kind, mask_kind in itertools.product(cases.LABEL_KINDS, cases.EDGE_MASK_KINDS):
        arrays = [cases.embeddings(rng, rows) for rows in sizes]
        matrices = [cases.label_matrix(label_kind, rng, rows) for rows in sizes]
        ids = [cases.class_ids(matrix) for matrix in matrices]
        cotangent, temperature = rng.normal(size=cases.BATCH), rng.choice([0.07, 0.5, 2.0])
        masks = {"where": np.ones(cases.BATCH, bool), "candidate_where": np.ones(sizes[-1], bool)}
        masks |= cases.masks(mask_kind, rng, sizes[-1])
        if name == "supcon":
            sets = map(reference.class_sets, ids)
        else:
            sets = map(reference.label_sets, matrices)
        theirs = [a for pair in zip(arrays, sets, strict=True) for a in pair]
        result = reference.loss(name, *theirs, form=form, temperature=temperature, **masks)
        outputs = compiled_family(mode, form)(arrays, matrices, ids, cotangent, masks, temperature)
        what = f"labels={label_kind} masks={mask_kind}"
        cases.check(result, outputs[name], cotangent, np.float64, what)


def orthogonal_runs():
    """Yields (mode and form, dtype, format, masks, label kind), 4 levels each, in 16 runs.

    Lines of the affine plane over the field of four elements: each pair of levels of any two
    columns occurs in exactly one run.
    """
    twice, thrice = (0, 2, 3, 1), (0, 3, 1, 2)
    columns = (
        [f"{mode}-{form}" for mode in SELF_OR_EXPLICIT for form in cases.FORMS],
        list(cases.DTYPES),
        cases.FORMATS,
        cases.MASK_KINDS,
        cases.LABEL_KINDS[:4],
    )
    for a, b in itertools.product(range(4), repeat=2):
        levels = (a, b, a ^ b, a ^ twice[b], a ^ thrice[b])
        yield tuple(column[level] for column, level in zip(columns, levels, strict=True))


def test_orthogonal_runs_cover_all_pairs_of_levels():
    runs = list(orthogonal_runs())
    for i, j in itertools.combinations(range(5), 2):
        assert len({(run[i], run[j]) for run in runs}) == 16


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@pytest.mark.parametrize("levels", list(orthogonal_runs()), ids="-".join)
def test_every_pair_of_options(name, levels):
    """Dispatched op by op, so that options may change what is traced."""
    rng = np.random.default_rng(2)
    mode_and_form, dtype_name, label_format, mask_kind, kind = levels
    mode, form = mode_and_form.split("-")
    dtype = cases.DTYPES[dtype_name]
    normalize = bool(sum(map(len, levels)) % 3)
    ours, theirs = problem(name, mode, kind, label_format, dtype, rng)
    cotangent = rng.normal(size=cases.BATCH)
    kwargs = dict(form=form, normalize=normalize, **cases.masks(mask_kind, rng))
    result = reference.loss(name, *theirs, **kwargs)
    reduction = cases.REDUCTIONS[(len(name) + sum(map(len, levels))) % 2]
    outputs = run(sdjax.LOSSES[name], ours, cotangent, [reduction], **kwargs)
    cases.check(result, outputs, cotangent, np.dtype(dtype), f"{normalize=}")


@pytest.mark.parametrize("name", [n for n in cases.LOSS_NAMES if n != "supcon"])
def test_label_formats_agree(name):
    rng = np.random.default_rng(3)
    z = jnp.asarray(cases.embeddings(rng, dtype=np.float32))
    matrix = cases.label_matrix("some_empty", rng)
    rows = [
        sdjax.LOSSES[name](z, cases.to_format(matrix, label_format, rng), reduction="none")
        for label_format in cases.FORMATS
    ]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])


# --- any weight with any normalizer -----------------------------------------------------------


@pytest.mark.parametrize("normalizer", reference.NORMALIZERS)
@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("weight", [*reference.WEIGHTS, "mulsupcon"])
def test_every_weight_with_every_normalizer(weight, form, normalizer):
    rng = np.random.default_rng(4)
    mode = SELF_OR_EXPLICIT[(len(weight) + reference.NORMALIZERS.index(normalizer)) % 2]
    ours, theirs = problem("sd", mode, "some_empty", "bool", np.float64, rng)
    cotangent = rng.normal(size=cases.BATCH)
    kwargs = dict(form=form, normalizer=normalizer, **cases.masks("both", rng))
    result = reference.contrastive(*theirs, weight=weight, **kwargs)
    function = sdjax.mulsupcon_loss
    if weight != "mulsupcon":
        function, kwargs["weight"] = sdjax.contrastive_loss, weight
    reduction = cases.REDUCTIONS[len(weight + form + normalizer) % 2]
    outputs = run(function, ours, cotangent, [reduction], **kwargs)
    cases.check(result, outputs, cotangent, np.float64, mode)


@pytest.mark.parametrize("mode", SELF_OR_EXPLICIT)
@pytest.mark.parametrize("threshold", [0.2, 1 / 3, 0.5, 2 / 3, 1.0])
def test_jaccard_thresholds(threshold, mode):
    rng = np.random.default_rng(5)
    ours, theirs = problem("jaccard", mode, "curated", "bool", np.float64, rng)
    cotangent = rng.normal(size=cases.BATCH)
    result = reference.loss("jaccard", *theirs, threshold=threshold)
    outputs = run(sdjax.jaccard_loss, ours, cotangent, threshold=threshold)
    cases.check(result, outputs, cotangent, np.float64, f"{threshold=}")


def test_jaccard_threshold_defaults_to_one_half():
    rng = np.random.default_rng(5)
    (z, labels), _ = problem("jaccard", "self", "curated", "bool", np.float64, rng)
    expected = sdjax.jaccard_loss(z, labels, threshold=0.5)
    assert sdjax.jaccard_loss(z, labels) == expected
    assert sdjax.jaccard_loss(z, labels, threshold=0.6) != expected


# --- the user's own weight --------------------------------------------------------------------


def test_own_weight_of_the_readme():
    rng = np.random.default_rng(6)
    ours, theirs = problem("sd", "explicit", "some_empty", "bool", np.float64, rng)
    cotangent = rng.normal(size=cases.BATCH)
    result = reference.contrastive(*theirs, weight="similarity_only")
    # An anchor without labels divides 0 by 0: such pairs are no positives.
    outputs = run(
        sdjax.contrastive_loss, ours, cotangent, weight=lambda o: o.shared / o.anchor_size
    )
    cases.check(result, outputs, cotangent, np.float64, "own weight")


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("normalizer", ["positives", "weights"])
def test_own_weight_may_be_nan_or_negative_where_it_has_no_positive(form, normalizer):
    rng = np.random.default_rng(7)
    ours, theirs = problem("sd", "self", "curated", "bool", np.float64, rng)
    cotangent = rng.normal(size=cases.BATCH)

    def plain(s, t):
        shared, total = len(s & t), len(s) + len(t)
        return float("nan") if shared == 2 else shared - total / 5

    def own(o):
        weight = o.shared - (o.anchor_size + o.candidate_size) / 5
        return jnp.where(o.shared == 2, jnp.nan, weight)

    kwargs = dict(form=form, normalizer=normalizer)
    result = reference.contrastive(*theirs, weight=plain, **kwargs)
    assert 0 < result.positives.sum() < cases.BATCH * (cases.BATCH - 1)
    outputs = run(sdjax.contrastive_loss, ours, cotangent, weight=own, **kwargs)
    cases.check(result, outputs, cotangent, np.float64, "own weight")


@pytest.mark.parametrize("form", cases.FORMS)
def test_own_weight_may_make_positives_of_pairs_that_share_nothing(form):
    rng = np.random.default_rng(8)
    ours, theirs = problem("sd", "self", "some_empty", "bool", np.float64, rng)
    cotangent = rng.normal(size=cases.BATCH)
    result = reference.contrastive(*theirs, weight=lambda s, t: 1 + len(s & t), form=form)
    outputs = run(sdjax.contrastive_loss, ours, cotangent, weight=lambda o: 1 + o.shared, form=form)
    cases.check(result, outputs, cotangent, np.float64, "own weight")


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int32, jnp.bfloat16])
def test_own_weight_may_have_any_real_dtype(dtype):
    rng = np.random.default_rng(9)
    ours, theirs = problem("sd", "self", "curated", "bool", np.float64, rng)
    cotangent = rng.normal(size=cases.BATCH)
    result = reference.contrastive(*theirs, weight="any")
    outputs = run(
        sdjax.contrastive_loss, ours, cotangent, weight=lambda o: (o.shared > 0).astype(dtype)
    )
    cases.check(result, outputs, cotangent, np.float64, f"weight of {dtype}")


def test_no_gradient_flows_through_an_own_weight():
    rng = np.random.default_rng(10)
    (z, labels), _ = problem("sd", "self", "curated", "bool", np.float64, rng)

    def f(power):
        return sdjax.contrastive_loss(z, labels, weight=lambda o: o.shared**power)

    assert f(1.0) != f(2.0)
    assert jax.grad(f)(1.5) == 0


# --- temperature, precision, inputs -----------------------------------------------------------


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_gradient_of_the_temperature(name):
    rng = np.random.default_rng(11)
    (z, labels), theirs = problem(name, "self", "curated", "bool", np.float64, rng)
    expected = reference.loss(name, *theirs, temperature=0.3).temperature_gradient()
    slope = jax.grad(lambda t: sdjax.LOSSES[name](z, labels, temperature=t))(0.3)
    np.testing.assert_allclose(slope, expected, rtol=1e-10)


@pytest.mark.parametrize("temperature", [1, 0.5, np.float32(0.5), np.float64(2), np.array(0.25)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_temperature_may_be_any_real_scalar(temperature, dtype):
    rng = np.random.default_rng(12)
    (z, labels), theirs = problem("sd", "self", "curated", "bool", dtype, rng)
    expected = reference.loss("sd", *theirs, temperature=float(temperature)).mean
    for t in (temperature, jnp.asarray(temperature)):
        np.testing.assert_allclose(sdjax.sd_loss(z, labels, temperature=t), expected, rtol=1e-5)


@pytest.mark.parametrize("pair", [("bfloat16", "float32"), ("float32", "float16")])
def test_anchors_and_candidates_of_unlike_dtypes(pair):
    rng = np.random.default_rng(13)
    z, queue = (cases.embeddings(rng, cases.BATCH, cases.DTYPES[dtype]) for dtype in pair)
    labels = cases.label_matrix("random", rng)
    queue_labels = cases.label_matrix("random", rng)
    expected = reference.loss(
        "sd",
        z.astype(np.float64),
        reference.label_sets(labels),
        queue.astype(np.float64),
        reference.label_sets(queue_labels),
    )
    loss = sdjax.sd_loss(z, labels, queue, queue_labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected.mean, rtol=1e-5)
    gradients = jax.grad(sdjax.sd_loss, argnums=(0, 2))(jnp.asarray(z), labels, queue, queue_labels)
    assert [g.dtype for g in gradients] == [jnp.dtype(d) for d in pair]


def test_without_64_bits_everything_is_float32():
    """What most users run: JAX's default of 32 bits, NumPy's default of 64."""
    rng = np.random.default_rng(14)
    z, matrix = cases.embeddings(rng), cases.label_matrix("curated", rng)
    expected = reference.loss("sd", z, reference.label_sets(matrix)).mean
    with jax.enable_x64(False):
        for labels in (matrix, matrix.astype(np.int64), matrix.astype(np.float64)):
            loss = sdjax.sd_loss(z, labels, where=np.ones(cases.BATCH, bool))
            assert loss.dtype == jnp.float32
            np.testing.assert_allclose(loss, expected, rtol=1e-5)
        ids = cases.class_ids(matrix).astype(np.int64)
        expected = reference.loss("supcon", z, reference.class_sets(ids)).mean
        np.testing.assert_allclose(sdjax.supcon_loss(z, ids), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint32"])
def test_class_ids_of_any_integer_dtype(dtype):
    rng = np.random.default_rng(15)
    z, ids = cases.embeddings(rng), rng.integers(0, 3, cases.BATCH).astype(dtype)
    where = np.arange(cases.BATCH) != 3
    expected = reference.loss("supcon", z, reference.class_sets(ids), where=where).mean
    for array in (ids, jnp.asarray(ids)):
        np.testing.assert_allclose(sdjax.supcon_loss(z, array, where=where), expected, rtol=1e-10)


def test_a_negative_class_is_no_class():
    rng = np.random.default_rng(16)
    z, ids = cases.embeddings(rng), np.array([0, -1, 0, -1, 1, 1, 2, 0], np.int32)
    expected = reference.loss("supcon", z, reference.class_sets(ids)).rows
    rows = sdjax.supcon_loss(z, ids, reduction="none")
    np.testing.assert_allclose(rows, expected, rtol=1e-10)
    assert rows[1] == rows[3] == 0


def test_large_class_ids_stay_apart():
    z = cases.embeddings(np.random.default_rng(17), 4)
    far = np.array([2**24, 2**24 + 1, 2**24, 2**24 + 1], np.int32)  # equal in float32
    near = far - 2**24
    assert sdjax.supcon_loss(z, far) == sdjax.supcon_loss(z, near)
