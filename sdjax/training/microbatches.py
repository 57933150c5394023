"""Batches in parts, of which one at a time is in memory."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sdjax.training.mesh import Mesh, batch_axes

Array = jax.Array
Function = Callable[[Any, Array | None], Any]


def in_microbatches(function: Function, microbatches: int, mesh: Mesh) -> Function:
    """`function` of the rows of a batch, for one microbatch after another.

    The backward pass computes the activations of each microbatch anew, so that those of one are
    all that is held. A loss of the results sees the whole batch, and its gradient is that of the
    whole batch.

    Args:
      function: of (rows, key): arrays [B, ...], and a key, or None; returns arrays [B, ...], of
        which each row depends on its own row alone.
      microbatches: their number, which divides the rows of each device.
      mesh: over which the rows are spread.

    References:
      Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021
      (https://arxiv.org/abs/2101.06983).
    """
    if microbatches == 1:
        return function
    sharding = NamedSharding(mesh, PartitionSpec(None, batch_axes(mesh)))

    def apart(x: Array) -> Array:
        # Every microbatch takes rows of every device.
        parts = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    def joined(parts: Array) -> Array:
        return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])

    @jax.checkpoint
    def of_microbatch(rows_and_key: tuple[Any, Array | None]) -> Any:
        return function(*rows_and_key)

    def of_batch(rows: Any, key: Array | None) -> Any:
        keys = None if key is None else jax.random.split(key, microbatches)
        return jax.tree.map(joined, jax.lax.map(of_microbatch, (jax.tree.map(apart, rows), keys)))

    return of_batch
