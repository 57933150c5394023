"""What a compiled program computes, moves and sends: read off the text of its optimised HLO.

Why not by a library, as measured for v5e:2x4 with jax 0.10.2:
`Compiled.cost_analysis()` counts a loop's body once (1.72e10 flop, where 40 rounds run 6.87e11),
arrays in on-chip memory as traffic (19.3 MB, where 1.05 MB go to and from HBM), and no collectives.
`jax.experimental.roofline` counts a scan's body once and a while loop's not at all, all devices'
work as one's (8 times too much), and what is outside the last `shard_map` not at all.
`Compiled.memory_analysis()` has the peak, which forecasts take, but no traffic.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
_CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations|true_computation|"
                    r"false_computation)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")  # fmt: skip
_CALLERS = ("while", "conditional", "call", "async-start")
# They move nothing themselves.
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One line: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    operand_types: tuple[str, ...]
    attributes: str
    text: str

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls, the condition of a loop apart."""
        return [
            name.strip().lstrip("%")
            for group in _CALLS.findall(self.attributes)
            for name in group.split(",")
        ]


@dataclass(frozen=True)
class Collective:
    """What one device sends in all runs of one collective operation.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "collective-permute".
      shape: of its result, as HLO writes it.
      group: number of devices that take part.
      rounds: how often it runs in a step.
      sent: bytes that a device sends in a step.
    """

    kind: str
    shape: str
    group: int
    rounds: float
    sent: float


Measure = Callable[[Instruction], float]
# How often an instruction runs, and what a measure says of one run.
Run = tuple[float, Instruction, float]


@dataclass
class Program:
    """A compiled program, as computations of instructions."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""

    def collectives(self, unknown_rounds: float = 1.0) -> list[Collective]:
        """The collective operations of a run, each once.

        Args:
          unknown_rounds: of loops whose number of rounds the text does not tell.
        """
        found: dict[tuple[str, ...], Collective] = {}
        for rounds, instruction, sent in self._run(_sent, unknown_rounds, into_fusions=True):
            if not sent:
                continue
            kind, group = _collective(instruction), _group_size(instruction.attributes)
            shape = _without_layout(_largest(instruction.type))
            # The compiler may spread one over several fusions that carry the same marks.
            marks = re.findall(r"channel_id=\d+|chain_id=\"\d+\"", instruction.text)
            key = (kind, shape, *marks) if 'chain_id="' in instruction.text else (instruction.name,)
            found.setdefault(key, Collective(kind, shape, group, rounds, rounds * sent))
        return list(found.values())

    def flop(self, unknown_rounds: float = 1.0) -> float:
        """Multiplications and additions in the matrix products and convolutions of a run."""
        return _total(self._run(_flop, unknown_rounds, into_fusions=True))

    def memory_traffic(self, unknown_rounds: float = 1.0) -> float:
        """Bytes that a run reads from and writes to HBM.

        Operands and results of all operations that are not in on-chip memory; of an array of which
        a fusion reads or writes a slice, the slice.
        """
        return _total(self._run(self._traffic, unknown_rounds))

    def _run(
        self,
        measure: Measure,
        unknown_rounds: float,
        into_fusions: bool = False,
        name: str = "",
        rounds: float = 1.0,
    ) -> list[Run]:
        """All instructions of a run; of the branches of a condition, those of the largest total."""
        found: list[Run] = []
        for instruction in self.computations.get(name or self.entry, ()):
            found.append((rounds, instruction, measure(instruction)))
            opcode = instruction.opcode
            if opcode not in _CALLERS and not (into_fusions and opcode == "fusion"):
                continue
            inside = rounds
            if opcode == "while":
                known = self._rounds(instruction)
                inside *= unknown_rounds if known is None else known
            runs = [
                self._run(measure, unknown_rounds, into_fusions, called, inside)
                for called in instruction.called
            ]
            if opcode == "conditional":
                runs = [max(runs, key=_total)]
            found += itertools.chain(*runs)
        return found

    def _rounds(self, loop: Instruction) -> int | None:
        """Rounds of a loop that counts from 0 to a constant; None of another."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        if not condition:
            return None
        lines = self.computations.get(condition.group(1), [])
        constants = [
            int(found.group(1))
            for line in lines
            if line.opcode == "constant" and (found := re.search(r"constant\((\d+)\)", line.text))
        ]
        return constants[0] if len(constants) == 1 else None

    def _traffic(self, instruction: Instruction) -> float:
        opcode, operands = instruction.opcode, instruction.operand_types
        kernel = "tpu_custom_call" in instruction.attributes
        if opcode in _FREE or opcode.endswith("-done") or (opcode == "custom-call" and not kernel):
            return 0.0
        if opcode == "dynamic-slice":
            return 2 * hbm_bytes(instruction.type)
        if opcode == "dynamic-update-slice":
            return 2 * hbm_bytes(operands[1])
        inner = self.computations.get(instruction.called[0]) if instruction.called else None
        if opcode != "fusion" or not inner:
            return hbm_bytes(instruction.type) + sum(map(hbm_bytes, operands))
        return _fusion_traffic(instruction, inner)


def parse(text: str) -> Program:
    """The program that `compiled.as_text()` describes."""
    program, current, types, name = Program(), None, {}, ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current, types = program.computations.setdefault(name, []), {}
            if line.startswith("ENTRY"):
                program.entry = name
        elif line.startswith("}"):
            if current and name.startswith("all-reduce-scatter"):
                current[:] = _as_reduce_scatter(current)
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line, types))
            types[current[-1].name] = current[-1].type
    return program


def _as_reduce_scatter(computation: list[Instruction]) -> list[Instruction]:
    """What TPUs run as one operation is written as a sum of which a device cuts out its part."""
    part = computation[-1].type
    return [
        dataclasses.replace(each, opcode="reduce-scatter", type=part)
        if each.opcode == "all-reduce"
        else each
        for each in computation
    ]


