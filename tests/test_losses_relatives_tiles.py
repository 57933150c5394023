"""The losses beyond weights of overlaps over many tiles and devices, against the dense core."""

import functools

import cases
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sdjax
from sdjax._src import tiling

ROWS, QUEUE, TILE, CLASSES, DEVICES = 70, 41, 32, 150, 8
LOSSES = {
    "prototype": {},
    "msc": {"alpha": 0.5, "beta": 0.3},
    "mscwrg": {"alpha": 1.0},
    "mscrg": {"alpha": -1.0},
    "label_wise": {},
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Seven tiles of rows and prototypes, of which one holds both."""
    monkeypatch.setattr(tiling, "SMALLEST_TILE", TILE)
    monkeypatch.setattr(tiling, "LARGEST_TILE", TILE)


def sets(rng, rows, num_classes=CLASSES):
    matrix = rng.random((rows, num_classes)) < 3 / num_classes
    matrix[::9] = False
    return matrix


def call(loss, name, arrays, labels, options):
    z, prototypes, *rest = arrays
    prototypes = () if name == "label_wise" else (prototypes,)
    queue = (rest[0], labels[1]) if rest else ()
    return loss(z, labels[0], *prototypes, *queue, **options, **LOSSES[name])


def gradients(loss, name, arrays, labels, options):
    """The loss, and its gradients to all that get one."""
    arrays = tuple(arrays)
    if name == "label_wise":
        arrays = (arrays[0], None, *arrays[2:])

    def of(arrays):
        return call(loss, name, arrays, labels, options)

    return jax.value_and_grad(of)(arrays)


def compare(found, wanted, what):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        cases.assert_close(a, b, 1e-10, what)
    assert all(np.any(x) for x in jax.tree.leaves(wanted)), what


def slowly(*scenes):
    """Most take a second or two to compile."""
    return [pytest.param(*scene, marks=pytest.mark.slow) for scene in scenes]


SCENES = [
    *(("msc", "self", "lists"), ("mscwrg", "self", "multi-hot")),
    *slowly(("msc", "queue", "multi-hot"), ("mscrg", "queue", "lists")),
    *slowly(("label_wise", "self", "lists"), ("prototype", "self", "lists")),
]


@pytest.mark.parametrize("name,mode,labels", SCENES)
def test_many_tiles(name, mode, labels, small_tiles):
    rng = np.random.default_rng(0)
    sizes = (ROWS, QUEUE) if mode == "queue" else (ROWS,)
    arrays = [cases.embeddings(rng, rows) for rows in (sizes[0], CLASSES, *sizes[1:])]
    matrices = [sets(rng, rows) for rows in sizes]
    if labels == "lists":
        matrices = [cases.to_indices(matrix, rng, 2 * CLASSES // 8) for matrix in matrices]
    options = {"where": rng.random(ROWS) < 0.8}

    @cases.jit
    def run(arrays, matrices, options, temperature):
        def of(core):
            keywords = {**options, "temperature": temperature, "implementation": core}
            return gradients(sdjax.LOSSES[name], name, arrays, matrices, keywords)

        return of("tiled"), of("dense")

    # A temperature that is not known when it is traced takes a program for large similarities, too.
    for temperature in (0.5, 0.01) if name == "msc" else (0.2,):
        compare(*run(arrays, matrices, options, temperature), f"τ={temperature}")


# Five prototypes on eight devices: three bring padding.
SHARDED = [
    *(("msc", "self", "ring"), ("mscwrg", "self", "dense")),
    *slowly(("msc", "queue", "tiled"), ("mscwrg", "queue", "ring"), ("mscrg", "self", "tiled")),
    *slowly(("label_wise", "self", "ring"), ("prototype", "self", "tiled")),
]


@pytest.mark.parametrize("name,mode,implementation", SHARDED)
def test_eight_devices(name, mode, implementation):
    rng = np.random.default_rng(1)
    mesh = jax.make_mesh((DEVICES,), ("a",), (AxisType.Auto,))
    sizes = (2 * DEVICES, DEVICES) if mode == "queue" else (2 * DEVICES,)
    arrays = [cases.embeddings(rng, rows) for rows in (sizes[0], cases.CLASSES, *sizes[1:])]
    labels = [cases.label_matrix("some_empty", rng, rows) for rows in sizes]
    options = {"where": rng.random(sizes[0]) < 0.8, "temperature": 0.2}
    reduction = "none" if name == "mscwrg" else "mean"

    @cases.jit
    def run(arrays, labels, options):
        def of(loss, **more):
            def scalar(*args, **kwargs):
                value = loss(*args, **kwargs, **more, reduction=reduction)
                return (value * np.arange(1.0, 1 + value.size).reshape(value.shape)).sum()

            return gradients(scalar, name, arrays, labels, options)

        whole = of(sdjax.LOSSES[name], implementation="dense")
        sharded = sdjax.sharded.LOSSES[name]
        return of(sharded, axis_name="a", mesh=mesh, implementation=implementation), whole

    compare(*run(arrays, labels, options), name)


def test_prototypes_inside_shard_map():
    """By the documented rule, the mean of the gradients of all devices, tracked or not."""
    rng = np.random.default_rng(2)
    mesh = jax.make_mesh((2,), ("a",), (AxisType.Auto,), devices=jax.devices()[:2])
    z, prototypes = cases.embeddings(rng), cases.embeddings(rng, cases.CLASSES)
    matrix = cases.label_matrix("random", rng)

    def step(prototypes, z, matrix, axis_name=None):
        loss = functools.partial(sdjax.mscrg_loss, alpha=1.0, axis_name=axis_name)
        value, gradient = jax.value_and_grad(lambda p: loss(z, matrix, p))(prototypes)
        return value, gradient if axis_name is None else jax.lax.pmean(gradient, axis_name)

    wanted = cases.jit(step)(prototypes, z, matrix)
    for tracked in (True, False):
        run = jax.shard_map(
            functools.partial(step, axis_name="a"),
            mesh=mesh,
            in_specs=(P(), P("a"), P("a")),
            out_specs=P(),
            check_vma=tracked,
        )
        compare(cases.jit(run)(prototypes, z, matrix), wanted, f"{tracked=}")


@pytest.mark.slow
def test_herocon_on_eight_devices():
    rng = np.random.default_rng(3)
    mesh = jax.make_mesh((DEVICES,), ("a",), (AxisType.Auto,))
    z, matrix = cases.embeddings(rng, 16), cases.label_matrix("random", rng, 16)
    where = rng.random(16) < 0.8

    @cases.jit
    def run(z):
        sharded = functools.partial(sdjax.sharded.herocon_loss, axis_name="a", mesh=mesh)
        return [
            jax.value_and_grad(lambda z, f=f: f(z, matrix, where=where))(z)
            for f in (sharded, sdjax.herocon_loss)
        ]

    compare(*run(z), "herocon")
