"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A block that writes to the path it is given; at its end that file becomes `path`."""
    temporary = path.with_suffix(".tmp")
    yield temporary
    os.replace(temporary, path)
