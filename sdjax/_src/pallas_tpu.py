"""The tiled core's sweeps as Pallas kernels for TPUs.

A grid step takes a tile of rows and a tile of columns into vector memory and does there what
`tile.Forward` and `tile.Backward` do with a tile: the products on the matrix unit, the rest on the
vector unit. Only sums [N] or gradients [N, D] leave it. Row tiles are the outer loop: sums of a
row tile stay in vector memory while it meets its column tiles.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sdjax import labels as labels_lib
from sdjax._src import collectives, embeddings, label_overlap
from sdjax._src.label_overlap import Classes
from sdjax._src.pair_math import RunningSums
from sdjax._src.problem import Inputs, Method, Problem, Sums
from sdjax._src.tile import Forward, Rows, Sweeps
from sdjax._src.tiled import over_tiles
from sdjax.labels import LabelIndices, Labels

Array = jax.Array
Ref = Any
Step = Any  # tile.Forward or tile.Backward

LANES, SUBLANES = 128, 8
# Rows of a tile, at most; a multiple of LANES.
TILE = 512
# TPU v5 and later have 64 MiB of vector memory or more, and tiles of pairs need some of it.
VMEM_BYTES, VMEM_BYTES_OF_ROWS = 60 * 2**20, 28 * 2**20


def pallas(problem: Problem, method: Method) -> Sums:
    """`Sums` as `tiled` finds them, by kernels for TPU v5 and later.

    Args:
      problem: with embeddings of 32 bits at most, and ids likewise.
      method: whose weight captures no arrays but floating scalars.

    Raises:
      TypeError: for numbers of 64 bits.
      NotImplementedError: for a weight that captures larger arrays.
    """
    _check_32_bits("z", "", problem.anchors)
    if problem.candidates is not None:
        _check_32_bits("candidates", "candidate_", problem.candidates)
    captured = [jnp.asarray(x) for x in method.weight.captured]
    if any(x.shape or not jnp.issubdtype(x.dtype, jnp.floating) for x in captured):
        raise NotImplementedError(
            "implementation='pallas' takes no weight that captures arrays, but for floating "
            "scalars: use implementation='tiled' for it."
        )
    numbers = tuple(x.astype(jnp.float32) for x in captured)
    weight = dataclasses.replace(method.weight, captured=numbers)
    method = dataclasses.replace(method, weight=weight)
    return over_tiles(problem, method, around_ring=False, sweeps=SWEEPS)


def _check_32_bits(name: str, prefix: str, side: Inputs) -> None:
    arrays = {name: side.z, f"{prefix}ids": side.ids}
    if isinstance(side.labels, LabelIndices) and np.shape(side.labels.indices)[1] == 1:
        arrays[f"{prefix}labels"] = jnp.asarray(side.labels.indices)
    for name, x in arrays.items():
        if x is not None and x.dtype.itemsize > 4:
            raise TypeError(
                f"implementation='pallas' computes in 32 bits: {name} must be of 32 bits at most, "
                f"got {x.dtype}."
            )


# --- the sweeps -----------------------------------------------------------------------------------


def prepare(*sides: Labels) -> tuple[Any, ...]:
    """Label sets as multi-hot rows, or as class numbers where each row has one label at most."""
    if classes := label_overlap.as_classes(*sides):
        return classes
    return tuple(MultiHot(labels_lib.multi_hot(side, jnp.dtype(jnp.int8))) for side in sides)


def sweep_self(step: Step, rows: Rows, total: Any) -> Any:
    """See `sweep.sweep_self`."""
    of_rows, of_columns = _run(step, rows, rows, "self", None, for_columns=True)
    return step.add(total, step.add(of_rows, of_columns))


def sweep(
    step: Step,
    rows: Rows,
    columns: Rows,
    totals: tuple[Any, Any],
    half: Array | None = None,
) -> tuple[Any, Any]:
    """See `sweep.sweep`."""
    order, for_columns = "all" if half is None else "half", totals[1] is not None
    found = _run(step, rows, columns, order, half, for_columns)
    total, of_columns = (
        None if x is None else step.add(x, y) for x, y in zip(totals, found, strict=True)
    )
    return total, of_columns


SWEEPS = Sweeps(prepare, sweep_self, sweep)


def _run(
    step: Step,
    rows: Rows,
    columns: Rows,
    order: "Order",
    half: Array | None,
    for_columns: bool,
) -> tuple[Any, Any]:
    """What a kernel finds for the rows and the columns."""
    plan = _plan(step, rows, columns, order)
    row_side, row_vectors = _side(rows, plan, 0)
    column_side, column_vectors = _side(columns, plan, 1)
    values = [_padded(x, (plan.num_labels,)) for x in step.values]
    operands = _Operands(
        row_side,
        column_side,
        jnp.stack(values) if values else None,
        tuple(jnp.reshape(x, (1,)) for x in step.method.weight.captured),
    )
    half = jnp.zeros((), jnp.int32) if half is None else half
    half, operands = collectives.varying((jnp.reshape(half, (1,)), operands), (rows, columns))
    # Only its dtype is looked at; arrays of its own a kernel may not have.
    example = Rows(*[None] * 3, jnp.zeros(0, jnp.float32), *[None] * 5)  # pyright: ignore
    step = dataclasses.replace(step, example=example)
    context = _Context(plan, step, row_vectors, column_vectors)
    run = _run_forward if isinstance(step, Forward) else _run_backward
    with jax.enable_x64(False):
        return run(context, half, operands, for_columns, (rows, columns))


# --- tiles ----------------------------------------------------------------------------------------

Order = Literal["self", "all", "half"]


class _Plan(NamedTuple):
    """How the pairs are cut into tiles, row tile i meets column tile j.

    Attributes:
      order: "self": each unordered pair of tiles once: i meets i, i + 1, ... halfway around the
        circle, so that each row tile has as much to do. "all": all of them. "half": those of one
        colour of a chessboard.
      sizes: rows and columns of a tile.
      counts: numbers of row and column tiles.
      depth: numbers of an embedding, padded.
      num_labels: labels, padded.
    """

    order: Order
    sizes: tuple[int, int]
    counts: tuple[int, int]
    depth: int
    num_labels: int

    @property
    def grid(self) -> tuple[int, int]:
        count, others = self.counts
        steps = {"self": others // 2 + 1, "all": others, "half": (others + 1) // 2}
        return count, steps[self.order]

    def column(self, i: Array, k: Array, half: Ref) -> tuple[Array, Any]:
        """The column tile that row tile i meets in step k, and whether it does so at all."""
        count = jnp.int32(self.counts[1])
        if self.order == "self":
            # Across the circle, two tiles of an even number would meet from both sides.
            return lax.rem(i + k, count), (2 * k < count) | (2 * i < count)
        if self.order == "all":
            return k, True
        j = 2 * k + lax.rem(i + half[0], jnp.int32(2))
        return jnp.minimum(j, count - 1), j < count


def _plan(step: Step, rows: Rows, columns: Rows, order: Order) -> _Plan:
    depth = _multiple(rows.z.shape[1], LANES)
    num_labels, labels = 0, rows.labels
    if step.values:
        num_labels = _multiple(len(step.values[0]), LANES)
    elif isinstance(labels, MultiHot):
        num_labels = _multiple(labels.rows.shape[1], LANES)
    # Of a row and a column: two buffers of each, three gradients, and MulSupCon's wide labels.
    row_bytes = depth * (4 * rows.z.dtype.itemsize + 6 * 4) + num_labels * (
        4 + 3 * 4 * bool(step.values)
    )
    most = min(TILE, VMEM_BYTES_OF_ROWS // row_bytes // LANES * LANES)
    if not most:
        raise NotImplementedError(
            f"implementation='pallas' has no room for rows of {rows.z.shape[1]} features and "
            f"{num_labels} labels: use implementation='tiled' for them."
        )
    counts = [math.ceil(len(x.z) / most) for x in (rows, columns)]
    sizes = [
        _multiple(math.ceil(len(x.z) / count), LANES)
        for x, count in zip((rows, columns), counts, strict=True)
    ]
    return _Plan(order, (sizes[0], sizes[1]), (counts[0], counts[1]), depth, num_labels)


def _multiple(x: int, of: int) -> int:
    return max(1, math.ceil(x / of)) * of


class _Side(NamedTuple):
    """Rows as kernels take them, padded; or the references to a tile of them.

    Attributes:
      z: [N, D].
      vectors: int32 [P, N], the bits of P vectors. Cut along its lanes it is lean, where a vector
        [N, 1] would take 128 lanes.
      labels: multi-hot int8 [N, C]; None where class numbers are among the vectors.
    """

    z: Any
    vectors: Any
    labels: Any


class _Vectors(NamedTuple):
    """What `_Side.vectors` hold: `Rows` without embeddings, as a tree, and its dtypes."""

    tree: Any
    dtypes: tuple[jnp.dtype, ...]

    def rows(self, side: _Side, block: Array, axis: int) -> Rows:
        """The rows of a tile as `Rows.along` the axis, from its block [T, P] or [P, U]."""

        def vector(k: int, dtype: jnp.dtype) -> Array:
            x = lax.slice_in_dim(block, k, k + 1, axis=1 - axis)
            if dtype == jnp.bool_:
                return x != 0
            return lax.bitcast_convert_type(x, jnp.float32) if dtype == jnp.float32 else x

        vectors = self.tree.unflatten(vector(k, x) for k, x in enumerate(self.dtypes))
        classes = isinstance(vectors.labels, Classes)
        labels = _Classes(vectors.labels.indices) if classes else MultiHot(side.labels[...])
        return vectors._replace(z=side.z[...], labels=labels)


def _side(rows: Rows, plan: _Plan, axis: int) -> tuple[_Side, _Vectors]:
    num = plan.sizes[axis] * plan.counts[axis]
    assert rows.scale is not None
    z, scale = embeddings.folded(rows.z, rows.scale)
    # TPUs do not multiply float16.
    z = z.astype(jnp.float32) if z.dtype == jnp.float16 else z
    labels: Any = rows.labels
    classes = None
    if isinstance(labels, MultiHot):
        labels = labels.rows
    elif plan.num_labels:
        label = jnp.arange(plan.num_labels, dtype=labels.indices.dtype)
        labels = (labels.indices[:, None] == label[None, :]).astype(jnp.int8)
    else:
        labels, classes = None, labels
    if labels is not None:
        labels = _padded(labels, (num, plan.num_labels))
    vectors = rows._replace(z=None, scale=scale, labels=classes)
    leaves, tree = jax.tree.flatten(vectors)

    def bits(x: Array) -> Array:
        floating = x.dtype == jnp.float32
        return lax.bitcast_convert_type(x, jnp.int32) if floating else x.astype(jnp.int32)

    packed = jnp.stack([bits(x) for x in leaves])
    packed = _padded(packed, (_multiple(len(leaves), SUBLANES), num))
    dtypes = tuple(x.dtype for x in leaves)
    return _Side(_padded(z, (num, plan.depth)), packed, labels), _Vectors(tree, dtypes)


def _padded(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` with zeros appended up to `shape`. Rows of zeros are neither anchors nor candidates."""
    return jnp.pad(x, [(0, after - before) for before, after in zip(x.shape, shape, strict=True)])


