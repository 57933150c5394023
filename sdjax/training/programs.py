"""Room for compiled programs in a process that makes many runs."""

from pathlib import Path

import jax

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")


def make_room(most: int | None = None) -> None:
    """Forgets all compiled programs once they take half of what the system has for them.

    On CPUs the programs of a run map some hundred regions of memory, and Linux lets a process have
    65,530 of them: without room the next compilation ends the process with a segmentation fault.
    Those that are needed again are compiled again.

    Args:
      most: regions; by default what the system allows, and where it does not tell, any number.
    """
    try:
        most = int(_MOST_MAPS.read_text()) if most is None else most
        with _MAPS.open("rb") as file:
            regions = sum(1 for _ in file)
    except OSError:
        return
    if regions > most // 2:
        jax.clear_caches()
