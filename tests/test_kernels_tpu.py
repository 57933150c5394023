"""The TPU kernels, interpreted on a CPU with race detection, against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from sdjax import relations
from sdjax.kernels import tpu
from sdjax.labels import LabelIndices

# Interpreted kernels are slow.
pytestmark = pytest.mark.slow

FORMS = ("out", "in")
CLASSES = 6
INTERPRET = pltpu.InterpretParams(detect_races=True)

NAMES = tuple(relations.WEIGHTS)


def _jaccard(shared, anchor, candidate):
    return shared / np.maximum(anchor + candidate - shared, 1)


WEIGHTS = {
    "similarity_dissimilarity": lambda o, s, t: o / np.maximum(s, 1) / (1 + t - o),
    "similarity_only": lambda o, s, t: o / np.maximum(s, 1),
    "dissimilarity_only": lambda o, s, t: (o > 0) / (1 + t - o),
    "symmetric": lambda o, s, t: _jaccard(o, s, t) / (1 + s + t - 2 * o),
    "any": lambda o, s, t: (o > 0) * 1.0,
    "all": lambda o, s, t: (o > 0) * (o == s) * (o == t) * 1.0,
    "jaccard": lambda o, s, t: np.where(_jaccard(o, s, t) >= 0.5, _jaccard(o, s, t), 0),
    "soft_jaccard": _jaccard,
    "own": lambda o, s, t: np.divide(o, s * t, out=np.full_like(o, np.nan), where=s * t > 0),
}
OWN = {**relations.WEIGHTS, "own": lambda o: o.shared / (o.anchor_size * o.candidate_size)}
# One program for all: none can hide behind another's value.
WEIGHTS["every"] = lambda *o: sum(k * WEIGHTS[name](*o) for k, name in enumerate(NAMES, start=1))
OWN["every"] = lambda o: sum(k * OWN[name](o) for k, name in enumerate(NAMES, start=1))


@pytest.fixture(autouse=True)
def quick_compilation():
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


def make_side(seed, num_rows, *, depth=5, classes=CLASSES, dtype=jnp.float32, first=0, scale=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.random((num_rows, classes)) < min(0.4, 8 / classes)
    labels[::7] = False
    return tpu.Side(
        y=jnp.asarray(rng.normal(size=(num_rows, depth)), dtype),
        scale=jnp.asarray(scale * rng.uniform(0.5, 1.5, num_rows), jnp.float32),
        labels=jnp.asarray(labels, jnp.int8),
        size=jnp.asarray(labels.sum(axis=1), jnp.float32),
        valid=jnp.asarray(rng.random(num_rows) < 0.8),
        index=jnp.arange(first, first + num_rows, dtype=jnp.int32),
    )


def wide(x):
    return np.asarray(x, np.float64)


def reference(anchors, candidates, weight, a, b, *, exclude_self, form, balanced=None):
    """Statistics, and the gradient for both sides, from whole matrices."""
    factor = wide(anchors.scale)[:, None] * wide(candidates.scale)
    s = factor * (wide(anchors.y) @ wide(candidates.y).T)
    shared = wide(anchors.labels if balanced is None else balanced) @ wide(candidates.labels).T
    valid = np.broadcast_to(np.asarray(candidates.valid), s.shape)
    if exclude_self:
        valid = valid & (np.asarray(anchors.index)[:, None] != np.asarray(candidates.index))
    w = weight(shared, *np.broadcast_arrays(wide(anchors.size)[:, None], wide(candidates.size)))
    positive = valid & (w > 0) & np.isfinite(w)
    w = np.where(positive, w, 0)

    def logsumexp(x, where):
        top = np.max(x, axis=1, where=where, initial=-np.inf)
        top = np.where(where.any(axis=1), top, 0)
        terms = np.exp(np.where(where, x - top[:, None], -np.inf)).sum(axis=1)
        return np.where(terms > 0, np.log(np.where(terms > 0, terms, 1)) + top, 0)

    lse = logsumexp(s, valid)
    log_w = np.log(np.where(positive, w, 1))
    dot = (w * s).sum(axis=1) if form == "out" else logsumexp(s + log_w, positive)
    stats = tpu.Stats(lse, positive.sum(axis=1), w.sum(axis=1), dot)
    share = w
    if form == "in":
        share = np.exp(np.where(positive, s + log_w - dot[:, None], -np.inf))
    q = np.exp(np.where(valid, s - lse[:, None], -np.inf))
    g = (wide(a)[:, None] * q - wide(b)[:, None] * share) * factor
    return stats, (g @ wide(candidates.y), g.T @ wide(anchors.y))


def assert_close(actual, desired, tolerance, what):
    actual = np.asarray(actual)
    assert actual.dtype == np.float32 and actual.shape == desired.shape, what
    assert np.isfinite(actual).all(), what
    size = max(1.0, np.sqrt(np.mean(desired**2)))
    np.testing.assert_allclose(actual, desired, rtol=tolerance, atol=tolerance * size, err_msg=what)


@functools.cache
def compiled(function, name, **options):
    """The kernel as one program, which tests of the same shapes share."""
    return jax.jit(functools.partial(function, weight=OWN[name], tile=128, **options))


def run(function, name, *sides, arrays=None, balanced=None, interpret=INTERPRET, **options):
    """Result of a kernel that was seen to run without a race."""
    arrays = dict(arrays or {})
    if balanced is not None:
        arrays["balanced"] = balanced
    program = compiled(function, name, interpret=interpret, **options)
    result = jax.block_until_ready(program(*sides, **arrays))
    assert not interpret_pallas_call.races.races_found
    return result


def check(
    anchors,
    candidates,
    name="similarity_dissimilarity",
    form="out",
    *,
    tolerance=1e-5,
    gradient_tolerance=None,
    to_kernel=lambda side: side,
    parts=("statistics", "gradient"),
    balanced=None,
    **options,
):
    """Compares with the reference; without candidates, the functions of one set of rows.

    Returns:
      The reference's statistics.
    """
    rng = np.random.default_rng(9)
    a, b = (jnp.asarray(rng.normal(size=len(anchors.y)), jnp.float32) for _ in range(2))
    alone = candidates is None
    others = anchors if alone else candidates
    options = {"exclude_self": True, "form": form, **options}
    method = {"exclude_self": options["exclude_self"], "form": form, "balanced": balanced}
    expected, gradients = reference(anchors, others, WEIGHTS[name], a, b, **method)
    sides = [to_kernel(anchors)] if alone else [to_kernel(anchors), to_kernel(candidates)]
    stats = tpu.Stats(*(jnp.asarray(x, jnp.float32) for x in expected))
    if "statistics" in parts:
        function = tpu.self_statistics if alone else tpu.statistics
        stats = run(function, name, *sides, balanced=balanced, **options)
        for field, actual, desired in zip(stats._fields, stats, expected):
            assert_close(actual, desired, tolerance, field)
            # Without a candidate or a positive, a value is not merely small.
            assert np.all(np.asarray(actual)[desired == 0] == 0), field
    if "gradient" in parts:
        function = tpu.self_gradient if alone else tpu.gradient
        arrays = {"stats": stats, "a": a, "b": b}
        actual = run(function, name, *sides, arrays=arrays, balanced=balanced, **options)
        pairs = [(actual, sum(gradients))] if alone else zip(actual, gradients)
        for dy, desired in pairs:
            assert_close(dy, desired, gradient_tolerance or tolerance, "dy")
    return expected


@pytest.mark.parametrize("form", FORMS)
def test_every_weight(form):
    assert set(NAMES) < set(WEIGHTS)
    candidates = None if form == "out" else make_side(1, 40, first=20)
    parts = ["gradient"] if form == "out" else ["statistics"]
    check(make_side(0, 30), candidates, "every", form, parts=parts)


def test_several_tiles():
    check(make_side(0, 300), make_side(1, 150, first=7))


@pytest.mark.parametrize("num_rows, form", [(300, "in"), (500, "out")])
def test_one_set_of_rows_in_several_tiles(num_rows, form):
    """Of three or four tiles: an even number meets across the circle from both sides."""
    check(make_side(0, num_rows), None, form=form)


def test_two_cores():
    interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    rows = make_side(0, 200)
    check(rows, None, cores=2, interpret=interpret, parts=["gradient"])
    check(rows, None, form="in", cores=2, parts=["statistics"])


def test_many_labels():
    """In chunks, whose overlaps add up."""
    check(make_side(0, 150, classes=2 * 2048 + 3), None, parts=["gradient"])


@pytest.mark.parametrize("resident", [0, 2**30])
def test_labels_of_anchors_may_stay_or_go(monkeypatch, resident):
    compiled.cache_clear()
    monkeypatch.setattr(tpu, "_RESIDENT_BYTES", resident)
    anchors, candidates = (make_side(seed, 20, classes=2048 + 3) for seed in (0, 1))
    check(anchors, candidates, parts=["statistics"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.bool_])
def test_dtypes_of_labels(dtype):
    def to_kernel(side):
        return side._replace(labels=side.labels.astype(dtype))

    check(make_side(0, 30), make_side(1, 40), to_kernel=to_kernel, parts=["statistics"])


def few_labels(side, most):
    """`side` with at most so many labels a row."""
    labels = np.asarray(side.labels)
    labels = labels * (np.cumsum(labels, axis=1) <= most)
    size = jnp.asarray(labels.sum(axis=1), jnp.float32)
    return side._replace(labels=jnp.asarray(labels, jnp.int8), size=size)


def with_indices(side):
    """Its labels as `LabelIndices` with padding in front, or a repeated index."""
    rows = [list(np.flatnonzero(row)) for row in np.asarray(side.labels)]
    width = max(map(len, rows))
    rows = [([-1] * width + row)[-width:] for row in rows]
    rows = [[row[-1] if i % 2 and row[0] < 0 else row[0], *row[1:]] for i, row in enumerate(rows)]
    return side._replace(labels=LabelIndices(jnp.asarray(rows, jnp.int32), CLASSES))


def test_label_indices():
    """Of another length on either side."""
    anchors, candidates = few_labels(make_side(0, 30), 4), few_labels(make_side(1, 40), 3)
    check(anchors, candidates, to_kernel=with_indices, parts=["statistics"])
    check(anchors, None, form="in", to_kernel=with_indices, parts=["gradient"])


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_balanced_labels(dtype, tolerance):
    """Their products with the candidates' labels are as exact as they are."""
    anchors, candidates = make_side(0, 30), make_side(1, 40)
    count = np.maximum(wide(candidates.labels).sum(axis=0), 1)
    balanced = jnp.asarray(wide(anchors.labels) / count, dtype)
    parts = ["statistics", "gradient"] if dtype == jnp.float32 else ["statistics"]
    check(anchors, candidates, "own", balanced=balanced, tolerance=tolerance, parts=parts)


