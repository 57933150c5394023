"""BERT and RoBERTa: every layer as PyTorch's transformers computes it, and as a module of NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_models import FOLDER, NAMES, copy

from sdjax.errors import InputError
from sdjax.models import bert


def published(name, **options):
    origin = str(FOLDER / name)
    module = bert.Bert(bert.read_sizes(origin), rngs=nnx.Rngs(0), **options)
    bert.load(module, origin)
    with np.load(FOLDER / name / "expected.npz") as file:
        return module, dict(file)


@pytest.fixture
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@nnx.jit
def run(module, x, seed=None):
    rngs = None if seed is None else nnx.Rngs(dropout=seed)
    return module(x, rngs=rngs)


@nnx.jit
def gradient(module, x, seed=None):
    """Of the sum of squares, as arrays."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def total(params):
        return jnp.sum(run(nnx.merge(graph, params, rest), x, seed) ** 2)

    return jax.tree.leaves(jax.grad(total)(params))


def tokens(expected, width=None):
    return {k: jnp.asarray(expected[k][:, :width]) for k in ("ids", "mask", "types")}


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_that_of_transformers(name):
    module, expected = published(name)
    states = nnx.jit(bert.Bert.hidden_states)(module, tokens(expected))
    assert len(states) == len(expected["states"]) == 3
    for found, wanted in zip(states, expected["states"]):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_types_are_those_of_the_first_part_by_default():
    module, expected = published("bert")
    x = tokens(expected)
    alike = run(module, {**x, "types": jnp.zeros_like(x["types"])})
    without = {"ids": x["ids"], "mask": x["mask"]}
    np.testing.assert_allclose(run(module, without), alike, atol=1e-6)
    assert np.abs(run(module, x) - alike).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_mean_and_first_token(name):
    module, expected = published(name)
    last, mask = expected["states"][-1], expected["mask"]
    means = [row[kept].mean(axis=0) for row, kept in zip(last, mask)]
    np.testing.assert_allclose(run(module, tokens(expected)), means, atol=1e-5)
    module, _ = published(name, pooling="cls")
    np.testing.assert_allclose(run(module, tokens(expected)), last[:, 0], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    module, expected = published(name)
    x = tokens(expected)
    wider = {k: jnp.pad(v, ((0, 0), (0, 5)), constant_values=1) for k, v in x.items()}
    wider["mask"] = wider["mask"].at[:, -5:].set(False)
    if name == "roberta":
        wider["types"] = wider["types"].at[:, -5:].set(0)
    np.testing.assert_allclose(run(module, wider), run(module, x), atol=1e-5)


@pytest.mark.usefixtures("quick_compilation")
def test_a_row_of_padding_alone_is_finite():
    module, expected = published("bert")
    x = tokens(expected)
    x["mask"] = x["mask"].at[0].set(False)

    assert np.all(np.asarray(run(module, x)[0]) == 0)
    assert all(np.isfinite(leaf).all() for leaf in gradient(module, x))


@pytest.mark.usefixtures("quick_compilation")
def test_dropout_and_remat():
    module, expected = published("bert")
    x = tokens(expected)
    plain = run(module, x)
    dropped, again, other = (run(module, x, jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(dropped, again)
    assert np.abs(dropped - plain).max() > 0.01 and np.abs(dropped - other).max() > 0.01
    without, _ = published("bert", dropout=0.0)
    np.testing.assert_allclose(run(without, x, jax.random.key(0)), plain, atol=1e-6)
    saving, _ = published("bert", remat=True)
    for a, b in zip(gradient(module, x, jax.random.key(0)), gradient(saving, x, jax.random.key(0))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_near_and_keeps_float32_parameters():
    module, expected = published("bert", dtype="bfloat16")
    x = tokens(expected)
    found = run(module, x)
    assert found.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    means = [row[kept].mean(axis=0) for row, kept in zip(expected["states"][-1], expected["mask"])]
    np.testing.assert_allclose(found.astype(np.float32), means, atol=0.1)


def test_activations(tmp_path):
    """gelu is exact, gelu_new is not, and they differ by more than rounding."""
    _, expected = published("bert")
    outputs = {}
    for act in ("gelu", "gelu_new", "relu"):
        origin = copy("bert", tmp_path / act, config={"hidden_act": act})
        module = bert.Bert(bert.read_sizes(origin), rngs=nnx.Rngs(0))
        bert.load(module, origin)
        outputs[act] = np.asarray(run(module, tokens(expected)))
    assert 1e-5 < np.abs(outputs["gelu"] - outputs["gelu_new"]).max() < 0.01
    assert np.abs(outputs["gelu"] - outputs["relu"]).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_more_tokens_than_positions(name):
    module, _ = published(name)
    assert module.sizes.max_length == 20
    run(module, {k: jnp.ones((1, 20), int) for k in ("ids", "mask")})
    with pytest.raises(InputError, match="texts of 21 tokens: the model has positions for 20"):
        module({k: jnp.ones((1, 21), int) for k in ("ids", "mask")})


@pytest.mark.parametrize(
    "change, text",
    [
        ({"model_type": "distilbert"}, "model_type of .* 'distilbert'.*Known: bert, roberta"),
        ({"model_type": None}, "model_type of .* ''"),
        (
            {"hidden_size": None, "vocab_size": None},
            "its config.json lacks vocab_size, hidden_size",
        ),
        ({"hidden_act": "swish"}, "hidden_act of .* 'swish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type .* 'relative_key'"),
        ({"num_attention_heads": 3}, "hidden_size 16 is no multiple of num_attention_heads 3"),
    ],
)
def test_configs_that_no_such_network_has(tmp_path, change, text):
    origin = copy("bert", tmp_path / "model", config=change)
    with pytest.raises(InputError, match=text):
        bert.read_sizes(origin)
