"""The Pallas kernels, interpreted on a CPU with race detection, against the other cores."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import sdjax
from sdjax import relations
from sdjax._src import pallas_tpu

# Three tiles of rows for an odd circle, four for an even one, and padding in each of them.
THREE_TILES, FOUR_TILES, TWO_TILES, ONE_TILE = 300, 400, 150, 40
OPTIMIZATION = "jax_disable_most_optimizations"


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Small tiles, a quick path through the compiler, and no race in what was run."""
    monkeypatch.setattr(pallas_tpu, "TILE", 128)
    before = jax.config.read(OPTIMIZATION)
    jax.config.update(OPTIMIZATION, True)
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        yield
    jax.config.update(OPTIMIZATION, before)


def examples(seed, num_rows, depth=5, classes=6, dtype=np.float32):
    """(embeddings, labels of which some are empty, ids of which some are equal)"""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_rows, classes)) < min(0.4, 4 / classes)
    labels[::7] = False
    z = rng.normal(size=(num_rows, depth)) / np.sqrt(depth)
    ids = rng.integers(-1, num_rows // 2, num_rows)
    return jnp.asarray(z, dtype), jnp.asarray(labels), jnp.asarray(ids, jnp.int32)


def mask(seed, num_rows):
    return jnp.asarray(np.random.default_rng(seed).random(num_rows) < 0.8)


def values_and_gradients(loss, z, candidates=None):
    """Of random multiples of the losses of all anchors."""
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=len(z)), jnp.float32)

    def total(arrays):
        rows = loss(*(x for x in arrays if x is not None))
        return (rows * cotangent).sum(), rows

    gradients, rows = jax.jit(jax.grad(total, has_aux=True))((z, candidates))
    return rows, *(x for x in gradients if x is not None)


def assert_close(actual, desired, tolerance, name):
    """Relative to each entry and to the size of the array's entries."""
    actual, desired = (np.asarray(x).astype(np.float64) for x in (actual, desired))
    assert np.any(desired), name
    atol = tolerance * np.sqrt(np.mean(desired**2))
    np.testing.assert_allclose(actual, desired, tolerance, atol, err_msg=name, strict=True)


def check(loss, z, candidates=None, gradient_tolerance=1e-5):
    """Compares the kernels, seen to run without a race, with the dense core."""
    actual = run(functools.partial(loss, implementation="pallas"), z, candidates)
    desired = values_and_gradients(functools.partial(loss, implementation="dense"), z, candidates)
    names = "loss", "gradient of z", "gradient of candidates"
    for name, x, y in zip(names, actual, desired):
        assert x.dtype == y.dtype, name
        assert_close(x, y, 1e-5 if name == "loss" else gradient_tolerance, name)
    # Without a positive a loss is not merely small.
    assert np.all(np.asarray(actual[0])[np.asarray(desired[0]) == 0] == 0)


def run(loss, z, candidates=None):
    result = jax.block_until_ready(values_and_gradients(loss, z, candidates))
    assert not interpret_pallas_call.races.races_found
    return result


WEIGHTS = tuple(relations.WEIGHTS)


@pytest.mark.parametrize("form", cases.FORMS)
def test_every_weight(form):
    """In one program, in which none can hide behind another's value."""
    z, labels, _ = examples(0, ONE_TILE)

    def weight(o):
        own = o.shared / (o.anchor_size * o.candidate_size)  # 0/0 for an empty set
        return own + sum(k * relations.WEIGHTS[name](o) for k, name in enumerate(WEIGHTS, 1))

    def weight_of_sets(s, t):
        if not s or not t:
            return 0
        own = len(s & t) / (len(s) * len(t))
        return own + sum(k * reference.WEIGHTS[name](s, t) for k, name in enumerate(WEIGHTS, 1))

    def loss(z):
        options = {"form": form, "reduction": "none", "implementation": "pallas"}
        return sdjax.contrastive_loss(z, labels, weight=weight, temperature=0.1, **options)

    sets = reference.label_sets(np.asarray(labels))
    expected = reference.contrastive(z, sets, weight=weight_of_sets, temperature=0.1, form=form)
    rows, of_z = run(loss, z)
    assert_close(rows, expected.rows, 1e-5, "loss")
    cotangent = np.random.default_rng(9).normal(size=len(z))
    assert_close(of_z, expected.gradient(cotangent)[0], 1e-5, "gradient")


