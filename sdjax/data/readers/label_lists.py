"""Labels that are given as a list of names, or of numbers, for each row."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdjax.data.examples import from_lists, listing
from sdjax.data.readers import text
from sdjax.data.readers.options import ReadOptions, split_names
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets


def from_names(
    path: str,
    lists: Sequence[Sequence[str]],
    options: ReadOptions,
    *,
    declared: str = "",
    key: Callable[[str], Any] | None = None,
) -> tuple[LabelSets, tuple[str, ...]]:
    """Label sets and their names: those of training, else the declared, else all in rising order.

    Args:
      path: of the file, for error messages.
      lists: the names of each row's labels.
      options: `label_names` are those of training.
      declared: all names, comma-separated, where the user lists them.
      key: what names are sorted by.

    Raises:
      InputError: if there is no label, or one that is not among the names.
    """
    found = sorted({name for names in lists for name in names}, key=key)
    known = options.label_names or tuple(split_names("data.labels", declared, found) or found)
    if not known:
        raise InputError(f"{path}: no row has a label; name all labels in data.labels.")
    places = {name: place for place, name in enumerate(known)}
    unknown = [name for name in found if name not in places]
    if unknown:
        raise InputError(
            f"{path}: labels that are not among the {len(known)} known ones: {listing(unknown)}. "
            "Known are those that data.label_names or data.labels names, or else those that occur "
            "in train."
        )
    return from_lists([[places[name] for name in names] for names in lists], len(known)), known


def read_names(path: str) -> tuple[str, ...]:
    """The names of all labels, of a text file that has one a line.

    Raises:
      InputError: if there is none, or one is there twice.
    """
    with text.open_text(path, "a list of labels") as file:
        names = [line.strip() for line in file if line.strip()]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        what = f"names that are there twice: {listing(repeated)}" if repeated else "no name"
        raise InputError(f"data.label_names {path}: {what}; one name a line was expected.")
    return tuple(names)


def split_cell(value: Any, separator: str) -> list[str]:
    """The names in one cell: text that `separator` splits, or a list; none where it is empty."""
    if isinstance(value, str):
        parts = value.split(separator) if separator else [value]
        return [name for name in map(str.strip, parts) if name]
    if is_list(value):
        return [str(name) for name in value]
    return [] if value is None else [str(value)]


def is_list(value: Any) -> bool:
    """Whether a cell holds a list, as those of Parquet and JSON may."""
    return isinstance(value, list | tuple | np.ndarray)
