"""Compiled cost of the TPU kernels beside the same mathematics in plain JAX. Needs no TPU.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_kernels.py

Programs are compiled ahead of time for one chip of each topology (`pip install 'jax[tpu]'`). HBM is
arguments, results and temporaries; the peak is the compiler's, with the whole arrays that it puts
into vector memory. Operations and traffic are, for the kernels, what they declare of themselves;
for plain JAX, the compiler's count, where the body of a loop is counted once and is multiplied here
by the number of rounds. The time is the compiler's estimate, where it has one, not a measurement.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdjax.kernels import tpu

from sdjax import relations

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "Of TPU chips.")
BATCH = flags.DEFINE_integer("batch", 8192, "Rows.")
DEPTH = flags.DEFINE_integer("depth", 512, "Numbers in an embedding.")
CLASSES = flags.DEFINE_multi_integer("classes", [80, 8960], "Numbers of labels.")
TILE = flags.DEFINE_integer("tile", 512, "Rows of a tile.")
FORM = flags.DEFINE_enum("form", "out", ["out", "in"], "Form of the loss.")

HEADER = (
    "| chip | labels | function | implementation | GFLOP | MB moved | HBM MB | peak MB | ms |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
WEIGHT = relations.similarity_dissimilarity
Array = jax.Array


class Program(NamedTuple):
    name: str
    implementation: str
    function: Callable[..., Any]
    rounds: int | None  # of the loop, whose body the compiler counts once


def main(argv: list[str]) -> None:
    del argv
    print(HEADER)
    for topology in TOPOLOGIES.value:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        for classes in CLASSES.value:
            arguments = abstract_arguments(classes, SingleDeviceSharding(devices[0]))
            for program in programs(cores=2 if topology.startswith("v5p") else 1):
                cells = [topology.split(":")[0], classes, program.name, program.implementation]
                cells += cost(program, arguments[program.name])
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def programs(cores: int) -> Iterator[Program]:
    options = {"form": FORM.value}
    kernel = {**options, "tile": TILE.value, "cores": cores}
    rounds = -(-BATCH.value // TILE.value)

    def bind(function: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
        return lambda *sides_and_arrays: function(*sides_and_arrays, **kwargs)

    def statistics(rows):
        return tpu.statistics(rows, rows, WEIGHT, exclude_self=True, **kernel)

    def gradient(rows, *arrays):
        return tpu.gradient(rows, rows, WEIGHT, *arrays, exclude_self=True, **kernel)

    def self_statistics(rows):
        return tpu.self_statistics(rows, WEIGHT, **kernel)

    def self_gradient(rows, *arrays):
        return tpu.self_gradient(rows, WEIGHT, *arrays, **kernel)

    yield Program("statistics", "kernel, half the tiles", self_statistics, None)
    yield Program("statistics", "kernel", statistics, None)
    yield Program("statistics", "plain", bind(plain_statistics, **options), rounds)
    yield Program("gradient", "kernel, half the tiles", self_gradient, None)
    yield Program("gradient", "kernel", gradient, None)
    yield Program("gradient", "plain", bind(plain_gradient, **options), rounds)


def abstract_arguments(classes: int, sharding: SingleDeviceSharding) -> dict[str, tuple]:
    """Arguments of each function: shapes and dtypes."""
    array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    batch = BATCH.value
    vector = array((batch,), jnp.float32)
    rows = tpu.Side(
        y=array((batch, DEPTH.value), jnp.bfloat16),
        scale=vector,
        labels=array((batch, classes), jnp.int8),
        size=vector,
        valid=array((batch,), jnp.bool_),
        index=array((batch,), jnp.int32),
    )
    stats = tpu.Stats(vector, vector, vector, vector)
    return {"statistics": (rows,), "gradient": (rows, stats, vector, vector)}


def cost(program: Program, arguments: tuple) -> list[str]:
    compiled = jax.jit(program.function).lower(*arguments).compile()
    counts, memory = compiled.cost_analysis(), compiled.memory_analysis()
    hbm = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    rounds = program.rounds or 1
    seconds = counts.get("optimal_seconds", -1.0)
    return [
        f"{rounds * counts['flops'] / 1e9:.0f}",
        f"{rounds * counts['bytes accessed'] / 1e6:.0f}",
        f"{hbm / 1e6:.0f}",
        f"{memory.peak_memory_in_bytes / 1e6:.0f}",
        f"{rounds * seconds * 1e3:.2f}" if seconds > 0 else "none",
    ]


# --- the same in plain JAX: a tile of anchors against all candidates -----------------------------


def plain_statistics(rows: tpu.Side, *, form: str) -> tpu.Stats:
    """`tpu.self_statistics`."""

    def of_tile(anchors):
        s, w, valid = plain_tile(anchors, rows)
        lse = jax.nn.logsumexp(s, axis=1, where=valid)
        if form == "out":
            dot = (w * s).sum(axis=1)
        else:
            dot = jax.nn.logsumexp(s, axis=1, b=w, where=w > 0)
        return tpu.Stats(lse, (w > 0).sum(axis=1).astype(jnp.float32), w.sum(axis=1), dot)

    stats = lax.map(of_tile, tiled(rows))
    return jax.tree.map(lambda x: x.reshape(-1), stats)


def plain_gradient(
    rows: tpu.Side, stats: tpu.Stats, a: Array, b: Array, *, form: str
) -> tuple[Array, Array]:
    """`tpu.gradient` of one set of rows."""

    def of_tile(dy_candidates, tile):
        anchors, stats, a, b = tile
        s, w, valid = plain_tile(anchors, rows)
        q = jnp.where(valid, jnp.exp(s - stats.lse[:, None]), 0)
        share = w if form == "out" else w * jnp.exp(s - stats.dot[:, None])
        ds = a[:, None] * q - b[:, None] * share
        g = (ds * anchors.scale[:, None] * rows.scale).astype(rows.y.dtype)
        dy_anchors = jnp.matmul(g, rows.y, preferred_element_type=jnp.float32)
        dy_candidates += jnp.matmul(g.T, anchors.y, preferred_element_type=jnp.float32)
        return dy_candidates, dy_anchors

    zeros = jnp.zeros(rows.y.shape, jnp.float32)
    dy_candidates, dy_anchors = lax.scan(of_tile, zeros, tiled((rows, stats, a, b)))
    return dy_anchors.reshape(zeros.shape), dy_candidates


def plain_tile(anchors: tpu.Side, candidates: tpu.Side) -> tuple[Array, Array, Array]:
    """s, w and what is valid, [tile, R]."""
    dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    s = dot(anchors.y, candidates.y.T) * anchors.scale[:, None] * candidates.scale
    shared = jnp.matmul(anchors.labels, candidates.labels.T, preferred_element_type=jnp.int32)
    overlap = relations.Overlap(
        shared.astype(jnp.float32), anchors.size[:, None], candidates.size[None]
    )
    valid = candidates.valid & (anchors.index[:, None] != candidates.index)
    return s, jnp.where(valid, WEIGHT(overlap), 0), valid


def tiled(tree: Any) -> Any:
    """Rows cut into tiles; the batch is a multiple of them."""
    return jax.tree.map(lambda x: x.reshape(-1, TILE.value, *x.shape[1:]), tree)


if __name__ == "__main__":
    app.run(main)
