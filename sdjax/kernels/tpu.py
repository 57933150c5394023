"""The tiled core as TPU kernels: statistics and gradient without any [A, R] array.

A grid step takes a tile of anchors and a tile of candidates: similarity and label overlap on the
matrix unit, weight and online logsumexp on the vector unit. The gradient computes its tiles anew.
With one set of rows on both sides each unordered pair of tiles is computed once.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sdjax.kernels import tile as tiles
from sdjax.kernels.sides import (
    LANES,
    SUBLANES,
    Plan,
    Side,
    Stats,
    Vectors,
    make_plan,
    pack,
    pad,
    padded_depth,
    row_bytes,
    unpack,
)
from sdjax.kernels.tile import START, State
from sdjax.labels import LabelIndices
from sdjax.pairs import Form
from sdjax.relations import Weight

Array = jax.Array
Ref = Any
Interpret = bool | pltpu.InterpretParams

_VMEM_BYTES = 60 * 2**20  # TPU v5 and later have 64 MiB or more
_RESIDENT_BYTES = 52 * 2**20  # of which labels may stay there with the tiles
_MATMUL = (((1,), (0,)), ((), ()))
_CONTRACT_LAST = (((1,), (1,)), ((), ()))
_CONTRACT_FIRST = (((0,), (0,)), ((), ()))


def statistics(
    anchors: Side,
    candidates: Side,
    weight: Weight,
    *,
    exclude_self: bool = False,
    form: Form = "out",
    balanced: Array | None = None,
    tile: int = 512,
    cores: int = 1,
    interpret: Interpret = False,
) -> Stats:
    """Statistics of every anchor over all candidates.

      lse_i = log Σ_a e^{s_ia},  dot_i = Σ_p w_ip s_ip, or log Σ_p w_ip e^{s_ip} for form "in"

    Args:
      anchors: A rows; their `valid` is not looked at.
      candidates: R rows, of the same dtypes and numbers of columns.
      weight: the weight of a pair from its overlap: elementwise, without arrays of its own.
      exclude_self: leave out pairs whose `index` is equal.
      form: "out" or "in".
      balanced: scaled multi-hot labels of the anchors, float32 or bfloat16 [A, C]; `shared` is then
        their product with the candidates' labels. Needs multi-hot labels.
      tile: rows of a tile at most, a multiple of 128.
      cores: TensorCores that share the work: 2 on chips whose two cores are one device.
      interpret: False, or `pltpu.InterpretParams()` to run on a CPU.

    Returns:
      `Stats`, float32 [A] each.

    Raises:
      ValueError: if the tile or the labels do not suit.
    """
    plan = make_plan(anchors, candidates, tile, cores, symmetric=False)
    options = _Options(weight, exclude_self, form, interpret)
    operands = _operands(plan, anchors, candidates, balanced)
    states, _ = _run_statistics(plan, options, operands)
    return _stats(states, len(anchors.y), form)


def self_statistics(
    rows: Side,
    weight: Weight,
    *,
    exclude_self: bool = True,
    form: Form = "out",
    tile: int = 512,
    cores: int = 1,
    interpret: Interpret = False,
) -> Stats:
    """`statistics(rows, rows, ...)` in half the products: s_ij = s_ji, and so is the overlap.

    Args:
      rows: N rows, anchors and candidates.
      weight: as in `statistics`; called with the sizes of either side as `anchor_size`.
      exclude_self, form, tile, cores, interpret: as in `statistics`.

    Returns:
      `Stats`, float32 [N] each.

    Raises:
      ValueError: if the tile or the labels do not suit.
    """
    plan = make_plan(rows, rows, tile, cores, symmetric=True)
    options = _Options(weight, exclude_self, form, interpret)
    states, column_states = _run_statistics(plan, options, _operands(plan, rows, rows, None))
    # [1 + cores, N]: what each row saw as an anchor, and as a candidate of each core's anchors.
    both = State(*(jnp.concatenate(pair) for pair in zip(states, column_states, strict=True)))
    return _stats(tiles.merge(both, form, axis=0), len(rows.y), form)


def gradient(
    anchors: Side,
    candidates: Side,
    weight: Weight,
    stats: Stats,
    a: Array,
    b: Array,
    *,
    exclude_self: bool = False,
    form: Form = "out",
    balanced: Array | None = None,
    tile: int = 512,
    cores: int = 1,
    interpret: Interpret = False,
) -> tuple[Array, Array]:
    """Gradient with respect to the embeddings of both sides.

      ds_ij = a_i q_ij − b_i w_ij, or a_i q_ij − b_i w_ij e^{s_ij − dot_i} for form "in"
      dy_i = Σ_j ds_ij scale_i scale_j y_j,   dy_j = Σ_i ds_ij scale_i scale_j y_i

    with q_ij = e^{s_ij − lse_i}. Products are of the dtype of y, their sums are float32.

    Args:
      anchors, candidates, weight: as in `statistics`.
      stats: what `statistics` returned for them.
      a: float32 [A], 0 for anchors that do not count.
      b: float32 [A], likewise.
      exclude_self, form, balanced, tile, cores, interpret: as in `statistics`.

    Returns:
      Float32 [A, D] and [R, D].

    Raises:
      ValueError: if the tile or the labels do not suit.
    """
    plan = make_plan(anchors, candidates, tile, cores, symmetric=False)
    options = _Options(weight, exclude_self, form, interpret)
    operands = _operands(plan, anchors, candidates, balanced, (stats.lse, stats.dot, a, b))
    dy_anchors, dy_candidates = _run_gradient(plan, options, operands)
    (num_anchors, depth), num_candidates = anchors.y.shape, len(candidates.y)
    return dy_anchors[:num_anchors, :depth], dy_candidates[:num_candidates, :depth]


def self_gradient(
    rows: Side,
    weight: Weight,
    stats: Stats,
    a: Array,
    b: Array,
    *,
    exclude_self: bool = True,
    form: Form = "out",
    tile: int = 512,
    cores: int = 1,
    interpret: Interpret = False,
) -> Array:
    """Sum of the two results of `gradient(rows, rows, ...)`, in half the products.

      dy_i = Σ_j (ds_ij + ds_ji) scale_i scale_j y_j

    Args:
      rows, weight: as in `self_statistics`.
      stats: what `self_statistics` returned for them.
      a, b: float32 [N], as in `gradient`.
      exclude_self, form, tile, cores, interpret: as in `statistics`.

    Returns:
      Float32 [N, D].

    Raises:
      ValueError: if the tile or the labels do not suit.
    """
    plan = make_plan(rows, rows, tile, cores, symmetric=True)
    options = _Options(weight, exclude_self, form, interpret)
    operands = _operands(plan, rows, rows, None, (stats.lse, stats.dot, a, b))
    as_anchors, as_candidates = _run_gradient(plan, options, operands)
    num_rows, depth = rows.y.shape
    return (as_anchors + as_candidates)[:num_rows, :depth]


# --- operands ------------------------------------------------------------------------------------


class _Options(NamedTuple):
    weight: Weight
    exclude_self: bool
    form: Form
    interpret: Interpret


class _Operands(NamedTuple):
    """What the kernels read, whole arrays or the references to their tiles."""

    vectors_a: Any  # int32 [P, A], see `pack`
    vectors_r: Any
    y_a: Any
    y_r: Any
    labels_a: Any = None  # None with label indices, which are among the vectors
    labels_r: Any = None


def _operands(
    plan: Plan,
    anchors: Side,
    candidates: Side,
    balanced: Array | None,
    more: tuple[Array, ...] = (),
) -> _Operands:
    """Both sides padded to whole tiles; padding is not valid and has a scale of 0."""
    rows_a, rows_r = plan.num_a * plan.tile_a, plan.num_r * plan.tile_r
    depth = padded_depth(anchors.y)
    labels_a, labels_r = anchors.labels, candidates.labels
    if not isinstance(labels_a, LabelIndices) and not isinstance(labels_r, LabelIndices):
        shared_with = labels_a if balanced is None else balanced
        labels = tuple(
            pad(_multi_hot(x), (num_rows, plan.num_labels))
            for x, num_rows in ((shared_with, rows_a), (labels_r, rows_r))
        )
    elif type(labels_a) is type(labels_r) and balanced is None:
        labels = ()  # They are among the vectors.
    else:
        raise ValueError("both sides take multi-hot labels, or LabelIndices and no balanced ones.")
    more_r = more if plan.symmetric else ()
    return _Operands(
        pack(anchors, rows_a, more),
        pack(candidates, rows_r, more_r),
        pad(anchors.y, (rows_a, depth)),
        pad(candidates.y, (rows_r, depth)),
        *labels,
    )


def _multi_hot(labels: Array) -> Array:
    """`labels` of a dtype that the matrix unit multiplies."""
    floating = jnp.issubdtype(labels.dtype, jnp.floating)
    return labels if floating else labels.astype(jnp.int8)


# --- the grid ------------------------------------------------------------------------------------


def _anchor_tile(plan: Plan, core: Array, turn: Array) -> Array:
    return core * plan.tiles_per_core + turn


def _candidate_tile(plan: Plan, core: Array, turn: Array, step: Array) -> Array:
    if not plan.symmetric:
        return step
    return lax.rem(_anchor_tile(plan, core, turn) + step, jnp.int32(plan.num_r))


class _Here(NamedTuple):
    """Where a kernel stands in the grid (core, turn, step, chunk)."""

    core: Array
    anchor: Array
    candidate: Array
    begin: Array  # first step of this core
    begin_anchor: Array  # first step of the anchor tile
    begin_pair: Array  # first chunk of labels
    end_pair: Array  # last chunk
    end_anchor: Array
    end: Array
    active: Array | bool  # False where the pair of tiles was met from the other side
    apart: Array | bool  # active, and in a symmetric plan not a tile with itself


def _here(plan: Plan) -> _Here:
    core, turn, step, chunk = (pl.program_id(k) for k in range(4))
    anchor = _anchor_tile(plan, core, turn)
    begin_pair, end_pair = chunk == 0, chunk == plan.num_chunks - 1
    begin_anchor, end_anchor = begin_pair & (step == 0), end_pair & (step == plan.steps - 1)
    active = apart = True
    if plan.symmetric:
        # Across the circle, two tiles of an even number meet from both sides.
        active = (2 * step < plan.num_r) | (2 * anchor < plan.num_r)
        apart = active & (step > 0)
    return _Here(
        core=core,
        anchor=anchor,
        candidate=_candidate_tile(plan, core, turn, step),
        begin=begin_anchor & (turn == 0),
        begin_anchor=begin_anchor,
        begin_pair=begin_pair,
        end_pair=end_pair,
        end_anchor=end_anchor,
        end=end_anchor & (turn == plan.tiles_per_core - 1),
        active=active,
        apart=apart,
    )


def _in_specs(plan: Plan, operands: _Operands) -> _Operands:
    """Which part of each operand a grid step reads."""

    def a_of(core, turn, *_):
        return _anchor_tile(plan, core, turn)

    def r_of(core, turn, step, _):
        return _candidate_tile(plan, core, turn, step)

    depth = operands.y_a.shape[1]
    specs = [
        pl.BlockSpec((len(operands.vectors_a), plan.tile_a), lambda *ids: (0, a_of(*ids))),
        pl.BlockSpec((len(operands.vectors_r), plan.tile_r), lambda *ids: (0, r_of(*ids))),
        pl.BlockSpec((plan.tile_a, depth), lambda *ids: (a_of(*ids), 0)),
        pl.BlockSpec((plan.tile_r, depth), lambda *ids: (r_of(*ids), 0)),
    ]
    if operands.labels_a is not None:
        if _resident(plan, operands):
            specs.append(pl.BlockSpec((plan.tile_a, plan.num_labels), lambda *ids: (a_of(*ids), 0)))
        else:
            specs.append(pl.BlockSpec((plan.tile_a, plan.chunk), lambda *ids: (a_of(*ids), ids[3])))
        specs.append(pl.BlockSpec((plan.tile_r, plan.chunk), lambda *ids: (r_of(*ids), ids[3])))
    return _Operands(*specs)


def _resident(plan: Plan, operands: _Operands) -> bool:
    """Whether all labels of an anchor tile stay in VMEM, which halves the traffic of labels."""
    if operands.labels_a.dtype == jnp.float32:
        return False  # An exact product needs their place.
    buffers = 2 * plan.tile_a * plan.num_labels * operands.labels_a.dtype.itemsize
    temporaries = 8 * plan.tile_a * plan.tile_r * 4 + plan.tile_a * row_bytes(operands.y_a)
    return buffers + temporaries <= _RESIDENT_BYTES


def _cost(plan: Plan, operands: _Operands, products: int, exps: int) -> pl.CostEstimate:
    """`products` of depth D and one of depth C a pair."""
    depth, tiles_met = operands.y_a.shape[1], plan.pairs() // (plan.tile_a * plan.tile_r)
    labels = 0
    bytes_a = operands.y_a.nbytes + operands.vectors_a.nbytes
    bytes_of_tile = plan.tile_r * depth * operands.y_r.dtype.itemsize
    if operands.labels_a is not None:
        labels = plan.num_labels
        times = 1 if _resident(plan, operands) else tiles_met // plan.num_a
        bytes_a += operands.labels_a.nbytes * times
        bytes_of_tile += plan.tile_r * labels * operands.labels_r.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * plan.pairs() * (products * depth + labels),
        transcendentals=exps * plan.pairs(),
        bytes_accessed=bytes_a + tiles_met * bytes_of_tile,
    )


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
        vmem_limit_bytes=_VMEM_BYTES,
    )


# --- a pair of tiles -----------------------------------------------------------------------------


def _dot(x: Array, y: Array, dimensions=_CONTRACT_LAST) -> Array:
    """Product with float32 result; small integers are multiplied as such."""
    integers = jnp.issubdtype(x.dtype, jnp.integer)
    exact = x.dtype == jnp.float32
    product = lax.dot_general(
        x,
        y,
        dimensions,
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.int32 if integers else jnp.float32,
    )
    return product.astype(jnp.float32)


def _label_product(plan: Plan, refs: _Operands) -> Array:
    """Overlap [TA, TR] in the labels of this step's chunk."""
    if refs.labels_a.shape[1] == plan.chunk:
        labels_a = refs.labels_a[...]
    else:
        start = pl.multiple_of(pl.program_id(3) * plan.chunk, LANES)
        labels_a = refs.labels_a[:, pl.ds(start, plan.chunk)]
    return _dot(labels_a, _cast(refs.labels_r[...], labels_a.dtype))


