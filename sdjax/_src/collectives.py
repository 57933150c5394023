"""What the losses need of the other devices along mesh axes, inside shard_map or pmap.

`axes` are the names of one mesh axis or more; with none of them, a device is alone.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

AxisName = str | tuple[str, ...]
Axes = tuple[str, ...]
Tree = TypeVar("Tree")


def names(axis_name: AxisName | None) -> Axes:
    """The axes that a user's `axis_name` names."""
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())


def all_gather(tree: Tree, axes: Axes) -> Tree:
    """The rows of every device along `axes`, in order of the devices."""
    if not axes:
        return tree
    return jax.tree.map(lambda x: lax.all_gather(x, axes, tiled=True), tree)


def axis_size(axes: Axes) -> int:
    """Number of devices along `axes`."""
    return lax.axis_size(axes) if axes else 1


def rotate(tree: Tree, axis: str, by: int) -> Tree:
    """What the device `by` places before holds, around a ring."""
    size = lax.axis_size(axis)
    ring = [(k, (k + by) % size) for k in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, axis, ring), tree)


def sum_scatter(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum over the devices of an array [devices · N, ...], of which each keeps its [N, ...]."""
    return lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True)


def global_index(num_rows: int, axes: Axes) -> jax.Array:
    """The place of this device's rows among the gathered ones, int32 [num_rows]."""
    index = jnp.arange(num_rows, dtype=jnp.int32)
    return index + num_rows * lax.axis_index(axes).astype(jnp.int32) if axes else index


def global_sum(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum of `x` over the devices along `axes`."""
    return lax.psum(x, axes) if axes else x


def varying_axes(tree: Any) -> frozenset[str]:
    """Axes of a shard_map along which some leaf may differ; none where this is not tracked."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in leaves))


def are_tracked(axes: Axes) -> bool:
    """Whether the types of arrays say along which of `axes` they vary (shard_map's check_vma)."""
    return bool(axes) and varying_axes(lax.axis_index(axes)) >= set(axes)


def varying(tree: Tree, *like: Any) -> Tree:
    """`tree`, typed as different on each device wherever one of the leaves of `like` is.

    shard_map tracks this in the types, and the carry of a loop must keep its type.
    """
    axes = varying_axes(like)

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(axes - varying_axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
