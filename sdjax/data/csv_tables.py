"""Tables of a database that are CSV files of any size: found by name, read in chunks of rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdjax.data.examples import listing
from sdjax.data.readers.options import readable
from sdjax.errors import InputError

SUFFIXES = (".csv", ".csv.gz")
_ROWS = 5_000  # of a chunk: of notes of 10 kB each, 50 MB


def find(folders: Sequence[Path], name: str) -> Path:
    """The file of table `name`, in whatever case, in one of the `folders` or below.

    Raises:
      InputError: if there is none, or more than one.
    """
    wanted = {f"{name}{suffix}".lower() for suffix in SUFFIXES}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder.")
    paths = {path.resolve() for folder in folders for path in folder.rglob("*")}
    found = [path for path in paths if path.name.lower() in wanted]
    if not found:
        raise InputError(
            f"{', '.join(map(str, folders))}: no table {name} there ({name}.csv or {name}.csv.gz)."
        )
    if len(found) > 1:
        raise InputError(
            f"Table {name} is there {len(found)} times: {listing(sorted(map(str, found)))}."
        )
    return found[0]


def chunks(path: Path, columns: Sequence[str], rows: int = _ROWS) -> Iterator[Any]:
    """Columns of a table as frames of text, in chunks of rows; missing values are NaN.

    Args:
      path: of the file.
      columns: their names in lower case, by which they are called in the chunks.
      rows: of a chunk, at most.

    Raises:
      InputError: if a column is absent, or the file is damaged.
    """
    import pandas as pd

    with readable(str(path), "CSV"):
        header = list(pd.read_csv(path, nrows=0).columns)
    known = {name.lower(): name for name in header}
    absent = [name for name in columns if name not in known]
    if absent:
        raise InputError(
            f"{path}: columns that are absent: {listing(absent)}. Columns: {listing(header)}."
        )
    chosen = [known[name] for name in columns]
    with readable(str(path), "CSV"):
        yield from (
            chunk[chosen].set_axis(list(columns), axis=1)
            for chunk in pd.read_csv(path, usecols=chosen, dtype=str, chunksize=rows)
        )
