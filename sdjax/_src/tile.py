"""One tile of pairs: what the forward pass and the backward pass do with it.

candidates j →                     a tile of T × T pairs, T = 512 to 1,024
┌────┬────┬────┬────┐
│ ◥  │ 01 │ 02 │ 03 │   In self-contrast 01 is computed once. Its rows are anchors of its columns,
├────┼────┼────┼────┤   and its columns anchors of its rows: s_ij = s_ji, so that one product
│    │ ◥  │ 12 │ 13 │   serves the sums of both. On the diagonal only the pairs above it count,
├────┼────┼────┼────┤   which leaves out each anchor's pair with itself, too.
│    │    │ ◥  │ 23 │
├────┼────┼────┼────┤   forward    s = z_I · z_J, sums of I along the rows, of J along the columns
│    │    │    │ ◥  │   backward   s again, G = ∂/∂s, dz_I += G · z_J, dz_J += Gᵀ · z_I
└────┴────┴────┴────┘
"""

import abc
import dataclasses
from typing import Any, Generic, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sdjax._src import collectives, embeddings, tiling
from sdjax._src.collectives import Axes
from sdjax._src.pair_math import (
    AnchorGradient,
    Direction,
    LogSumExp,
    RunningSums,
    pair_weights,
    similarity_gradient,
    tile_sums,
)
from sdjax._src.problem import Method

Array = jax.Array
T = TypeVar("T")

# So many units in the last place of a sum are rounding.
ROUNDING = 8


class Shares(NamedTuple):
    """For weights in which a label counts what two factors say.

    A shared label l counts Σ_k anchor_k[i] · values_k[l] for anchor i, with the values of the
    `Pass`. The weight of a pair is the sum over its labels, and for anchors and candidates

        constant[i] − Σ_k anchor_k[i] · offset_k[p]

    Attributes:
      anchor: [N] each.
      offset: [N] each, or none for 0.
      constant: [N], or None for 0.
    """

    anchor: tuple[Array, ...]
    offset: tuple[Array, ...] = ()
    constant: Array | None = None


class Table(NamedTuple):
    """For weights in which each label of each anchor counts a number of its own, [N, K]."""

    numbers: Array


class Rows(NamedTuple):
    """N rows: a block of them, or those that are on one side of a tile.

    Attributes:
      z: [N, D], with s_ij = scale_i · scale_j · z_i · z_j.
      scale: [N]; None for 1.
      labels: their label sets, a `LabelForm`; with a `Table` a `TableForm`.
      size: |S| [N].
      anchor: bool [N], may be an anchor.
      candidate: bool [N], may be a candidate.
      ids: int [N] or None; pairs of equal ids of at least 0 are left out.
      log_bias: [N] or None, see `problem.Inputs`.
      prototype: bool [N] or None, likewise.
      balance: what their labels count in weights that balance them, None in others.
      gradient: what the backward pass knows of them as anchors, [N] each.
    """

    z: Array
    scale: Array | None
    labels: Any
    size: Array
    anchor: Array
    candidate: Array
    ids: Array | None
    log_bias: Array | None = None
    prototype: Array | None = None
    balance: "Table | Shares | None" = None
    gradient: AnchorGradient | None = None

    def along(self, axis: int) -> "Rows":
        """As one side of a tile: with vectors [N, 1] for axis 0, or [1, N] for axis 1."""
        table = self.balance if isinstance(self.balance, Table) else None
        vectors = self._replace(z=None, labels=None, balance=None if table else self.balance)
        vectors = jax.tree.map(lambda x: jnp.expand_dims(x, 1 - axis), vectors)
        vectors = vectors._replace(z=self.z, labels=self.labels)
        return vectors._replace(balance=table) if table else vectors

    def tile(self, number: Array, size: int) -> "Rows":
        """Tile `number` of the block; rows that are in the tile before take no part in it."""
        first, new = tiling.start(number, size, len(self.z))

        def cut(x: Array) -> Array:
            return tiling.rows(x, first, size)

        z, scale = cut(self.z), None
        if self.scale is not None:
            z, scale = embeddings.folded(z, cut(self.scale))
        rest = jax.tree.map(cut, self._replace(z=None, scale=None, labels=None))
        return rest._replace(
            z=z,
            scale=scale,
            labels=self.labels.take(first, size),
            anchor=rest.anchor & new,
            candidate=rest.candidate & new,
        )


