"""Notes of many admissions on disk, until all of one admission have been read."""

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType


class NoteStore:
    """Notes in a file, which is gone after the `with`.

    Args:
      path: of the file; one that is there is replaced.
    """

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "NoteStore":
        self._path.unlink(missing_ok=True)
        self._database = sqlite3.connect(self._path, isolation_level=None)
        # Nothing is to be recovered of it.
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE notes (split TEXT, subject INTEGER, admission INTEGER, text TEXT);"
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)

    def add(self, split: str, subject: int, admission: int, text: str) -> None:
        """Adds a note behind those that are there."""
        given = (split, subject, admission, text)
        self._database.execute("INSERT INTO notes VALUES (?, ?, ?, ?)", given)

    def rows(self, split: str) -> Iterator[tuple[int, int, str]]:
        """(subject, admission, text) of a split in rising order; the notes of one are joined."""
        # By an index: to sort the texts themselves would take as much room again.
        self._database.execute(
            "CREATE INDEX IF NOT EXISTS by_admission ON notes (split, subject, admission)"
        )
        found = self._database.execute(
            "SELECT subject, admission, text FROM notes WHERE split = ? "
            "ORDER BY subject, admission, rowid",
            (split,),
        )
        for (subject, admission), notes in itertools.groupby(found, key=lambda row: row[:2]):
            yield subject, admission, " ".join(text for _, _, text in notes)
