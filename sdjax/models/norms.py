"""Norms by name, and batch norm whose statistics leave padding out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Array = jax.Array

_BATCH_NORM_MOMENTUM = 0.9  # short runs take few steps


def make_norm(kind: str, channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> Any:
    """A norm over channels: "batch", "layer", or else "group", of as many as 8 groups."""
    if kind == "batch":
        return nnx.BatchNorm(channels, momentum=_BATCH_NORM_MOMENTUM, dtype=dtype, rngs=rngs)
    if kind == "layer":
        return nnx.LayerNorm(channels, dtype=dtype, rngs=rngs)
    groups = next(groups for groups in (8, 4, 2, 1) if channels % groups == 0)
    return nnx.GroupNorm(channels, num_groups=groups, dtype=dtype, rngs=rngs)


def normalized(norm: Any, x: Array, training: bool, where: Array | None) -> Array:
    """`x` by `norm`; in training, batch norm takes its statistics from the rows in `where`.

    Without any such row, as in a microbatch of padding, they stay as they were.
    """
    if not isinstance(norm, nnx.BatchNorm):
        return norm(x)
    if not training or where is None:
        return norm(x, use_running_average=not training)
    some = where.any()
    before = norm.mean[...], norm.var[...]
    mask = (where | ~some).reshape(-1, *[1] * (x.ndim - 1))
    x = norm(x, use_running_average=False, mask=mask)
    for statistic, old in zip((norm.mean, norm.var), before, strict=True):
        statistic[...] = jnp.where(some, statistic[...], old)
    return x