def _cast(x: Array, dtype: jnp.dtype) -> Array:
    if x.dtype == dtype:
        return x
    # Between int8 and bfloat16 there is no conversion but by way of float32.
    return x.astype(jnp.float32).astype(dtype)


def _add_chunk(plan: Plan, here: _Here, refs: _Operands, shared_ref: Ref) -> None:
    """Adds the overlap of this chunk of labels, where there are several."""
    if plan.num_chunks == 1:
        return

    @pl.when(here.active & here.begin_pair)
    def _():
        shared_ref[...] = jnp.zeros_like(shared_ref)

    @pl.when(here.active)
    def _():
        shared_ref[...] += _label_product(plan, refs)


class _Tile(NamedTuple):
    columns: Vectors
    rows: Vectors
    s: Array
    factor: Array
    shared: Array


def _load(plan: Plan, refs: _Operands, columns_ref: Ref, shared_ref: Ref, more: int = 0) -> _Tile:
    """The similarities and overlaps of a pair of tiles."""
    columns = unpack(columns_ref[...], 1, plan.ids_a, more)
    rows = unpack(refs.vectors_r[...], 0, plan.ids_r, more if plan.symmetric else 0)
    s, factor = tiles.similarity(columns, rows, _dot(refs.y_a[...], refs.y_r[...]))
    if plan.ids_a:
        shared = tiles.shared_indices(columns, rows)
    elif plan.num_chunks == 1:
        shared = _label_product(plan, refs)
    else:
        shared = shared_ref[...]
    return _Tile(columns, rows, s, factor, shared)


