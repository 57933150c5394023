"""CSV and its kin: text tables with a header line, whatever the delimiter."""

import csv
import functools
import itertools
import re
import warnings
from collections import Counter
from typing import Any

from sdjax.data.examples import Examples, listing
from sdjax.data.readers import label_lists, tables, text
from sdjax.data.readers.options import ReadOptions, readable, select
from sdjax.errors import InputError

DELIMITERS = (",", ";", "\t", "|")
_SNIFFED_LINES = 20
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


def read_csv(path: str, options: ReadOptions) -> Examples:
    """Reads a table with a header line; the delimiter is found from the first lines.

    Numbers may have a decimal comma where the delimiter is another character.
    """
    return _read(path, options, DELIMITERS)


def read_tsv(path: str, options: ReadOptions) -> Examples:
    """Reads a table with a header line, delimited by tabs."""
    return _read(path, options, ("\t",))


def _read(path: str, options: ReadOptions, delimiters: tuple[str, ...]) -> Examples:
    import pandas as pd

    with text.open_text(path, "CSV") as file:
        lines, encoding = list(itertools.islice(file, _SNIFFED_LINES)), file.encoding
    delimiter, rows = _sniff(lines, delimiters)
    header = rows[0] if rows else []
    _check_header(path, header)
    converters: dict[str, Any] = {}
    if options.label_separator and options.labels:
        # Split before pandas makes numbers of "07" and "1,2", and a missing value of "NA".
        split = functools.partial(label_lists.split_cell, separator=options.label_separator)
        columns = select(path, "data.labels", options.labels, header, required=False)
        converters = dict.fromkeys(columns, split)
    # What is text in training is text here, also where all of it looks like numbers.
    kinds: dict = dict.fromkeys(options.vocabulary or (), str)
    if options.image:  # a name such as 000001 is no number
        kinds[options.image] = str
    if options.text:  # in a list, since "" and "NA" alone become missing values
        converters[options.text] = _in_list
    comma = delimiter != "," and any(_DECIMAL_COMMA.fullmatch(x) for row in rows[1:] for x in row)
    with readable(path, "CSV"), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            sep=delimiter,
            decimal="," if comma else ".",
            converters=converters,
            dtype=kinds,
            index_col=False,
            low_memory=False,
            encoding=encoding,
        )
    if options.text in frame:
        frame[options.text] = [text for (text,) in frame[options.text]]
    return tables.from_frame(path, frame, options)


def _in_list(cell: str) -> list[str]:
    return [cell]


def _sniff(lines: list[str], delimiters: tuple[str, ...]) -> tuple[str, list[list[str]]]:
    """The delimiter, and the fields of `lines`.

    It is the one by which all lines have as many fields as the header, two or more; of several, and
    without any, the one that gives the header most.
    """
    best = (False, 0), delimiters[0], []
    for delimiter in delimiters:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter))
        except csv.Error:  # a field of over 131,072 characters: a line without this delimiter
            continue
        fields = len(rows[0]) if rows else 0
        alike = min(len(rows), fields) > 1 and all(len(row) in (0, fields) for row in rows)
        if (alike, fields) > best[0]:
            best = (alike, fields), delimiter, rows
    return best[1:]


def _check_header(path: str, header: list[str]) -> None:
    if not any(name.strip() for name in header):
        raise InputError(f"{path}: the file is empty; a header line was expected.")
    # pandas names the columns of a bare array 0, 1, 2 ...
    counted = header == [str(k) for k in range(len(header))]
    if not counted and all(map(_is_number, header)):
        raise InputError(
            f"{path}: there is no header line: the first line holds numbers alone "
            f"({listing(header, 6)}). Write the names of the columns above it."
        )
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if repeated:
        raise InputError(f"{path}: columns that occur twice: {listing(repeated)}.")


def _is_number(field: str) -> bool:
    try:
        float(field.replace(",", "."))
    except ValueError:
        return False
    return True