class MultiHot(NamedTuple):
    """Multi-hot labels int8 [N, C], for rows and for columns; see `label_overlap`."""

    rows: Array

    def shared(self, columns: "MultiHot", dtype: jnp.dtype) -> Array:
        return _dot(self.rows, columns.rows, jnp.int32).astype(dtype)

    def weighted(self, columns: "MultiHot", values: Array) -> Array:
        rows = self.rows.astype(values.dtype) * values
        return _dot(rows, columns.rows.astype(values.dtype), values.dtype)


class _Classes(NamedTuple):
    """Class numbers of one side of a tile, [T, 1] or [1, U]; see `label_overlap.Classes`."""

    numbers: Array

    def shared(self, columns: "_Classes", dtype: jnp.dtype) -> Array:
        return ((self.numbers == columns.numbers) & (self.numbers >= 0)).astype(dtype)


def _dot(x: Array, y: Array, dtype: Any) -> Array:
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=dtype)


# --- kernels --------------------------------------------------------------------------------------


class _Operands(NamedTuple):
    """What kernels read, whole arrays or the references to a tile.

    Attributes:
      rows, columns: both sides.
      values: see `Rows.shares`, [K, C] or None.
      numbers: that the weight captured, [1] each.
    """

    rows: Any
    columns: Any
    values: Any
    numbers: Any


