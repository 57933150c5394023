"""The text of a compiled program, its optimised HLO, as computations of instructions.

What it computes, moves and sends is read off them: operations.py, traffic.py, collectives.py.
Why not by a library, as measured for v5e:2x4 with jax 0.10.2:
`Compiled.cost_analysis()` counts a loop's body once (1.72e10 flop, where 40 rounds run 6.87e11),
arrays in on-chip memory as traffic (19.3 MB, where 1.05 MB go to and from HBM), and no collectives;
for GPUs it is None where there is no GPU.
`jax.experimental.roofline` counts a scan's body once and a while loop's not at all, all devices'
work as one's (8 times too much), and what is outside the last `shard_map` not at all.
`Compiled.memory_analysis()` has the peak, which forecasts take, but no traffic.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLS = re.compile(r"(?:calls|to_apply|body|branch_computations|true_computation|"
                    r"false_computation)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")  # fmt: skip
_CALLERS = ("while", "conditional", "call", "async-start")


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

    @property
    def target(self) -> str:
        """What a custom call calls; "" of another instruction."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def number(self) -> int:
        """Of a parameter or an element of a tuple; -1 of another instruction."""
        parameter = re.search(r"\bparameter\((\d+)\)", self.text)
        found = parameter or re.search(r"\bindex=(\d+)", self.attributes)
        return int(found.group(1)) if found else -1


Measure = Callable[[Instruction], float]
# How often an instruction runs, and what a measure says of one run.
Run = tuple[float, Instruction, float]


@dataclass
class Program:
    """A compiled program, as computations of instructions."""

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""

    def run(
        self, measure: Measure, unknown_rounds: float, name: str = "", rounds: float = 1.0
    ) -> list[Run]:
        """All instructions of a run, those of fusions too; of branches, the largest total.

        Args:
          measure: of one run of an instruction.
          unknown_rounds: of loops whose number of rounds the text does not tell.
          name: of a computation, the whole program by default.
          rounds: how often it runs.
        """
        found: list[Run] = []
        for instruction in self.computations.get(name or self.entry, ()):
            found.append((rounds, instruction, measure(instruction)))
            opcode = instruction.opcode
            if opcode not in _CALLERS and opcode != "fusion":
                continue
            inside = rounds
            if opcode == "while":
                inside *= self.rounds(instruction, unknown_rounds)
            runs = [
                self.run(measure, unknown_rounds, called, inside) for called in instruction.called
            ]
            if opcode == "conditional":
                runs = [max(runs, key=total)]
            found += itertools.chain(*runs)
        return found

    def rounds(self, loop: Instruction, unknown: float) -> float:
        """Rounds of a loop that counts from 0 to a constant; `unknown` of another."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        lines = self.computations.get(condition.group(1), []) if condition else []
        constants = [
            int(found.group(1))
            for line in lines
            if line.opcode == "constant" and (found := re.search(r"constant\((\d+)\)", line.text))
        ]
        return constants[0] if len(constants) == 1 else unknown


def total(runs: list[Run]) -> float:
    """Of all runs, as often as they run."""
    return sum(rounds * value for rounds, _, value in runs)


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


@functools.cache
def elements(type_text: str) -> tuple[str, ...]:
    """Types of the elements of a tuple; of an array, its own."""
    if not type_text.startswith("("):
        return (type_text,)
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(type_text):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if depth == 0 or (depth == 1 and letter == ","):
            parts.append(type_text[start:place])
            start = place + 1
    return tuple(part for part in parts if part.strip())


@functools.cache
def arrays(type_text: str) -> tuple[str, ...]:
    """Types of all arrays of a type, those of tuples in tuples too."""
    return tuple(found.group(0) for found in _SHAPE.finditer(type_text))


def sizes(type_text: str) -> list[int]:
    """Sizes of the axes of an array's type."""
    return [int(size) for size in _SHAPE.findall(type_text)[0][1].split(",") if size]


@functools.cache
def plain_bytes(type_text: str) -> float:
    """Bytes of all arrays of a type."""
    return sum(_size(kind, shape) for kind, shape, _ in _SHAPE.findall(type_text))


@functools.cache
def hbm_bytes(type_text: str) -> float:
    """Bytes of the arrays of a type that are not in on-chip memory that the program manages."""
    return sum(
        _size(kind, shape)
        for kind, shape, layout in _SHAPE.findall(type_text)
        if not re.search(r"S\([1-9]", layout)
    )


def _size(kind: str, shape: str) -> float:
    bits = 8 if kind == "pred" else int((re.findall(r"\d+", kind) or ["0"])[0])
    return math.prod(int(size) for size in shape.split(",") if size) * bits / 8