@dataclasses.dataclass(frozen=True)
class Pass(abc.ABC, Generic[T]):
    """What a sweep does with each tile, and how it adds up what it finds: T, a tree of [N, ...].

    Attributes:
      method: the loss.
      values: of the labels, [C] each; see `Shares`.
      bounded: see `pair_math.tile_sums`.
      mutual: rows and columns are anchors of each other; else only the rows are anchors.
      example: rows of the block, whose dtype and varying axes totals have.
      num_anchors: none of the block's rows from here on is an anchor.
    """

    method: Method
    values: tuple[Array, ...]
    bounded: bool
    mutual: bool
    example: Rows
    num_anchors: int

    @abc.abstractmethod
    def empty(self, num: int) -> T:
        """The total of `num` rows before any tile."""

    @abc.abstractmethod
    def add(self, x: T, y: T) -> T:
        """Adds two totals of the same rows."""

    @abc.abstractmethod
    def sum_scatter(self, total: T, axes: Axes) -> T:
        """Adds the totals [devices · N] of all devices; each keeps its own [N]."""

    @abc.abstractmethod
    def visit(
        self, rows: Rows, columns: Rows, column_labels: Any, where: Array | None
    ) -> tuple[T, T | None]:
        """What a tile adds to its rows and, if it finds something for them, to its columns.

        Args:
          rows: of a tile.
          columns: likewise.
          column_labels: their labels `as_columns`.
          where: bool [T, U], the pairs that count; None for all.
        """

    @property
    def dtype(self) -> jnp.dtype:
        return self.example.size.dtype

    def similarities(self, rows: Rows, columns: Rows) -> Array:
        """s [T, U] of both sides, `Rows.along`."""
        chex.assert_equal_shape_suffix([rows.z, columns.z], 1)
        return _scaled(_product(rows.z, columns.z, (1, 1), self.dtype), rows, columns)

    def directions(
        self, rows: Rows, columns: Rows, column_labels: Any, where: Array | None
    ) -> list[Direction]:
        """The tile seen from its rows and, if mutual, from its columns, both `Rows.along`."""
        uniform = self.method.uniform and self.method.labels != "counted"
        shared = None if uniform else rows.labels.shared(column_labels, self.dtype)
        weighted = [rows.labels.weighted(column_labels, value) for value in self.values]

        def direction(axis: int, anchors: Rows, candidates: Rows) -> Direction:
            pairs = self.pairs(anchors, candidates, where)
            weight = self.factors(anchors, candidates, shared, pairs)
            if isinstance(anchors.balance, Shares):
                weight = jnp.where(pairs, _of_shares(weighted, anchors, candidates), 0)
            elif isinstance(anchors.balance, Table):
                labels = column_labels if axis == 1 else rows.labels.as_columns()
                sums = anchors.labels.by_table(labels, anchors.balance.numbers)
                weight *= sums if axis == 1 else sums.T
            return Direction(axis, pairs, weight, candidates.log_bias, anchors.gradient)

        directions = [direction(1, rows, columns)]
        if self.mutual:
            directions.append(direction(0, columns, rows))
        return directions

    def pairs(self, anchors: Rows, candidates: Rows, where: Array | None) -> Array:
        """Which pairs count, bool [T, U]."""
        pairs = anchors.anchor & candidates.candidate
        if where is not None:
            pairs &= where
        if anchors.ids is not None and candidates.ids is not None:
            pairs &= (anchors.ids != candidates.ids) | (anchors.ids == -1)
        return pairs

    def factors(self, anchors: Rows, candidates: Rows, shared: Array | None, pairs: Array) -> Array:
        """f of each pair that counts, [T, U], else 0; `shared` is None where f is 1."""
        if shared is None:
            return pairs.astype(self.dtype)
        sizes = anchors.size, candidates.size
        return pair_weights(self.method.weight, shared, *sizes, pairs, candidates.prototype)


def _of_shares(weighted: list[Array], anchors: Rows, candidates: Rows) -> Array:
    """Weights [T, U], see `Shares`."""
    assert isinstance(anchors.balance, Shares)
    sums = zip(weighted, anchors.balance.anchor, strict=True)
    total = jnp.asarray(sum(x * share for x, share in sums))
    constant = anchors.balance.constant
    if constant is None:
        return total
    assert isinstance(candidates.balance, Shares)
    offsets = zip(anchors.balance.anchor, candidates.balance.offset, strict=True)
    total += constant - sum(share * offset for share, offset in offsets)
    # Where nothing agrees, rounding is what is left of the constant.
    return jnp.where(total > ROUNDING * jnp.finfo(total.dtype).eps * constant, total, 0)


