"""What the losses need of the other devices along a mesh axis, inside shard_map or pmap."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

AxisName = str | tuple[str, ...]
Tree = TypeVar("Tree")


def all_gather(tree: Tree, axis_name: AxisName | None) -> Tree:
    """The rows of every device along `axis_name`, in order of the devices."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), tree)


def global_index(num_rows: int, axis_name: AxisName | None) -> jax.Array:
    """The place of this device's rows among the gathered ones, int32 [num_rows]."""
    index = jnp.arange(num_rows, dtype=jnp.int32)
    if axis_name is None:
        return index
    return index + num_rows * lax.axis_index(axis_name).astype(jnp.int32)


def global_sum(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Sum of `x` over the devices along `axis_name`."""
    return x if axis_name is None else lax.psum(x, axis_name)
