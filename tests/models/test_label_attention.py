"""Label-wise attention against loops over its equations, whole and in chunks; long texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_models import FOLDER

from sdjax.errors import InputError
from sdjax.models import bert, segments
from sdjax.models.encoders import TokenStates
from sdjax.models.label_attention import LabelAttention

B, T, H, A, C = 3, 6, 4, 5, 7
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make(chunk=512):
    module = LabelAttention(H, C, width=A, chunk=chunk, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    params = nnx.state(module, nnx.Param)
    fill = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), params)
    nnx.update(module, fill)
    return module


def tokens():
    mask = np.arange(T) < np.array([[T], [2], [5]])
    states = np.random.default_rng(1).normal(size=(B, T, H)).astype(np.float32)
    return TokenStates(jnp.asarray(states), jnp.asarray(mask))


def expected(module, given):
    """Logits [B, C] and embeddings [B, C, H] in float64, one label of one text at a time."""
    first = np.asarray(module.hidden.kernel[...], np.float64)
    queries, kernel, bias = (
        np.asarray(each[...], np.float64) for each in (module.queries, module.kernel, module.bias)
    )
    logits, vectors = np.zeros((B, C)), np.zeros((B, C, H))
    for i in range(B):
        kept = np.asarray(given.states, np.float64)[i][np.asarray(given.mask)[i]]
        for c in range(C):
            weights = np.exp([queries[c] @ np.tanh(h @ first) for h in kept])
            vectors[i, c] = (weights / weights.sum()) @ kept
            logits[i, c] = kernel[c] @ vectors[i, c] + bias[c]
    return logits, vectors


@pytest.mark.parametrize("chunk", [512, 3, 1])
def test_values_are_those_of_the_equations(chunk):
    module, given = make(chunk), tokens()
    logits, vectors = expected(module, given)
    block = nnx.jit(lambda module, given: module.block(given, 2, 4))(module, given)
    np.testing.assert_allclose(nnx.jit(LabelAttention.__call__)(module, given), logits, **CLOSE)
    np.testing.assert_allclose(block, logits[:, 2:6], **CLOSE)
    if chunk == 512:
        np.testing.assert_allclose(module.embeddings(given), vectors, **CLOSE)
        attention = np.asarray(module.attention(given))
        np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-6)
        assert not attention[~np.broadcast_to(given.mask[:, None], attention.shape)].any()


def gradients(module, given):
    """Of parameters and states, compiled."""
    graph, params = nnx.split(module)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(len(given.states), C)))

    @jax.jit
    @jax.grad
    def gradient(both):
        logits = nnx.merge(graph, both[0])(TokenStates(both[1], given.mask))
        return jnp.sum(weights * jnp.sin(logits))

    return jax.tree.leaves(gradient((params, given.states)))


def test_gradients_by_chunks_are_those_of_all_labels_at_once():
    given = tokens()
    for a, b in zip(gradients(make(), given), gradients(make(chunk=3), given)):
        assert np.abs(a).max() > 1e-3
        np.testing.assert_allclose(a, b, **CLOSE)


def test_a_text_without_tokens_is_finite():
    given = tokens()
    given = given._replace(mask=given.mask.at[0].set(False))
    assert all(np.isfinite(leaf).all() for leaf in gradients(make(), given))
    assert not np.any(given.mean()[0])


def test_chunks_hold_less():
    """Temporaries of a compiled gradient, of 1,024 labels at 64 tokens: an eighth at a time."""
    given = TokenStates(jnp.zeros((4, 64, 8)), jnp.ones((4, 64), bool))

    def held(chunk):
        module = LabelAttention(8, 1024, width=8, chunk=chunk, rngs=nnx.Rngs(0))
        graph, params = nnx.split(module)

        def loss(params, states):
            return nnx.merge(graph, params)(given._replace(states=states)).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, given.states).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert held(128) < held(1024) / 3


@pytest.mark.parametrize("width, length, overlap", [(13, 5, 2), (13, 5, 3), (9, 4, 0), (3, 5, 2)])
def test_segments_against_loops(width, length, overlap):
    """Every token comes back once, from the segment in which it is further from the edge."""
    x = np.arange(1, 2 * width + 1).reshape(2, width)
    parts = np.asarray(jax.jit(segments.split, static_argnums=(1, 2))(x, length, overlap))
    stride = length - overlap
    count = len(parts) // 2
    assert (count - 1) * stride < width - overlap or count == 1
    padded = np.pad(x, ((0, 0), (0, count * length)))
    origin = np.zeros(parts.shape, int)
    for number in range(len(parts)):
        text, place = divmod(number, count)
        np.testing.assert_array_equal(parts[number], padded[text, place * stride :][:length])
        origin[number] = place
    states = np.stack([parts, origin], axis=-1)
    joined = jax.jit(segments.join, static_argnums=(1, 2, 3))(states, 2, width, overlap)
    joined = np.asarray(joined)
    np.testing.assert_array_equal(joined[..., 0], x)
    for token in range(width):
        holding = [i for i in range(count) if i * stride <= token < i * stride + length]
        room = [min(token - i * stride, i * stride + length - 1 - token) for i in holding]
        chosen = holding.index(joined[0, token, 1])
        assert room[chosen] == max(room) or token < stride or token >= count * stride


def test_long_texts_pass_by_segments():
    """Each as the encoder would give it alone; a text within one segment as without them."""
    origin = str(FOLDER / "roberta")
    sizes = bert.read_sizes(origin)

    def published(**options):
        module = bert.Bert(sizes, pooling="label_wise", rngs=nnx.Rngs(0), **options)
        bert.load(module, origin)
        return nnx.jit(bert.Bert.__call__)(module, x)

    with np.load(FOLDER / "roberta" / "expected.npz") as file:
        ids, mask = file["ids"], file["mask"].astype(bool)
    width = ids.shape[1]
    assert width > 8 and not mask.all()
    x = {"ids": jnp.asarray(ids), "mask": jnp.asarray(mask)}
    whole = published()
    assert isinstance(whole, TokenStates)
    alike = published(segment_length=width, segment_overlap=2)
    np.testing.assert_array_equal(whole.states, alike.states)
    found = published(segment_length=8, segment_overlap=4).states
    assert found.shape == whole.states.shape
    x = {name: each[:, :8] for name, each in x.items()}
    np.testing.assert_allclose(found[:, :6], published().states[:, :6], atol=1e-5)
    x = {"ids": jnp.asarray(ids[:, 4:12]), "mask": jnp.asarray(mask[:, 4:12])}
    last = min(width, 10)
    np.testing.assert_allclose(found[:, 6:last], published().states[:, 2 : last - 4], atol=1e-5)
    with pytest.raises(InputError, match="segment_length must be at most the model's 20, got 21"):
        published(segment_length=21)
