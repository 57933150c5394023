"""What a compiled program reads from HBM and writes to it."""

import math
import re
from dataclasses import dataclass

from sdjax.forecast.cache import Array, Cache
from sdjax.forecast.hlo import (
    Instruction,
    Program,
    arrays,
    elements,
    hbm_bytes,
    plain_bytes,
    sizes,
)

# They move nothing themselves.
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "async-start", "async-done",
    "opt-barrier",
)  # fmt: skip
# Other names for the same arrays.
_NAMES = ("parameter", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "while")
# Of arrays that pass through these, a fusion computes only the elements of a later slice.
_ELEMENTWISE = ("bitcast", "bitcast-convert", "convert", "copy", "reshape", "transpose")
_SLICES = ("dynamic-slice", "slice", "gather")
# Custom calls that run; others mark something for the compiler.
_KERNELS = ("tpu_custom_call", "__", "cu", "triton", "xla.gpu")
_LIBRARIES = ("__cublas$", "__cudnn$")

Value = list[Array]


def traffic(program: Program, unknown_rounds: float = 1.0, cache: float = 0.0) -> float:
    """Bytes that a run reads from and writes to HBM.

    Operands and results of all operations that are not in on-chip memory; of an array of which
    a slice is read or written, the slice. What stays in a cache from one operation to the next
    does not count, nor does a result that is used up in it.

    Args:
      program: on one device, in the order in which it runs.
      unknown_rounds: of loops whose number of rounds the text does not tell.
      cache: bytes of a cache before HBM.
    """
    return _Walk(program, unknown_rounds, Cache(cache)).whole()


@dataclass(frozen=True)
class _Touched:
    """Bytes that a fusion reads of each operand, and writes of each array of its result.

    `places` has the operand in whose place an array of the result is written, or None.
    """

    read: list[float]
    written: list[float]
    places: list[int | None]


class _Walk:
    """One run of a program, its loops in two rounds: the first, and one for all others."""

    def __init__(self, program: Program, unknown_rounds: float, cache: Cache) -> None:
        self.program, self.unknown_rounds, self.cache = program, unknown_rounds, cache
        self._fusions: dict[str, _Touched] = {}

    def whole(self) -> float:
        entry = self.program.computations.get(self.program.entry, [])
        parameters = sorted(
            (each for each in entry if each.opcode == "parameter"), key=lambda each: each.number
        )
        self._run(self.program.entry, [_fresh(each.type) for each in parameters], 1.0)
        self.cache.flush()
        return self.cache.traffic

    def _run(self, name: str, arguments: list[Value], times: float) -> Value:
        """Runs a computation `times` times over; the arrays of its result."""
        lines = self.program.computations.get(name, [])
        values: dict[str, Value] = {}
        for line in lines:
            values[line.name] = self._value(line, values, arguments)
        root = next(filter(_is_root, lines), lines[-1])
        result = values[root.name]
        last = _last_uses(lines, values)
        given = {array for argument in arguments for array in argument} | set(result)
        for place, line in enumerate(lines):
            self._step(line, values, times)
            for array in last.get(place, ()):
                if array not in given:
                    self.cache.drop(array)
        return result

    def _value(self, line: Instruction, values: dict[str, Value], arguments: list[Value]) -> Value:
        """The arrays that a name stands for, new ones or those of operands."""
        operands = [
            values.get(name) or _fresh(kind)
            for name, kind in zip(line.operands, line.operand_types, strict=True)
        ]
        if line.opcode == "parameter":
            return arguments[line.number] if line.number < len(arguments) else _fresh(line.type)
        if line.opcode == "tuple":
            return [array for operand in operands for array in operand]
        if line.opcode == "get-tuple-element":
            parts = [len(arrays(part)) for part in elements(line.operand_types[0])]
            start = sum(parts[: line.number])
            return operands[0][start : start + parts[line.number]]
        if line.opcode in _NAMES or line.opcode == "dynamic-update-slice":
            return operands[0]
        if line.opcode == "async-done":
            return _second(line.operand_types[0], operands[0])
        result = _fresh(line.type)
        if line.opcode == "fusion":
            places = self._touched(line).places
            return [
                array if place is None else operands[place][0]
                for array, place in zip(result, places, strict=True)
            ]
        return result

    def _step(self, line: Instruction, values: dict[str, Value], times: float) -> None:
        operands = [values.get(name, []) for name in line.operands]
        result = values[line.name]
        if line.opcode == "while":
            self._loop(line, result, times)
        elif line.opcode in ("conditional", "call", "async-start"):
            self._call(line, operands, result, times)
        else:
            self._move(line, operands, result, times)

    def _loop(self, line: Instruction, state: Value, times: float) -> None:
        body = re.findall(r"body=%?([\w.\-]+)", line.attributes)[0]
        rounds = self.program.rounds(line, self.unknown_rounds)
        for share in (min(rounds, 1.0), rounds - 1.0):
            if share > 0:
                changed = self._run(body, [state], times * share)
                self._rename(changed, state, state)
        self.cache.settle(state, times)

    def _call(self, line: Instruction, operands: list[Value], result: Value, times: float) -> None:
        """Runs what is called; of the branches of a condition, the one that moves most."""
        if line.opcode == "async-start":
            result = _second(line.type, result)
        if line.opcode == "conditional":
            called = list(zip(line.called, ([each] for each in operands[1:]), strict=True))
        else:
            called = [(name, operands) for name in line.called]
        before, ends = self.cache, []
        for name, arguments in called:
            self.cache = before.copy()
            changed = self._run(name, arguments, times)
            given = [array for argument in arguments for array in argument]
            self._rename(changed, result, given)
            ends.append(self.cache)
        self.cache = max(ends, key=lambda cache: cache.traffic, default=before)

    def _rename(self, changed: Value, places: Value, given: Value) -> None:
        """Has results stand in their places; what was `given` stays what it is."""
        for new, old in zip(changed, places, strict=True):
            if new not in given:
                self.cache.rename(new, old)

    def _move(self, line: Instruction, operands: list[Value], result: Value, times: float) -> None:
        """Reads the operands of an operation and writes its result."""
        opcode = line.opcode
        if opcode in _FREE or (opcode == "custom-call" and not line.target.startswith(_KERNELS)):
            return
        if opcode.removesuffix("-start") in _SLICES:
            cut = elements(line.type)[1] if opcode.endswith("-start") else line.type
            read = [_part(cut, operands[0]), *_whole(operands[1:])]
            written = [] if opcode.endswith("-start") else _whole([result])
        elif opcode == "dynamic-update-slice":
            read = [0.0, *_whole(operands[1:])]
            written = [_part(line.operand_types[1], operands[0])]
        elif opcode == "fusion":
            touched = self._touched(line)
            read, written = touched.read, touched.written
        else:
            read, written = _whole(operands), [array.size for array in result]
            if opcode.endswith("-start"):  # The result is there when it is done.
                written = []
            if opcode.endswith("-done"):
                read = []
            if line.target.startswith(_LIBRARIES):
                written = written[:1]  # and a place to work in
        for operand, part in zip(operands, read, strict=False):
            if len(operand) == 1 and part:
                self.cache.read(operand[0], part, times)
            elif part:
                for array in operand:
                    self.cache.read(array, array.size, times)
        for array, part in zip(result, written, strict=False):
            if part:
                self.cache.write(array, part, times)

    def _touched(self, fusion: Instruction) -> _Touched:
        if fusion.name not in self._fusions:
            inner = self.program.computations.get(fusion.called[0], []) if fusion.called else []
            self._fusions[fusion.name] = _touched(fusion, inner)
        return self._fusions[fusion.name]