def _weigh(tile: _Tile, options: _Options, swap: bool = False) -> tiles.Pairs:
    anchor, candidate = (tile.rows, tile.columns) if swap else (tile.columns, tile.rows)
    return tiles.weigh(anchor, candidate, tile.s, tile.shared, options.weight, options.exclude_self)


def _shared_shape(plan: Plan) -> tuple[int, int]:
    return (plan.tile_a, plan.tile_r) if plan.num_chunks > 1 else (SUBLANES, LANES)


# --- statistics ----------------------------------------------------------------------------------


def _run_statistics(plan: Plan, options: _Options, operands: _Operands) -> tuple[State, State]:
    """States of the rows as anchors [1, A], and in a symmetric plan as candidates [cores, R]."""
    num_vectors = operands.vectors_a.shape[0]
    out_shape = [jax.ShapeDtypeStruct((SUBLANES, plan.num_a * plan.tile_a), jnp.float32)]
    out_specs = [
        pl.BlockSpec((SUBLANES, plan.tile_a), lambda p, i, *_: (0, _anchor_tile(plan, p, i)))
    ]
    if plan.symmetric:
        column_shape = (plan.num_r, SUBLANES, plan.tile_r)
        out_shape.append(jax.ShapeDtypeStruct((plan.cores, *column_shape), jnp.float32))
        out_specs.append(pl.BlockSpec((None, *column_shape), lambda p, *_: (p, 0, 0, 0)))
    call = pl.pallas_call(
        functools.partial(_statistics_kernel, plan, options),
        out_shape=out_shape,
        grid=(plan.cores, plan.tiles_per_core, plan.steps, plan.num_chunks),
        in_specs=[_in_specs(plan, operands)],
        out_specs=out_specs,
        scratch_shapes=[
            pltpu.VMEM((plan.tile_a, num_vectors), jnp.int32),
            pltpu.VMEM(_shared_shape(plan), jnp.float32),
            pltpu.VMEM((len(State._fields), plan.tile_a, LANES), jnp.float32),
        ],
        compiler_params=_compiler_params(),
        cost_estimate=_cost(plan, operands, 1, (1 + plan.symmetric) * _exps(options.form)),
        interpret=options.interpret,
        name="sdjax_statistics",
    )
    with jax.enable_x64(False):
        outputs = call(operands)
    states = State(*(outputs[0][k][None] for k in range(len(State._fields))))
    if not plan.symmetric:
        return states, states
    columns = [outputs[1][:, :, k].reshape(plan.cores, -1) for k in range(len(State._fields))]
    return states, State(*columns)


