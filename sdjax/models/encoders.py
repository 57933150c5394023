"""Encoders: from an example to a representation [B, H]."""

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class ResidualMLP(nnx.Module):
    """Residual network for feature vectors.

    A linear stem, `depth` pre-normalised blocks x + W2 gelu(W1 norm(x)), and a last norm.

    Args:
      num_features: F of the input [B, F].
      width: H of the representation [B, H].
      depth: number of residual blocks.
      dropout: rate after the stem and inside each block.
      rngs: of the initial parameters.
    """

    def __init__(
        self, num_features: int, width: int, depth: int, dropout: float, *, rngs: nnx.Rngs
    ):
        self.stem = nnx.Linear(num_features, width, rngs=rngs)
        self.blocks = nnx.List([_DenseBlock(width, dropout, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Representations [B, H] of x [B, F]; dropout is on where `rngs` are given."""
        x = self.dropout(self.stem(x), deterministic=rngs is None, rngs=rngs)
        for block in self.blocks:
            x = block(x, rngs)
        return self.norm(x)


class _DenseBlock(nnx.Module):
    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)
        self.outer = nnx.Linear(width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Array, rngs: nnx.Rngs | None) -> Array:
        y = nnx.gelu(self.inner(self.norm(x)))
        return x + self.outer(self.dropout(y, deterministic=rngs is None, rngs=rngs))


class ConvNet(nnx.Module):
    """Residual convolutional network for images.

    A 3x3 stem, `depth` stages of one residual block each, every later stage at half the size
    and twice the width, and the mean over positions. Group norm keeps rows independent, so that
    padding and sharding change nothing.

    Args:
      num_channels: channels of the input [B, height, width, channels].
      width: channels of the first stage; the representation has H = width · 2^(depth−1).
      depth: number of stages.
      dropout: rate on the representation.
      rngs: of the initial parameters.
    """

    def __init__(
        self, num_channels: int, width: int, depth: int, dropout: float, *, rngs: nnx.Rngs
    ):
        widths = [width * 2**stage for stage in range(depth)]
        self.stem = nnx.Conv(num_channels, width, (3, 3), rngs=rngs)
        self.stages = nnx.List(
            [
                _ConvBlock(before, after, stride=1 if stage == 0 else 2, rngs=rngs)
                for stage, (before, after) in enumerate(
                    zip([width, *widths[:-1]], widths, strict=True)
                )
            ]
        )
        self.norm = nnx.LayerNorm(widths[-1], rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Representations [B, H] of images x; dropout is on where `rngs` are given."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        x = self.norm(jnp.mean(x, axis=(1, 2)))
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)


class _ConvBlock(nnx.Module):
    def __init__(self, before: int, after: int, *, stride: int, rngs: nnx.Rngs):
        self.norm1 = nnx.GroupNorm(before, num_groups=_groups(before), rngs=rngs)
        self.conv1 = nnx.Conv(before, after, (3, 3), strides=stride, rngs=rngs)
        self.norm2 = nnx.GroupNorm(after, num_groups=_groups(after), rngs=rngs)
        self.conv2 = nnx.Conv(after, after, (3, 3), rngs=rngs)
        same = before == after and stride == 1
        self.skip = None if same else nnx.Conv(before, after, (1, 1), strides=stride, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.norm1(x))
        skip = x if self.skip is None else self.skip(y)
        y = self.conv2(nnx.relu(self.norm2(self.conv1(y))))
        return skip + y


def _groups(channels: int) -> int:
    return next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