class Forward(Pass[RunningSums]):
    """The sums of each anchor, `RunningSums` of [N]."""

    def empty(self, num: int) -> RunningSums:
        empty = RunningSums.empty(num, self.method.form, self.dtype)
        return collectives.varying(empty, self.example)

    def add(self, x: RunningSums, y: RunningSums) -> RunningSums:
        return x.add(y)

    def sum_scatter(self, total: RunningSums, axes: Axes) -> RunningSums:
        def of_logsumexp(x: LogSumExp) -> LogSumExp:
            shift = lax.pmax(x.shift, axes)
            scattered = collectives.sum_scatter(x.total_at(shift), axes)
            num = len(scattered)
            own = lax.axis_index(axes).astype(jnp.int32) * num
            return LogSumExp(tiling.rows(shift, own, num), scattered)

        return total.map(of_logsumexp, lambda x: collectives.sum_scatter(x, axes))

    def visit(
        self, rows: Rows, columns: Rows, column_labels: Any, where: Array | None
    ) -> tuple[RunningSums, RunningSums | None]:
        rows, columns = rows.along(0), columns.along(1)
        s = self.similarities(rows, columns)
        directions = self.directions(rows, columns, column_labels, where)
        found = tile_sums(s, directions, self.method.form, self.bounded)
        of_rows, *of_columns = jax.tree.map(jnp.ravel, found)
        return of_rows, of_columns[0] if of_columns else None


class Backward(Pass[Array]):
    """The derivatives to z of the rows and of the columns of tiles, [N, D]."""

    def empty(self, num: int) -> Array:
        zeros = jnp.zeros((num, self.example.z.shape[1]), self.dtype)
        return collectives.varying(zeros, self.example)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def sum_scatter(self, total: Array, axes: Axes) -> Array:
        return collectives.sum_scatter(total, axes)

    def visit(
        self, rows: Rows, columns: Rows, column_labels: Any, where: Array | None
    ) -> tuple[Array, Array]:
        rows, columns = rows.along(0), columns.along(1)
        s = self.similarities(rows, columns)
        directions = self.directions(rows, columns, column_labels, where)
        of_s = similarity_gradient(s, directions, self.bounded, self.method.clipped)
        return _gradient_to_rows(of_s, rows, columns)


class Carriers(Pass[Array]):
    """Σ f over the candidates that carry each label of an anchor, [N, K]; see `label_overlap`."""

    def empty(self, num: int) -> Array:
        places = jax.eval_shape(lambda: self.example.labels.present(self.dtype)).shape[1]
        return collectives.varying(jnp.zeros((num, places), self.dtype), self.example)

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def sum_scatter(self, total: Array, axes: Axes) -> Array:
        return collectives.sum_scatter(total, axes)

    def visit(
        self, rows: Rows, columns: Rows, column_labels: Any, where: Array | None
    ) -> tuple[Array, Array | None]:
        rows, columns = rows.along(0), columns.along(1)
        shared = None
        if not self.method.uniform:
            shared = rows.labels.shared(column_labels, self.dtype)
        factors = self.factors(rows, columns, shared, self.pairs(rows, columns, where))
        of_rows = rows.labels.carried(column_labels, factors)
        if not self.mutual:
            return of_rows, None
        factors = self.factors(columns, rows, shared, self.pairs(columns, rows, where))
        return of_rows, columns.labels.carried(rows.labels.as_columns(), factors.T)


def _gradient_to_rows(of_s: Array, rows: Rows, columns: Rows) -> tuple[Array, Array]:
    """Derivatives to z of the rows [T, D] and of the columns [U, D], from those to s [T, U]."""
    chex.assert_shape(of_s, (len(rows.z), len(columns.z)))
    dtype, z, other_z = of_s.dtype, rows.z, columns.z
    if z.dtype == jnp.float16 or other_z.dtype != z.dtype:
        # The range of float16 is too small for the gradient of a large batch.
        z, other_z = z.astype(dtype), other_z.astype(dtype)
    of_product = _scaled(of_s, rows, columns).astype(z.dtype)
    return _product(of_product, other_z, (1, 0), dtype), _product(of_product, z, (0, 0), dtype)


def _product(x: Array, y: Array, contracted: tuple[int, int], dtype: jnp.dtype) -> Array:
    if x.dtype != y.dtype:
        x, y = x.astype(dtype), y.astype(dtype)
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    precision = lax.Precision.HIGHEST if x.dtype == dtype else None
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=dtype)


def _scaled(x: Array, rows: Rows, columns: Rows) -> Array:
    for side in (rows, columns):
        if side.scale is not None:
            x = x * side.scale
    return x
