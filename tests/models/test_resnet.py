"""Residual networks: every stage as PyTorch's transformers and torchvision compute it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_models import FOLDER, RESNETS, copy

from sdjax.errors import InputError
from sdjax.models import resnet


def published(name, origin=None, **options):
    origin = origin or str(FOLDER / name)
    module = resnet.ResNet(resnet.read_sizes(origin), rngs=nnx.Rngs(0), **options)
    resnet.load(module, origin)
    return module


def expected(name):
    with np.load(FOLDER / name / "expected.npz") as file:
        arrays = dict(file)
    return {**arrays, "images": jnp.asarray(arrays["images"], jnp.float32) / 8}


@nnx.jit
def run(module, x, where=None, seed=None):
    return module(x, rngs=None if seed is None else nnx.Rngs(dropout=seed), where=where)


def statistics(module):
    return jax.tree.map(np.array, jax.tree.leaves(nnx.state(module, nnx.BatchStat)))


@pytest.mark.parametrize("name", RESNETS)
def test_every_stage_is_that_of_torch(name):
    module, wanted = published(name), expected(name)
    states = nnx.jit(resnet.ResNet.hidden_states)(module, wanted["images"])
    assert len(states) == sum(key.startswith("state_") for key in wanted)
    for number, found in enumerate(states):
        state = wanted[f"state_{number}"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, state, atol=1e-5)
    np.testing.assert_allclose(run(module, wanted["images"]), wanted["pooled"], atol=1e-5)


def test_statistics_are_those_of_the_rows_that_are_no_padding():
    x, key = expected("resnet")["images"], jax.random.key(0)
    module, alone = published("resnet"), published("resnet")
    padded = jnp.concatenate([x, 9 * jnp.ones_like(x)])
    before = statistics(module)
    found = run(module, padded, jnp.arange(4) < 2, key)
    np.testing.assert_allclose(found[:2], run(alone, x, None, key), atol=1e-5)
    assert np.abs(found[:2] - run(published("resnet"), x)).max() > 0.01
    after = statistics(module)
    assert all((a != b).any() for a, b in zip(before, after))
    for a, b in zip(after, statistics(alone)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_frozen_statistics_stay_and_rows_are_independent():
    x = expected("resnet")["images"]
    module = published("resnet", statistics="frozen")
    before, wanted = statistics(module), run(module, x)
    np.testing.assert_allclose(run(module, x, None, jax.random.key(0)), wanted, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(before, statistics(module)))
    with pytest.raises(InputError, match="Unknown statistics 'group'"):
        published("resnet", statistics="group")


def test_remat_dropout_and_bfloat16():
    x, key = expected("resnet")["images"], jax.random.key(0)

    @nnx.jit
    def gradient(module, x):
        graph, params, rest = nnx.split(module, nnx.Param, ...)

        def total(params):
            module = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))
            return jnp.sum(run(module, x, jnp.array([True, True]), key) ** 2)

        return jax.tree.leaves(jax.grad(total)(params))

    plain, saving = published("resnet"), published("resnet", remat=True)
    for a, b in zip(gradient(plain, x), gradient(saving, x)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    dropped = run(published("resnet", statistics="frozen", dropout=0.5), x, None, key)
    zeros = (np.asarray(dropped) == 0) & (expected("resnet")["pooled"] != 0)
    assert 0 < zeros.sum() < dropped.size
    half = published("resnet", dtype="bfloat16")
    found = run(half, x)
    assert found.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.astype(np.float32), run(plain, x), atol=0.1)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"model_type": "regnet"}, "model_type of .* 'regnet'.*Known: resnet"),
        ({"depths": [1]}, "hidden_sizes and depths must be as long as each other"),
        ({"layer_type": "wide"}, "layer_type of .* 'wide'"),
        ({"hidden_act": "gelu"}, "hidden_act of .* 'gelu'"),
        ({"embedding_size": None}, "its config.json lacks embedding_size"),
        ({"num_channels": 1}, r"of another shape: embedder.*\[4, 1, 7, 7\] wanted, \[4, 3, 7"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, change, text):
    with pytest.raises(InputError, match=text):
        published("", copy("resnet", tmp_path / "model", config=change))
