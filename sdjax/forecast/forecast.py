"""What a training step will cost on TPUs and GPUs: compiled ahead of time, without them."""

import dataclasses
import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from sdjax.config import Config
from sdjax.forecast.chips import Chip
from sdjax.forecast.cost import Cost, cost, hosts_of
from sdjax.training import momentum_queue
from sdjax.training.mesh import batch_sharding, check_batch_size, make_mesh
from sdjax.training.recipes import Phase
from sdjax.training.state import ExampleSpec, abstract, model_graph
from sdjax.training.step import make_train_step


@dataclass(frozen=True)
class Forecast:
    """Of one step on several devices.

    Attributes:
      phase: of the recipe.
      batch_size: examples of a step, over all devices.
      fits: whether the program and its data fit the memory that JAX takes of a device.
      cost: to each device; where the compiler refused, the memory that it asked for, alone.
      compile_seconds: of the compilation.
    """

    phase: str
    batch_size: int
    fits: bool
    cost: Cost
    compile_seconds: float = 0.0


def forecast(
    config: Config, spec: ExampleSpec, phase: Phase, chip: Chip, devices: list[Any]
) -> Forecast:
    """Compiles the training step of `phase` for `devices`.

    Args:
      config: sized, with the batch size over all devices.
      spec: of an example.
      phase: of the config's recipe.
      chip: what the devices are.
      devices: of a topology.

    Raises:
      InputError: if batch, queue and mesh do not fit each other and the number of devices.
    """
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.batch_size, config.batch_size, config.least_microbatches, mesh)
    momentum_queue.check(config)
    placed = list(mesh.devices.flat)
    asked = Cost(chip, hosts_of(placed), peak=0.0)
    started = time.perf_counter()
    step: Any = make_train_step(config, phase, model_graph(config, spec), mesh)
    batch = spec.batch(config.batch_size, batch_sharding(mesh))
    traced: Any = step.trace(abstract(config, spec, phase, mesh), batch)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        asked = dataclasses.replace(asked, peak=_asked(str(error)))
        return Forecast(phase.name, config.batch_size, False, asked)
    seconds = time.perf_counter() - started
    found = cost(compiled, chip, placed, rows=2 * config.batch_size // len(devices))
    fits = found.peak <= chip.room
    return Forecast(phase.name, config.batch_size, fits, found, seconds)


def _asked(error: str) -> float:
    """Bytes that the compiler asked for, off its error text."""
    found = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])\b", error)
    if not found:
        return float("nan")
    return float(found.group(1)) * 2.0 ** (10 * "_KMGT".index(found.group(2)))
