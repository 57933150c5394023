"""Encoders: from examples to representations [B, H].

An encoder is an NNX module with `out_features` H that is called with (x, rngs=, where=). `rngs` are
given in training: dropout is on, and batch statistics are those of the rows that `where` keeps.
One whose attribute `pooling` is "label_wise" gives `TokenStates` in place of representations.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sdjax.models.norms import make_norm, normalized

Array = jax.Array

_FREQUENCY_SCALE = 0.1


class TokenStates(NamedTuple):
    """What an encoder gives of each token of B texts, for label-wise attention to read.

    Attributes:
      states: float [B, T, H].
      mask: bool [B, T]; False is padding.
    """

    states: Array
    mask: Array

    def mean(self) -> Array:
        """Mean state [B, H] of the tokens of each text; zeros without tokens."""
        weight = self.mask.astype(jnp.float32)[:, :, None]
        total = jnp.sum(self.states * weight, axis=1)
        return (total / jnp.maximum(jnp.sum(weight, axis=1), 1)).astype(self.states.dtype)


class MLP(nnx.Module):
    """Multi-layer perceptron for feature vectors: `depth` layers of Dense, norm, ReLU, dropout.

    With `frequencies` K > 0, each feature x enters as x, sin(2πc_k x) and cos(2πc_k x) with K
    learned c_k of its own.

    Args:
      num_features: F of the input [B, F].
      width: H of the representation [B, H].
      depth: number of layers.
      dropout: rate after each layer.
      frequencies: K.
      norm: "", "batch", "group" or "layer".
      dtype: of the computation; parameters are float32.
      remat: compute the layers' activations anew in the backward pass.
      rngs: of the initial parameters.

    References:
      Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022
      (https://arxiv.org/abs/2203.05556).
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        depth: int,
        dropout: float,
        frequencies: int,
        *,
        norm: str = "",
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        initial = _FREQUENCY_SCALE * rngs.params.normal((num_features, frequencies))
        self.frequencies = nnx.Param(initial) if frequencies else None
        sizes = [num_features * (1 + 2 * frequencies)] + [width] * depth
        self.layers = nnx.List(
            [
                nnx.Linear(
                    before,
                    after,
                    dtype=dtype,
                    kernel_init=nnx.initializers.he_normal(),
                    rngs=rngs,
                )
                for before, after in itertools.pairwise(sizes)
            ]
        )
        norms = [make_norm(norm, width, dtype, rngs) for _ in range(depth)] if norm else None
        self.norms = nnx.List(norms) if norms else None
        self.dropout = nnx.Dropout(dropout)
        self.remat = remat
        self.out_features = width

    def __call__(
        self, x: Array, *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> Array:
        """Representations [B, H] of x [B, F]."""
        if self.frequencies is not None:
            angles = 2 * jnp.pi * x[:, :, None] * self.frequencies[...][None]
            waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=2)
            x = jnp.concatenate([x, waves.reshape(x.shape[0], -1)], axis=1)
        apply = nnx.remat(_dense) if self.remat else _dense
        norms = self.norms or [None] * len(self.layers)
        for layer, norm in zip(self.layers, norms, strict=True):
            x = apply(layer, norm, self.dropout, x, rngs, where)
        return x


def _dense(
    layer: nnx.Linear,
    norm: nnx.Module | None,
    dropout: nnx.Dropout,
    x: Array,
    rngs: nnx.Rngs | None,
    where: Array | None,
) -> Array:
    x = layer(x)
    if norm is not None:
        x = normalized(norm, x, rngs is not None, where)
    return dropout(nnx.relu(x), deterministic=rngs is None, rngs=rngs)


class ConvNet(nnx.Module):
    """Residual convolutional network for images.

    A 3x3 stem, `depth` stages of one residual block each, every stage at half the size and (from
    the second on) twice the width of the one before, and the largest value over positions, since
    a label says that something is there, wherever it is. Group norm keeps rows independent, so
    that padding and sharding change nothing.

    Args:
      num_channels: channels of the input [B, height, width, channels].
      width: channels of the first stage; the representation has H = width · 2^(depth−1).
      depth: number of stages.
      dropout: rate on the representation.
      norm: "group", "batch" or "layer".
      dtype: of the computation; parameters are float32.
      remat: compute the blocks' activations anew in the backward pass.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        num_channels: int,
        width: int,
        depth: int,
        dropout: float,
        *,
        norm: str = "group",
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        widths = [width * 2**stage for stage in range(depth)]
        self.stem = nnx.Conv(num_channels, width, (3, 3), dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            [
                _ConvBlock(before, after, norm, dtype, rngs=rngs)
                for before, after in itertools.pairwise([width, *widths])
            ]
        )
        self.norm = make_norm(norm, widths[-1], dtype, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.remat = remat
        self.out_features = widths[-1]

    def __call__(
        self, x: Array, *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> Array:
        """Representations [B, H] of images x."""
        x = self.stem(x)
        block = (
            nnx.remat(_ConvBlock.__call__, static_argnums=2) if self.remat else _ConvBlock.__call__
        )
        for stage in self.stages:
            x = block(stage, x, rngs is not None, where)
        x = _largest(nnx.relu(normalized(self.norm, x, rngs is not None, where)))
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)


def _largest(x: Array) -> Array:
    """The largest value [B, C] over the positions of x [B, H, W, C].

    By its place: the gradient of `jnp.max` goes where x equals it, and is lost where the compiler
    has computed x twice, with another rounding.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    chosen = jnp.arange(x.shape[1])[:, None] == jnp.argmax(x, axis=1, keepdims=True)
    return jnp.sum(jnp.where(chosen, x, 0), axis=1)


class _ConvBlock(nnx.Module):
    def __init__(self, before: int, after: int, norm: str, dtype: DTypeLike, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm1 = make_norm(norm, before, dtype, rngs)
        self.conv1 = nnx.Conv(before, after, (3, 3), strides=2, **options)
        self.norm2 = make_norm(norm, after, dtype, rngs)
        self.conv2 = nnx.Conv(after, after, (3, 3), **options)
        self.skip = nnx.Conv(before, after, (1, 1), strides=2, **options)

    def __call__(self, x: Array, training: bool, where: Array | None) -> Array:
        y = nnx.relu(normalized(self.norm1, x, training, where))
        hidden = nnx.relu(normalized(self.norm2, self.conv1(y), training, where))
        return self.skip(y) + self.conv2(hidden)
