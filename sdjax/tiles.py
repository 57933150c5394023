"""The mathematics of one tile of pairs: its sums over rows and columns, and its gradient.

A tile relates T rows to U columns. Rows are anchors of the columns; where it is `mutual`, columns
are anchors of the rows as well, and the one matrix of similarities serves both directions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.overlaps import TileLabels
from sdjax.pairs import Method, Statistics, pair_weights

Array = jax.Array

# While no similarity is larger than this, e^s neither overflows nor vanishes in float32.
LARGEST_PLAIN = 40.0


class LogSum(NamedTuple):
    """log Σ e^x as log(total) + shift, with total the sum of e^(x − shift), both [N]."""

    shift: Array
    total: Array

    def value(self) -> Array:
        some = self.total > 0
        return jnp.where(some, jnp.log(jnp.where(some, self.total, 1)) + self.shift, 0)

    def add(self, other: "LogSum") -> "LogSum":
        shift = jnp.maximum(self.shift, other.shift)
        reached = jnp.where(shift > -jnp.inf, shift, 0)
        mine, others = (x.total * jnp.exp(x.shift - reached) for x in (self, other))
        return LogSum(shift, mine + others)


class Sums(NamedTuple):
    """`Statistics` of anchors over the candidates seen so far, all [N]."""

    lse: LogSum
    attraction: LogSum | Array
    weight: Array
    positives: Array

    @classmethod
    def none(cls, num: int, method: Method, dtype: jnp.dtype) -> "Sums":
        zeros = jnp.zeros(num, dtype)
        empty = LogSum(jnp.full(num, -jnp.inf, dtype), zeros)
        return cls(empty, zeros if method.form == "out" else empty, zeros, zeros)

    def add(self, other: "Sums") -> "Sums":
        def both(mine, others):
            return mine.add(others) if isinstance(mine, LogSum) else mine + others

        return Sums(*(both(mine, others) for mine, others in zip(self, other, strict=True)))

    def statistics(self) -> Statistics:
        values = (x.value() if isinstance(x, LogSum) else x for x in self)
        return Statistics(*values)


class Slopes(NamedTuple):
    """What the backward pass knows of each anchor, all [N].

    Attributes:
      lse: of `Statistics`.
      attraction: of `Statistics`; used for the form "in".
      of_lse: derivative of the result to `lse`.
      of_attraction: derivative of the result to `attraction`.
    """

    lse: Array
    attraction: Array
    of_lse: Array
    of_attraction: Array


class Side(NamedTuple):
    """Rows or columns of a tile, N of them.

    Attributes:
      y: [N, D], with s_ij = scale_i · scale_j · y_i · y_j, of the dtype of the products.
      scale: [N], or None for 1.
      labels: their label sets.
      columns: the same as columns of a tile; None for rows.
      size: |S| [N].
      anchor: bool [N], may be an anchor.
      candidate: bool [N], may be a candidate.
      shares: [N] each; a shared label l counts Σ_k shares_k[i] · values_k[l] for anchor i.
      slopes: in the backward pass.
    """

    y: Array
    scale: Array | None
    labels: TileLabels
    columns: object
    size: Array
    anchor: Array
    candidate: Array
    shares: tuple[Array, ...]
    slopes: Slopes | None


class Tile(NamedTuple):
    """Pairs of a tile: similarities [T, U], which pairs there are, and their weights.

    The second of two is for the columns as anchors; None in a tile that is not mutual.
    """

    s: Array
    where: tuple[Array, Array | None]
    weight: tuple[Array, Array | None]


def product(x: Array, y: Array, dimensions: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Matrix product over one dimension of each, accumulated in `dtype`."""
    precision = lax.Precision.HIGHEST if x.dtype == dtype else None
    contracted = (((dimensions[0],), (dimensions[1],)), ((), ()))
    return lax.dot_general(x, y, contracted, precision, preferred_element_type=dtype)


def tile(
    rows: Side,
    columns: Side,
    method: Method,
    values: tuple[Array, ...],
    live: Array | None,
    mutual: bool,
) -> Tile:
    """Similarities and weights of the pairs of `rows` and `columns`, where `live` holds."""
    dtype = rows.size.dtype
    s = _scaled(product(rows.y, columns.y, (1, 1), dtype), rows, columns)

    def pairs_of(by_row: Array, by_column: Array) -> Array:
        both = by_row[:, None] & by_column[None, :]
        return both if live is None else both & live

    row_size, column_size = rows.size[:, None], columns.size[None, :]
    shared = balanced = None
    if values:
        balanced = [rows.labels.balanced(columns.columns, value) for value in values]
    else:
        shared = rows.labels.shared(columns.columns, dtype)

    def shared_by(shares: tuple[Array, ...], axis: int) -> Array:
        if balanced is None:
            return shared
        return sum(jnp.expand_dims(x, axis) * b for x, b in zip(shares, balanced, strict=True))

    where = pairs_of(rows.anchor, columns.candidate)
    weight = pair_weights(
        method.weight, shared_by(rows.shares, 1), row_size, column_size, where
    )
    if not mutual:
        return Tile(s, (where, None), (weight, None))
    back = pairs_of(rows.candidate, columns.anchor)
    back_weight = pair_weights(
        method.weight, shared_by(columns.shares, 0), column_size, row_size, back
    )
    return Tile(s, (where, back), (weight, back_weight))