class _Context(NamedTuple):
    """What a kernel knows when it is traced."""

    plan: _Plan
    step: Any
    rows: _Vectors
    columns: _Vectors

    def place(self, half: Ref) -> tuple[Any, Any, Any, Any]:
        """The row tile, the step, the column tile, and whether the two meet."""
        i, k = pl.program_id(0), pl.program_id(1)
        j, meet = self.plan.column(i, k, half)
        return i, k, j, meet

    def of_tile(self, operands: _Operands, row_vectors: Ref) -> tuple[Any, Any]:
        """What the pass finds in a tile."""
        weight, values = self.step.method.weight, operands.values
        weight = dataclasses.replace(weight, captured=tuple(x[0] for x in operands.numbers))
        step = dataclasses.replace(
            self.step,
            method=dataclasses.replace(self.step.method, weight=weight),
            values=tuple(values[k : k + 1, :] for k in range(len(self.step.values))),
        )
        rows = self.rows.rows(operands.rows, row_vectors[...], 0)
        columns = self.columns.rows(operands.columns, operands.columns.vectors[...], 1)
        where = None
        if self.plan.order == "self":
            # In a tile with itself, in step 0, only the pairs above the diagonal count.
            row, column = (lax.broadcasted_iota(jnp.int32, self.plan.sizes, k) for k in (0, 1))
            where = row < column + pl.program_id(1) * TILE
        return step.of_tile(rows, columns, columns.labels, where)


