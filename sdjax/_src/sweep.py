"""The sweep over all tiles of two blocks of rows, or of a block with itself."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sdjax._src import tiling
from sdjax._src.tile import Pass, Rows

Array = jax.Array
T = TypeVar("T")


def sweep_self(step: Pass[T], rows: Rows, total: T) -> T:
    """Adds to `total` the results of the rows among themselves, each unordered pair once."""
    num = len(rows.z)
    count, size = tiling.tiling(num)
    # Further tiles hold no anchor: their pairs among themselves are of no use.
    anchor_count = -(-step.num_anchors // size) if step.num_anchors < num else count

    def column_step(j: Array, total: T) -> T:
        columns = rows.tile(j, size)
        column_labels = columns.labels.as_columns()

        def row_step(i: Array, carry: tuple[T, T]) -> tuple[T, T]:
            total, of_columns = carry
            ascending = _ascending(i, j, size, num)
            found, more = step.visit(rows.tile(i, size), columns, column_labels, ascending)
            assert more is not None
            return _add_tile(step, total, i, found, size), step.add(of_columns, more)

        number = jnp.minimum(j + 1, np.int32(anchor_count))
        total, of_columns = tiling.loop(number, row_step, (total, step.empty(size)))
        return _add_tile(step, total, j, of_columns, size)

    return tiling.loop(count, column_step, total)


def sweep(
    step: Pass[T],
    rows: Rows,
    columns: Rows,
    totals: tuple[T, T | None],
    half: Array | None = None,
) -> tuple[T, T | None]:
    """Adds to `totals` the results of all rows over all columns, and of the columns over the rows.

    Args:
      step: of the forward or the backward pass.
      rows: a block.
      columns: another.
      totals: of the rows, and of the columns; None where these are not wanted.
      half: 0 or 1 to visit only that half of the tiles, like the fields of a chessboard.
    """
    fewest = 1 if half is None else 2
    row_count, row_size = tiling.tiling(len(rows.z), fewest)
    column_count, column_size = tiling.tiling(len(columns.z), fewest)

    def column_step(j: Array, totals: tuple[T, T | None]) -> tuple[T, T | None]:
        tile = columns.tile(j, column_size)
        column_labels = tile.labels.as_columns()
        first = 0 if half is None else (j + half) % 2
        stride = 1 if half is None else 2

        def row_step(k: Array, carry: tuple[T, T | None]) -> tuple[T, T | None]:
            of_rows, of_columns = carry
            i = first + stride * k
            found, more = step.visit(rows.tile(i, row_size), tile, column_labels, None)
            of_rows = _add_tile(step, of_rows, i, found, row_size)
            if of_columns is None or more is None:
                return of_rows, None
            return of_rows, step.add(of_columns, more)

        of_rows, of_columns = totals
        fresh = None if of_columns is None else step.empty(column_size)
        number = (row_count - first + stride - 1) // stride
        of_rows, found = tiling.loop(number, row_step, (of_rows, fresh))
        if of_columns is not None and found is not None:
            of_columns = _add_tile(step, of_columns, j, found, column_size)
        return of_rows, of_columns

    return tiling.loop(column_count, column_step, totals)


def _add_tile(step: Pass[T], total: T, number: Array, found: T, size: int) -> T:
    """`total` of a block with what was found for the rows of a tile added."""
    first, _ = tiling.start(number, size, len(jax.tree.leaves(total)[0]))
    before = jax.tree.map(lambda x: tiling.rows(x, first, size), total)
    after = step.add(before, found)
    return jax.tree.map(lambda x, new: tiling.put(x, first, new), total, after)


def _ascending(i: Array, j: Array, size: int, num: int) -> Array:
    """Which pairs of the rows of tiles i and j are in ascending order, bool [size, size]."""
    (first, _), (second, _) = tiling.start(i, size, num), tiling.start(j, size, num)
    place = jnp.arange(size, dtype=jnp.int32)
    return (first + place)[:, None] < (second + place)[None, :]