def _exps(form: Form) -> int:
    return 1 if form == "out" else 3


def _stats(state: State, num_rows: int, form: Form) -> Stats:
    lse, count, total = tiles.log_sum(state.top, state.mass), state.count, state.total
    dot = tiles.log_sum(state.top_in, state.dot) if form == "in" else state.dot
    return Stats(*(x[0, :num_rows] for x in (lse, count, total, dot)))


def _statistics_kernel(plan: Plan, options: _Options, refs: _Operands, out_ref: Ref, *others: Ref):
    *column_out, columns_ref, shared_ref, state_ref = others
    here = _here(plan)

    if plan.symmetric:

        @pl.when(here.begin)
        def _():
            for k, start in enumerate(START):
                shape = (plan.num_r, 1, plan.tile_r)
                column_out[0][:, k : k + 1, :] = jnp.full(shape, start, jnp.float32)

    @pl.when(here.begin_anchor)
    def _():
        columns_ref[...] = refs.vectors_a[...].T
        for k, start in enumerate(START):
            state_ref[k] = jnp.full(state_ref.shape[1:], start, jnp.float32)

    _add_chunk(plan, here, refs, shared_ref)
    form = options.form

    @pl.when(here.active & here.end_pair)
    def _():
        tile = _load(plan, refs, columns_ref, shared_ref)
        before = State(*(state_ref[k] for k in range(len(START))))
        fold = tiles.row_fold(plan.tile_r)
        after = tiles.accumulate(before, _weigh(tile, options), form, fold)
        for k, x in enumerate(after):
            state_ref[k] = x
        if plan.symmetric:
            _add_columns(plan, options, here, tile, column_out[0])

    @pl.when(here.end_anchor)
    def _():
        turned = State(*(state_ref[k].T for k in range(len(START))))
        for k, x in enumerate(tiles.merge(turned, form, axis=0)):
            out_ref[k : k + 1, :] = x


