"""Files that are there whole or not at all, and what a command says of what it wrote."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A block that writes to the path it is given; at its end that file becomes `path`."""
    temporary = path.with_suffix(".tmp")
    yield temporary
    os.replace(temporary, path)


def tell(counts: Mapping[str, int], output: Path | str) -> None:
    """Prints how many of what there are in `output`, a line each, and where that is."""
    for name, count in counts.items():
        print(f"{count:>9,}  {name}")
    print(f"Wrote {output}")