def sums(t: Tile, method: Method, plain: Array | bool) -> tuple[Sums, Sums | None]:
    """Sums over the columns for the rows, and over the rows for the columns if mutual."""

    def plainly() -> tuple[Sums, Sums | None]:
        e = jnp.exp(t.s)
        return tuple(_plain_sums(t, e, k, method) for k in (0, 1) if t.where[k] is not None)

    def shifted() -> tuple[Sums, Sums | None]:
        return tuple(_shifted_sums(t, k, method) for k in (0, 1) if t.where[k] is not None)

    by_row, *by_column = _either(plain, plainly, shifted)
    return by_row, by_column[0] if by_column else None


def _plain_sums(t: Tile, e: Array, k: int, method: Method) -> Sums:
    axis, weight = 1 - k, t.weight[k]
    total = jnp.where(t.where[k], e, 0).sum(axis)
    zero = jnp.zeros_like(total)
    if method.form == "out":
        attraction = (weight * t.s).sum(axis)
    else:
        attraction = LogSum(zero, (weight * e).sum(axis))
    return Sums(LogSum(zero, total), attraction, weight.sum(axis), jnp.sign(weight).sum(axis))


def _shifted_sums(t: Tile, k: int, method: Method) -> Sums:
    axis, weight = 1 - k, t.weight[k]
    positive = weight > 0

    def log_sum(x: Array, where: Array) -> LogSum:
        x = jnp.where(where, x, -jnp.inf)
        shift = x.max(axis)
        reached = jnp.where(shift > -jnp.inf, shift, 0)
        return LogSum(shift, jnp.exp(x - jnp.expand_dims(reached, axis)).sum(axis))

    if method.form == "out":
        attraction = jnp.where(positive, weight * t.s, 0).sum(axis)
    else:
        attraction = log_sum(t.s + jnp.log(jnp.where(positive, weight, 1)), positive)
    return Sums(log_sum(t.s, t.where[k]), attraction, weight.sum(axis), jnp.sign(weight).sum(axis))


def slope(
    t: Tile, rows: Side, columns: Side, method: Method, plain: Array | bool
) -> Array:
    """Derivative of the result to the similarities of the tile, [T, U].

      out: ∂/∂s_ij = a_i · e^{s_ij − lse_i} + b_i · w_ij
      in:  ∂/∂s_ij = a_i · e^{s_ij − lse_i} + b_i · w_ij · e^{s_ij − attraction_i}
    """
    sides = [x.slopes for x in (rows, columns) if x.slopes is not None]

    def pull(k: int) -> Array:
        side, weight = sides[k], t.weight[k]
        if method.form == "in":
            difference = t.s - jnp.expand_dims(side.attraction, 1 - k)
            weight = weight * jnp.exp(jnp.where(weight > 0, difference, -jnp.inf))
        return jnp.expand_dims(side.of_attraction, 1 - k) * weight

    def plain_push() -> Array:
        # One exponential serves both directions.
        factors = [
            jnp.where(t.where[k], jnp.expand_dims(side.of_lse * jnp.exp(-side.lse), 1 - k), 0)
            for k, side in enumerate(sides)
        ]
        return jnp.exp(t.s) * sum(factors)

    def shifted_push() -> Array:
        total = jnp.zeros_like(t.s)
        for k, side in enumerate(sides):
            lse, of_lse = (jnp.expand_dims(x, 1 - k) for x in (side.lse, side.of_lse))
            total += of_lse * jnp.exp(jnp.where(t.where[k], t.s - lse, -jnp.inf))
        return total

    push = _either(plain, plain_push, shifted_push)
    return sum((pull(k) for k in range(len(sides))), start=push)


def pulled(g: Array, rows: Side, columns: Side) -> tuple[Array, Array]:
    """Derivatives to `y` of the rows and of the columns, [T, D] and [U, D]."""
    dtype = g.dtype
    g = _scaled(g, rows, columns).astype(rows.y.dtype)
    return product(g, columns.y, (1, 0), dtype), product(g, rows.y, (0, 0), dtype)


def _scaled(x: Array, rows: Side, columns: Side) -> Array:
    if rows.scale is None or columns.scale is None:
        return x
    return x * rows.scale[:, None] * columns.scale[None, :]


def _either(condition: Array | bool, yes, no):
    """The branch that `condition` names; only that one is compiled where it is known."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return lax.cond(condition, yes, no)
