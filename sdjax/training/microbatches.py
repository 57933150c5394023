"""Batches in parts, of which one at a time is in memory."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sdjax.config import Config
from sdjax.data.tokens import are_tokens
from sdjax.training.mesh import Mesh, batch_axes

Array = jax.Array
Function = Callable[[Any, Array | None, Any], tuple[Any, Any]]

# Attention scores, for each head, of the tokens that pass a network at once on a device: those of
# 128 texts of 128 tokens. Both views of 64 texts of 384 tokens would have nine times as many.
MOST_SCORES = 128 * 128**2


def num_microbatches(config: Config, x: Any, mesh: Mesh) -> int:
    """Parts of the batch `x`: those of the config or, where it leaves them open, 1.

    Of long texts, whose attention grows with the square of their length, so many that each part
    has at most `MOST_SCORES`.
    """
    if config.microbatches or not are_tokens(x):
        return config.least_microbatches
    rows, width = x["ids"].shape
    rows //= mesh.size
    scores = rows * width * min(config.model.segment_length or width, width)
    needed = min(math.ceil(scores / MOST_SCORES), rows)
    return next(parts for parts in range(needed, rows + 1) if rows % parts == 0)


def in_microbatches(function: Function, microbatches: int, mesh: Mesh) -> Function:
    """`function` of the rows of a batch, for one microbatch after another.

    The backward pass computes the activations of each microbatch anew, so that those of one are
    all that is held. A loss of the results sees the whole batch, and its gradient is that of the
    whole batch.

    Args:
      function: of (rows, key, carry): a pytree of arrays [B, ...]; a key, or None; and what one
        microbatch hands to the next, such as batch statistics. Returns a pytree of arrays
        [B, ...], and the carry. But for batch statistics, each row depends on its own row alone.
      microbatches: their number, which divides the rows of each device.
      mesh: over which the rows are spread.

    References:
      Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021
      (https://arxiv.org/abs/2101.06983).
    """
    if microbatches == 1:
        return function
    sharding = NamedSharding(mesh, PartitionSpec(None, batch_axes(mesh)))

    def split(x: Array) -> Array:
        # Every microbatch takes rows of every device.
        parts = x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, sharding)

    def merged(parts: Array) -> Array:
        return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])

    @jax.checkpoint
    def of_microbatch(carry: Any, rows_and_key: tuple[Any, Array | None]) -> tuple[Any, Any]:
        results, carry = function(*rows_and_key, carry)
        return carry, results

    def of_batch(rows: Any, key: Array | None, carry: Any) -> tuple[Any, Any]:
        keys = None if key is None else jax.random.split(key, microbatches)
        carry, results = jax.lax.scan(of_microbatch, carry, (jax.tree.map(split, rows), keys))
        return jax.tree.map(merged, results), carry

    return of_batch
