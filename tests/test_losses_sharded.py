"""The losses across eight devices equal the loss of the whole batch, and so do its gradients."""

import functools

import cases
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_cases import (
    AXIS,
    DEVICES,
    HALVES,
    KEYS_OF_MODE,
    MODES,
    ROWS,
    check,
    everything,
    expected,
    loss_of,
    mesh,
    problem,
)

import sdjax

pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason=f"needs {DEVICES} devices")


@pytest.mark.parametrize("mode", MODES)
def test_jit_with_a_sharded_batch(mode):
    w, batch = problem(mode)
    rows = NamedSharding(mesh(), P(AXIS))
    sharded = jax.device_put(batch, rows)
    replicated = jax.device_put(w, NamedSharding(mesh(), P()))
    assert len(sharded["anchors"]["x"].sharding.device_set) == DEVICES
    run = cases.jit(lambda w, batch: everything(KEYS_OF_MODE[mode], w, batch))
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
    check(cases.jit(run)(w, batch), w, batch)


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
    value, gradient = cases.jit(jax.value_and_grad(run))(w, batch)
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
    value, gradient = cases.jit(run)(w, anchors["x"], rows, anchors["where"])
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
    value, gradient = cases.jit(run)(w, batch)
    mean, rows, wanted = expected(("sd", "out"), w, batch)
    assert np.count_nonzero(rows) == positives
    cases.assert_close(value, mean, 1e-10, "value")
    cases.assert_close(gradient, wanted, 1e-10, "gradient")
    if not positives:
        assert value == 0 and not np.any(gradient)
