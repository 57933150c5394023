"""Does my batch fit, and what limits it: `python -m sdjax.aot --config=... --topology=h100:8`.

Compiles the whole training step for TPUs or GPUs, on a machine without them
(`pip install -e ".[train,tpu]"` or `".[train,gpu-forecast]"`), and prints a table; see docs/tpu.md
and docs/gpu.md.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from sdjax import data as data_lib
from sdjax._src import stop
from sdjax.config import Config, check, sized
from sdjax.configs import run_with_config
from sdjax.errors import InputError, check_no_words, ending_in_a_line
from sdjax.forecast.forecast import Forecast, forecast
from sdjax.forecast.topology import NOTES, topology
from sdjax.training.recipes import make_phases
from sdjax.training.state import ExampleSpec, program_config

_TOPOLOGY = flags.DEFINE_list(
    "topology", ["v5e:4x4"], "TPU slices, such as v5e:4x4, or GPUs, such as h100:8 or h100:16."
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", [], "Batches to compare; the config's by default.")
_INPUT_SHAPE = flags.DEFINE_list("input_shape", [], "Of an example; with it no data is read.")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 0, "Number of labels, with --input_shape.", lower_bound=0
)
_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples",
    20_000,
    "Of the train split, with --input_shape: sizes left at 0 follow it.",
    lower_bound=1,
)

HEADER = (
    "| chips | phase | batch | a chip | peak GB | fits | TFLOP | HBM GB | sent MB | compute ms | "
    "memory ms | interconnect ms | bound | examples/s |\n|"
) + "---|" * 14


def main(argv: list[str]) -> None:
    check_no_words(argv)
    jax.config.update("jax_platforms", "cpu")  # of libtpu and CUDA, the compilers alone are wanted
    config: Config = flags.FLAGS.config
    with ending_in_a_line():
        check(config)
        batch_sizes = [_whole("batch_sizes", size) for size in _BATCH_SIZES.value]
        examples = _given_examples() or examples_of(data_lib.load(config.data))
        print_forecasts(config, *examples, _TOPOLOGY.value, batch_sizes or [config.batch_size])


def print_forecasts(
    config: Config,
    spec: ExampleSpec,
    num_examples: int,
    topologies: Sequence[str],
    batch_sizes: Sequence[int],
) -> None:
    """Prints a row for each topology, batch and phase, and what the last one sends.

    Args:
      config: checked; sizes of 0 become those that training would choose.
      spec: of an example.
      num_examples: of the train split.
      topologies: such as "v5e:4x4" or "h100:8".
      batch_sizes: over all chips, in place of the config's.

    Raises:
      InputError: if a topology is unknown, or config and devices do not fit together.
    """
    chips = {name: topology(name) for name in topologies}
    last = None
    print(HEADER)
    for name, (chip, devices) in chips.items():
        for size in batch_sizes:
            wanted = dataclasses.replace(config, batch_size=size)
            whole = sized(wanted, num_examples, spec.inputs, len(devices))
            for phase in make_phases(whole, steps_per_epoch=100):
                last = forecast(program_config(whole), spec, phase, chip, devices)
                print(_row(name, last), flush=True)
    for platform in dict.fromkeys(chip.platform for chip, _ in chips.values()):
        print(f"\n{NOTES[platform]}")
    if last is not None and last.cost.collectives:
        print("\nWhat a chip sends in a step of the last row:\n")
        print("| collective | array | chips | times | MB sent |\n|---|---|---|---|---|")
        for each in sorted(last.cost.collectives, key=lambda each: -each.sent):
            times, sent = f"{each.rounds:g}", f"{each.sent / 1e6:.3f}"
            print(f"| {each.kind} | {each.shape} | {each.group} | {times} | {sent} |")


def examples_of(dataset: data_lib.Dataset) -> tuple[ExampleSpec, int]:
    """What an example of a data set is, and how many there are to train on."""
    return ExampleSpec.of_source(dataset.train), len(dataset.train)


def _given_examples() -> tuple[ExampleSpec, int] | None:
    """What an example is, and how many there are, by flag; None leaves it to the data."""
    if bool(_INPUT_SHAPE.value) != bool(_NUM_CLASSES.value):
        raise InputError("--input_shape and --num_classes go together.")
    if not _INPUT_SHAPE.value:
        return None
    shape = tuple(_whole("input_shape", size) for size in _INPUT_SHAPE.value)
    if len(shape) not in (1, 3):
        raise InputError(f"--input_shape must be F or H,W,CHANNELS, got {shape}.")
    inputs = jax.ShapeDtypeStruct(shape, np.float32)
    labels = jax.ShapeDtypeStruct((_NUM_CLASSES.value,), np.uint8)
    return ExampleSpec.of(inputs, labels), _NUM_EXAMPLES.value


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise InputError(f"--{name} must be whole numbers above 0, got {text!r}.")
    return int(text)


def _row(name: str, result: Forecast) -> str:
    cost, chip = result.cost, result.cost.chip
    room = f"{chip.room / 2**30:.4g}"
    cells = [name, result.phase, f"{result.batch_size:,}"]
    cells += [
        f"{result.batch_size // len(cost.hosts):,}",
        f"{cost.peak / 2**30:.2f} of {room}",
    ]
    if not result.fits:
        return f"| {' | '.join([*cells, 'no', *['-'] * 8])} |"
    cells += ["yes", f"{cost.flop / 1e12:.3g}", f"{cost.traffic / 1e9:.3g}"]
    cells += [f"{cost.sent / 1e6:.3g}"]
    cells += [f"{1e3 * seconds:.3g}" for seconds in cost.seconds.values()]
    cells += [cost.bound, f"{result.batch_size / cost.least_seconds:,.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    stop.with_a_line()
    run_with_config(main)