def hbm_bytes(type_text: str) -> float:
    """Bytes of the arrays of an HLO type that are not in on-chip memory."""
    return sum(
        _size(kind, sizes)
        for kind, sizes, layout in _SHAPE.findall(type_text)
        if not re.search(r"S\([1-9]", layout)
    )


def _instruction(line: str, types: dict[str, str]) -> Instruction:
    """The instruction of a line; `types` are those of the lines before it in its computation."""
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opening:closing]))
    operand_types = tuple(types.get(operand, "") for operand in operands)
    return Instruction(
        name.lstrip("%"), kind, rest[:opening], operands, operand_types, rest[closing + 1 :], line
    )


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text) - 1


def _total(runs: list[Run]) -> float:
    return sum(rounds * value for rounds, _, value in runs)


def _flop(instruction: Instruction) -> float:
    if instruction.opcode == "dot":
        left = _sizes(instruction.operand_types[0])
        contracted = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        depth = math.prod(left[int(axis)] for axis in contracted[0].split(",") if axis)
        return 2.0 * math.prod(_sizes(instruction.type)) * depth
    return _convolution_flop(instruction) if instruction.opcode == "convolution" else 0.0


def _convolution_flop(instruction: Instruction) -> float:
    """Twice the products of input and kernel, those with padding and dilation left out.

    On TPUs all matrix products are convolutions, whose window counts the axes of a batch.
    """
    labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)[0]
    types = (*instruction.operand_types, instruction.type)
    left, kernel, out = (
        dict(zip(names, _sizes(t), strict=True)) for names, t in zip(labels, types, strict=True)
    )
    text = (re.findall(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0]
    window = {name: value.split("x") for name, value in re.findall(r"(\w+)=(\S+)", text)}
    flop = 2.0 * out["b"] * out["f"] * kernel["i"]
    for place in filter(str.isdigit, kernel):
        stride, dilation, spread = (
            int(window[name][int(place)]) if name in window else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(window["pad"][int(place)].split("_")[0]) if "pad" in window else 0
        end = (left[place] - 1) * dilation
        starts = stride * np.arange(out[place]) - before
        places = (starts + spread * k for k in range(kernel[place]))
        flop *= sum(int(((p >= 0) & (p <= end) & (p % dilation == 0)).sum()) for p in places)
    return flop


def _fusion_traffic(fusion: Instruction, inner: list[Instruction]) -> float:
    parameters = {
        each.name: int(re.findall(r"parameter\((\d+)\)", each.text)[0])
        for each in inner
        if each.opcode == "parameter"
    }
    read = dict(enumerate(map(hbm_bytes, fusion.operand_types)))
    written = hbm_bytes(fusion.type)
    for name, number in parameters.items():
        users = [each for each in inner if name in each.operands]
        sliced = [each for each in users if each.operands[0] == name]
        slices = [each for each in sliced if each.opcode == "dynamic-slice"]
        updates = [each for each in sliced if each.opcode == "dynamic-update-slice"]
        if users and len(slices) + len(updates) == len(users) and read.get(number):
            read[number] = sum(map(_plain_bytes, (each.type for each in slices)))
            if updates:
                changed = sum(_plain_bytes(each.operand_types[1]) for each in updates)
                whole = sum(_plain_bytes(each.type) for each in updates)
                written = max(written - whole, 0) + changed
    return written + sum(read.values())


def _size(kind: str, sizes: str) -> float:
    bits = 8 if kind == "pred" else int((re.findall(r"\d+", kind) or ["0"])[0])
    return math.prod(int(size) for size in sizes.split(",") if size) * bits / 8


def _sizes(type_text: str) -> list[int]:
    """Sizes of the axes of an array's type."""
    return [int(size) for size in _SHAPE.findall(type_text)[0][1].split(",") if size]


def _plain_bytes(type_text: str) -> float:
    return sum(_size(kind, sizes) for kind, sizes, _ in _SHAPE.findall(type_text))


def _largest(type_text: str) -> str:
    parts = [found.group(0) for found in _SHAPE.finditer(type_text)]
    return max(parts, key=_plain_bytes)


def _without_layout(type_text: str) -> str:
    return type_text.partition("{")[0]


def _group_size(attributes: str) -> int:
    """Devices of one group, in any of the ways in which HLO writes groups."""
    if "source_target_pairs" in attributes:
        return max(len(re.findall(r"\{\d+,\d+\}", attributes)), 2)
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
    if iota:
        return int(iota.group(1))
    # The order of the devices may stand between the axes' sizes and those of a group.
    axes = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}"
    mesh = re.search(axes, attributes)
    if not mesh:
        written = re.search(r"replica_groups=(.*)", attributes)
        if written and not written.group(1).startswith("{}"):
            raise ValueError(f"replica_groups of an unknown form: {written.group(1)[:100]}")
        return 1
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
    group = 1
    for axis in re.findall(r"'(\w+)'", mesh.group(2)):
        group *= int(sizes[axis])
    return group


def _collective(instruction: Instruction) -> str:
    """The kind of collective operation; "" of another instruction."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else ""


def _sent(instruction: Instruction) -> float:
    """Bytes that a device sends, by the usual ring algorithms."""
    kind, group = _collective(instruction), _group_size(instruction.attributes)
    if not kind or group == 1:
        return 0.0
    whole = _plain_bytes(instruction.type)
    others = (group - 1) / group
    if kind == "all-reduce":
        return 2 * others * whole
    largest = _plain_bytes(_largest(instruction.type))
    if kind == "reduce-scatter":
        return others * group * largest
    return largest if kind == "collective-permute" else others * largest
