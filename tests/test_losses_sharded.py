"""The losses across eight devices equal the loss of the whole batch, and so do its gradients.

The encoder is z = x @ w with w replicated. The documented rule for gradients inside shard_map or
pmap: `jax.lax.pmean(jax.grad(loss)(w), axis_name)`, for the loss returned is the global one.
"""

import functools

import cases
import jax
import numpy as np
import numpy_reference as reference
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import sdjax

DEVICES, FEATURES = 8, 3
ROWS, QUEUE = 2 * DEVICES, 3 * DEVICES
AXIS = "batch"
MODES = ("self", "explicit")

pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason=f"needs {DEVICES} devices")


def mesh():
    return jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))


def side(rng, rows):
    """One side of the pairs, with padding that is uneven across devices: all of the third's."""
    matrix = rng.permutation(cases.label_matrix("curated", rng, rows))
    where = rng.random(rows) < 0.75
    where[2 * rows // DEVICES : 3 * rows // DEVICES] = False
    where[:4] = True
    return {
        "x": rng.normal(size=(rows, FEATURES)),
        "labels": matrix,
        "ids": cases.class_ids(matrix),
        "where": where,
    }


def problem(mode):
    rng = np.random.default_rng(0)
    batch = {"anchors": side(rng, ROWS)}
    if mode == "explicit":
        batch["candidates"] = side(rng, QUEUE)
    return rng.normal(size=(FEATURES, cases.DIM)), batch


KEYS = [(name, form) for name in cases.LOSS_NAMES for form in cases.FORMS]


# Half of them for each mode: every loss, and its other form in the other mode.
HALVES = KEYS[0::4] + KEYS[3::4], KEYS[1::4] + KEYS[2::4]
KEYS_OF_MODE = dict(zip(MODES, HALVES, strict=True))


def loss_of(key, w, batch, reduction="mean", axis_name=None):
    """One loss of the family in one form, of z = x @ w."""
    name, form = key
    kind = "ids" if name == "supcon" else "labels"
    args = [a for side in batch.values() for a in (side["x"] @ w, side[kind])]
    kwargs = {"where": batch["anchors"]["where"]}
    if "candidates" in batch:
        kwargs["candidate_where"] = batch["candidates"]["where"]
    return sdjax.LOSSES[name](*args, form=form, reduction=reduction, axis_name=axis_name, **kwargs)


def expected(key, w, batch):
    """(mean, rows, gradient of mean with respect to w) by the reference."""
    name, form = key
    args, sides = [], list(batch.values())
    for s in sides:
        sets = reference.label_sets(s["labels"])
        args += [s["x"] @ w, reference.class_sets(s["ids"]) if name == "supcon" else sets]
    kwargs = {"where": sides[0]["where"]}
    if len(sides) > 1:
        kwargs["candidate_where"] = sides[1]["where"]
    result = reference.loss(name, *args, form=form, **kwargs)
    into = zip(sides, result.gradient())
    gradient = sum(s["x"].T @ g for s, g in into if g is not None)
    return result.mean, result.rows, gradient


def everything(keys, w, batch, axis_name=None):
    """{key: (mean, gradient, rows)}, gradients by the documented rule if there is an axis."""
    out = {}
    for key in keys:
        loss = functools.partial(loss_of, key, batch=batch, axis_name=axis_name)
        mean, gradient = jax.value_and_grad(loss)(w)
        if axis_name is not None:
            gradient = jax.lax.pmean(gradient, axis_name)
        out["/".join(key)] = mean, gradient, loss_of(key, w, batch, "none", axis_name)
    return out


def check(outputs, w, batch):
    for joined, (mean, gradient, rows) in outputs.items():
        key = tuple(joined.split("/"))
        wanted_mean, wanted_rows, wanted_gradient = expected(key, w, batch)
        assert np.count_nonzero(wanted_rows) >= 4, key
        cases.assert_close(mean, wanted_mean, 1e-10, f"{key} mean")
        cases.assert_close(rows, wanted_rows, 1e-10, f"{key} rows")
        cases.assert_close(gradient, wanted_gradient, 1e-10, f"{key} gradient")


@pytest.mark.parametrize("mode", MODES)
def test_jit_with_a_sharded_batch(mode):
    w, batch = problem(mode)
    rows = NamedSharding(mesh(), P(AXIS))
    sharded = jax.device_put(batch, rows)
    replicated = jax.device_put(w, NamedSharding(mesh(), P()))
    assert len(sharded["anchors"]["x"].sharding.device_set) == DEVICES
    run = jax.jit(lambda w, batch: everything(KEYS_OF_MODE[mode], w, batch))
    check(run(replicated, sharded), w, batch)


@pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no_vma"])
@pytest.mark.parametrize("mode", MODES)
def test_shard_map(mode, check_vma):
    w, batch = problem(mode)
    keys = HALVES[(mode == "explicit") ^ check_vma]
    out_specs = {"/".join(key): (P(), P(), P(AXIS)) for key in keys}
    run = jax.shard_map(
        lambda w, batch: everything(keys, w, batch, AXIS),
        mesh=mesh(),
        in_specs=(P(), P(AXIS)),
        out_specs=out_specs,
        check_vma=check_vma,
    )
    check(jax.jit(run)(w, batch), w, batch)


@pytest.mark.parametrize("mode", MODES)
def test_pmap(mode):
    w, batch = problem(mode)
    split = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)
    run = jax.pmap(
        lambda w, batch: everything(KEYS_OF_MODE[mode], w, batch, AXIS),
        axis_name=AXIS,
        in_axes=(None, 0),
    )
    outputs = jax.device_get(run(w, split))
    for device in (0, DEVICES - 1):
        each = {
            key: (mean[device], gradient[device], rows.reshape(-1))
            for key, (mean, gradient, rows) in outputs.items()
        }
        check(each, w, batch)


@pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no_vma"])
def test_gradient_taken_outside_shard_map(check_vma):
    """There, the gradient is right as it is."""
    w, batch = problem("self")
    key = ("sd", "out")
    run = jax.shard_map(
        lambda w, batch: loss_of(key, w, batch, axis_name=AXIS),
        mesh=mesh(),
        in_specs=(P(), P(AXIS)),
        out_specs=P(),
        check_vma=check_vma,
    )
    value, gradient = jax.jit(jax.value_and_grad(run))(w, batch)
    mean, _, wanted = expected(key, w, batch)
    cases.assert_close(value, mean, 1e-10, "value")
    cases.assert_close(gradient, wanted, 1e-10, "gradient")


@pytest.mark.parametrize("name", ["sd", "mulsupcon"])
def test_label_indices_over_two_mesh_axes(name):
    """Sharded index lists on a 4 x 2 mesh, the batch over both axes."""
    w, batch = problem("self")
    anchors, rng = batch["anchors"], np.random.default_rng(1)
    rows = cases.to_format(anchors["labels"], "indices", rng)
    grid = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    axes = ("a", "b")

    def step(w, x, labels, where):
        def loss(w):
            return sdjax.LOSSES[name](x @ w, labels, where=where, axis_name=axes)

        value, gradient = jax.value_and_grad(loss)(w)
        return value, jax.lax.pmean(gradient, axes)

    run = jax.shard_map(step, mesh=grid, in_specs=(P(), P(axes), P(axes), P(axes)), out_specs=P())
    value, gradient = jax.jit(run)(w, anchors["x"], rows, anchors["where"])
    mean, _, wanted = expected((name, "out"), w, batch)
    cases.assert_close(value, mean, 1e-10, "value")
    cases.assert_close(gradient, wanted, 1e-10, "gradient")


@pytest.mark.parametrize("positives", [0, 2])
def test_few_positives_in_all(positives):
    """Fewer anchors with a positive than devices, the two of the one pair far apart; or none."""
    w, batch = problem("self")
    anchors = batch["anchors"]
    anchors["labels"] = cases.multi_hot([{0}] + [set()] * (ROWS - 2) + [{0}])
    anchors["where"] = np.full(ROWS, positives > 0)

    def step(w, batch):
        loss = functools.partial(loss_of, ("sd", "out"), batch=batch, axis_name=AXIS)
        value, gradient = jax.value_and_grad(loss)(w)
        return value, jax.lax.pmean(gradient, AXIS)

    run = jax.shard_map(step, mesh=mesh(), in_specs=(P(), P(AXIS)), out_specs=P())
    value, gradient = jax.jit(run)(w, batch)
    mean, rows, wanted = expected(("sd", "out"), w, batch)
    assert np.count_nonzero(rows) == positives
    cases.assert_close(value, mean, 1e-10, "value")
    cases.assert_close(gradient, wanted, 1e-10, "gradient")
    if not positives:
        assert value == 0 and not np.any(gradient)
