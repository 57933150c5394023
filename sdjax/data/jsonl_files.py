"""JSON lines: one object a line, with its input and its labels."""

import json
import os
from typing import Any

import numpy as np

from sdjax.data import image_files, table_files
from sdjax.data.array_files import as_inputs
from sdjax.data.examples import Examples, check_binary, check_finite, listing
from sdjax.data.images import EncodedImages
from sdjax.data.layout import INPUT_KEYS, LABEL_KEYS, Layout, find_key, readable

Rows = list[dict[str, Any]]


def read_jsonl(path: str, layout: Layout) -> Examples:
    """Reads a file of JSON objects, one a line.

    The input is a list of numbers, an object of numbers by feature name, or the path of an
    image (seen from the file's folder). The labels are a list of label names, an object of 0/1
    by label name, or a multi-hot list of 0/1. Where no field is called like an input, every
    field is a column as in a CSV file, and `layout.labels` names the label columns.
    """
    import pandas as pd

    rows = _rows(path)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    input_key = find_key(path, "data.input_key", layout.input_key, INPUT_KEYS, keys)
    label_key = find_key(path, "data.label_key", layout.label_key, LABEL_KEYS, keys)
    if not rows:
        raise ValueError(f"{path}: the file has no row.")
    if input_key is None or not isinstance(rows[0].get(input_key), list | dict | str):
        return table_files.from_frame(path, pd.DataFrame(rows, columns=keys), layout)
    inputs, feature_names = _inputs(path, _column(path, rows, input_key), layout)
    labels, label_names = None, ()
    if layout.labelled:
        if label_key is None:
            raise ValueError(f"{path}: set data.label_key. Keys: {listing(keys)}.")
        column = _column(path, rows, label_key)
        labels, label_names = _labels(path, column, layout)
    ids = tuple(str(row["id"]) for row in rows) if all("id" in row for row in rows) else None
    if ids is None and isinstance(inputs, EncodedImages):
        ids = tuple(row[input_key] for row in rows)
    return Examples(path, inputs, labels, label_names, feature_names, ids)


def _rows(path: str) -> Rows:
    with readable(path, "JSON lines"), open(path, encoding="utf-8-sig") as file:
        lines = file.readlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is no JSON object: {line[:60]!r}.")
        rows.append(row)
    return rows


def _column(path: str, rows: Rows, key: str) -> list[Any]:
    """Field `key` of all rows, which must be of one type."""
    for number, row in enumerate(rows):
        if key not in row:
            raise ValueError(f"{path}: field {key!r} is absent in row {number} (the first is 0).")
        if type(row[key]) is not type(rows[0][key]):
            raise ValueError(
                f"{path}: field {key!r} is {row[key]!r} in row {number} (the first is 0), and "
                f"{rows[0][key]!r} in row 0; one type was expected."
            )
    return [row[key] for row in rows]


def _inputs(
    path: str, column: list[Any], layout: Layout
) -> tuple[np.ndarray | EncodedImages, tuple[str, ...]]:
    if isinstance(column[0], str):
        folder = os.path.dirname(path)
        paths = [os.path.join(folder, name) for name in column]
        return image_files.from_paths(path, paths, layout), ()
    names: tuple[str, ...] = ()
    if isinstance(column[0], dict):
        names = layout.feature_names or tuple(column[0])
        for row, value in enumerate(column):
            absent, new = set(names) - set(value), set(value) - set(names)
            if absent or (new and layout.labelled):
                raise ValueError(
                    f"{path}: row {row} (the first is 0) has other features; absent: "
                    f"{listing(sorted(absent))}; only there: {listing(sorted(new))}."
                )
        column = [[value[name] for name in names] for value in column]
    inputs = as_inputs(path, _array(path, column, "input"), layout.image_size)
    check_finite(path, inputs, names)
    return inputs, names


def _labels(path: str, column: list[Any], layout: Layout) -> tuple[np.ndarray, tuple[str, ...]]:
    """Multi-hot labels [N, C] and their names; names not known from training are sorted."""
    first = next((value for value in column if value), column[0])
    if isinstance(first, dict):
        names = layout.label_names or tuple(first)
        for row, value in enumerate(column):
            if set(value) != set(names):
                raise ValueError(
                    f"{path}: row {row} (the first is 0) has labels {listing(sorted(value))}; "
                    f"expected {listing(names)}."
                )
        values = np.array([[value[name] for name in names] for value in column], object)
        return check_binary(path, values, names), names
    if not isinstance(first, list):
        raise ValueError(f"{path}: labels must be lists or objects, got {first!r}.")
    if first and not isinstance(first[0], str):
        values = _array(path, column, "labels")
        names = tuple(f"label_{k}" for k in range(values.shape[1]))
        return check_binary(path, values, names), names
    found = sorted({str(name) for value in column for name in value})
    names = layout.label_names
    if not names and layout.labels:
        names = tuple(filter(None, (part.strip() for part in layout.labels.split(","))))
    names = names or tuple(found)
    if not names:
        raise ValueError(f"{path}: no row has a label; name all labels in data.labels.")
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(
            f"{path}: labels that are not among the {len(names)} known ones: {listing(unknown)}. "
            "Name all labels in data.labels."
        )
    labels = np.zeros((len(column), len(names)), np.uint8)
    places = {name: place for place, name in enumerate(names)}
    for row, value in enumerate(column):
        labels[row, [places[name] for name in value]] = 1
    return labels, names


def _array(path: str, column: list[Any], what: str) -> np.ndarray:
    lengths = [len(value) for value in column]
    if len(set(lengths)) > 1:
        row = next(row for row, length in enumerate(lengths) if length != lengths[0])
        raise ValueError(
            f"{path}: {what} has {lengths[row]} numbers in row {row} (the first is 0), and "
            f"{lengths[0]} in row 0."
        )
    try:
        return np.array(column, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {what} must be numbers: {error}.") from error
