"""JSON lines: one object a line, with its input and its labels."""

import json
import os
from typing import Any

import numpy as np

from sdjax.data.examples import Examples, check_binary, check_finite, listing
from sdjax.data.images import EncodedImages
from sdjax.data.readers import image_files, label_lists, tables, text
from sdjax.data.readers.arrays import as_inputs
from sdjax.data.readers.options import (
    INPUT_KEYS,
    LABEL_KEYS,
    ReadOptions,
    find_key,
    readable,
)
from sdjax.data.rows import RowArray
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets

Objects = list[dict[str, Any]]


def read_jsonl(path: str, options: ReadOptions) -> Examples:
    """Reads a file of JSON objects, one a line.

    The input is a list of numbers, an object of numbers by feature name, or the path of an
    image (seen from the file's folder). The labels are a list of label names, text that
    `options.label_separator` splits into names, an object of 0/1 by label name, a multi-hot list
    of 0/1, or a list of the labels' numbers, which no multi-hot list is where lengths differ; more
    than 1,024 labels that are given as lists are kept as lists of indices.

    Where no field is called like an input, every field is a column as in a CSV file, and
    `options.labels` names the label columns.
    """
    import pandas as pd

    rows = _rows(path)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    field = "data.image" if options.image else "data.input_key"
    input_key = find_key(path, field, options.image or options.input_key, INPUT_KEYS, keys)
    label_key = find_key(path, "data.label_key", options.label_key, LABEL_KEYS, keys)
    if not rows:
        raise InputError(f"{path}: the file has no row.")
    if options.text:
        return _read_texts(path, rows, keys, label_key, options)
    if options.image and options.labelled and label_key is None:
        return tables.from_frame(path, pd.DataFrame(rows, columns=keys), options)
    if input_key is None or not isinstance(rows[0].get(input_key), list | dict | str):
        _refuse_text(path, rows[0], label_key, options)
        return tables.from_frame(path, pd.DataFrame(rows, columns=keys), options)
    inputs, feature_names = _inputs(path, _column(path, rows, input_key), options)
    labels, label_names = None, ()
    if options.labelled:
        if label_key is None:
            raise InputError(f"{path}: set data.label_key. Keys: {listing(keys)}.")
        column = _column(path, rows, label_key)
        labels, label_names = _labels(path, column, options)
    ids = _ids(rows)
    if ids is None and isinstance(inputs, EncodedImages):
        ids = tuple(row[input_key] for row in rows)
    return Examples(path, inputs, labels, label_names, feature_names, ids)


def _read_texts(
    path: str, rows: Objects, keys: list[str], label_key: str | None, options: ReadOptions
) -> Examples:
    """Texts with the labels of one field, or else of the fields that `options.labels` names."""
    import pandas as pd

    if options.text not in keys:
        raise InputError(f"{path}: data.text {options.text!r} is not there. Keys: {listing(keys)}.")
    if options.labelled and label_key is None:
        return tables.from_frame(path, pd.DataFrame(rows, columns=keys), options)
    inputs = tables.texts(path, [row.get(options.text) for row in rows], options.text)
    labels, names = None, ()
    if options.labelled and label_key is not None:
        labels, names = _labels(path, _column(path, rows, label_key), options)
    return Examples(path, inputs, labels, names, ids=_ids(rows))


def _ids(rows: Objects) -> tuple[str, ...] | None:
    return tuple(str(row["id"]) for row in rows) if all("id" in row for row in rows) else None


def _rows(path: str) -> Objects:
    with text.open_text(path, "JSON lines") as file, readable(path, "JSON lines"):
        lines = file.readlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is no JSON object: {line[:60]!r}.")
        rows.append(row)
    return rows


def _column(path: str, rows: Objects, key: str) -> list[Any]:
    """Field `key` of all rows, which must be of one type."""
    for number, row in enumerate(rows):
        if key not in row:
            raise InputError(f"{path}: field {key!r} is absent in row {number} (the first is 0).")
        if type(row[key]) is not type(rows[0][key]):
            raise InputError(
                f"{path}: field {key!r} is {row[key]!r} in row {number} (the first is 0), and "
                f"{rows[0][key]!r} in row 0; one type was expected."
            )
    return [row[key] for row in rows]