@pytest.mark.parametrize("num_rows, form", [(THREE_TILES, "in"), (FOUR_TILES, "out")])
def test_self_contrast_over_tiles(num_rows, form):
    z, labels, ids = examples(0, num_rows)
    options = {"where": mask(1, num_rows), "candidate_where": mask(2, num_rows), "ids": ids}
    check(functools.partial(loss_of(sdjax.sd_loss, labels, form), **options), z)


def loss_of(function, labels, form="out", candidate_labels=None, **options):
    options = {"temperature": 0.1, "form": form, "reduction": "none", **options}

    def loss(z, candidates=None, **more):
        return function(z, labels, candidates, candidate_labels, **options, **more)

    return loss


@pytest.mark.parametrize("form", cases.FORMS)
def test_candidates_and_unbounded_similarities(form):
    """Of up to a hundred, of both signs."""
    z, labels, ids = examples(0, TWO_TILES)
    candidates, candidate_labels, candidate_ids = examples(1, THREE_TILES)
    s = np.asarray(z @ candidates.T / 0.03)
    assert s.max() > 70 and s.min() < -70
    options = {"normalize": False, "temperature": 0.03, "ids": ids, "candidate_ids": candidate_ids}
    options["where"], options["candidate_where"] = mask(1, TWO_TILES), mask(2, THREE_TILES)
    loss = loss_of(sdjax.sd_loss, labels, form, candidate_labels, **options)
    # A unit in the last place of s is 8e-6, and so is the relative error of e^s.
    check(loss, z, candidates, gradient_tolerance=1e-4)


def test_shifts_of_several_tiles():
    """The largest similarity of an anchor may be in any of them."""
    z, labels, _ = examples(0, THREE_TILES)
    z *= jnp.linspace(0.1, 3, THREE_TILES)[:, None]
    loss = loss_of(sdjax.sd_loss, labels, "in", normalize=False, temperature=0.2)
    check(loss, z, gradient_tolerance=1e-4)


def test_mulsupcon():
    z, labels, _ = examples(0, TWO_TILES)
    options = {"candidate_where": mask(2, TWO_TILES)}
    check(loss_of(sdjax.mulsupcon_loss, labels, **options), z)
    z, candidates = z[:ONE_TILE], z[ONE_TILE:]
    loss = loss_of(sdjax.mulsupcon_loss, labels[:ONE_TILE], "in", labels[ONE_TILE:])
    check(loss, z, candidates)


def test_classes():
    z, _, _ = examples(0, TWO_TILES)
    numbers = jnp.asarray(np.random.default_rng(1).integers(-1, 5, TWO_TILES))
    check(loss_of(sdjax.supcon_loss, numbers), z)
    # MulSupCon counts them as it does other label sets.
    labels = sdjax.LabelIndices(numbers[:, None], 5)
    check(loss_of(sdjax.mulsupcon_loss, labels), z)


def test_many_labels_and_features_in_bfloat16():
    """The gradient of a pair is rounded once."""
    z, labels, _ = examples(0, TWO_TILES, depth=130, classes=150, dtype=jnp.bfloat16)
    rng = np.random.default_rng(1)
    indices = cases.to_indices(np.asarray(labels), rng, 2 * int(labels.sum(axis=1).max()))
    check(loss_of(sdjax.sd_loss, indices), z, gradient_tolerance=1e-2)


def test_a_weight_that_captures_a_number():
    z, labels, _ = examples(0, ONE_TILE, dtype=jnp.float16)
    # The gradient is rounded once.
    check(loss_of(sdjax.jaccard_loss, labels, threshold=0.4), z, gradient_tolerance=2**-10)


