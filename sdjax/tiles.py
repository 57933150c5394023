"""The mathematics of one tile of pairs: its sums over rows and columns, and its gradient.

A tile relates T rows to U columns. Rows are anchors of the columns; where it is `mutual`, columns
are anchors of the rows as well, and the one matrix of similarities serves both directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sdjax import collectives
from sdjax.collectives import AxisName
from sdjax.overlaps import TileLabels
from sdjax.pairs import Form, Method, Statistics, pair_weights

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
        return LogSum(shift, self.shifted_to(shift) + other.shifted_to(shift))

    def scatter(self, axis_name: AxisName) -> "LogSum":
        """Sums of [devices · N] rows over all devices; each keeps its own [N]."""
        shift = lax.pmax(self.shift, axis_name)
        total = collectives.sum_scatter(self.shifted_to(shift), axis_name)
        num = len(total)
        own = lax.axis_index(axis_name).astype(jnp.int32) * num
        return LogSum(lax.dynamic_slice_in_dim(shift, own, num), total)

    def shifted_to(self, shift: Array) -> Array:
        """The total for a shift that is as large or larger."""
        return self.total * jnp.exp(self.shift - jnp.where(shift > -jnp.inf, shift, 0))


class Sums(NamedTuple):
    """`Statistics` of anchors over the candidates seen so far, all [N]."""

    lse: LogSum
    attraction: Any  # LogSum for the form "in", else an array
    weight: Array
    positives: Array

    @classmethod
    def none(cls, num: int, method: Method, dtype: jnp.dtype) -> "Sums":
        zeros = jnp.zeros(num, dtype)
        empty = LogSum(jnp.full(num, -jnp.inf, dtype), zeros)
        return cls(empty, zeros if method.form == "out" else empty, zeros, zeros)

    def add(self, other: "Sums") -> "Sums":
        return self._combine(other, lambda mine, others: mine.add(others), jnp.add)

    def statistics(self) -> Statistics:
        attraction = self.attraction
        if isinstance(attraction, LogSum):
            attraction = attraction.value()
        return Statistics(self.lse.value(), attraction, self.weight, self.positives)

    def scatter(self, axis_name: AxisName) -> "Sums":
        """Sums of [devices · N] rows over all devices; each keeps its own [N]."""

        def of_logs(x: LogSum, _: LogSum) -> LogSum:
            return x.scatter(axis_name)

        def of_numbers(x: Array, _: Array) -> Array:
            return collectives.sum_scatter(x, axis_name)

        return self._combine(self, of_logs, of_numbers)

    def _combine(
        self,
        other: "Sums",
        logs: Callable[[LogSum, LogSum], LogSum],
        numbers: Callable[[Array, Array], Array],
    ) -> "Sums":
        if isinstance(self.attraction, LogSum):
            attraction = logs(self.attraction, other.attraction)
        else:
            attraction = numbers(self.attraction, other.attraction)
        return Sums(
            logs(self.lse, other.lse),
            attraction,
            numbers(self.weight, other.weight),
            numbers(self.positives, other.positives),
        )


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
    columns: Any
    size: Array
    anchor: Array
    candidate: Array
    shares: tuple[Array, ...]
    slopes: Slopes | None


class Way(NamedTuple):
    """One direction of a tile: the rows as anchors of the columns, or the reverse.

    Attributes:
      axis: along which the candidates lie.
      where: bool [T, U], which pairs there are.
      weight: [T, U], above 0 where a pair is a positive, else 0.
      slopes: of the anchors, in the backward pass.
    """

    axis: int
    where: Array
    weight: Array
    slopes: Slopes | None

    def along(self, x: Array) -> Array:
        """`x` [N] of the anchors, to be combined with [T, U]."""
        return jnp.expand_dims(x, self.axis)


class Tile(NamedTuple):
    """Similarities [T, U] of the pairs of a tile, and its one way or two."""

    s: Array
    ways: tuple[Way, ...]


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
    s = _scaled(product(rows.y, columns.y, (1, 1), rows.size.dtype), rows, columns)
    if values:
        shared = [rows.labels.balanced(columns.columns, value) for value in values]
    else:
        shared = [rows.labels.shared(columns.columns, s.dtype)]
    row_size, column_size = rows.size[:, None], columns.size[None, :]

    def way(axis: int, anchors: Side, where: Array) -> Way:
        counted = shared[0]
        if values:
            shares = (jnp.expand_dims(share, axis) for share in anchors.shares)
            counted = sum(share * x for share, x in zip(shares, shared, strict=True))
        sizes = (row_size, column_size) if axis == 1 else (column_size, row_size)
        where = where if live is None else where & live
        weight = pair_weights(method.weight, jnp.asarray(counted), *sizes, where)
        return Way(axis, where, weight, anchors.slopes)

    forth = way(1, rows, rows.anchor[:, None] & columns.candidate[None, :])
    if not mutual:
        return Tile(s, (forth,))
    return Tile(s, (forth, way(0, columns, rows.candidate[:, None] & columns.anchor[None, :])))


def sums(t: Tile, form: Form, plain: bool) -> tuple[Sums, Sums | None]:
    """Sums over the columns for the rows and, in a mutual tile, over the rows for the columns."""
    if plain:
        e = jnp.exp(t.s)
        by_row, *by_column = (_plain_sums(t.s, e, way, form) for way in t.ways)
    else:
        by_row, *by_column = (_shifted_sums(t.s, way, form) for way in t.ways)
    return by_row, by_column[0] if by_column else None


def _plain_sums(s: Array, e: Array, way: Way, form: Form) -> Sums:
    axis, weight = way.axis, way.weight
    total = jnp.where(way.where, e, 0).sum(axis)
    zero = jnp.zeros_like(total)
    attraction = (weight * s).sum(axis) if form == "out" else LogSum(zero, (weight * e).sum(axis))
    return Sums(LogSum(zero, total), attraction, weight.sum(axis), jnp.sign(weight).sum(axis))


def _shifted_sums(s: Array, way: Way, form: Form) -> Sums:
    axis, weight = way.axis, way.weight
    positive = weight > 0

    def log_sum(x: Array, where: Array) -> LogSum:
        x = jnp.where(where, x, -jnp.inf)
        shift = x.max(axis)
        reached = jnp.where(shift > -jnp.inf, shift, 0)
        return LogSum(shift, jnp.exp(x - jnp.expand_dims(reached, axis)).sum(axis))

    if form == "out":
        attraction = jnp.where(positive, weight * s, 0).sum(axis)
    else:
        attraction = log_sum(s + jnp.log(jnp.where(positive, weight, 1)), positive)
    lse = log_sum(s, way.where)
    return Sums(lse, attraction, weight.sum(axis), jnp.sign(weight).sum(axis))


def slope(t: Tile, form: Form, plain: bool) -> Array:
    """Derivative of the result to the similarities of the tile, [T, U].

    out: ∂/∂s_ij = a_i · e^{s_ij − lse_i} + b_i · w_ij
    in:  ∂/∂s_ij = a_i · e^{s_ij − lse_i} + b_i · w_ij · e^{s_ij − attraction_i}

    with a_i and b_i those to lse_i and attraction_i; both ways add up.
    """
    ways = [(way, way.slopes) for way in t.ways if way.slopes is not None]
    total = jnp.zeros_like(t.s)
    for way, slopes in ways:
        if plain:
            factor = way.along(slopes.of_lse * jnp.exp(-slopes.lse))
            total += jnp.where(way.where, factor, 0)
        else:
            difference = jnp.where(way.where, t.s - way.along(slopes.lse), -jnp.inf)
            total += way.along(slopes.of_lse) * jnp.exp(difference)
    if plain:
        # One exponential serves both ways.
        total *= jnp.exp(t.s)
    for way, slopes in ways:
        pull = way.weight
        if form == "in":
            difference = t.s - way.along(slopes.attraction)
            pull = pull * jnp.exp(jnp.where(way.weight > 0, difference, -jnp.inf))
        total += way.along(slopes.of_attraction) * pull
    return total


def pulled(g: Array, rows: Side, columns: Side) -> tuple[Array, Array]:
    """Derivatives to `y` of the rows and of the columns, [T, D] and [U, D]."""
    dtype, y, other_y = g.dtype, rows.y, columns.y
    if y.dtype == jnp.float16:
        # Its range is too small for the gradient of a large batch.
        y, other_y = y.astype(dtype), other_y.astype(dtype)
    g = _scaled(g, rows, columns).astype(y.dtype)
    return product(g, other_y, (1, 0), dtype), product(g, y, (0, 0), dtype)


def _scaled(x: Array, rows: Side, columns: Side) -> Array:
    if rows.scale is None or columns.scale is None:
        return x
    return x * rows.scale[:, None] * columns.scale[None, :]
