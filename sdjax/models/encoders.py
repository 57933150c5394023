"""Encoders: from an example to a representation [B, H]."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Array = jax.Array

_FREQUENCY_SCALE = 0.1


class MLP(nnx.Module):
    """Multi-layer perceptron for feature vectors: `depth` layers of Dense, ReLU and dropout.

    With `frequencies` K > 0, each feature x enters as x, sin(2πc_k x) and cos(2πc_k x) with K
    learned c_k of its own.

    Args:
      num_features: F of the input [B, F].
      width: H of the representation [B, H].
      depth: number of layers.
      dropout: rate after each layer.
      frequencies: K.
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
        self.dropout = nnx.Dropout(dropout)
        self.remat = remat

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Representations [B, H] of x [B, F]; dropout is on where `rngs` are given."""
        if self.frequencies is not None:
            angles = 2 * jnp.pi * x[:, :, None] * self.frequencies[...][None]
            waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=2)
            x = jnp.concatenate([x, waves.reshape(len(x), -1)], axis=1)
        apply = nnx.remat(_dense) if self.remat else _dense
        for layer in self.layers:
            x = apply(layer, self.dropout, x, rngs)
        return x


def _dense(layer: nnx.Linear, dropout: nnx.Dropout, x: Array, rngs: nnx.Rngs | None) -> Array:
    return dropout(nnx.relu(layer(x)), deterministic=rngs is None, rngs=rngs)


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
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        widths = [width * 2**stage for stage in range(depth)]
        self.stem = nnx.Conv(num_channels, width, (3, 3), dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            [
                _ConvBlock(before, after, dtype, rngs=rngs)
                for before, after in itertools.pairwise([width, *widths])
            ]
        )
        self.norm = _group_norm(widths[-1], dtype, rngs)
        self.dropout = nnx.Dropout(dropout)
        self.remat = remat

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Representations [B, H] of images x; dropout is on where `rngs` are given."""
        x = self.stem(x)
        block = nnx.remat(_ConvBlock.__call__) if self.remat else _ConvBlock.__call__
        for stage in self.stages:
            x = block(stage, x)
        x = jnp.max(nnx.relu(self.norm(x)), axis=(1, 2))
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)


class _ConvBlock(nnx.Module):
    def __init__(self, before: int, after: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        options: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm1 = _group_norm(before, dtype, rngs)
        self.conv1 = nnx.Conv(before, after, (3, 3), strides=2, **options)
        self.norm2 = _group_norm(after, dtype, rngs)
        self.conv2 = nnx.Conv(after, after, (3, 3), **options)
        self.skip = nnx.Conv(before, after, (1, 1), strides=2, **options)

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.norm1(x))
        return self.skip(y) + self.conv2(nnx.relu(self.norm2(self.conv1(y))))


def _group_norm(channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.GroupNorm:
    groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
    return nnx.GroupNorm(channels, num_groups=groups, dtype=dtype, rngs=rngs)
