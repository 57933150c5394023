"""What a run of a compiled program costs each of its devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdjax._src import tiling
from sdjax.forecast import collectives as sending
from sdjax.forecast import hlo, operations
from sdjax.forecast import traffic as moving
from sdjax.forecast.chips import Chip
from sdjax.forecast.collectives import Collective


@dataclass(frozen=True)
class Cost:
    """Of one run on one of several devices.

    Attributes:
      chip: published figures.
      hosts: the host of each device.
      peak: bytes of HBM at the most, arguments and results included.
      flop: operations of matrix products and convolutions.
      traffic: bytes to and from HBM.
      collectives: what a device sends.
    """

    chip: Chip
    hosts: tuple[int, ...]
    peak: float
    flop: float = 0.0
    traffic: float = 0.0
    collectives: tuple[Collective, ...] = ()

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(each.sent for each in self.collectives)

    @property
    def seconds(self) -> dict[str, float]:
        """Least time of each resource, at its published rate."""
        exchange = (sending.seconds(self.chip, self.hosts, each) for each in self.collectives)
        return {
            "compute": self.flop / self.chip.flops,
            "memory": self.traffic / self.chip.memory_bandwidth,
            "interconnect": sum(exchange),
        }

    @property
    def bound(self) -> str:
        """The resource that limits the run."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def least_seconds(self) -> float:
        """Time of a run if everything else is hidden behind the resource that limits it."""
        return self.seconds[self.bound]


def hosts_of(devices: Sequence[Any]) -> tuple[int, ...]:
    """The host of each device."""
    return tuple(device.process_index for device in devices)


def cost(compiled: Any, chip: Chip, devices: Sequence[Any], rows: int) -> Cost:
    """Reads the cost off a compiled program.

    Args:
      compiled: for `devices`, ahead of time.
      chip: what the devices are.
      devices: in the order of the program's mesh.
      rows: of the loss on one device. Its loops over a triangle of tiles, whose number of rounds
        varies, count by their mean.
    """
    tiles, _ = tiling.tiling(max(rows, 1))
    rounds = (tiles + 1) / 2  # mean length of the rows of a triangle of tiles
    program = hlo.parse(compiled.as_text())
    return Cost(
        chip,
        hosts_of(devices),
        peak=compiled.memory_analysis().peak_memory_in_bytes,
        flop=operations.flop(program, rounds),
        traffic=moving.traffic(program, rounds, chip.cache),
        collectives=tuple(sending.collectives(program, rounds)),
    )