def test_bfloat16():
    """Statistics as exact as float32; the gradient of a pair is rounded once, by up to 2^-9."""
    anchors, candidates = (
        make_side(seed, num_rows, depth=130, dtype=jnp.bfloat16, scale=0.3)
        for seed, num_rows in ((0, 60), (1, 40))
    )
    check(anchors, candidates, form="in", gradient_tolerance=5e-3)


@pytest.mark.parametrize("form", FORMS)
def test_large_similarities(form):
    """Of 10^4 and more, of either sign."""
    anchors, candidates = (make_side(k, n, scale=60.0) for k, n in ((0, 30), (1, 40)))
    s = wide(anchors.y) @ wide(candidates.y).T
    s *= wide(anchors.scale)[:, None] * wide(candidates.scale)
    assert s.max() > 1e4 and s.min() < -1e4
    # A unit in the last place of s is 10^-3, and so is the relative error of e^s.
    check(anchors, candidates, form=form, gradient_tolerance=2e-2)
    lowest = candidates._replace(y=-jnp.abs(candidates.y))
    highest = anchors._replace(y=jnp.abs(anchors.y))
    check(highest, lowest, form=form, gradient_tolerance=2e-2)


@pytest.mark.parametrize("form", FORMS)
def test_degenerate_rows_have_zeros(form):
    """No candidate at all; candidates but no positive; the row itself as its only positive."""
    rows = make_side(0, 30)
    stats = check(rows._replace(valid=jnp.zeros(30, bool)), None, form=form)
    assert not any(np.any(x) for x in stats)
    empty = rows._replace(labels=jnp.zeros_like(rows.labels), size=jnp.zeros(30))
    stats = check(empty, None, form=form)
    assert np.all(stats.lse != 0) and not any(np.any(x) for x in stats[1:])
    alone = rows._replace(labels=rows.labels * (jnp.arange(30)[:, None] == jnp.arange(CLASSES)))
    alone = alone._replace(size=alone.labels.sum(axis=1).astype(jnp.float32))
    stats = check(alone, None, form=form)
    assert np.any(alone.labels) and not any(np.any(x) for x in stats[1:])