def _in_specs(plan: _Plan, operands: _Operands) -> _Operands:
    """Which part of each operand a grid step reads."""

    def side(x: _Side, axis: int) -> _Side:
        def tile(i: Array, k: Array, half: Ref) -> Array:
            return plan.column(i, k, half)[0] if axis else i

        def rows(y: Array | None) -> Any:
            if y is None:
                return None
            return pl.BlockSpec((plan.sizes[axis], y.shape[1]), lambda *at: (tile(*at), 0))

        vectors = pl.BlockSpec((len(x.vectors), plan.sizes[axis]), lambda *at: (0, tile(*at)))
        return _Side(rows(x.z), vectors, rows(x.labels))

    values = operands.values
    if values is not None:
        values = pl.BlockSpec(values.shape, lambda *_: (0, 0))
    numbers = tuple(pl.BlockSpec(memory_space=pltpu.SMEM) for _ in operands.numbers)
    return _Operands(side(operands.rows, 0), side(operands.columns, 1), values, numbers)


def _call(
    context: _Context,
    kernel: Any,
    half: Array,
    operands: _Operands,
    outputs: list[tuple[tuple[int, ...], pl.BlockSpec]],
    scratch: list[Any],
    initial: Array | None = None,
) -> list[Array]:
    """Outputs float32 of a kernel that has a grid step for each pair of tiles.

    Args:
      context: first argument of the kernel.
      kernel: what a grid step does, with references to everything else.
      half: int32 [1].
      operands: arrays.
      outputs: their shapes, and which part of each a grid step writes.
      scratch: memory of the kernel, after that for the vectors of a row tile [T, P].
      initial: what the last output holds at first, in the same memory.
    """
    plan, more = context.plan, [] if initial is None else [initial]
    num_operands = 1 + len(jax.tree.leaves(operands))
    varying = jax.typeof(half).manual_axis_type
    call = pl.pallas_call(
        functools.partial(kernel, context),
        out_shape=[
            jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=varying)
            for shape, _ in outputs
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=plan.grid,
            in_specs=[
                _in_specs(plan, operands),
                *[pl.BlockSpec(memory_space=pl.ANY) for _ in more],
            ],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[
                pltpu.VMEM((plan.sizes[0], len(operands.rows.vectors)), jnp.int32),
                *scratch,
            ],
        ),
        input_output_aliases={num_operands: len(outputs) - 1} if more else {},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        name="sdjax" + kernel.__name__,
    )
    return call(half, operands, *more)


