"""Time of the tiled core beside that of all pairs at once, as the TPU compiler sees it.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \\
        python benchmarks/tpu_core.py

Needs no TPU (`pip install 'jax[tpu]'`), and some minutes. The loss, and its gradient with the
forward pass before it, are compiled ahead of time for one chip of each topology. Nothing is
measured: a time is the compiler's own estimate of each operation (`estimated_cycles` in the
compiled program), loops as often as they run, at the clock of the chip. It has 1.2 µs for even the
smallest operation, and a tile takes dozens of small ones. In brackets, a time without the first
1.2 µs of each.
"""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parents[1]))

import sdjax
from sdjax._src import tiling

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "Of TPU chips.")
ROWS = flags.DEFINE_integer("rows", 8192, "Rows.")
DEPTH = flags.DEFINE_integer("depth", 512, "Numbers in an embedding, in bfloat16.")
CLASSES = flags.DEFINE_multi_integer("classes", [80, 1024], "Numbers of labels.")
FORM = flags.DEFINE_enum("form", "out", ["out", "in"], "Form of the loss.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.07, "Below 1/40 similarities are not bounded.")

# Cycles of a second. Peak FLOP/s are 2 · matrix units · their entries · clock: 197e12 with four
# units of 128 × 128 for v5e, 459e12 with twice four for v5p, 918e12 with two of 256 × 256 for v6e.
CLOCKS = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
LEAST_SECONDS = 1.2e-6
CORES = {"tiled": "tiled", "all pairs": "dense"}


def main(argv: list[str]) -> None:
    del argv
    print("| chip | labels | function | " + " | ".join(f"{name}, ms" for name in CORES) + " |")
    print("|---|---|---|" + "---|" * len(CORES))
    for topology in TOPOLOGIES.value:
        chip = topology.partition(":")[0]
        millisecond = CLOCKS[chip] / 1e3
        for classes in CLASSES.value:
            for function in ("loss", "gradient"):
                row = [chip, f"{classes:,}", function]
                for core in CORES.values():
                    text = compiled(core, function, classes, topology)
                    every, beyond = cycles(text, LEAST_SECONDS * 1e3 * millisecond)
                    row.append(f"{every / millisecond:.2f} ({beyond / millisecond:.2f})")
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


def cycles(text: str, least: float) -> tuple[float, float]:
    """Estimated cycles of a compiled program.

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

    def of_computation(name: str, free: float) -> float:
        total = 0.0
        for line in computations[name]:
            for number in re.findall(r'"estimated_cycles":"(\d+)"', line):
                total += max(int(number) - free, 0)
            if " while(" in line:
                (body,), (condition,) = named(line, "body"), named(line, "condition")
                total += rounds(condition) * (
                    of_computation(body, free) + of_computation(condition, free)
                )
            elif " conditional(" in line:
                keys = "branch_computations", "true_computation", "false_computation"
                branches = [branch for key in keys for branch in named(line, key)]
                total += max(of_computation(branch, free) for branch in branches)
            elif " call(" in line:
                total += sum(of_computation(called, free) for called in named(line, "to_apply"))
        return total

    def rounds(condition: str) -> float:
        lines = computations[condition]
        limits = [re.search(r"s32\[\]\S* constant\((\d+)\)", line) for line in lines]
        if numbers := [int(x[1]) for x in limits if x]:
            return max(numbers)
        # The inner loop of a sweep over the tiles of a batch with itself: of 1, 2, ... tiles.
        return (tiling.tiling(ROWS.value)[0] + 1) / 2

    return of_computation(entry, 0), of_computation(entry, least)


if __name__ == "__main__":
    app.run(main)
