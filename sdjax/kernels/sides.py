"""Anchors and candidates as kernels take them: padded to whole tiles, vectors packed together."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax.labels import LabelIndices

Array = jax.Array

LANES = 128
SUBLANES = 8
MAX_LABEL_INDICES = 4
CHUNK = 2048  # labels of one step, at most
ROW_BYTES = 28 * 2**20  # what the rows of a tile may take in VMEM


class Side(NamedTuple):
    """N rows that are anchors or candidates.

    Attributes:
      y: bfloat16 or float32 [N, D]; s_ij = scale_i · scale_j · (y_i · y_j).
      scale: float32 [N].
      labels: multi-hot bool, integer or floating [N, C], int8 being the leanest; or `LabelIndices`
        of at most 4 labels a row.
      size: float32 [N], |S|.
      valid: bool [N], False where the row is no candidate.
      index: int32 [N], global number of the row; equal numbers are the same row.
    """

    y: Array
    scale: Array
    labels: Array | LabelIndices
    size: Array
    valid: Array
    index: Array


class Stats(NamedTuple):
    """Statistics of each anchor, float32 [A].

    Attributes:
      lse: log Σ_a e^{s_ia} over the candidates; 0 without any.
      count: number of positives.
      total: Σ_p w_ip.
      dot: Σ_p w_ip s_ip for form "out", log Σ_p w_ip e^{s_ip} for "in"; 0 without positives.
    """

    lse: Array
    count: Array
    total: Array
    dot: Array


class Vectors(NamedTuple):
    """The vectors of one side of a tile, columns [T, 1] or rows [1, T]."""

    scale: Array
    size: Array
    valid: Array  # int32, 0 or 1
    index: Array
    ids: tuple[Array, ...]  # label indices, -1 for none
    more: tuple[Array, ...]  # lse, dot, a, b for the gradient


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the pairs are cut into tiles: anchor tile i meets candidate tile j in `steps` steps.

    In a symmetric plan tile i meets the tiles i, i+1, ... i+steps−1 around the circle, so that
    each unordered pair of tiles is met once, and every anchor tile has as much to do.
    """

    tile_a: int
    tile_r: int
    num_a: int
    num_r: int
    cores: int
    chunk: int
    num_chunks: int
    ids_a: int  # label indices of a row
    ids_r: int
    symmetric: bool

    @property
    def steps(self) -> int:
        return self.num_r // 2 + 1 if self.symmetric else self.num_r

    @property
    def tiles_per_core(self) -> int:
        return self.num_a // self.cores

    @property
    def num_labels(self) -> int:
        return self.chunk * self.num_chunks

    def pairs(self) -> int:
        """Number of pairs that are computed."""
        tiles = self.num_a * (self.num_a + 1) // 2 if self.symmetric else self.num_a * self.num_r
        return tiles * self.tile_a * self.tile_r


def make_plan(anchors: Side, candidates: Side, tile: int, cores: int, symmetric: bool) -> Plan:
    """Tiles of at most `tile` rows, as even as multiples of 128 rows allow."""
    if tile < LANES or tile % LANES:
        raise ValueError(f"tile must be a multiple of {LANES}, got {tile}.")
    tile = max(LANES, min(tile, ROW_BYTES // row_bytes(anchors.y) // LANES * LANES))
    chunk, num_chunks = 0, 1
    if not isinstance(anchors.labels, LabelIndices):
        num_classes = anchors.labels.shape[1]
        num_chunks = math.ceil(num_classes / CHUNK)
        chunk = _round_up(math.ceil(num_classes / num_chunks), LANES)
    num_a, tile_a = _split(len(anchors.y), tile, cores)
    ids_a, ids_r = _num_ids(anchors.labels), _num_ids(candidates.labels)
    num_r, tile_r = (num_a, tile_a) if symmetric else _split(len(candidates.y), tile, 1)
    return Plan(tile_a, tile_r, num_a, num_r, cores, chunk, num_chunks, ids_a, ids_r, symmetric)


def _num_ids(labels: Array | LabelIndices) -> int:
    """Label indices of a row, 0 for multi-hot labels."""
    if not isinstance(labels, LabelIndices):
        return 0
    num_ids = np.shape(labels.indices)[1]
    if num_ids > MAX_LABEL_INDICES:
        raise ValueError(
            f"LabelIndices may hold {MAX_LABEL_INDICES} labels a row here, got {num_ids}."
        )
    return num_ids


def pad(x: Array, shape: tuple[int, ...]) -> Array:
    """`x` with zeros appended up to `shape`."""
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, after - before) for before, after in zip(x.shape, shape, strict=True)])


def padded_depth(y: Array) -> int:
    """The next multiple of 128 to D."""
    return _round_up(y.shape[1], LANES)


def row_bytes(y: Array) -> int:
    """VMEM that a row of a tile takes in the gradient, about.

    Two buffers of both sides, and what a product needs beside them; of float32, two of the gradient
    that leaves, two of the one that is summed, and the two products that are added to them.
    """
    return padded_depth(y) * (6 * y.dtype.itemsize + 6 * 4)


def pack(side: Side, num_rows: int, more: tuple[Array, ...] = ()) -> Array:
    """The vectors of a side as int32 [P, num_rows], P a multiple of 8.

    One array that is cut along its lanes is lean in memory, where a column would take 128 lanes.
    Floats are stored by their bits: a row number need not be exact in float32.
    """
    floats = [_bits(x) for x in (side.scale, side.size)]
    vectors = [*floats, side.valid.astype(jnp.int32), side.index.astype(jnp.int32)]
    if isinstance(side.labels, LabelIndices):
        vectors.extend(_distinct(jnp.asarray(side.labels.indices, jnp.int32)))
    packed = jnp.stack([*vectors, *map(_bits, more)])
    return pad(packed, (_round_up(len(packed), SUBLANES), num_rows))


def unpack(block: Array, axis: int, num_ids: int, num_more: int = 0) -> Vectors:
    """Inverse of `pack` on a tile, whose vectors lie along `axis`."""

    def part(k: int) -> Array:
        return lax.slice_in_dim(block, k, k + 1, axis=axis)

    def number(k: int) -> Array:
        return lax.bitcast_convert_type(part(k), jnp.float32)

    after = 4 + num_ids
    ids = tuple(part(k) for k in range(4, after))
    more = tuple(number(k) for k in range(after, after + num_more))
    return Vectors(number(0), number(1), part(2), part(3), ids, more)


def _distinct(indices: Array) -> list[Array]:
    """The columns of label indices [N, L], an index that was there before turned into -1."""
    columns = list(indices.T)
    for k, column in enumerate(columns):
        for before in columns[:k]:
            column = jnp.where(column == before, -1, column)
        columns[k] = column
    return columns


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


def _split(num_rows: int, tile: int, multiple: int) -> tuple[int, int]:
    """Number of tiles, and rows of a tile."""
    num_tiles = _round_up(max(1, math.ceil(num_rows / tile)), multiple)
    return num_tiles, _round_up(math.ceil(num_rows / num_tiles), LANES)


def _round_up(x: int, multiple: int) -> int:
    return max(1, math.ceil(x / multiple)) * multiple
