"""What a training step will cost on TPUs: compiled ahead of time, without a TPU."""

import dataclasses
import os
import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from sdjax._src import tiling
from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.forecast import hlo
from sdjax.forecast.chips import CHIPS, Chip
from sdjax.training import momentum_queue
from sdjax.training.mesh import batch_sharding, check_batch_size, make_mesh
from sdjax.training.recipes import Phase
from sdjax.training.state import ExampleSpec, abstract, model_graph
from sdjax.training.step import make_train_step

# libtpu looks for a TPU otherwise, and complains at length.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Forecast:
    """Of one step on each of `devices` chips.

    Attributes:
      phase: of the recipe.
      chip: published figures.
      devices: number of chips.
      batch_size: examples of a step, over all chips.
      fits: whether the program and its data fit the memory of a chip.
      peak: bytes of HBM at the most; what the compiler asked for where it does not fit.
      flop: operations of matrix products and convolutions.
      traffic: bytes to and from HBM.
      collectives: what a chip sends.
      compile_seconds: of the compilation.
    """

    phase: str
    chip: Chip
    devices: int
    batch_size: int
    fits: bool
    peak: float
    flop: float = 0.0
    traffic: float = 0.0
    collectives: tuple[hlo.Collective, ...] = ()
    compile_seconds: float = 0.0

    @property
    def sent(self) -> float:
        """Bytes that a chip sends."""
        return sum(each.sent for each in self.collectives)

    @property
    def seconds(self) -> dict[str, float]:
        """Least time of each resource, at its published rate."""
        return {
            "compute": self.flop / self.chip.flops,
            "memory": self.traffic / self.chip.memory_bandwidth,
            "interconnect": self.sent / self.chip.link_bandwidth,
        }

    @property
    def bound(self) -> str:
        """The resource that limits the step."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def step_seconds(self) -> float:
        """Time of a step if everything else is hidden behind the resource that limits it."""
        return self.seconds[self.bound]


def topology(name: str) -> tuple[Chip, list[Any]]:
    """The chip, and the devices, of a TPU topology such as "v5e:4x4".

    Raises:
      InputError: if there is none of that name, or libtpu is not installed.
    """
    from jax.experimental import topologies

    kind = name.partition(":")[0]
    if kind not in CHIPS or not re.fullmatch(r"\w+:\d+(x\d+){1,2}", name):
        raise InputError(
            f"topology must be CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as v5e:4x4 or "
            f"v5p:4x4x4; got {name!r}."
        )
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError('libtpu is not installed: pip install -e ".[train,tpu]".') from error
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu's own types.
        raise InputError(f"topology {name!r}: {str(error).splitlines()[0][:300]}") from error
    return CHIPS[kind], list(description.devices)


def forecast(
    config: Config, spec: ExampleSpec, phase: Phase, chip: Chip, devices: list[Any]
) -> Forecast:
    """Compiles the training step of `phase` for `devices`.

    Args:
      config: sized, with the batch size over all devices.
      spec: of an example.
      phase: of the config's recipe.
      chip: what the devices are.
      devices: of a TPU topology.

    Raises:
      InputError: if batch, queue and mesh do not fit each other and the number of devices.
    """
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.batch_size, config.batch_size, config.microbatches, mesh)
    momentum_queue.check(config)
    basis = Forecast(phase.name, chip, len(devices), config.batch_size, fits=False, peak=0.0)
    started = time.perf_counter()
    step: Any = make_train_step(config, phase, model_graph(config, spec), mesh)
    batch = spec.batch(config.batch_size, batch_sharding(mesh))
    traced: Any = step.trace(abstract(config, spec, phase, mesh), batch)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(basis, peak=_asked(str(error)))
    tiles, _ = tiling.tiling(max(2 * config.batch_size // len(devices), 1))
    rounds = (tiles + 1) / 2  # mean length of the rows of a triangle of tiles
    program = hlo.parse(compiled.as_text())
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return dataclasses.replace(
        basis,
        fits=peak <= chip.memory,
        peak=peak,
        flop=program.flop(rounds),
        traffic=program.memory_traffic(rounds),
        collectives=tuple(program.collectives(rounds)),
        compile_seconds=time.perf_counter() - started,
    )


def _asked(error: str) -> float:
    """Bytes that the compiler asked for, off its error text."""
    found = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])\b", error)
    if not found:
        return float("nan")
    return float(found.group(1)) * 2.0 ** (10 * "_KMGT".index(found.group(2)))
