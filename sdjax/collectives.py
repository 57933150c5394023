"""What the losses need of the other devices along a mesh axis, inside shard_map or pmap."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

AxisName = str | tuple[str, ...]
Tree = TypeVar("Tree")


def all_gather(tree: Tree, axis_name: AxisName | None) -> Tree:
    """The rows of every device along `axis_name`, in order of the devices."""
    if not axis_name:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), tree)


def axis_size(axis_name: AxisName | None) -> int:
    """Number of devices along `axis_name`; 1 without one."""
    return lax.axis_size(axis_name) if axis_name else 1


def rotate(tree: Tree, axis_name: str, by: int) -> Tree:
    """What the device `by` places before holds, around a ring."""
    size = lax.axis_size(axis_name)
    ring = [(k, (k + by) % size) for k in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis_name, ring), tree)


def sum_scatter(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sum over the devices of an array [devices · N, ...], of which each keeps its [N, ...]."""
    return lax.psum_scatter(x, axis_name, scatter_dimension=0, tiled=True)


def global_index(num_rows: int, axis_name: AxisName | None) -> jax.Array:
    """The place of this device's rows among the gathered ones, int32 [num_rows]."""
    index = jnp.arange(num_rows, dtype=jnp.int32)
    if axis_name is None:
        return index
    return index + num_rows * lax.axis_index(axis_name).astype(jnp.int32)


def global_sum(x: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Sum of `x` over the devices along `axis_name`."""
    return x if axis_name is None else lax.psum(x, axis_name)


def varying(tree: Tree, *like: Any) -> Tree:
    """`tree`, typed as different on each device wherever one of the leaves of `like` is.

    shard_map keeps account of this, and a loop must leave it as it was.
    """

    def axes_of(x: Any) -> frozenset[str]:
        return jax.typeof(x).manual_axis_type.varying

    axes = frozenset().union(*map(axes_of, jax.tree.leaves(like)))

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(axes - axes_of(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