def test_self_is_known_by_its_number():
    """Which may be too large for a float32."""
    index = jnp.arange(30, dtype=jnp.int32) + 2**24
    rows = make_side(0, 30)._replace(valid=jnp.ones(30, bool), index=index)
    check(rows, None)
    check(rows, rows._replace(index=index + 1), parts=["statistics"])
    check(rows, rows, exclude_self=False, parts=["statistics"])


def test_where_numbers_have_64_bits_and_promotion_is_strict():
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        check(make_side(0, 30), None)


def test_errors():
    rows = make_side(0, 20)
    with pytest.raises(ValueError, match="multiple of 128"):
        tpu.self_statistics(rows, OWN["any"], tile=100)
    sparse = LabelIndices(jnp.zeros((20, 5), jnp.int32), CLASSES)
    with pytest.raises(ValueError, match="4 labels a row"):
        tpu.self_statistics(rows._replace(labels=sparse), OWN["any"])
    sparse = LabelIndices(jnp.zeros((20, 2), jnp.int32), CLASSES)
    with pytest.raises(ValueError, match="both sides"):
        tpu.statistics(rows, rows._replace(labels=sparse), OWN["any"])
    with pytest.raises(ValueError, match="one number a pair"):
        tpu.self_statistics(rows, lambda o: o.anchor_size, interpret=INTERPRET)
    pltpu.reset_tpu_interpret_mode_state()
