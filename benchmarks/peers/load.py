"""What else the machine computes, from Linux's /proc: timings beside other work mean little.

PyTorch's threads spin for each other, so that a busy neighbour slows it many times over.
"""

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
QUIET_CORES = 0.1


def busy_seconds() -> float:
    """Seconds that all cores together have worked since the machine started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def process_seconds(pid: int) -> float:
    """Seconds that a process has worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def wait_until_quiet(patience: float) -> None:
    """Returns once less than a tenth of a core works, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        start, before = time.monotonic(), busy_seconds()
        time.sleep(0.2)
        if (busy_seconds() - before) / (time.monotonic() - start) < QUIET_CORES:
            return


class OtherLoad:
    """Cores that others than one process kept busy, from now on."""

    def __init__(self, pid: int):
        self._pid = pid
        self._start, self._others = time.monotonic(), self._others_now()

    def cores(self) -> float:
        seconds = time.monotonic() - self._start
        return max(0.0, self._others_now() - self._others) / seconds

    def _others_now(self) -> float:
        return busy_seconds() - process_seconds(self._pid)