# --- the forward pass -----------------------------------------------------------------------------


def _run_forward(
    context: _Context, half: Array, operands: _Operands, for_columns: bool, sides: tuple[Rows, Rows]
) -> tuple[RunningSums, RunningSums | None]:
    (num_rows, num_columns), sizes = context.plan.counts, context.plan.sizes
    form = context.step.method.form
    numbers, tree = jax.tree.flatten(RunningSums.empty((), form, jnp.float32))
    spec = pl.BlockSpec((None, SUBLANES, sizes[0]), lambda i, *_: (i, 0, 0))
    outputs = [((num_rows, SUBLANES, sizes[0]), spec)]
    if for_columns:
        # All of them at once: each row tile adds to all column tiles.
        shape = num_columns, SUBLANES, sizes[1]
        outputs.append((shape, pl.BlockSpec(shape, lambda *_: (0, 0, 0))))
    state = pltpu.VMEM((len(numbers), sizes[0], 1), jnp.float32)
    found = _call(context, _forward_kernel, half, operands, outputs, [state])

    def sums(x: Array, num: int) -> RunningSums:
        return tree.unflatten(x[:, k].ravel()[:num] for k in range(len(numbers)))

    of_rows, *of_columns = (sums(x, len(side.z)) for x, side in zip(found, sides, strict=False))
    return of_rows, of_columns[0] if for_columns else None


def _forward_kernel(
    context: _Context, half: Ref, operands: _Operands, out: Ref, *others: Ref
) -> None:
    *column_out, row_vectors, state = others
    step = context.step
    i, k, j, active = context.place(half)
    empty = _empty_sums(step)

    @pl.when(k == 0)
    def _():
        row_vectors[...] = operands.rows.vectors[...].T
        for n, x in enumerate(empty):
            state[n] = jnp.full(state.shape[1:], x, jnp.float32)

    @pl.when((i == 0) & (k == 0))
    def _():
        for column in column_out:
            for n, x in enumerate(empty):
                column[:, n, :] = jnp.full((column.shape[0], column.shape[2]), x, jnp.float32)

    @pl.when(active)
    def _():
        found = context.of_tile(operands, row_vectors)
        for n, x in enumerate(_added(step, [state[n] for n in range(len(empty))], found[0])):
            state[n] = x
        for column in column_out:
            before = [column[j, n : n + 1, :] for n in range(len(empty))]
            for n, x in enumerate(_added(step, before, found[1])):
                column[j, n : n + 1, :] = x

    @pl.when(k == context.plan.grid[1] - 1)
    def _():
        # Vectors [T, 1] side by side, which turn at once.
        lane = lax.broadcasted_iota(jnp.int32, (state.shape[1], LANES), 1)
        beside = jnp.zeros(lane.shape, jnp.float32)
        for n in range(len(empty)):
            beside = jnp.where(lane == n, state[n], beside)
        out[...] = beside.T[:SUBLANES]


def _empty_sums(step: Forward) -> list[float]:
    """The numbers of `RunningSums` before any tile; bounded similarities have no shifts."""
    nothing = -math.inf if not step.bounded else 0.0
    logsumexp = [nothing, 0.0]
    return [*logsumexp, *(logsumexp if step.method.form == "in" else [0.0]), 0.0, 0.0]


def _added(step: Forward, before: list[Array], found: RunningSums) -> list[Array]:
    numbers, tree = jax.tree.flatten(found)
    if step.bounded:
        return [x + y for x, y in zip(before, numbers, strict=True)]
    return jax.tree.leaves(tree.unflatten(before).add(found))


# --- the backward pass ----------------------------------------------------------------------------