def _inputs(path: str, column: list[Any], options: ReadOptions) -> tuple[RowArray, tuple[str, ...]]:
    if isinstance(column[0], str):
        if options.image:
            return image_files.named_in(path, column, options), ()
        folder = os.path.dirname(path)
        paths = [os.path.join(folder, name) for name in column]
        if not (image_files.is_images(column[0]) or os.path.exists(paths[0])):
            raise InputError(f"{path}: the input {column[0][:60]!r} is no image. {tables.TEXT}")
        return image_files.from_paths(path, paths, options), ()
    names: tuple[str, ...] = ()
    if isinstance(column[0], dict):
        names = options.feature_names or tuple(column[0])
        for row, value in enumerate(column):
            absent, new = set(names) - set(value), set(value) - set(names)
            if absent or (new and options.labelled):
                raise InputError(
                    f"{path}: row {row} (the first is 0) has other features; absent: "
                    f"{listing(sorted(absent))}; only there: {listing(sorted(new))}."
                )
        column = [[value[name] for name in names] for value in column]
    inputs = as_inputs(path, _array(path, column, "input"), options.image_size)
    check_finite(path, inputs, names)
    return inputs, names


def _labels(
    path: str, column: list[Any], options: ReadOptions
) -> tuple[LabelSets, tuple[str, ...]]:
    """Label sets and their names; names not known from training are sorted."""
    separator = options.label_separator
    if separator and isinstance(column[0], str):
        column = [label_lists.split_cell(value, separator) for value in column]
    first = next((value for value in column if value), column[0])
    if isinstance(first, dict):
        names = options.label_names or tuple(first)
        for row, value in enumerate(column):
            if set(value) != set(names):
                raise InputError(
                    f"{path}: row {row} (the first is 0) has labels {listing(sorted(value))}; "
                    f"expected {listing(names)}."
                )
        values = np.array([[value[name] for name in names] for value in column], object)
        return check_binary(path, values, names), names
    if not isinstance(first, list):
        raise InputError(
            f"{path}: labels must be lists or objects, or text with data.label_separator, got "
            f"{first!r}."
        )
    numbers = bool(first) and not isinstance(first[0], str)
    if numbers and not _are_indices(path, column, options):
        values = _array(path, column, "labels")
        names = tuple(f"label_{k}" for k in range(values.shape[1]))
        return check_binary(path, values, names), names
    lists = [[str(name) for name in value] for value in column]
    key = int if numbers else None
    return label_lists.from_names(path, lists, options, declared=options.labels, key=key)


def _are_indices(path: str, column: list[Any], options: ReadOptions) -> bool:
    """Whether lists of numbers are the numbers of labels, and not multi-hot of one length."""
    known = options.label_names
    ragged = len({len(value) for value in column}) > 1
    if not (known[0].isdigit() if known else ragged):
        return False
    for row, value in enumerate(column):
        for label in value:
            if type(label) is not int or label < 0:
                raise InputError(
                    f"{path}: labels are lists of numbers of labels, as their lengths differ; got "
                    f"{label!r} in row {row} (the first is 0)."
                )
    return True


def _refuse_text(
    path: str, row: dict[str, Any], label_key: str | None, options: ReadOptions
) -> None:
    """Raises InputError for a row of text beside a field of labels."""
    if label_key is None or options.labels or not options.labelled:
        return
    for key, value in row.items():
        if key != label_key and key.lower() not in tables.ID_COLUMNS and isinstance(value, str):
            raise InputError(f"{path}: field {key!r} is text ({value[:60]!r}). {tables.TEXT}")


def _array(path: str, column: list[Any], what: str) -> np.ndarray:
    lengths = [len(value) for value in column]
    if len(set(lengths)) > 1:
        row = next(row for row, length in enumerate(lengths) if length != lengths[0])
        raise InputError(
            f"{path}: {what} has {lengths[row]} numbers in row {row} (the first is 0), and "
            f"{lengths[0]} in row 0."
        )
    try:
        return np.array(column, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {what} must be numbers: {error}.") from error
