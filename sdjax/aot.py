"""Does my batch fit, and what limits it: `python -m sdjax.aot --config=... --topology=v5e:4x4`.

Compiles the whole training step for a TPU topology, on a machine without TPUs
(`pip install -e ".[train,tpu]"`), and prints a table; see docs/tpu.md.
"""

import dataclasses
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from sdjax import data as data_lib
from sdjax.config import Config, check_overrides
from sdjax.errors import InputError
from sdjax.forecast.forecast import Forecast, forecast, topology
from sdjax.training.phases import make_phases
from sdjax.training.resolve import check_config, resolve

_CONFIG = str(Path(__file__).parents[1] / "configs" / "yeast.py")
_TOPOLOGY = flags.DEFINE_list("topology", ["v5e:4x4"], "TPU topologies, such as v5e:4x4.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", [], "Batches to compare; the config's by default.")
_INPUT_SHAPE = flags.DEFINE_list("input_shape", [], "Of an example; with it no data is read.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 0, "Number of labels, with --input_shape.")

HEADER = (
    "| chips | phase | batch | a chip | peak GB | fits | TFLOP | HBM GB | sent MB | compute ms | "
    "memory ms | interconnect ms | bound | examples/s |\n|"
) + "---|" * 14


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_platforms", "cpu")  # the compiler alone is wanted of libtpu
    try:
        print_forecasts(flags.FLAGS.config)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


def print_forecasts(config: Config) -> None:
    """Prints a row for each topology, batch and phase, and what the last one sends."""
    check_config(config)
    batch_sizes = _batch_sizes(config)
    input_shape, num_classes = _shapes(config)
    chips = {name: topology(name) for name in _TOPOLOGY.value}
    last = None
    print(HEADER)
    for name, (chip, devices) in chips.items():
        for size in batch_sizes:
            wanted = dataclasses.replace(config, batch_size=size)
            resolved = resolve(wanted, 20_000, input_shape, len(devices))
            for phase in make_phases(resolved, 100):
                last = forecast(resolved, phase, input_shape, num_classes, chip, devices)
                print(_row(name, last), flush=True)
    if last is not None and last.collectives:
        print("\nWhat a chip sends in a step of the last row:\n")
        print("| collective | array | chips | times | MB sent |\n|---|---|---|---|---|")
        for each in sorted(last.collectives, key=lambda each: -each.sent):
            times, sent = f"{each.rounds:g}", f"{each.sent / 1e6:.3f}"
            print(f"| {each.kind} | {each.shape} | {each.group} | {times} | {sent} |")


def _shapes(config: Config) -> tuple[tuple[int, ...], int]:
    """Shape of an example and number of labels, by flag or off the data."""
    if bool(_INPUT_SHAPE.value) != bool(_NUM_CLASSES.value):
        raise InputError("--input_shape and --num_classes go together.")
    if _INPUT_SHAPE.value:
        shape = tuple(_whole("input_shape", size) for size in _INPUT_SHAPE.value)
        if len(shape) not in (1, 3):
            raise InputError(f"--input_shape must be F or H,W,CHANNELS, got {shape}.")
        return shape, _NUM_CLASSES.value
    dataset = data_lib.load(config.data)
    return dataset.input_shape, dataset.num_classes


def _batch_sizes(config: Config) -> list[int]:
    return [_whole("batch_sizes", size) for size in _BATCH_SIZES.value] or [config.batch_size]


def _whole(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise InputError(f"--{name} must be whole numbers above 0, got {text!r}.")
    return int(text)


def _row(name: str, result: Forecast) -> str:
    memory = result.chip.memory / 2**30
    cells = [name, result.phase, f"{result.batch_size:,}"]
    cells += [
        f"{result.batch_size // result.devices:,}",
        f"{result.peak / 2**30:.2f} of {memory:g}",
    ]
    if not result.fits:
        return f"| {' | '.join([*cells, 'no', *['-'] * 8])} |"
    cells += ["yes", f"{result.flop / 1e12:.3g}", f"{result.traffic / 1e9:.3g}"]
    cells += [f"{result.sent / 1e6:.3g}"]
    cells += [f"{1e3 * seconds:.3g}" for seconds in result.seconds.values()]
    cells += [result.bound, f"{result.batch_size / result.step_seconds:,.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        check_overrides(sys.argv[1:], Config)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    config_flags.DEFINE_config_file("config", _CONFIG)
    app.run(main)
