"""Published figures of TPU chips and GPUs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Chip:
    """One chip: a TPU chip, or a GPU.

    Attributes:
      name: as topologies are named, "v5e" of "v5e:4x4".
      platform: whose compiler makes its programs.
      flops: dense bfloat16 operations a second.
      memory: bytes of HBM.
      memory_bandwidth: bytes a second to and from HBM.
      link_bandwidth: bytes a second that it can send to other chips, over all its links.
      network_bandwidth: bytes a second that it can send to chips of other hosts, where links end
        at the host; None where they do not.
      usable: part of the memory that JAX takes by default.
      cache: bytes of the cache before HBM, which the program does not manage itself.
    """

    name: str
    platform: Literal["tpu", "cuda"]
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float | None = None
    usable: float = 1.0
    cache: float = 0.0

    @property
    def room(self) -> float:
        """Bytes of HBM that programs and their data may take."""
        return self.usable * self.memory


def _tpu(name: str, teraflops: float, gigabytes: float, gb_a_second: float, gbit: float) -> Chip:
    memory, links = gigabytes * 2**30, gbit * 1e9 / 8
    return Chip(name, "tpu", teraflops * 1e12, memory, gb_a_second * 1e9, links)


def _gpu(
    name: str,
    teraflops: float,
    memory: int,
    memory_bandwidth: int,
    nvlink_gb: float,
    network_gbit: float,
    cache: int,
) -> Chip:
    rates = memory_bandwidth, nvlink_gb * 1e9, network_gbit * 1e9 / 8
    # JAX takes .75 of the memory: https://docs.jax.dev/en/latest/gpu_memory_allocation.html
    return Chip(name, "cuda", teraflops * 1e12, memory, *rates, usable=0.75, cache=cache)


# TPUs: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: peak compute (bf16), HBM capacity
# and bandwidth, inter-chip interconnect bandwidth in one direction, per chip.
# GPUs: memory, its bandwidth and the L2 cache from XLA's specifications of the SXM cards,
# https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs; dense bf16 and
# NVLink in one direction from NVIDIA's data sheets, https://www.nvidia.com/en-us/data-center/a100,
# /h100, /h200 and /dgx-b200; the network of the DGX systems, one adapter a GPU.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", 275, 32, 1228, 2400),
        _tpu("v5e", 197, 16, 819, 1600),
        _tpu("v5p", 459, 95, 2765, 4800),
        _tpu("v6e", 918, 32, 1600, 3200),
        _gpu("a100", 312, 85_100_068_864, 2_039_040_000_000, 300, 200, 41_943_040),
        _gpu("h100", 989, 84_942_979_072, 3_352_320_000_000, 450, 400, 52_428_800),
        _gpu("h200", 989, 151_397_597_184, 4_800_000_000_000, 450, 400, 52_428_800),
        _gpu("b200", 2250, 191_514_411_008, 7_672_320_000_000, 900, 400, 132_644_864),
    )
}
