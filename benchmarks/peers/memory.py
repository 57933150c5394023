"""Memory of processes, from Linux's /proc."""

import ctypes
import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def available() -> int:
    """Bytes that new processes could take without swapping."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def trim() -> None:
    """Gives freed memory back to the system, where the C library can."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def reset_peak() -> bool:
    """Sets this process's peak to what it holds now; False where the kernel does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    """Most bytes that this process held since `reset_peak`."""
    return _field(Path("/proc/self/status"), "VmHWM")


def first_victim() -> None:
    """If the machine runs out of memory, the kernel ends this process before any other."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no {name}.")
