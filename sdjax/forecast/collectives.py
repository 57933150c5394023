"""What the devices of a compiled program send each other."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdjax.forecast.chips import Chip
from sdjax.forecast.hlo import Instruction, Program, arrays, plain_bytes

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Numbers of devices: those that exchange among themselves, or pairs of sender and receiver.
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Collective:
    """What one device sends in all runs of one collective operation.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
      shape: of its result, as HLO writes it; of several arrays, the largest.
      groups: of devices that exchange among themselves; of a permute, sender and receiver.
      rounds: how often it runs in a step.
      sent: bytes that a device sends in a step.
    """

    kind: str
    shape: str
    groups: Groups
    rounds: float
    sent: float

    @property
    def group(self) -> int:
        """Number of devices that take part."""
        return _group_size(self.kind, self.groups)


def collectives(program: Program, unknown_rounds: float = 1.0) -> list[Collective]:
    """The collective operations of a run, each once.

    Args:
      program: on one device.
      unknown_rounds: of loops whose number of rounds the text does not tell.
    """
    found: dict[tuple[str, ...], Collective] = {}
    for rounds, instruction, sent in program.run(_sent, unknown_rounds):
        if not sent:
            continue
        kind, groups = _kind(instruction), _groups(instruction.attributes)
        shape = max(arrays(instruction.type), key=plain_bytes).partition("{")[0]
        others = len(arrays("".join(instruction.operand_types))) - 1
        # The compiler may spread one over several fusions that carry the same marks.
        marks = re.findall(r"channel_id=\d+|chain_id=\"\d+\"", instruction.text)
        key = (kind, shape, *marks) if 'chain_id="' in instruction.text else (instruction.name,)
        shape += f" and {others} more" if others > 0 else ""
        found.setdefault(key, Collective(kind, shape, groups, rounds, rounds * sent))
    return list(found.values())


def seconds(chip: Chip, hosts: Sequence[int], collective: Collective) -> float:
    """Least time of what a device sends, if links and network adapters are used in full.

    Args:
      chip: its rates.
      hosts: the host of each device, by its number in the program.
      collective: of a program on these devices.
    """
    shared = [[hosts[device] for device in group] for group in collective.groups]
    if chip.network_bandwidth is None or all(len(set(group)) == 1 for group in shared):
        return collective.sent / chip.link_bandwidth
    if collective.kind == "collective-permute":
        return collective.sent / chip.network_bandwidth
    # Devices of a group on one host: each has an adapter, and a ring crosses the network once.
    near = max(group.count(host) for group in shared for host in group)
    if collective.kind == "all-to-all":
        far = (collective.group - near) / (collective.group - 1)
        return collective.sent * far / chip.network_bandwidth
    return collective.sent / min(near * chip.network_bandwidth, chip.link_bandwidth)


def _kind(instruction: Instruction) -> str:
    """The kind of collective operation; "" of another instruction."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _KINDS else ""


def _sent(instruction: Instruction) -> float:
    """Bytes that a device sends, by the usual ring algorithms.

    Several arrays may be sent by one operation, of which each device holds the operands.
    """
    kind = _kind(instruction)
    group = _group_size(kind, _groups(instruction.attributes)) if kind else 1
    if group == 1:
        return 0.0
    held, others = sum(map(plain_bytes, instruction.operand_types)), group - 1
    if kind == "all-gather":
        return others * held
    if kind == "collective-permute":
        return held
    return (2 if kind == "all-reduce" else 1) * others / group * held


def _group_size(kind: str, groups: Groups) -> int:
    if kind == "collective-permute":
        return len({device for pair in groups for device in pair})
    return len(groups[0]) if groups else 1


def _groups(attributes: str) -> Groups:
    """The groups of devices, in any of the ways in which HLO writes them; () if there are none."""
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        rows = re.findall(r"\{([\d,]+)\}", listed.group(1))
        return tuple(tuple(map(int, row.split(","))) for row in rows)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return _rows(_numbers(iota.group(3)).reshape(int(iota.group(1)), int(iota.group(2))))
    # The order of the devices may stand between the axes' sizes and those of a group.
    axes = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\S+)\))? \{([^}]*)\}"
    mesh = re.search(axes, attributes)
    if not mesh:
        written = re.search(r"replica_groups=(.*)", attributes)
        if written and not written.group(1).startswith("{}"):
            raise ValueError(f"replica_groups of an unknown form: {written.group(1)[:100]}")
        return ()
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
    order = _numbers(mesh.group(2) or f"[{math.prod(sizes.values())}]").reshape(*sizes.values())
    within = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", mesh.group(3))]
    order = np.moveaxis(order, within, range(-len(within), 0))
    return _rows(order.reshape(-1, math.prod(order.shape[order.ndim - len(within) :])))


def _numbers(text: str) -> np.ndarray:
    """Numbers of devices, written as "[8,4]T(1,0)": 0 to 31 by rows, the axes then exchanged."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        raise ValueError(f"numbers of devices of an unknown form: {text[:100]}")
    sizes = [int(size) for size in found.group(1).split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    if found.group(2):
        numbers = numbers.transpose([int(axis) for axis in found.group(2).split(",")])
    return numbers.reshape(-1)


def _rows(numbers: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in numbers)
