"""Sums and gradients over the blocks of many devices, each pair of devices once.

In self-contrast device d meets the blocks of the devices d − 1, d − 2, ... halfway around the
circle. Where the number of devices is even, the two that face each other share their tiles. What
a device finds for the rows of another goes back to it.

Blocks come by one of two ways, or by both on a mesh of two axes: gathered once, so that each
device holds all of them, or around a ring, so that it holds two. On the ring, the next block and
what was found for it are under way while the tiles of the present one are computed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax import blocks, collectives
from sdjax.blocks import Block, Task
from sdjax.collectives import AxisName
from sdjax.tiles import Sums

Array = jax.Array
Local = Callable[..., tuple[Any, Any]]


class Route(NamedTuple):
    """The mesh axis around which blocks travel, and those along which they are gathered."""

    ring: str | None
    gather: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.ring, *self.gather) if self.ring else self.gather

    @classmethod
    def along(cls, axis_name: AxisName | None, around: bool) -> "Route":
        """All axes gathered; or `around` the first, with the others gathered."""
        axes = (axis_name,) if isinstance(axis_name, str) else axis_name or ()
        return cls(axes[0], axes[1:]) if around and axes else cls(None, axes)


class Quantity(NamedTuple):
    """What is summed over all pairs: statistics of the rows, or their gradient.

    Attributes:
      local: adds what two blocks find, `blocks.add_sums` or `blocks.add_gradient`.
      none: an empty total of some rows.
      add: adds two totals.
      scatter: adds the totals [devices · N] of all devices; each keeps its own [N].
    """

    local: Local
    none: Callable[[int], Any]
    add: Callable[[Any, Any], Any]
    scatter: Callable[[Any, AxisName], Any]


def sums(task: Task, rows: Block, columns: Block | None, route: Route) -> Sums:
    """`Sums` of the rows on this device over the columns on all devices."""
    add = functools.partial(blocks.add_sums, task)
    none = functools.partial(blocks.no_sums, task, rows)
    quantity = Quantity(add, none, Sums.add, Sums.scatter)
    total, _ = _over_all(quantity, rows, columns, route, task.mutual)
    return total


def gradient(
    task: Task, rows: Block, columns: Block | None, route: Route
) -> tuple[Array, Array | None]:
    """Derivatives to y of the rows, and of the columns, on this device."""
    add = functools.partial(blocks.add_gradient, task)
    none = functools.partial(blocks.no_gradient, rows)
    quantity = Quantity(add, none, jnp.add, collectives.sum_scatter)
    return _over_all(quantity, rows, columns, route, for_columns=True)


def _over_all(
    quantity: Quantity, rows: Block, columns: Block | None, route: Route, for_columns: bool
) -> tuple[Any, Any]:
    """Totals of the rows and, unless these are the columns, of the columns if asked for."""
    total = quantity.none(len(rows.z))
    if columns is not None:
        total, found = _meet(quantity, rows, columns, route.gather, total, for_columns)
        if route.ring is None:
            return total, found
        steps = lax.axis_size(route.ring) - 1
        return _around(quantity, rows, columns, route, (total, found), steps, None)
    total, _ = quantity.local(rows, None, (total, None))
    total = _meet_half(quantity, rows, route.gather, total)
    if route.ring is not None:
        size = lax.axis_size(route.ring)
        facing = None if size % 2 else _later_half(route.ring)
        nothing = quantity.none(len(rows.z))
        total, found = _around(quantity, rows, rows, route, (total, nothing), size // 2, facing)
        total = quantity.add(total, found)
    return total, None


def _around(
    quantity: Quantity,
    rows: Block,
    traveller: Block,
    route: Route,
    totals: tuple[Any, Any],
    steps: int,
    part: Array | None,
) -> tuple[Any, Any]:
    """The rows meet the blocks of the `steps` devices before; what these find comes home.

    `part` is the share of the tiles of the last step, see `blocks.add_sums`.
    """
    if not steps or route.ring is None:
        return totals
    axis = route.ring
    for_columns = totals[1] is not None

    def meet(block: Block, totals: tuple[Any, Any], part: Array | None) -> tuple[Any, Any]:
        total, found = totals
        arriving = collectives.rotate(found, axis, 1)
        total, found = _meet(quantity, rows, block, route.gather, total, for_columns, part)
        return total, quantity.add(arriving, found) if for_columns else None

    def step(_: Array, carry: tuple[Block, tuple[Any, Any]]) -> tuple[Block, tuple[Any, Any]]:
        block, totals = carry
        following = collectives.rotate(block, axis, 1)
        return following, meet(block, totals, None)

    block = collectives.rotate(traveller, axis, 1)
    block, totals = lax.fori_loop(np.int32(1), np.int32(steps), step, (block, totals))
    total, found = meet(block, totals, part)
    return total, collectives.rotate(found, axis, -steps)


def _meet(
    quantity: Quantity,
    rows: Block,
    block: Block,
    gather: tuple[str, ...],
    total: Any,
    for_columns: bool,
    part: Array | None = None,
) -> tuple[Any, Any]:
    """The rows meet the blocks of all devices along `gather`; what they find for ours."""
    block = collectives.all_gather(block, gather)
    found = quantity.none(len(block.z)) if for_columns else None
    if part is None or not gather:
        total, found = quantity.local(rows, block, (total, found), part)
    else:
        # One by one, since both who share the tiles must cut them alike.
        def step(k: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            return _visit(quantity, rows, block, k, carry, part)

        number = len(block.z) // len(rows.z)
        total, found = lax.fori_loop(np.int32(0), np.int32(number), step, (total, found))
    return total, quantity.scatter(found, gather) if for_columns and gather else found


def _meet_half(quantity: Quantity, rows: Block, gather: tuple[str, ...], total: Any) -> Any:
    """Total of the rows over the blocks of the other devices along `gather`."""
    size = lax.axis_size(gather) if gather else 1
    if size == 1:
        return total
    everyone = collectives.all_gather(rows, gather)
    place = lax.axis_index(gather).astype(jnp.int32)

    def step(k: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return _visit(quantity, rows, everyone, (place - k) % size, carry, None)

    carry = total, quantity.none(len(everyone.z))
    carry = lax.fori_loop(np.int32(1), np.int32((size + 1) // 2), step, carry)
    if size % 2 == 0:
        facing = (place + size // 2) % size
        carry = _visit(quantity, rows, everyone, facing, carry, _later_half(gather))
    total, found = carry
    return quantity.add(total, quantity.scatter(found, gather))


def _visit(
    quantity: Quantity,
    rows: Block,
    everyone: Block,
    number: Array,
    totals: tuple[Any, Any],
    part: Array | None,
) -> tuple[Any, Any]:
    """The rows meet one of the gathered blocks."""
    total, found = totals
    num = len(rows.z)

    def its_own(x: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, number * num, num)

    block, before = jax.tree.map(its_own, (everyone, found))
    total, after = quantity.local(rows, block, (total, before), part)

    def put(x: Array, new: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, new, number * num, 0)

    return total, jax.tree.map(put, found, after)


def _later_half(axis_name: AxisName) -> Array:
    """0 in the first half of the devices along the axis, 1 in the second."""
    later = lax.axis_index(axis_name) >= lax.axis_size(axis_name) // 2
    return later.astype(jnp.int32)
