"""What a compiled program moves: read off the text of its optimised HLO."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
_CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations|true_computation|"
                    r"false_computation)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")  # fmt: skip
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
        for rounds, instruction in self._run(unknown_rounds, into_fusions=True):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            # The compiler may spread one over several fusions that carry the same marks.
            marks = re.findall(r"channel_id=\d+|chain_id=\"\d+\"", instruction.text)
            shape = _without_layout(_largest(instruction.type))
            key = (kind, shape, *marks) if 'chain_id="' in instruction.text else (instruction.name,)
            group = _group_size(instruction.attributes)
            if group > 1 and key not in found:
                sent = rounds * _sent(kind, instruction, group)
                found[key] = Collective(kind, shape, group, rounds, sent)
        return list(found.values())

    def memory_traffic(self, unknown_rounds: float = 1.0) -> float:
        """Bytes that a run reads from and writes to HBM.

        Operands and results of all operations that are not in on-chip memory; of an array of which
        a fusion reads or writes a slice, the slice.
        """
        types = {
            name: {each.name: each.type for each in instructions}
            for name, instructions in self.computations.items()
        }
        return sum(
            rounds * self._traffic(instruction, types[within])
            for rounds, instruction, within in self._run_within(unknown_rounds)
        )

    def _run(
        self, unknown_rounds: float, into_fusions: bool = False
    ) -> Iterator[tuple[float, Instruction]]:
        for rounds, instruction, _ in self._run_within(unknown_rounds, into_fusions):
            yield rounds, instruction

    def _run_within(
        self, unknown_rounds: float, into_fusions: bool = False
    ) -> Iterator[tuple[float, Instruction, str]]:
        """(how often it runs, instruction, its computation) of all that a run comes by."""
        stack = [(1.0, self.entry)]
        while stack:
            rounds, name = stack.pop()
            for instruction in self.computations.get(name, ()):
                yield rounds, instruction, name
                inside = rounds
                if instruction.opcode == "while":
                    inside *= self._rounds(instruction) or unknown_rounds
                if instruction.opcode in ("while", "conditional", "call", "async-start") or (
                    into_fusions and instruction.opcode == "fusion"
                ):
                    stack += [(inside, called) for called in instruction.called]

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

    def _traffic(self, instruction: Instruction, types: dict[str, str]) -> float:
        opcode = instruction.opcode
        kernel = "tpu_custom_call" in instruction.attributes
        if opcode in _FREE or opcode.endswith("-done") or (opcode == "custom-call" and not kernel):
            return 0.0
        operands = [types.get(name, "") for name in instruction.operands]
        if opcode == "dynamic-slice":
            return 2 * hbm_bytes(instruction.type)
        if opcode == "dynamic-update-slice":
            return 2 * hbm_bytes(operands[1])
        inner = self.computations.get(instruction.called[0]) if instruction.called else None
        if opcode != "fusion" or not inner:
            return hbm_bytes(instruction.type) + sum(map(hbm_bytes, operands))
        return _fusion_traffic(instruction, operands, inner)


def parse(text: str) -> Program:
    """The program that `compiled.as_text()` describes."""
    program, current = Program(), None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            current = program.computations.setdefault(name, [])
            if line.startswith("ENTRY"):
                program.entry = name
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line))
    return program


def hbm_bytes(type_text: str) -> float:
    """Bytes of the arrays of an HLO type that are not in on-chip memory."""
    return sum(
        _size(kind, sizes)
        for kind, sizes, layout in _SHAPE.findall(type_text)
        if not re.search(r"S\([1-9]", layout)
    )


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].strip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opening:closing]))
    return Instruction(name.lstrip("%"), kind, rest[:opening], operands, rest[closing + 1 :], line)


def _closing(text: str, opening: int) -> int:
    """The place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    return len(text) - 1


def _fusion_traffic(fusion: Instruction, operands: list[str], inner: list[Instruction]) -> float:
    parameters = {
        each.name: int(re.findall(r"parameter\((\d+)\)", each.text)[0])
        for each in inner
        if each.opcode == "parameter"
    }
    read = dict(enumerate(map(hbm_bytes, operands)))
    written = hbm_bytes(fusion.type)
    for name, number in parameters.items():
        users = [each for each in inner if name in each.operands]
        sliced = [each for each in users if each.operands[0] == name]
        slices = [each for each in sliced if each.opcode == "dynamic-slice"]
        updates = [each for each in sliced if each.opcode == "dynamic-update-slice"]
        if users and len(slices) + len(updates) == len(users) and read.get(number):
            read[number] = sum(map(_plain_bytes, (each.type for each in slices)))
            if updates:
                types = {each.name: each.type for each in inner}
                changed = sum(_plain_bytes(types[each.operands[1]]) for each in updates)
                whole = sum(_plain_bytes(each.type) for each in updates)
                written = max(written - whole, 0) + changed
    return written + sum(read.values())


def _size(kind: str, sizes: str) -> float:
    bits = 8 if kind == "pred" else int((re.findall(r"\d+", kind) or ["0"])[0])
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    return count * bits / 8


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
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if not mesh:
        return 1
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
    group = 1
    for axis in re.findall(r"'(\w+)'", mesh.group(2)):
        group *= int(sizes[axis])
    return group


def _sent(kind: str, instruction: Instruction, group: int) -> float:
    """Bytes that a device sends, by the usual ring algorithms."""
    whole = _plain_bytes(instruction.type)
    others = (group - 1) / group
    if kind == "all-reduce":
        return 2 * others * whole
    largest = _plain_bytes(_largest(instruction.type))
    if kind == "reduce-scatter":
        return others * group * largest
    return largest if kind == "collective-permute" else others * largest