def _add_columns(plan: Plan, options: _Options, here: _Here, tile: _Tile, out_ref: Ref) -> None:
    """Adds the anchors of a tile to the states of its candidates, as their candidates."""

    @pl.when(here.apart)
    def _():
        before = State(*(out_ref[here.candidate, k : k + 1, :] for k in range(len(START))))
        pairs = _weigh(tile, options, swap=True)
        after = tiles.accumulate(before, pairs, options.form, tiles.COLUMN_FOLD)
        for k, x in enumerate(after):
            out_ref[here.candidate, k : k + 1, :] = x


# --- gradient ------------------------------------------------------------------------------------


def _run_gradient(plan: Plan, options: _Options, operands: _Operands) -> tuple[Array, Array]:
    """Gradients of the padded rows [A, D] as anchors, and [R, D] as candidates."""
    num_vectors, depth = operands.vectors_a.shape[0], operands.y_a.shape[1]
    sums = jnp.zeros((plan.cores * plan.num_r, plan.tile_r, depth), jnp.float32)
    cost = _cost(plan, operands, 3, (1 + plan.symmetric) * (1 if options.form == "out" else 3))
    call = pl.pallas_call(
        functools.partial(_gradient_kernel, plan, options),
        out_shape=[
            jax.ShapeDtypeStruct((plan.num_a * plan.tile_a, depth), jnp.float32),
            jax.ShapeDtypeStruct(sums.shape, sums.dtype),
        ],
        grid=(plan.cores, plan.tiles_per_core, plan.steps, plan.num_chunks),
        in_specs=[_in_specs(plan, operands), pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=[
            pl.BlockSpec((plan.tile_a, depth), lambda p, i, *_: (_anchor_tile(plan, p, i), 0)),
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        scratch_shapes=[
            pltpu.VMEM((plan.tile_a, num_vectors), jnp.int32),
            pltpu.VMEM(_shared_shape(plan), jnp.float32),
            pltpu.VMEM((2, plan.tile_r, depth), jnp.float32),
            pltpu.SMEM((3,), jnp.int32),
            pltpu.SemaphoreType.DMA((2, 2)),
        ],
        input_output_aliases={len(jax.tree.leaves(operands)): 1},
        compiler_params=_compiler_params(),
        cost_estimate=pl.CostEstimate(
            cost.flops, cost.transcendentals, cost.bytes_accessed + _sum_bytes(plan, depth)
        ),
        interpret=options.interpret,
        name="sdjax_gradient",
    )
    with jax.enable_x64(False):
        dy_a, dy_r = call(operands, sums)
    dy_r = dy_r.reshape(plan.cores, -1, depth)
    return dy_a, dy_r[0] if plan.cores == 1 else dy_r.sum(axis=0)


def _sum_bytes(plan: Plan, depth: int) -> int:
    """Traffic of the outputs: each pair of tiles reads and writes a tile of candidates."""
    written = plan.num_a * plan.tile_a * depth
    return 4 * (written + 2 * plan.pairs() // plan.tile_a * depth)


class _CandidateSums:
    """Sums over anchors of a tile of candidates [TR, D], kept in HBM.

    Anchors are the outer loop, so each step adds to another tile: it is fetched while the step
    computes, and written back during the next. Two buffers take turns.

    Attributes of `state_ref`, in scalar memory: the tile that each buffer is still writing, or −1;
    and the buffer in use.
    """

    def __init__(self, sums_ref: Ref, buffer_ref: Ref, state_ref: Ref, semaphores: Ref):
        self.sums, self.buffer = sums_ref, buffer_ref
        self.state, self.semaphores = state_ref, semaphores

    def begin(self) -> None:
        for k, value in enumerate((-1, -1, 0)):
            self.state[k] = jnp.int32(value)

    def fetch(self, tile: Array) -> None:
        """Starts to read; a buffer in use, or a tile that is still being written, is awaited."""
        slot = 1 - self.state[2]
        self.state[2] = slot
        for k in range(2):
            self._finish(k, (slot == k) | (self.state[k] == tile))
        self._read(slot, tile).start()

    def add(self, tile: Array, x: Array) -> None:
        slot = self.state[2]
        self._read(slot, tile).wait()
        self.buffer[slot] += x
        self._write(slot, tile).start()
        self.state[slot] = tile

    def finish(self) -> None:
        for k in range(2):
            self._finish(k, True)

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


def _gradient_kernel(
    plan: Plan,
    options: _Options,
    refs: _Operands,
    zeros_ref: Ref,
    dy_ref: Ref,
    sums_ref: Ref,
    columns_ref: Ref,
    shared_ref: Ref,
    *sum_refs: Ref,
):
    del zeros_ref  # The same memory as sums_ref.
    here = _here(plan)
    sums = _CandidateSums(sums_ref, *sum_refs)
    candidate = here.core * plan.num_r + here.candidate

    @pl.when(here.begin)
    def _():
        sums.begin()

    @pl.when(here.begin_anchor)
    def _():
        columns_ref[...] = refs.vectors_a[...].T
        dy_ref[...] = jnp.zeros_like(dy_ref)

    @pl.when(here.apart & here.begin_pair)
    def _():
        sums.fetch(candidate)

    _add_chunk(plan, here, refs, shared_ref)

    @pl.when(here.active & here.end_pair)
    def _():
        tile = _load(plan, refs, columns_ref, shared_ref, more=4)
        ds = tiles.similarity_gradient(tile.columns, _weigh(tile, options), options.form)
        if plan.symmetric:
            swapped = _weigh(tile, options, swap=True)
            ds += tiles.similarity_gradient(tile.rows, swapped, options.form)
        g = (ds * tile.factor).astype(refs.y_a.dtype)
        dy_ref[...] += _dot(g, refs.y_r[...], _MATMUL)

        @pl.when(here.apart)
        def _():
            sums.add(candidate, _dot(g, refs.y_a[...], _CONTRACT_FIRST))

    @pl.when(here.end)
    def _():
        sums.finish()
