"""The program that users run: float32, without 64 bits, compiled with all optimizations.

Values and gradients against the loops in float64, at temperatures and rows that lose precision.
"""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sdjax
from sdjax._src import evaluate, tiling

ROWS, QUEUE, DIM, TILE = 70, 41, 16, 32
MODES = ("self", "explicit")
TOLERANCE = 1e-5
KEYS = [(name, form) for name in cases.LOSS_NAMES for form in cases.FORMS]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "SMALLEST_TILE", TILE)
    monkeypatch.setattr(tiling, "LARGEST_TILE", TILE)


def test_the_settings_are_those_of_users():
    assert not jax.config.jax_enable_x64
    assert not jax.config.read("jax_disable_most_optimizations")
    assert jax.config.jax_numpy_dtype_promotion == "standard"
    assert jnp.asarray(1.0).dtype == jnp.float32


def side(rng, rows, kind):
    """Embeddings float32 and label sets; every kind has rows without labels."""
    z = rng.normal(size=(rows, DIM))
    matrix = rng.random((rows, cases.CLASSES)) < 0.4
    matrix[::9] = False
    if kind == "copies":
        # Rows that are the same, and rows that are nearly so.
        z[1::3] = z[0]
        z[2::6] = z[2] + 1e-3 * z[2::6]
    if kind == "clusters":
        z = z[rng.integers(0, 4, rows)] + 0.1 * z
    return z.astype(np.float32), matrix


# kind of rows, temperature. In the last two, the similarity of a row to itself, 1/τ, is far above
# all others: it must have been left out of the sums, not subtracted from them.
SCENES = (("clusters", 0.5), ("copies", 0.07), ("copies", 0.01), ("random", 0.03), ("random", 0.01))


@functools.cache
def compiled(keys, mode, implementation):
    """The losses in one program: values, and gradients to all embeddings."""

    @jax.jit
    def run(arrays, labels, ids, where, temperature):
        out = {}
        for name, form in keys:
            targets = ids if name == "supcon" else labels

            def loss(arrays, name=name, form=form, targets=targets):
                given = [a for pair in zip(arrays, targets) for a in pair]
                return sdjax.LOSSES[name](
                    *given,
                    form=form,
                    where=where,
                    temperature=temperature,
                    implementation=implementation,
                )

            out[f"{name}/{form}"] = jax.value_and_grad(loss)(arrays)
        return out

    return run


def check(keys, mode, implementation, scenes=SCENES):
    rng = np.random.default_rng(MODES.index(mode))
    sizes = (ROWS,) if mode == "self" else (ROWS, QUEUE)
    run = compiled(keys, mode, implementation)
    for kind, temperature in scenes:
        arrays, labels = zip(*(side(rng, rows, kind) for rows in sizes))
        ids = [rng.integers(-1, 4, rows).astype(np.int32) for rows in sizes]
        where = rng.random(ROWS) < 0.9
        # As float32 holds it, in the program and in the loops.
        temperature = np.float32(temperature)
        outputs = run(arrays, labels, ids, where, temperature)
        for name, form in keys:
            value, gradients = outputs[f"{name}/{form}"]
            sets = map(reference.class_sets, ids) if name == "supcon" else labels
            sets = sets if name == "supcon" else map(reference.label_sets, labels)
            given = [a for pair in zip(arrays, sets) for a in pair]
            result = reference.loss(
                name, *given, form=form, where=where, temperature=float(temperature)
            )
            what = f"{mode} {implementation} {name} {form} {kind} τ={temperature}"
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, result.mean, rtol=TOLERANCE, err_msg=what)
            for ours, exact in zip(gradients, result.gradient()):
                assert ours.dtype == jnp.float32
                error = (np.asarray(ours, np.float64) - exact) / np.sqrt(np.mean(exact**2))
                typical, largest = np.sqrt(np.mean(error**2)), np.abs(error).max()
                # A similarity of 100 is rounded by 8e-6, and e^s is off by as much of itself.
                seen = f"{what}: {typical:.1e}, at most {largest:.1e} of the RMS"
                assert typical <= TOLERANCE and largest <= 5 * TOLERANCE, seen


@pytest.mark.parametrize("mode", MODES)
def test_dense(mode):
    # Every loss in one form with itself, in the other with a queue.
    check(tuple(KEYS[MODES.index(mode) :: 2]), mode, "dense", SCENES[::2])


