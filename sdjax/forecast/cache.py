"""A cache before HBM that holds what was used last, such as the L2 of a GPU."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace


class Array:
    """An array of a program: `size` bytes in HBM. Two are never equal."""

    def __init__(self, size: float) -> None:
        self.size = size


@dataclass
class _Line:
    held: float = 0.0  # bytes
    coming: float = 0.0  # bytes that further rounds of the present loop bring
    changed: float = 0.0  # bytes that HBM has not
    times: float = 1.0  # how many arrays it stands for, of as many rounds of a loop


class Cache:
    """Counts the bytes that pass between it and HBM.

    Arrays larger than the cache pass through it. Of the others, those that were used longest ago
    make room. Slices of an array are taken to be different ones until all of it has been used, and
    to stay: while a loop runs, a slice in each round, they do not displace what every round uses.
    So the count is a lower bound where the slices of a loop are of more than the cache holds.
    """

    def __init__(self, size: float) -> None:
        self.size = size
        self.traffic = 0.0
        self._lines: OrderedDict[Array, _Line] = OrderedDict()

    def copy(self) -> "Cache":
        """Another of the same content."""
        other = Cache(self.size)
        other.traffic = self.traffic
        for array, line in self._lines.items():
            other._lines[array] = replace(line)
        return other

    def read(self, array: Array, part: float, times: float) -> None:
        """Reads `part` bytes of an array, `times` times over."""
        if array.size > self.size:
            self._pass(part, times)
            return
        line = self._line(array, part)
        missing = array.size - line.held - line.coming
        if part < array.size:
            missing = min(part * times, missing)
            self.traffic += missing
        else:
            self.traffic += missing * times
            part = missing
        self._fill(line, part, missing)

    def write(self, array: Array, part: float, times: float) -> None:
        """Writes `part` bytes of an array, `times` times over."""
        if array.size > self.size:
            self._pass(part, times)
            return
        line = self._line(array, part)
        whole = part >= array.size
        line.changed = min(line.changed + part * times, array.size)
        missing = max(line.changed - line.held - line.coming, 0.0)
        line.times = times if whole else line.times
        self._fill(line, missing if whole else part, missing)

    def drop(self, array: Array) -> None:
        """Forgets an array that nothing reads any more: its place is written over."""
        self._lines.pop(array, None)

    def rename(self, old: Array, new: Array) -> None:
        """Has what was `old` count as `new`, in whose place it is."""
        self.drop(new)
        if old in self._lines:
            self._lines[new] = self._lines.pop(old)

    def settle(self, state: Iterable[Array], times: float) -> None:
        """Ends a loop: all its slices are there, and of arrays made anew those of the last round.

        Args:
          state: arrays that a round hands to the next.
          times: how often the loop runs.
        """
        for array in state:
            if array in self._lines:
                self._lines[array].times = times
        for line in self._lines.values():
            line.held, line.coming = line.held + line.coming, 0.0
        self._make_room()

    def flush(self) -> None:
        """Writes all that was changed to HBM."""
        self.traffic += sum(line.changed for line in self._lines.values())
        self._lines.clear()

    def _line(self, array: Array, part: float) -> _Line:
        """Of an array that is used now; the use of a slice does not make the others newer."""
        line = self._lines.setdefault(array, _Line())
        if part >= array.size:
            self._lines.move_to_end(array)
        return line

    def _fill(self, line: _Line, now: float, missing: float) -> None:
        now = min(now, missing)
        line.held += now
        line.coming += missing - now
        self._make_room()

    def _pass(self, part: float, times: float) -> None:
        self.traffic += part * times
        self._make_room(min(part, self.size))

    def _make_room(self, free: float = 0.0) -> None:
        excess = sum(line.held for line in self._lines.values()) + free - self.size
        while excess > 0 and self._lines:
            oldest = next(iter(self._lines))
            line = self._lines[oldest]
            gone = min(excess, line.held)
            written = line.changed * gone / line.held if line.held else 0.0
            self.traffic += written * line.times
            line.held, line.changed = line.held - gone, line.changed - written
            excess -= gone
            if not line.held:
                self.drop(oldest)
