"""Time of the Pallas kernels beside that of XLA's programs, as the TPU compiler sees it.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
        python benchmarks/tpu_kernels.py

Needs no TPU: the loss, and its gradient with the forward pass that it needs, are compiled ahead of
time for one chip of each topology (`pip install 'jax[tpu]'`). Nothing is measured. A time is a
number of cycles, at the clock of the chip, from two sources:

  XLA's operations: the compiler's own estimate of each (`estimated_cycles` in the compiled
    program), loops as often as they run.
  Kernels, of which the compiler makes no estimate: their instructions as the compiler scheduled
    them (`final_bundles` in its dump). One bundle of instructions is one cycle, loops and branches as
    often as they run. Waits for memory are not in it. "memory" is the time that the traffic of the
    kernels' tiles takes at the chip's bandwidth, which overlaps with the instructions; it is none
    where XLA holds their operands in vector memory.

The two sources are not of one kind. `--calibrate` prints both for XLA's own fusions.
"""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DUMP = Path(tempfile.mkdtemp(prefix="sdjax_tpu_kernels_"))
# Read when the compiler is loaded.
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true"

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parents[1]))

import sdjax
from sdjax._src import pallas_tpu, tiling

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "Of TPU chips.")
ROWS = flags.DEFINE_integer("rows", 8192, "Rows.")
DEPTH = flags.DEFINE_integer("depth", 512, "Numbers in an embedding, in bfloat16.")
CLASSES = flags.DEFINE_multi_integer("classes", [80, 1024], "Numbers of labels.")
FORM = flags.DEFINE_enum("form", "out", ["out", "in"], "Form of the loss.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.07, "Below 1/40 no similarity bound is known.")

# Cycles of a second. Peak FLOP/s are 2 · matrix units · their entries · clock: 197e12 with four units
# of 128 × 128 for v5e, 459e12 with twice four for v5p, 918e12 with two of 256 × 256 for v6e.
CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
CORES = {"kernels": "pallas", "tiled XLA": "tiled", "XLA, all pairs": "dense"}


def main(argv: list[str]) -> None:
    del argv
    print("| chip | labels | function | " + " | ".join(f"{name}, ms" for name in CORES) + " |")
    print("|---|---|---|" + "---|" * len(CORES))
    try:
        for topology in TOPOLOGIES.value:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
            sharding, chip = SingleDeviceSharding(devices[0]), topology.partition(":")[0]
            for classes in CLASSES.value:
                for function in ("loss", "gradient"):
                    times = (
                        time(core, function, classes, sharding, chip) for core in CORES.values()
                    )
                    print(
                        f"| {chip} | {classes:,} | {function} | {' | '.join(times)} |", flush=True
                    )
    finally:
        shutil.rmtree(DUMP)


def time(
    implementation: str, function: str, classes: int, sharding: SingleDeviceSharding, chip: str
) -> str:
    def loss(z: jax.Array, labels: jax.Array) -> jax.Array:
        return sdjax.sd_loss(
            z,
            labels,
            form=FORM.value,
            temperature=TEMPERATURE.value,
            implementation=implementation,
        )

    z = jax.ShapeDtypeStruct((ROWS.value, DEPTH.value), jnp.bfloat16, sharding=sharding)
    labels = jax.ShapeDtypeStruct((ROWS.value, classes), jnp.bool_, sharding=sharding)
    program = jax.jit(loss if function == "loss" else jax.grad(loss))
    text = program.lower(z, labels).compile().as_text()
    kernels = sum(
        kernel_cycles(path)
        for path in DUMP.glob("*sdjax_*final_bundles.txt")
        if "schedule" not in path.name
    )
    total = xla_cycles(text) + kernels
    for path in DUMP.iterdir():
        path.unlink()
    milliseconds = 1e3 * total / CLOCKS[chip]
    share = f" ({1e3 * kernels / CLOCKS[chip]:.2f} in kernels)" if kernels else ""
    return f"{milliseconds:.2f}{share}"


# --- XLA's operations -----------------------------------------------------------------------------


def xla_cycles(text: str) -> float:
    """Estimated cycles of a compiled program, without its custom calls."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line):
            lines = computations[start[2]] = []
            entry = start[2] if start[1] else entry
        else:
            lines.append(line)

    def named(line: str, attribute: str) -> list[str]:
        found = re.search(rf"\b{attribute}=\{{?((?:%[\w.\-]+(?:, )?)+)", line)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []

    def cycles(name: str) -> float:
        total = 0.0
        for line in computations[name]:
            total += sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
            if " while(" in line:
                (body,), (condition,) = named(line, "body"), named(line, "condition")
                total += rounds(condition) * (cycles(body) + cycles(condition))
            elif " conditional(" in line:
                total += max(map(cycles, named(line, "branch_computations")))
            elif " call(" in line:
                total += sum(map(cycles, named(line, "to_apply")))
        return total

    def rounds(condition: str) -> float:
        lines = computations[condition]
        limits = [re.search(r"s32\[\]\S* constant\((\d+)\)", line) for line in lines]
        if numbers := [int(x[1]) for x in limits if x]:
            return max(numbers)
        # The inner loop of a sweep over the tiles of a batch with itself: of 1, 2, ... tiles.
        return (tiling.tiling(ROWS.value)[0] + 1) / 2

    return cycles(entry)


# --- kernels --------------------------------------------------------------------------------------


class Region(NamedTuple):
    """Bundles `begin` to `end` that a branch may jump over."""

    begin: int
    end: int


def kernel_cycles(path: Path) -> int:
    """Bundles of a kernel, each as often as it runs.

    The largest region that is jumped over by steps with nothing to do is the work on a tile. What
    lies in it runs once for each pair of tiles that meet; the regions beside it, which begin or end a
    row tile, once for each row tile; and what is around them in every grid step.
    """
    num_bundles, regions = bundles(path)
    count = -(-ROWS.value // pallas_tpu.TILE)
    steps, meetings = count * (count // 2 + 1), count * (count + 1) // 2

    def own(region: Region) -> int:
        inside = [
            x for x in regions if x != region and region.begin <= x.begin and x.end <= region.end
        ]
        outermost = [
            x
            for x in inside
            if not any(y != x and y.begin <= x.begin and x.end <= y.end for y in inside)
        ]
        return region.end - region.begin - sum(x.end - x.begin for x in outermost)

    work = max(regions, key=own)
    total = meetings * (work.end - work.begin)
    around = num_bundles - (work.end - work.begin)
    outer = 0
    for region in regions:
        apart = region.end <= work.begin or work.end <= region.begin
        if apart and not any(
            y != region
            and y.begin <= region.begin
            and region.end <= y.end
            and (y.end <= work.begin or work.end <= y.begin)
            for y in regions
        ):
            outer += region.end - region.begin
    return total + count * outer + steps * (around - outer)


def bundles(path: Path) -> tuple[int, list[Region]]:
    """Number of bundles, and the regions that branches jump over."""
    targets, branches, number = {}, [], 0
    for line in path.read_text().splitlines():
        start = re.match(r"\s*(0x[0-9a-f]+|0)\s.*?:", line)
        if not start:
            continue
        number = int(start[1], 16)
        for name in re.findall(r"Start/End empty region (\d+)", line):
            targets.setdefault(name, number)
        if jump := re.search(
            r"sbr\.rel \((?!!?%p\d+_p\d+\) target = \$region0).*?target = \$region(\d+)", line
        ):
            branches.append((number, jump[1]))
    regions = [Region(at + 1, targets[to]) for at, to in branches if targets.get(to, -1) > at]
    return number + 1, regions


if __name__ == "__main__":
    app.run(main)