# The tiled core takes weights, counts and normalizers as the dense one does: one of each kind.
TILED = {
    "self": (("sd", "out"), ("mulsupcon", "in"), ("supcon", "in")),
    "explicit": (("sd", "in"), ("mulsupcon", "out"), ("jaccard", "out")),
}


@pytest.mark.parametrize("mode", MODES)
def test_tiled(mode):
    check(TILED[mode], mode, "tiled")


def two_devices():
    return jax.make_mesh((2,), ("a",), (AxisType.Auto,), devices=jax.devices()[:2])


needs_two_devices = pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")


@needs_two_devices
def test_ring():
    rng = np.random.default_rng(2)
    z, matrix = side(rng, ROWS, "copies")
    temperature = np.float32(0.02)

    @jax.jit
    def run(z, temperature):
        def loss(z):
            return sdjax.sharded.mulsupcon_loss(
                z,
                matrix,
                temperature=temperature,
                axis_name="a",
                mesh=two_devices(),
                implementation="ring",
            )

        return jax.value_and_grad(loss)(z)

    value, gradient = run(z, temperature)
    result = reference.loss(
        "mulsupcon", z, reference.label_sets(matrix), temperature=float(temperature)
    )
    exact = result.gradient()[0]
    np.testing.assert_allclose(value, result.mean, rtol=TOLERANCE)
    error = np.asarray(gradient, np.float64) - exact
    assert np.sqrt(np.mean(error**2)) <= TOLERANCE * np.sqrt(np.mean(exact**2))


# --- what auto takes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("spare", "taken"), [(0, "dense"), (-1, "tiled")])
@pytest.mark.parametrize(("name", "mode"), [("sd", "self"), ("supcon", "explicit")])
def test_auto_is_one_of_the_cores(name, mode, spare, taken, monkeypatch):
    """The same program, hence the same values, on either side of the threshold."""
    columns = ROWS if mode == "self" else QUEUE
    monkeypatch.setattr(evaluate, "AUTO_DENSE_PAIRS", ROWS * columns + spare)
    rng = np.random.default_rng(3)
    given = []
    for rows in (ROWS,) if mode == "self" else (ROWS, QUEUE):
        z, matrix = side(rng, rows, "random")
        given += [z, cases.class_ids(matrix) if name == "supcon" else matrix]

    def program(implementation):
        def run(*given):
            return jax.value_and_grad(sdjax.LOSSES[name])(*given, implementation=implementation)

        return jax.jit(run).lower(*given).as_text()

    auto = program("auto")
    assert auto == program(taken)
    other = {"dense": "tiled", "tiled": "dense"}[taken]
    assert auto != program(other)


# Pairs on a device above which it is tiled, bytes of candidates above which they go around, how
# candidates come, and what tells of the core in its program.
GATHERED = ROWS * DIM * 4
MESHED = {
    "dense": (ROWS // 2 * ROWS, 0, "self", (False, False)),
    "tiled": (ROWS // 2 * ROWS - 1, GATHERED, "self", (True, False)),
    "ring": (ROWS // 2 * ROWS - 1, GATHERED - 1, "self", (True, True)),
    "ring of a queue": (0, GATHERED - 1, "split", (True, True)),
    "queue that is everywhere": (0, 0, "whole", (True, False)),
}


@needs_two_devices
@pytest.mark.parametrize("case", MESHED)
def test_auto_across_devices(case, monkeypatch):
    pairs, num_bytes, mode, expected = MESHED[case]
    monkeypatch.setattr(evaluate, "AUTO_DENSE_PAIRS", pairs)
    monkeypatch.setattr(evaluate, "AUTO_GATHERED_BYTES", num_bytes)
    z, labels = jnp.zeros((ROWS, DIM)), jnp.zeros((ROWS, cases.CLASSES), bool)
    queue = () if mode == "self" else (z, labels)
    queue_spec = P() if mode == "whole" else P("a")
    run = jax.shard_map(
        lambda *given: sdjax.sd_loss(*given, axis_name="a"),
        mesh=two_devices(),
        in_specs=(P("a"), P("a"), *(queue_spec for _ in queue)),
        out_specs=P(),
    )
    program = str(jax.make_jaxpr(run)(z, labels, *queue))
    assert ("while" in program or "scan" in program, "ppermute" in program) == expected