def _run_backward(
    context: _Context, half: Array, operands: _Operands, for_columns: bool, sides: tuple[Rows, Rows]
) -> tuple[Array, Array]:
    assert for_columns
    plan = context.plan
    (num_rows, num_columns), sizes, depth = plan.counts, plan.sizes, plan.depth
    zeros = jnp.zeros((num_columns, sizes[1], depth), jnp.float32)
    spec = pl.BlockSpec((sizes[0], depth), lambda i, *_: (i, 0))
    outputs = [
        ((num_rows * sizes[0], depth), spec),
        (zeros.shape, pl.BlockSpec(memory_space=pl.ANY)),
    ]
    scratch = [
        pltpu.VMEM((2, sizes[1], depth), jnp.float32),
        pltpu.SMEM((3,), jnp.int32),
        pltpu.SemaphoreType.DMA((2, 2)),
    ]
    zeros = collectives.varying(zeros, operands)
    found = _call(context, _backward_kernel, half, operands, outputs, scratch, zeros)
    of_rows, of_columns = (
        x.reshape(-1, depth)[: len(side.z), : side.z.shape[1]]
        for x, side in zip(found, sides, strict=True)
    )
    return of_rows, of_columns


def _backward_kernel(
    context: _Context,
    half: Ref,
    operands: _Operands,
    initial: Ref,
    of_rows: Ref,
    of_columns: Ref,
    row_vectors: Ref,
    *sum_refs: Ref,
) -> None:
    del initial  # The memory of `of_columns`.
    i, k, j, active = context.place(half)
    sums = _ColumnSums(of_columns, *sum_refs)

    @pl.when((i == 0) & (k == 0))
    def _():
        sums.begin()

    @pl.when(k == 0)
    def _():
        row_vectors[...] = operands.rows.vectors[...].T
        of_rows[...] = jnp.zeros_like(of_rows)

    @pl.when(active)
    def _():
        sums.fetch(j)
        to_rows, to_columns = context.of_tile(operands, row_vectors)
        of_rows[...] += to_rows
        sums.add(j, to_columns)

    @pl.when((i == context.plan.grid[0] - 1) & (k == context.plan.grid[1] - 1))
    def _():
        sums.finish()


class _ColumnSums:
    """Gradients of the column tiles [U, D], kept in the device's main memory.

    Each step adds to another tile: it is fetched while the step computes, and written back during
    the next. Two buffers take turns.

    Attributes of `state`, in scalar memory: the tile that each buffer is still writing, or −1; and
    the buffer in use.
    """

    def __init__(self, sums: Ref, buffer: Ref, state: Ref, semaphores: Ref):
        self.sums, self.buffer, self.state, self.semaphores = sums, buffer, state, semaphores

    def begin(self) -> None:
        for n, value in enumerate((-1, -1, 0)):
            self.state[n] = jnp.int32(value)

    def fetch(self, tile: Array) -> None:
        """Starts to read; a buffer in use, or a tile that is still being written, is awaited."""
        slot = 1 - self.state[2]
        self.state[2] = slot
        for n in range(2):
            self._finish(n, (slot == n) | (self.state[n] == tile))
        self._read(slot, tile).start()

    def add(self, tile: Array, x: Array) -> None:
        slot = self.state[2]
        self._read(slot, tile).wait()
        self.buffer[slot] += x
        self._write(slot, tile).start()
        self.state[slot] = tile

    def finish(self) -> None:
        for n in range(2):
            self._finish(n, True)

    def _finish(self, slot: int, condition: Array | bool) -> None:
        tile = self.state[slot]

        @pl.when((tile >= 0) & condition)
        def _():
            self._write(slot, tile).wait()
            self.state[slot] = jnp.int32(-1)

    def _read(self, slot: Any, tile: Array) -> Any:
        semaphore = self.semaphores.at[0, slot]
        return pltpu.make_async_copy(self.sums.at[tile], self.buffer.at[slot], semaphore)

    def _write(self, slot: Any, tile: Array) -> Any:
        semaphore = self.semaphores.at[1, slot]
        return pltpu.make_async_copy(self.buffer.at[slot], self.sums.at[tile], semaphore)
