"""What the loss of a sharded batch costs each TPU of a pod, or each of some GPUs. Needs neither.

    python benchmarks/sharded.py
    python benchmarks/sharded.py --topologies=h100:1,h100:8,h100:16 --batches=4096,1048576

Value and gradient are compiled ahead of time for each topology (`pip install -e ".[train,tpu]"`, or
`".[train,gpu-forecast]"` for GPUs). The peak is the compiler's, arguments and results included; a
batch fits if it is within the memory that JAX takes. Operations of matrix products, and bytes that
a device sends or moves to and from its memory, are counted in the compiled program, loops times
their rounds; the rounds of a triangle's rows, which vary, count by their mean. Times are lower
bounds by the published rates.
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parents[1]))

import sdjax
from sdjax.forecast.chips import Chip
from sdjax.forecast.cost import cost
from sdjax.forecast.topology import topology

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:4x4", "v5p:8x8x16"], "Of TPUs or GPUs.")
BATCHES = flags.DEFINE_list("batches", ["32768", "262144", "1048576"], "Rows over all devices.")
IMPLEMENTATIONS = flags.DEFINE_list("implementations", ["ring"], "Of the loss.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the embeddings.")
DEPTH = flags.DEFINE_integer("depth", 512, "Numbers in an embedding.")
CLASSES = flags.DEFINE_integer("classes", 8921, "Number of labels.")
LABELS = flags.DEFINE_integer("labels", 16, "Most labels of a row, given as lists.")
GATHER = flags.DEFINE_integer("gather", 1, "Neighbours whose rows are gathered.")

HEADER = (
    "| devices | batch | rows a device | implementation | peak MB | fits | GFLOP | of 4·B²·D/N | "
    "MB sent: ring | gathered | scattered | summed | HBM MB | "
    "least ms: products | HBM | exchange | compile s |\n|"
) + "---|" * 17


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_platforms", "cpu")
    print(HEADER)
    for name in TOPOLOGIES.value:
        chip, devices = topology(name)
        grid = (len(devices) // GATHER.value, GATHER.value)
        mesh = jax.make_mesh(grid, ("ring", "near"), (AxisType.Auto,) * 2, devices=devices)
        for batch in map(int, BATCHES.value):
            for implementation in IMPLEMENTATIONS.value:
                how = implementation + (f", {GATHER.value} gathered" if GATHER.value > 1 else "")
                cells = [name, f"{batch:,}", f"{batch // len(devices):,}", how]
                cells += measure(chip, mesh, batch, implementation)
                print(f"| {' | '.join(cells)} |", flush=True)


def measure(chip: Chip, mesh: jax.sharding.Mesh, batch: int, implementation: str) -> list[str]:
    """Cells of one row of the table."""
    axes = mesh.axis_names if GATHER.value > 1 else mesh.axis_names[0]
    spec = P(axes)
    rows = NamedSharding(mesh, spec)
    z = jax.ShapeDtypeStruct((batch, DEPTH.value), jnp.dtype(DTYPE.value), sharding=rows)
    indices = jax.ShapeDtypeStruct((batch, LABELS.value), jnp.int32, sharding=rows)
    labels = sdjax.LabelIndices(indices, CLASSES.value)

    def local(z: jax.Array, labels: sdjax.LabelIndices) -> Any:
        def loss(z: jax.Array) -> jax.Array:
            return sdjax.sd_loss(z, labels, axis_name=axes, implementation=implementation)

        return jax.value_and_grad(loss)(z)

    run = jax.shard_map(
        local, mesh=mesh, in_specs=(spec, spec), out_specs=(P(), spec), check_vma=False
    )
    traced = jax.jit(run).trace(z, labels)
    start = time.perf_counter()
    compiled: Any = traced.lower().compile()
    seconds = time.perf_counter() - start
    found = cost(compiled, chip, list(mesh.devices.flat), batch // mesh.size)
    ideal = 4 * batch**2 * DEPTH.value / mesh.size
    # The compiler may gather, or scatter, by a sum of arrays that are mostly zeros.
    kinds = ("collective-permute", "all-gather", "reduce-scatter", "all-reduce")
    sent = [sum(each.sent for each in found.collectives if each.kind == kind) for kind in kinds]
    return [
        f"{found.peak / 1e6:,.0f}",
        "yes" if found.peak <= chip.room else "no",
        f"{found.flop / 1e9:,.0f}",
        f"{found.flop / ideal:.2f}",
        *(f"{amount / 1e6:,.0f}" for amount in sent),
        f"{found.traffic / 1e6:,.0f}",
        *(f"{1e3 * least:.3g}" for least in found.seconds.values()),
        f"{seconds:.0f}",
    ]


if __name__ == "__main__":
    app.run(main)