def _is_root(line: Instruction) -> bool:
    return line.text.lstrip().startswith("ROOT ")


def _fresh(type_text: str) -> Value:
    return [Array(hbm_bytes(each)) for each in arrays(type_text)]


def _part(cut: str, value: Value) -> float:
    """Bytes in HBM of a slice, whose type is given, of an array."""
    return min(plain_bytes(cut), value[0].size) if value else 0.0


def _second(type_text: str, value: Value) -> Value:
    """The result in a tuple of operands, result and more."""
    first, second = (len(arrays(part)) for part in elements(type_text)[:2])
    return value[first : first + second]


def _whole(values: list[Value]) -> list[float]:
    return [sum(array.size for array in value) for value in values]


def _last_uses(lines: list[Instruction], values: dict[str, Value]) -> dict[int, list[Array]]:
    """The arrays that are used for the last time, by the place of the instruction."""
    last: dict[Array, int] = {}
    for place, line in enumerate(lines):
        if line.opcode in _NAMES and line.opcode != "while":
            continue
        for name in (line.name, *line.operands):
            last.update(dict.fromkeys(values.get(name, ()), place))
    by_place: dict[int, list[Array]] = {}
    for array, place in last.items():
        by_place.setdefault(place, []).append(array)
    return by_place


def _touched(fusion: Instruction, inner: list[Instruction]) -> _Touched:
    lines = {line.name: line for line in inner}
    read = [hbm_bytes(kind) for kind in fusion.operand_types]
    written = [hbm_bytes(kind) for kind in arrays(fusion.type)]
    places: list[int | None] = [None] * len(written)
    for line in inner:
        if line.opcode == "parameter" and line.number < len(read) and read[line.number]:
            part = _read_part(line, lines)
            if part is not None:
                read[line.number] = min(part, read[line.number])
    roots = list(filter(_is_root, inner))
    if roots and roots[0].opcode == "tuple":
        roots = [lines[name] for name in roots[0].operands if name in lines]
    if len(roots) != len(written):
        return _Touched(read, written, places)
    for number, root in enumerate(roots):
        update = _source(root, lines)
        if update.opcode != "dynamic-update-slice" or not written[number]:
            continue
        whole = _source(lines[update.operands[0]], lines)
        if whole.opcode == "parameter" and not whole.type.startswith("("):
            written[number] = plain_bytes(update.operand_types[1])
            places[number] = whole.number
    return _Touched(read, written, places)


def _read_part(parameter: Instruction, lines: dict[str, Instruction]) -> float | None:
    """Bytes of the slices that are all that is read of a parameter; None if it is read whole."""
    if parameter.type.startswith("("):
        return None
    count = math.prod(sizes(parameter.type))
    width = plain_bytes(parameter.type) / count if count else 0.0
    part, names = 0.0, [parameter.name]
    for name in names:
        users = [line for line in lines.values() if name in line.operands]
        if not users:
            return None
        for user in users:
            first = user.operands[0] == name and name not in user.operands[1:]
            in_place = user.opcode == "dynamic-update-slice" and _source(lines[name], lines)
            if user.opcode in _ELEMENTWISE:
                names.append(user.name)
            elif first and user.opcode in _SLICES:
                part += math.prod(sizes(user.type)) * width
            elif not first or in_place is not parameter:
                return None
    return part


def _source(line: Instruction, lines: dict[str, Instruction]) -> Instruction:
    """What an instruction hands on without computing."""
    while line.opcode in ("bitcast", "copy", "reshape") and line.operands[0] in lines:
        line = lines[line.operands[0]]
    return line
