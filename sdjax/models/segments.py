"""Long texts as overlapping segments, for encoders that take short ones.

Segment i of S tokens, O of which it shares with the next, begins at token i · (S − O). Of the
tokens that two segments share, the first half is taken from the earlier one and the second half
from the later one: from where each sees more of the text around it.
"""

import jax
import jax.numpy as jnp
from jax import core

Array = jax.Array


def split(x: Array, length: int, overlap: int) -> Array:
    """The segments of B texts, [B · N, length], those of a text one after the other.

    Args:
      x: what there is of each token, such as its number or whether it is none, [B, T].
      length: S, tokens of a segment.
      overlap: O, below S.
    """
    stride = length - overlap
    count = -(-core.max_dim(x.shape[1] - overlap, 1) // stride)
    x = jnp.pad(x, ((0, 0), (0, count * stride + overlap - x.shape[1])))
    places = stride * jnp.arange(count)[:, None] + jnp.arange(length)
    return x[:, places].reshape(-1, length)


def join(states: Array, num_texts: int, num_tokens: int, overlap: int) -> Array:
    """The states [B, T, H] of the tokens of B texts, of those of their segments [B · N, S, H]."""
    states = states.reshape(num_texts, -1, *states.shape[1:])
    head = overlap // 2
    stride = states.shape[2] - overlap
    middle = states[:, :, head : head + stride].reshape(num_texts, -1, states.shape[-1])
    parts = [states[:, 0, :head], middle, states[:, -1, head + stride :]]
    return jnp.concatenate(parts, axis=1)[:, :num_tokens]
