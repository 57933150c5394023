"""Sums and gradients over the blocks of many devices, each pair of devices once.

In self-contrast device d meets the blocks of the devices d − 1, d − 2, ... halfway around the
circle. Where the number of devices is even, the two that face each other share their tiles. What
a device finds for the rows of another is sent back to it.

Blocks are exchanged in one of two ways, or in both on a mesh of two axes: gathered once, so that
each device holds all of them, or passed around a ring, so that it holds two. On the ring, the next
block, and what was found for it so far, are sent while the tiles of the present one are computed.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from sdjax._src import collectives, tiling
from sdjax._src.collectives import Axes
from sdjax._src.sweep import sweep, sweep_self
from sdjax._src.tile import Pass, Rows

Array = jax.Array
T = TypeVar("T")
Totals = tuple[T, T | None]


class Route(NamedTuple):
    """The mesh axis around which blocks travel, and those along which they are gathered."""

    ring: str | None
    gather: Axes

    @property
    def axes(self) -> Axes:
        return (self.ring, *self.gather) if self.ring else self.gather


def over_all(
    step: Pass[T], rows: Rows, columns: Rows | None, route: Route, for_columns: bool
) -> Totals[T]:
    """Totals of the rows and, if wanted, of the columns on this device.

    Args:
      step: the pass.
      rows: on this device.
      columns: on this device; None for the rows of all devices.
      route: the way of the columns.
      for_columns: whether the totals of other columns than the rows are wanted.
    """
    total = step.empty(len(rows.z))
    if columns is not None:
        totals = _meet(step, rows, columns, route.gather, total, for_columns)
        if route.ring is None:
            return totals
        return _around(step, rows, columns, route, totals, lax.axis_size(route.ring) - 1)
    total = sweep_self(step, rows, total)
    total = _meet_half(step, rows, route.gather, total)
    if route.ring is not None:
        size = lax.axis_size(route.ring)
        half = None if size % 2 else _later_half((route.ring,))
        totals = total, step.empty(len(rows.z))
        total, found = _around(step, rows, rows, route, totals, size // 2, half)
        total = total if found is None else step.add(total, found)
    return total, None


def _around(
    step: Pass[T],
    rows: Rows,
    traveller: Rows,
    route: Route,
    totals: Totals[T],
    steps: int,
    half: Array | None = None,
) -> Totals[T]:
    """The rows meet the blocks of the `steps` devices before; what these find is sent home.

    `half` is the share of the tiles of the last step, see `sweep`.
    """
    if not steps or route.ring is None:
        return totals
    axis = route.ring
    for_columns = totals[1] is not None

    def meet(block: Rows, totals: Totals[T], half: Array | None) -> Totals[T]:
        total, found = totals
        arriving = collectives.rotate(found, axis, 1)
        total, found = _meet(step, rows, block, route.gather, total, for_columns, half)
        if arriving is None or found is None:
            return total, None
        return total, step.add(arriving, found)

    def visit(_: Array, carry: tuple[Rows, Totals[T]]) -> tuple[Rows, Totals[T]]:
        block, totals = carry
        following = collectives.rotate(block, axis, 1)
        return following, meet(block, totals, None)

    block = collectives.rotate(traveller, axis, 1)
    block, totals = tiling.loop(steps - 1, visit, (block, totals))
    total, found = meet(block, totals, half)
    return total, collectives.rotate(found, axis, -steps)


def _meet(
    step: Pass[T],
    rows: Rows,
    block: Rows,
    gather: Axes,
    total: T,
    for_columns: bool,
    half: Array | None = None,
) -> Totals[T]:
    """The rows meet the blocks of all devices along `gather`; what they find for ours."""
    block = collectives.all_gather(block, gather)
    totals = total, step.empty(len(block.z)) if for_columns else None
    if half is None or not gather:
        total, found = sweep(step, rows, block, totals, half)
    else:
        # One by one, since both devices that share the tiles must cut them alike.
        def visit(k: Array, carry: Totals[T]) -> Totals[T]:
            return _meet_one(step, rows, block, k, carry, half)

        total, found = tiling.loop(len(block.z) // len(rows.z), visit, totals)
    return total, found if found is None or not gather else step.sum_scatter(found, gather)


def _meet_half(step: Pass[T], rows: Rows, gather: Axes, total: T) -> T:
    """Total of the rows over the blocks of the other devices along `gather`."""
    size = collectives.axis_size(gather)
    if size == 1:
        return total
    everyone = collectives.all_gather(rows, gather)
    place = lax.axis_index(gather).astype(jnp.int32)

    def visit(k: Array, carry: Totals[T]) -> Totals[T]:
        return _meet_one(step, rows, everyone, (place - 1 - k) % size, carry, None)

    totals = total, step.empty(len(everyone.z))
    totals = tiling.loop((size - 1) // 2, visit, totals)
    if size % 2 == 0:
        facing = (place + size // 2) % size
        totals = _meet_one(step, rows, everyone, facing, totals, _later_half(gather))
    total, found = totals
    return total if found is None else step.add(total, step.sum_scatter(found, gather))


def _meet_one(
    step: Pass[T],
    rows: Rows,
    everyone: Rows,
    number: Array,
    totals: Totals[T],
    half: Array | None,
) -> Totals[T]:
    """The rows meet one of the gathered blocks."""
    total, found = totals
    num = len(rows.z)
    first = number * num
    block, before = jax.tree.map(lambda x: tiling.rows(x, first, num), (everyone, found))
    total, after = sweep(step, rows, block, (total, before), half)
    return total, jax.tree.map(lambda x, new: tiling.put(x, first, new), found, after)


def _later_half(axes: Axes) -> Array:
    """0 in the first half of the devices along the axes, 1 in the second."""
    later = lax.axis_index(axes) >= lax.axis_size(axes) // 2
    return later.astype(jnp.int32)