def test_temperature_known_when_the_program_runs():
    """Of a kernel for bounded similarities and one for others, one is run."""
    z, labels, _ = examples(0, ONE_TILE)

    @functools.partial(jax.jit, static_argnames="implementation")
    def gradients(temperature, implementation):
        def loss(z, temperature):
            options = {"temperature": temperature, "implementation": implementation}
            return sdjax.sd_loss(z, labels, **options)

        return jax.value_and_grad(loss, (0, 1))(z, temperature)

    for temperature in (0.1, 0.01):
        actual, desired = (gradients(temperature, core) for core in ("pallas", "dense"))
        for x, y in zip(*map(jax.tree.leaves, (actual, desired))):
            assert_close(x, y, 1e-5, f"temperature {temperature}")


@pytest.mark.parametrize("num_devices, num_rows", [(2, 2 * TWO_TILES), (3, 3 * ONE_TILE)])
def test_batch_over_devices(num_devices, num_rows):
    """Two devices that face each other share their tiles."""
    z, labels, _ = examples(0, num_rows)
    mesh = Mesh(jax.devices()[:num_devices], "x")

    def loss(z, implementation):
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
        def of_device(z, labels):
            loss = loss_of(sdjax.sd_loss, labels, axis_name="x")
            return loss(z, implementation=implementation)

        return jax.jit(of_device)(z, labels)

    check(loss, z)


def test_candidates_over_devices():
    z, labels, _ = examples(0, 2 * ONE_TILE)
    candidates, candidate_labels, _ = examples(1, 2 * TWO_TILES)
    mesh = Mesh(jax.devices()[:2], "x")

    def loss(z, candidates, implementation):
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
        def of_device(z, labels, candidates, candidate_labels):
            loss = loss_of(sdjax.sd_loss, labels, "in", candidate_labels, axis_name="x")
            return loss(z, candidates, implementation=implementation)

        return jax.jit(of_device)(z, labels, candidates, candidate_labels)

    check(loss, z, candidates)


def test_degenerate_batches():
    z, labels, _ = examples(0, ONE_TILE)
    no_positive = loss_of(sdjax.sd_loss, jnp.zeros_like(labels), implementation="pallas")
    no_candidate = loss_of(
        sdjax.sd_loss, labels, where=jnp.zeros(ONE_TILE, bool), implementation="pallas"
    )
    for loss in (no_positive, no_candidate):
        assert not any(np.any(x) for x in run(loss, z))


def test_where_numbers_have_64_bits_and_promotion_is_strict():
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        z, labels, _ = examples(0, ONE_TILE)
        check(loss_of(sdjax.jaccard_loss, labels), z)
        with pytest.raises(TypeError, match="z must be of 32 bits at most, got float64"):
            loss_of(sdjax.sd_loss, labels)(z.astype(jnp.float64), implementation="pallas")
        loss = loss_of(sdjax.sd_loss, labels, candidate_labels=labels)
        with pytest.raises(TypeError, match="candidates must be of 32 bits"):
            loss(z, z.astype(jnp.float64), implementation="pallas")


def test_what_kernels_do_not_do():
    z, labels, _ = examples(0, ONE_TILE)
    table = jnp.arange(10.0)

    def weight(o):
        return table[o.shared.astype(int)]

    def loss(z, labels, **options):
        return sdjax.contrastive_loss(z, labels, implementation="pallas", **options)

    with pytest.raises(NotImplementedError, match="captures arrays.*implementation='tiled'"):
        loss(z, labels, weight=weight)
    wide = jnp.zeros((ONE_TILE, 100_000), bool)
    with pytest.raises(NotImplementedError, match="100096 labels.*implementation='tiled'"):
        loss(z, wide)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        jax.jvp(lambda z: loss(z, labels), (z,), (z,))
    with pytest.raises(ValueError, match="positive_where needs implementation='dense'"):
        loss(z, labels, positive_where=jnp.ones((ONE_TILE, ONE_TILE), bool))
