"""Blocks that are gathered, go around a ring, or both: the loss of the whole batch all the same."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from sharded_cases import AXIS, DEVICES, check, everything, expected, problem

import sdjax
from sdjax._src import tiling

pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason=f"needs {DEVICES} devices")

KEYS = {
    "self": [("sd", "out"), ("mulsupcon", "in"), ("supcon", "out"), ("soft_jaccard", "in")],
    "explicit": [("sd", "in"), ("mulsupcon", "out"), ("jaccard", "out"), ("supcon", "in")],
}


def grid(shape, kind=AxisType.Auto):
    axes = tuple("abc"[: len(shape)])
    return jax.make_mesh(shape, axes, axis_types=(kind,) * len(shape)), axes


@pytest.mark.parametrize("shape", [(8,), (4, 2)], ids=str)
@pytest.mark.parametrize("implementation", ["tiled", "ring"])
@pytest.mark.parametrize("mode", list(KEYS))
def test_shard_map(mode, implementation, shape):
    w, batch = problem(mode)
    kind = AxisType.Explicit if shape == (4, 2) else AxisType.Auto
    mesh, axes = grid(shape, kind)
    # Half of the losses by each way.
    keys = KEYS[mode][(shape == (8,)) ^ (implementation == "ring") :: 2]
    run = jax.shard_map(
        lambda w, batch: everything(keys, w, batch, axes, implementation=implementation),
        mesh=mesh,
        in_specs=(P(), P(axes)),
        out_specs={"/".join(key): (P(), P(), P(axes)) for key in keys},
        check_vma=(mode == "self") == (implementation == "ring"),
    )
    with jax.set_mesh(mesh):
        place = jax.NamedSharding(mesh, P(axes))
        check(jax.device_get(cases.jit(run)(w, jax.device_put(batch, place))), w, batch)


@pytest.mark.parametrize("devices", [1, 3, 5])
def test_odd_circles_of_uneven_padding(devices):
    """Five rows a device, of which the second has padding only; some anchors are no candidates."""
    rng = np.random.default_rng(devices)
    rows = 5 * devices
    z, matrix = cases.embeddings(rng, rows), rng.random((rows, cases.CLASSES)) < 0.4
    where, candidate_where = rng.random(rows) < 0.8, rng.random(rows) < 0.7
    where[5:10] = devices < 2
    name = "mulsupcon" if devices == 3 else "sd"
    mesh = jax.make_mesh((devices,), ("a",), (AxisType.Auto,), devices=jax.devices()[:devices])

    def loss(implementation, axis_name=None):
        def of(z, matrix, where, candidate_where):
            masks = {"where": where, "candidate_where": candidate_where}
            return sdjax.LOSSES[name](
                z, matrix, implementation=implementation, axis_name=axis_name, **masks
            )

        return of

    given = z, matrix, where, candidate_where
    wanted = cases.jit(jax.value_and_grad(loss("dense")))(*given)
    for implementation in ("dense", "tiled", "ring"):
        run = jax.shard_map(
            loss(implementation, "a"), mesh=mesh, in_specs=(P("a"),) * 4, out_specs=P()
        )
        value, gradient = cases.jit(jax.value_and_grad(run))(*given)
        np.testing.assert_allclose(value, wanted[0], rtol=1e-12)
        np.testing.assert_allclose(gradient, wanted[1], atol=1e-12)


def test_pmap():
    w, batch = problem("self")
    split = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
    keys = KEYS["self"][:2]
    run = jax.pmap(
        lambda w, batch: everything(keys, w, batch, AXIS, implementation="ring"),
        axis_name=AXIS,
        in_axes=(None, 0),
    )
    outputs = jax.device_get(run(w, split))
    each = {key: (mean[3], of[3], rows.reshape(-1)) for key, (mean, of, rows) in outputs.items()}
    check(each, w, batch)


def test_blocks_of_several_tiles_share_them_between_facing_devices(monkeypatch):
    """Two devices of 70 rows, three tiles each, in float32 to 1e-6; temperature and lists too."""
    monkeypatch.setattr(tiling, "SMALLEST_TILE", 32)
    monkeypatch.setattr(tiling, "LARGEST_TILE", 32)
    rng = np.random.default_rng(0)
    rows = 140
    z = cases.embeddings(rng, rows).astype(np.float32)
    matrix = rng.random((rows, 200)) < 0.02
    labels = sdjax.LabelIndices.from_multi_hot(matrix)
    where = np.arange(rows) < 120
    mesh = jax.make_mesh((2,), ("a",), (AxisType.Auto,), devices=jax.devices()[:2])

    def loss(z, temperature, labels, where, implementation, axis_name=None):
        return sdjax.sd_loss(
            z,
            labels,
            temperature=temperature,
            where=where,
            implementation=implementation,
            axis_name=axis_name,
        )

    def gradient(implementation, labels):
        run = jax.shard_map(
            lambda *args: loss(*args, implementation, "a"),
            mesh=mesh,
            in_specs=(P("a"), P(), P("a"), P("a")),
            out_specs=P(),
        )
        return cases.jit(jax.value_and_grad(run, (0, 1)))(z, jnp.float32(0.1), labels, where)

    dense = cases.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=4)
    value, (of_z, of_temperature) = dense(z.astype(np.float64), 0.1, labels, where, "dense")
    for implementation, given in (("ring", labels), ("tiled", matrix)):
        ours, (of_ours, of_our_temperature) = gradient(implementation, given)
        np.testing.assert_allclose(ours, value, rtol=1e-6)
        np.testing.assert_allclose(of_ours, of_z, atol=1e-6 * np.abs(of_z).max())
        np.testing.assert_allclose(of_our_temperature, of_temperature, rtol=1e-5)


def test_what_the_ring_holds_does_not_grow_with_the_devices():
    def memory(devices, implementation):
        mesh = jax.make_mesh((devices,), ("a",), (AxisType.Auto,), devices=jax.devices()[:devices])
        run = jax.shard_map(
            lambda z, labels: sdjax.sd_loss(
                z, labels, axis_name="a", implementation=implementation
            ),
            mesh=mesh,
            in_specs=(P("a"), P("a")),
            out_specs=P(),
        )
        rows = 256 * devices
        shapes = (
            jax.ShapeDtypeStruct((rows, 512), jnp.float32),
            jax.ShapeDtypeStruct((rows, 8), bool),
        )
        compiled = jax.jit(jax.value_and_grad(run)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = memory(4, "ring"), memory(8, "ring")
    assert many < 1.1 * few
    assert memory(8, "tiled") > 1.5 * many


# --- for users of plain jit -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda k: k.name)
def test_under_jit_on_a_mesh(kind):
    w, batch = problem("explicit")
    mesh, _ = grid((8,), kind)
    placed = jax.device_put(batch, jax.NamedSharding(mesh, P("a")))
    one, other = placed["anchors"], placed["candidates"]

    @cases.jit
    def run(w, one, other):
        def loss(w, reduction):
            return sdjax.sharded.sd_loss(
                one["x"] @ w,
                one["labels"],
                other["x"] @ w,
                other["labels"],
                where=one["where"],
                candidate_where=other["where"],
                axis_name="a",
                reduction=reduction,
                implementation="ring",
            )

        return *jax.value_and_grad(loss)(w, "mean"), loss(w, "none")

    with jax.set_mesh(mesh):
        value, gradient, rows = jax.device_get(run(w, one, other))
    check({"sd/out": (value, gradient, rows)}, w, batch)


def test_wrappers_are_for_every_loss():
    w, batch = problem("self")
    mesh, _ = grid((8,))
    assert set(sdjax.sharded.LOSSES) == set(sdjax.LOSSES)
    for name, loss in sdjax.sharded.LOSSES.items():
        assert loss is getattr(sdjax.sharded, f"{name}_loss")
    anchors = batch["anchors"]
    where, lists = anchors["where"], sdjax.LabelIndices.from_multi_hot(anchors["labels"])

    @cases.jit
    def run(z, lists):
        out = {}
        for name in cases.LOSS_NAMES:
            loss = sdjax.sharded.LOSSES[name]
            targets = anchors["ids"] if name == "supcon" else lists
            out[name] = loss(z, targets, where=where, axis_name="a", mesh=mesh)
        own = sdjax.sharded.contrastive_loss
        out["own"] = own(z, lists, weight="any", where=where, axis_name="a", mesh=mesh)
        return out

    for name, value in run(anchors["x"] @ w, lists).items():
        wanted, _, _ = expected(("any" if name == "own" else name, "out"), w, batch)
        cases.assert_close(value, wanted, 1e-10, name)


def test_wrappers_refuse_what_they_cannot_shard():
    z, labels = np.ones((9, 2)), np.ones((9, 3), bool)
    mesh, _ = grid((8,))
    with pytest.raises(ValueError, match="multiple of the 8 devices along 'a', got 9"):
        sdjax.sharded.sd_loss(z, labels, axis_name="a", mesh=mesh)
    with pytest.raises(ValueError, match=r"axis_name must be of the mesh \('a',\), got 'data'"):
        sdjax.sharded.sd_loss(z[:8], labels[:8], axis_name="data", mesh=mesh)
    with pytest.raises(ValueError, match="mesh must be given"):
        sdjax.sharded.sd_loss(z[:8], labels[:8], axis_name="a")
