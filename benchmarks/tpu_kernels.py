"""Time of the Pallas kernels beside that of XLA's programs, as the TPU compiler sees it.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \\
        python benchmarks/tpu_kernels.py

Needs no TPU (`pip install 'jax[tpu]'`), and some ten minutes. The loss, and its gradient with the
forward pass before it, are compiled ahead of time for one chip of each topology. Nothing is
measured: a time is a number of cycles at the clock of the chip, from two sources.

  XLA's operations: the compiler's own estimate of each (`estimated_cycles` in the compiled
    program), loops as often as they run. It has 1.2 µs for even the smallest operation, and a tile
    takes dozens of small ones. In brackets, a time without the first 1.2 µs of each.
  Kernels, of which the compiler makes no estimate: their instructions as it scheduled them (the
    `final_bundles` of its dump), a bundle of instructions to the cycle, loops and branches as often
    as they run. Waits for memory, and for a grid step to begin, are not in it.

For a fusion of XLA's own the two may be compared: on a v5e, 8,448 estimated cycles and 7,831
bundles for a product of 1,024 × 512 × 1,024.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

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
TEMPERATURE = flags.DEFINE_float("temperature", 0.07, "Below 1/40 similarities are not bounded.")
DUMP = flags.DEFINE_string("dump", None, "Of the compiler; print the cycles of kernels alone.")

# Cycles of a second. Peak FLOP/s are 2 · matrix units · their entries · clock: 197e12 with four
# units of 128 × 128 for v5e, 459e12 with twice four for v5p, 918e12 with two of 256 × 256 for v6e.
CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
LEAST_SECONDS = 1.2e-6
CORES = {"kernels": "pallas", "tiled XLA": "tiled", "XLA, all pairs": "dense"}


def main(argv: list[str]) -> None:
    if DUMP.value:
        print(json.dumps(kernels_of_program(TOPOLOGIES.value[0], CLASSES.value[0])))
        return
    print("| chip | labels | function | " + " | ".join(f"{name}, ms" for name in CORES) + " |")
    print("|---|---|---|" + "---|" * len(CORES))
    for topology in TOPOLOGIES.value:
        for classes in CLASSES.value:
            kernels = in_kernels(argv, topology, classes)
            for function, of_kernels in kernels.items():
                row = [topology.partition(":")[0], f"{classes:,}", function]
                millisecond = CLOCKS[row[0]] / 1e3
                for core in CORES.values():
                    text = compiled(core, function, classes, topology)
                    cycles, less = xla_cycles(text, LEAST_SECONDS * 1e3 * millisecond)
                    inside = of_kernels if core == "pallas" else 0
                    total, rest = ((x + inside) / millisecond for x in (cycles, less))
                    kernels_alone = f", kernels {inside / millisecond:.2f}" if inside else ""
                    row.append(f"{total:.2f} ({rest:.2f}){kernels_alone}")
                print(f"| {' | '.join(row)} |", flush=True)


def compiled(implementation: str, function: str, classes: int, topology: str) -> str:
    """The text of a program for one chip."""

    def loss(z: jax.Array, labels: jax.Array) -> jax.Array:
        options = {"form": FORM.value, "temperature": TEMPERATURE.value}
        return sdjax.sd_loss(z, labels, implementation=implementation, **options)

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = SingleDeviceSharding(devices[0])
    z = jax.ShapeDtypeStruct((ROWS.value, DEPTH.value), jnp.bfloat16, sharding=sharding)
    labels = jax.ShapeDtypeStruct((ROWS.value, classes), jnp.bool_, sharding=sharding)
    program = jax.jit(loss if function == "loss" else jax.grad(loss))
    return program.lower(z, labels).compile().as_text()


# --- XLA's operations -----------------------------------------------------------------------------


def xla_cycles(text: str, least: float) -> tuple[float, float]:
    """Estimated cycles of a compiled program without its custom calls.

    Returns:
      All of them, and those without the first `least` of each operation.
    """
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

    def cycles(name: str, free: float) -> float:
        total = 0.0
        for line in computations[name]:
            for number in re.findall(r'"estimated_cycles":"(\d+)"', line):
                total += max(int(number) - free, 0)
            if " while(" in line:
                (body,), (condition,) = named(line, "body"), named(line, "condition")
                total += rounds(condition) * (cycles(body, free) + cycles(condition, free))
            elif " conditional(" in line:
                keys = "branch_computations", "true_computation", "false_computation"
                branches = [branch for key in keys for branch in named(line, key)]
                total += max(cycles(branch, free) for branch in branches)
            elif " call(" in line:
                total += sum(cycles(called, free) for called in named(line, "to_apply"))
        return total

    def rounds(condition: str) -> float:
        lines = computations[condition]
        limits = [re.search(r"s32\[\]\S* constant\((\d+)\)", line) for line in lines]
        if numbers := [int(x[1]) for x in limits if x]:
            return max(numbers)
        # The inner loop of a sweep over the tiles of a batch with itself: of 1, 2, ... tiles.
        return (tiling.tiling(ROWS.value)[0] + 1) / 2

    return cycles(entry, 0), cycles(entry, least)


# --- kernels --------------------------------------------------------------------------------------


def in_kernels(argv: list[str], topology: str, classes: int) -> dict[str, int]:
    """Cycles of the kernels of both functions, from a process whose compiler dumps its work."""
    with tempfile.TemporaryDirectory() as dump:
        options = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
        arguments = [f"--dump={dump}", f"--topologies={topology}", f"--classes={classes}"]
        for flag in (ROWS, DEPTH, FORM, TEMPERATURE):
            arguments.append(f"--{flag.name}={flag.value}")
        found = subprocess.run(
            [sys.executable, argv[0], *arguments],
            env={**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "LIBTPU_INIT_ARGS": options},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(found.stdout.splitlines()[-1])


def kernels_of_program(topology: str, classes: int) -> dict[str, int]:
    compiled("pallas", "gradient", classes, topology)

    def cycles(kernel: str) -> int:
        paths = Path(DUMP.value).glob(f"*-sdjax_{kernel}_kernel*-final_bundles.txt")
        return sum(kernel_cycles(path) for path in paths)

    forward = cycles("forward")
    return {"loss": forward, "gradient": forward + cycles("backward")}


class Region(NamedTuple):
    """Bundles from `begin` to `end`, which a branch may jump over."""

    begin: int
    end: int

    def holds(self, other: "Region") -> bool:
        return self != other and self.begin <= other.begin and other.end <= self.end


def outermost(regions: list[Region]) -> list[Region]:
    return [x for x in regions if not any(y.holds(x) for y in regions)]


def kernel_cycles(path: Path) -> int:
    """Bundles of a kernel, each as often as it runs.

    The region with the most bundles of its own is the work on a tile: it runs for each pair of
    tiles that meet. The regions beside it, which begin or end a row tile, run for each row tile,
    and what is around them in each grid step.
    """
    total, regions = bundles(path)

    def own(region: Region) -> int:
        inside = outermost([x for x in regions if region.holds(x)])
        return region.end - region.begin - sum(x.end - x.begin for x in inside)

    work = max(regions, key=own)
    beside = outermost([x for x in regions if x.end <= work.begin or work.end <= x.begin])
    of_work, of_row_tile = work.end - work.begin, sum(x.end - x.begin for x in beside)
    count = -(-ROWS.value // pallas_tpu.TILE)
    meetings, steps = count * (count + 1) // 2, count * (count // 2 + 1)
    return meetings * of_work + count * of_row_tile + steps * (total - of_work - of_row_tile)


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
        if jump := re.search(r"sbr\.rel .*?target = \$region(\d+)", line):
            branches.append((number, jump[1]))
    regions = [Region(at + 1, targets[to]) for at, to in branches if targets.get(to, -1) > at]
    return number + 1, regions


if __name__ == "__main__":
    app.run(main)
