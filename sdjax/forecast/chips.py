"""Published figures of TPU chips."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as topologies are named, "v5e" of "v5e:4x4".
      flops: bfloat16 operations a second.
      memory: bytes of HBM.
      memory_bandwidth: bytes a second to and from HBM.
      link_bandwidth: bytes a second that it can send to other chips, over all its links.
    """

    name: str
    flops: float
    memory: float
    memory_bandwidth: float
    link_bandwidth: float


def _chip(name: str, teraflops: float, gigabytes: float, gb_a_second: float, gbit: float) -> Chip:
    return Chip(name, teraflops * 1e12, gigabytes * 2**30, gb_a_second * 1e9, gbit * 1e9 / 8)


# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: peak compute (bf16), HBM capacity and
# bandwidth, inter-chip interconnect bandwidth in one direction, per chip.
CHIPS = {
    chip.name: chip
    for chip in (
        _chip("v4", 275, 32, 1228, 2400),
        _chip("v5e", 197, 16, 819, 1600),
        _chip("v5p", 459, 95, 2765, 4800),
        _chip("v6e", 918, 32, 1600, 3200),
    )
}
