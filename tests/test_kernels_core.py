"""`implementation="pallas"`, its TPU kernels interpreted on a CPU, against the dense core."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import sdjax
from sdjax import losses
from sdjax.kernels import core

# Interpreted kernels are slow.
pytestmark = pytest.mark.slow

ROWS, QUEUE = 20, 9


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    run = functools.partial(core.pallas, interpret=pltpu.InterpretParams())
    monkeypatch.setitem(losses.IMPLEMENTATIONS, "pallas", run)


SCENES = {
    "self": ("sd", "out", {}),
    "self_masked": ("jaccard", "in", {"where": np.arange(ROWS) % 4 > 0}),
    "candidate_mask": ("mulsupcon", "out", {"candidate_where": np.arange(ROWS) % 3 > 0}),
    "explicit": ("soft_jaccard", "out", {"candidate_where": np.arange(QUEUE) % 3 > 0}),
    "classes": ("supcon", "in", {}),
    "not_normalized": ("sd", "out", {"normalize": False}),
}


@pytest.mark.parametrize("scene", list(SCENES))
def test_against_dense(scene):
    name, form, options = SCENES[scene]
    rng = np.random.default_rng(0)
    dtype = "bfloat16" if scene == "explicit" else "float32"
    sizes = (ROWS, QUEUE) if scene == "explicit" else (ROWS,)
    z = [jnp.asarray(cases.embeddings(rng, rows), dtype) for rows in sizes]
    matrices = [rng.random((rows, cases.CLASSES)) < 0.4 for rows in sizes]
    labels = [cases.class_ids(m) % 3 if name == "supcon" else m for m in matrices]

    def loss(z, temperature, implementation):
        arguments = [x for pair in zip(z, labels, strict=True) for x in pair]
        return sdjax.LOSSES[name](
            *arguments,
            form=form,
            temperature=temperature,
            implementation=implementation,
            **options,
        )

    def gradient(implementation):
        run = functools.partial(loss, implementation=implementation)
        return jax.jit(jax.value_and_grad(run, (0, 1)))(z, jnp.float32(0.2))

    (value, (of_z, of_temperature)), (wanted, (wanted_z, wanted_temperature)) = map(
        gradient, ("pallas", "dense")
    )
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(of_temperature, wanted_temperature, rtol=tolerance)
    for ours, theirs in zip(of_z, wanted_z, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


def test_float64_is_refused():
    with jax.enable_x64(True), pytest.raises(TypeError, match="float32, got float64"):
        sdjax.sd_loss(jnp.ones((4, 2), jnp.float64), np.eye(4), implementation="pallas")
