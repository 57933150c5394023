"""Blocks of rows, and the sweep over the tiles of two of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax import collectives, overlaps, tiles
from sdjax.inputs import inverse_norms, normalized
from sdjax.overlaps import TileLabels
from sdjax.pairs import Method
from sdjax.tiles import Slopes, Sums

Array = jax.Array

# Larger tiles make better matrix products. Those on the diagonal are computed whole, of which
# only half is of use, and so a block has at least FEWEST tiles before these grow.
SMALLEST, LARGEST, FEWEST = 512, 1024, 8


class Facts(NamedTuple):
    """What is known of N rows beside their embeddings.

    Attributes:
      labels: their label sets.
      size: |S| [N].
      anchor: bool [N], may be an anchor.
      candidate: bool [N], may be a candidate.
      shares: [N] each; a shared label l counts Σ_k shares_k[i] · values_k[l] for anchor i, with
        the values of the `Task`. Without any it counts 1.
    """

    labels: TileLabels
    size: Array
    anchor: Array
    candidate: Array
    shares: tuple[Array, ...]


class Block(NamedTuple):
    """Rows that are swept in tiles.

    Attributes:
      z: embeddings as given, [N, D].
      factor: [N], with s_ij = factor_i · factor_j · z_i · z_j.
      facts: of the rows.
      slopes: in the backward pass.
    """

    z: Array
    factor: Array
    facts: Facts
    slopes: Slopes | None = None

    def side(self, number: Array, tile: int, columns: bool = False) -> tiles.Side:
        """Tile `number` of the block, of `tile` rows.

        The last tile starts early enough to be whole; rows that it shares with the one before
        are neither anchors nor candidates in it.
        """
        start, new = _start(number, tile, len(self.z))

        def cut(x: Array) -> Array:
            return lax.dynamic_slice_in_dim(x, start, tile)

        y, scale = factored(_rows(self.z, start, tile), cut(self.factor))
        labels = self.facts.labels.take(start, tile)
        return tiles.Side(
            y=y,
            scale=scale,
            labels=labels,
            columns=labels.columns() if columns else None,
            size=cut(self.facts.size),
            anchor=cut(self.facts.anchor) & new,
            candidate=cut(self.facts.candidate) & new,
            shares=tuple(map(cut, self.facts.shares)),
            slopes=jax.tree.map(cut, self.slopes),
        )


def factors(z: Array, normalize: bool, temperature: Array) -> Array:
    """f [N] with s_ij = f_i · f_j · z_i · z_j."""
    ones = collectives.varying(jnp.ones(len(z), temperature.dtype), z)
    if not normalize or not len(z):
        return ones / jnp.sqrt(temperature)
    count, size = tiling(len(z))

    def step(k: Array, norms: Array) -> Array:
        # Tile by tile, so that narrow embeddings are not widened all at once.
        start, _ = _start(k, size, len(z))
        of_tile = inverse_norms(_rows(z, start, size), norms.dtype)
        return lax.dynamic_update_slice_in_dim(norms, of_tile, start, 0)

    norms = lax.fori_loop(np.int32(0), np.int32(count), step, ones)
    return norms / jnp.sqrt(temperature)


def factored(z: Array, factor: Array) -> tuple[Array, Array | None]:
    """y and scale with factor · z = scale · y, and y of the dtype of z."""
    if z.dtype == factor.dtype:
        return z * factor[:, None], None
    # Narrow embeddings are multiplied by powers of two alone, which is exact.
    _, exponent = jnp.frexp(factor)
    power = jnp.where(factor > 0, jnp.ldexp(jnp.ones_like(factor), exponent), 0)
    y = (z.astype(factor.dtype) * power[:, None]).astype(z.dtype)
    return y, jnp.where(factor > 0, factor / jnp.where(factor > 0, power, 1), 0)


def _rows(z: Array, start: Array, num: int) -> Array:
    """Rows of the embeddings."""
    if z.dtype.itemsize > 2:
        return lax.dynamic_slice_in_dim(z, start, num)
    # As whole numbers: XLA for CPU would widen all narrow floats before it cuts some.
    whole = lax.bitcast_convert_type(z, jnp.uint16)
    return lax.bitcast_convert_type(lax.dynamic_slice_in_dim(whole, start, num), z.dtype)


def _start(number: Array, tile: int, num: int) -> tuple[Array, Array]:
    """Where a tile starts, and which of its rows are in no tile before it."""
    nominal = number * jnp.int32(tile)
    start = jnp.minimum(nominal, num - tile)
    return start, start + jnp.arange(tile, dtype=jnp.int32) >= nominal


def tiling(num: int, fewest: int = 1) -> tuple[int, int]:
    """Number and size of the tiles of a block of `num` rows, at least `fewest` where it can."""
    size = min(max(num // FEWEST, SMALLEST), LARGEST)
    count = max(fewest, -(-num // size))
    # Rounded up, so that the bits of a tile's columns fill their words.
    size = min(num, -(-num // (count * overlaps.BITS)) * overlaps.BITS)
    return -(-num // size), size


def longest(block: Block) -> Array:
    """Largest norm of factor · z."""

    def norms(k: Array, largest: Array) -> Array:
        side = block.side(k, size)
        lengths = jnp.sqrt(jnp.square(side.y.astype(dtype)).sum(axis=1))
        return jnp.maximum(
            largest, jnp.max(lengths if side.scale is None else lengths * side.scale)
        )

    (count, size), dtype = tiling(len(block.z)), block.factor.dtype
    zero = collectives.varying(jnp.zeros((), dtype), block)
    return lax.fori_loop(np.int32(0), np.int32(count), norms, zero)


class Task(NamedTuple):
    """What is the same for all tiles of a loss.

    Attributes:
      method: the loss.
      values: of the labels [C], see `Facts.shares`.
      plain: whether every similarity is at most `tiles.LARGEST_PLAIN`.
      mutual: rows and columns are anchors of each other; else only the rows are anchors.
    """

    method: Method
    values: tuple[Array, ...]
    plain: Array | bool
    mutual: bool


def no_sums(task: Task, rows: Block, num: int) -> Sums:
    """Where `add_sums` begins, for `num` rows."""
    return collectives.varying(Sums.none(num, task.method, rows.factor.dtype), rows)


def no_gradient(rows: Block, num: int) -> Array:
    """Where `add_gradient` begins, for `num` rows."""
    zeros = jnp.zeros((num, rows.z.shape[1]), rows.factor.dtype)
    return collectives.varying(zeros, rows)


def add_sums(
    task: Task, rows: Block, columns: Block | None, to: tuple[Any, Any], part: Array | None = None
) -> tuple[Any, Any]:
    """Adds to `to` the sums of all rows over the columns and, if mutual, the reverse.

    Args:
      task: the loss.
      rows: a block.
      columns: another; None for the rows themselves, of which each unordered pair counts once.
      to: `Sums` of the rows, and of the columns if these are mutual others.
      part: 0 or 1 to sweep only that half of the tiles.
    """
    none = functools.partial(no_sums, task, rows)

    def run(plain: bool) -> tuple[Any, Any]:
        def step(row: tiles.Side, column: tiles.Side, live: Array | None) -> tuple[Any, Any]:
            tile = tiles.tile(row, column, task.method, task.values, live, task.mutual)
            return tiles.sums(tile, task.method.form, plain)

        return _sweep(rows, columns, step, Sums.add, none, to, part)

    return _either(task.plain, run)


def add_gradient(
    task: Task,
    rows: Block,
    columns: Block | None,
    to: tuple[Array, Array | None],
    part: Array | None = None,
) -> tuple[Array, Array | None]:
    """Adds to `to` the derivatives to y of all rows [N, D], and of all columns [M, D].

    The arguments are those of `add_sums`; blocks carry their slopes.
    """
    none = functools.partial(no_gradient, rows)

    def run(plain: bool) -> tuple[Any, Any]:
        def step(row: tiles.Side, column: tiles.Side, live: Array | None) -> tuple[Array, Array]:
            tile = tiles.tile(row, column, task.method, task.values, live, task.mutual)
            return tiles.pulled(tiles.slope(tile, task.method.form, plain), row, column)

        return _sweep(rows, columns, step, jnp.add, none, to, part)

    return _either(task.plain, run)


def _either(plain: Array | bool, run: Callable[[bool], Any]) -> Any:
    """`run(plain)`; where that is not known, one whole sweep or the other."""
    if isinstance(plain, bool):
        return run(plain)
    return lax.cond(plain, lambda: run(True), lambda: run(False))


def gradient_to_z(
    z: Array, factor: Array, of_y: Array, normalize: bool, temperature: Array
) -> tuple[Array, Array]:
    """Derivatives to z [N, D] and to the temperature, from those to y [N, D]."""
    count, size = tiling(len(z))

    def embedded(z: Array, temperature: Array) -> Array:
        z = z.astype(temperature.dtype)
        return (normalized(z) if normalize else z) / jnp.sqrt(temperature)

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Tile by tile, so that no other array of this size is made.
        of_z, of_temperature = carry
        start, new = _start(k, size, len(z))
        z_tile = _rows(z, start, size)
        factor_tile, of_tile = (lax.dynamic_slice_in_dim(x, start, size) for x in (factor, of_z))
        _, scale = factored(z_tile, factor_tile)
        of_embedded = jnp.where(new[:, None], of_tile, 0)
        if scale is not None:
            of_embedded = of_embedded / jnp.where(scale > 0, scale, 1)[:, None]
        _, pull = jax.vjp(embedded, z_tile.astype(of_z.dtype), temperature)
        tile, more = pull(of_embedded)
        # Rows of the tile before are done.
        tile = jnp.where(new[:, None], tile, of_tile)
        return lax.dynamic_update_slice_in_dim(of_z, tile, start, 0), of_temperature + more

    zero = collectives.varying(jnp.zeros_like(temperature), of_y)
    of_z, of_temperature = lax.fori_loop(np.int32(0), np.int32(count), step, (of_y, zero))
    return of_z.astype(z.dtype), of_temperature


def _sweep(
    rows: Block,
    columns: Block | None,
    step: Callable[[tiles.Side, tiles.Side, Array | None], tuple[Any, Any]],
    add: Callable[[Any, Any], Any],
    none: Callable[[int], Any],
    to: tuple[Any, Any],
    part: Array | None,
) -> tuple[Any, Any]:
    """Takes a step for each tile, and adds what it finds for rows and columns to `to`."""
    num_rows, num_columns = len(rows.z), len((columns or rows).z)
    fewest = 1 if part is None else 2
    (row_tiles, row_size), (column_tiles, column_size) = (
        tiling(num, fewest) for num in (num_rows, num_columns)
    )

    def into(total: Any, number: Array, found: Any, num: int, size: int) -> Any:
        start, _ = _start(number, size, num)

        def put(x: Array, new: Array) -> Array:
            return lax.dynamic_update_slice_in_dim(x, new, start, 0)

        now = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), total)
        return jax.tree.map(put, total, add(now, found))

    def column_step(j: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        column = (columns or rows).side(j, column_size, columns=True)

        def row_step(k: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            by_row, by_column = carry
            i = k if part is None else 2 * k + (j + part) % 2
            live = _before(i, j, row_size, num_rows) if columns is None else None
            for_row, for_column = step(rows.side(i, row_size), column, live)
            by_row = into(by_row, i, for_row, num_rows, row_size)
            return by_row, None if by_column is None else add(by_column, for_column)

        by_row, by_column = carry
        fresh = None if columns is not None and by_column is None else none(column_size)
        number = j + 1 if columns is None else np.int32(row_tiles)
        if part is not None:
            number = (number - (j + part) % 2 + 1) // 2
        by_row, found = lax.fori_loop(np.int32(0), number, row_step, (by_row, fresh))
        if columns is None:
            # The columns are rows: both add to one total.
            return into(by_row, j, found, num_columns, column_size), by_column
        if by_column is not None:
            by_column = into(by_column, j, found, num_columns, column_size)
        return by_row, by_column

    return lax.fori_loop(np.int32(0), np.int32(column_tiles), column_step, to)


def _before(i: Array, j: Array, size: int, num: int) -> Array:
    """Which pairs of the rows of tiles i and j are in ascending order, bool [size, size]."""
    (first, _), (second, _) = _start(i, size, num), _start(j, size, num)
    place = jnp.arange(size, dtype=jnp.int32)
    return (first + place)[:, None] < (second + place)[None, :]
