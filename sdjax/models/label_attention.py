"""Label-wise attention: each label reads the tokens of a text by weights of its own.

References:
  Vu et al., A Label Attention Model for ICD Coding from Clinical Text, 2020
  (https://arxiv.org/abs/2007.06351). Huang et al., PLM-ICD: Automatic ICD Coding with Pretrained
  Language Models, 2022 (https://aclanthology.org/2022.clinicalnlp-1.2).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sdjax.models.encoders import TokenStates

Array = jax.Array


class LabelAttention(nnx.Module):
    """Classifier of tokens, with an attention of its own for each label.

        a_ct = softmax_t(u_c · tanh(W h_t)),  v_c = Σ_t a_ct h_t,  logit_c = k_c · v_c + b_c

    Padding is never attended to. Labels pass in chunks, and the backward pass computes the
    attention of each chunk anew, so that [B, chunk, T] numbers of a kind are the most that is held.

    Args:
      features: H of the states h_t.
      num_classes: number of labels C.
      width: A, rows of W.
      chunk: labels whose attention is held at once.
      dtype: of the computation; parameters are float32, and so is the softmax.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        features: int,
        num_classes: int,
        *,
        width: int,
        chunk: int = 512,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        initial = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.hidden = nnx.Linear(features, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.queries = nnx.Param(initial(rngs.params(), (num_classes, width), jnp.float32))
        self.kernel = nnx.Param(initial(rngs.params(), (num_classes, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_classes, jnp.float32))
        self.chunk, self.dtype = chunk, dtype

    def __call__(self, tokens: TokenStates) -> Array:
        """Logits float32 [B, C] of the tokens of B texts."""
        return self._logits(tokens, self.queries[...], self.kernel[...], self.bias[...])

    def block(self, tokens: TokenStates, start: Array | int, size: int) -> Array:
        """Logits float32 [B, size] of the labels from `start` on."""
        weights = (self.queries[...], self.kernel[...], self.bias[...])
        part = (jax.lax.dynamic_slice_in_dim(each, start, size) for each in weights)
        return self._logits(tokens, *part)

    def attention(self, tokens: TokenStates) -> Array:
        """Weights a_ct of the tokens for each label, float32 [B, C, T], all at once."""
        return _attention(self._keys(tokens), tokens.mask, self.queries[...].astype(self.dtype))

    def embeddings(self, tokens: TokenStates, indices: Array | None = None) -> Array:
        """Embeddings v_c of B texts for labels, all at once.

        Args:
          tokens: of the texts.
          indices: labels of each text, int [B, L]; None is all labels of all texts.

        Returns:
          float32 [B, L, H], or [B, C, H].
        """
        states, queries = tokens.states.astype(self.dtype), self.queries[...].astype(self.dtype)
        if indices is not None:
            queries = queries[indices]
        return _vectors(self._keys(tokens), states, tokens.mask, queries).astype(jnp.float32)

    def _keys(self, tokens: TokenStates) -> Array:
        return jnp.tanh(self.hidden(tokens.states))

    def _logits(self, tokens: TokenStates, queries: Array, kernel: Array, bias: Array) -> Array:
        states, keys = tokens.states.astype(self.dtype), self._keys(tokens)

        def of_chunk(queries: Array, kernel: Array, bias: Array) -> Array:
            vectors = _vectors(keys, states, tokens.mask, queries.astype(self.dtype))
            return jnp.einsum("bch,ch->bc", vectors.astype(jnp.float32), kernel) + bias

        total = len(queries)
        if total <= self.chunk:
            return of_chunk(queries, kernel, bias)
        count = -(-total // self.chunk)
        size = -(-total // count)
        parts = [_in_chunks(each, count, size) for each in (queries, kernel, bias)]
        anew = jax.checkpoint(of_chunk, prevent_cse=False)  # none across a loop's steps
        logits = jax.lax.map(lambda part: anew(*part), tuple(parts))
        return jnp.moveaxis(logits, 0, 1).reshape(states.shape[0], -1)[:, :total]


def _attention(keys: Array, mask: Array, queries: Array) -> Array:
    """Softmax over the tokens in `mask`, float32 [B, C, T], of queries [C, A] or [B, C, A]."""
    logits = jnp.einsum("bta,ca->bct" if queries.ndim == 2 else "bta,bca->bct", keys, queries)
    logits = logits.astype(jnp.float32)
    logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


def _vectors(keys: Array, states: Array, mask: Array, queries: Array) -> Array:
    """Means [B, C, H] of the states, weighted by the attention of each query."""
    attention = _attention(keys, mask, queries).astype(states.dtype)
    return jnp.einsum("bct,bth->bch", attention, states)


def _in_chunks(x: Array, count: int, size: int) -> Array:
    """The rows of x as [count, size, ...], zeros after the last."""
    padding = [(0, count * size - len(x))] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])
