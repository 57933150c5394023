"""What the shared labels of a tile of pairs cost on a TPU, counted or multiplied. Needs no TPU.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_overlap.py

Label sets come as bits, and both forms of `sdjax/_src/label_overlap.py` are compiled ahead of time
for one chip of each topology (`pip install 'jax[tpu]'`). Cycles are the compiler's own estimate of
each operation (`estimated_cycles` in its program), loops as often as they run. Nothing is measured.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdjax._src import label_overlap

TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "Of TPU chips.")
CLASSES = flags.DEFINE_multi_integer("classes", [80, 1024, 8921], "Numbers of labels.")
TILE = flags.DEFINE_integer("tile", 512, "Rows and columns of a tile.")

FORMS = {"counted": label_overlap._counted, "multiplied": label_overlap._multiplied}


def main(argv: list[str]) -> None:
    del argv
    print(f"| chip | labels | {' | '.join(f'{name}, cycles' for name in FORMS)} |")
    print("|---|---|" + "---|" * len(FORMS))
    for topology in TOPOLOGIES.value:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
        for classes in CLASSES.value:
            words = -(-classes // label_overlap.BITS)
            cells = [topology.partition(":")[0], f"{classes:,}"]
            for form in FORMS.values():
                cells.append(f"{cycles(form, words, SingleDeviceSharding(devices[0])):,}")
            print("| " + " | ".join(cells) + " |", flush=True)


def cycles(form: Callable[..., jax.Array], words: int, sharding: SingleDeviceSharding) -> int:
    """Estimated cycles of a tile."""

    def sums(rows: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
        # As in the loss, the tile itself does not leave the chip.
        shared = form(rows, columns.T).astype(jnp.float32)
        return shared.sum(axis=0), shared.sum(axis=1)

    bits = jax.ShapeDtypeStruct((TILE.value, words), jnp.uint32, sharding=sharding)
    text = jax.jit(sums).lower(bits, bits).compile().as_text()
    total, rounds = 0, 1
    for line in text.splitlines():
        if line.endswith("{"):  # A new computation. The only loop is over words.
            rounds = 1 if line.startswith("ENTRY") else words
        total += rounds * sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', line)))
    return total


if __name__ == "__main__":
    app.run(main)
