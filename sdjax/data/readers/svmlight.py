"""Sparse text: svmlight (libsvm) files, and those of the extreme-classification repository."""

import dataclasses
from typing import Any

import numpy as np

from sdjax.data.examples import Examples, check_finite
from sdjax.data.readers import label_lists, text
from sdjax.data.readers.options import ReadOptions, readable
from sdjax.data.rows import SparseRows
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets


def read_svmlight(path: str, options: ReadOptions) -> Examples:
    """Reads rows `label,label feature:value feature:value`, which stay sparse.

    A first line of three numbers, rows, features and labels, makes it a file of the
    extreme-classification repository, whose features and labels are counted from 0. Without it,
    features are counted from 0 in a file of training that has a feature 0, else from 1. Features
    and labels are named by their numbers. Labels are those of training, else those that
    `options.labels` names, else those that occur.
    """
    from sklearn.datasets import load_svmlight_file

    with readable(path, "svmlight"), text.open_bytes(path) as file:
        first = file.readline().split()
        sizes = (
            [int(x) for x in first] if len(first) == 3 and all(map(bytes.isdigit, first)) else []
        )
        if not sizes:
            file.seek(0)
        load: Any = load_svmlight_file  # typed by its defaults alone
        matrix, numbers = load(file, dtype=np.float32, multilabel=True, zero_based=True)
    if sizes and len(numbers) != sizes[0]:
        raise InputError(
            f"{path}: the first line announces {sizes[0]} rows, and {len(numbers)} follow; "
            "truncated?"
        )
    inputs, names = _features(path, matrix, sizes[1] if sizes else None, options)
    check_finite(path, inputs, names)
    labels, label_names = None, ()
    if options.labelled:
        labels, label_names = _labels(path, numbers, sizes[2] if sizes else None, options)
    return Examples(path, inputs, labels, label_names, names)


def _features(
    path: str, matrix: Any, count: int | None, options: ReadOptions
) -> tuple[SparseRows, tuple[str, ...]]:
    """The columns of training; `count` columns from 0; or those from the first used, 0 or 1."""
    names = options.feature_names
    used = int(matrix.indices.max(initial=-1)) + 1
    if count is not None and used > count:
        raise InputError(f"{path}: feature {used - 1}, and the first line announces {count}.")
    if not names:
        first = 0 if count is not None or not matrix.indices.all() else 1
        names = tuple(map(str, range(first, max(used, count or 0, first + 1))))
    first = int(names[0]) if names[0] in ("0", "1") else -1
    if first < 0 or names != tuple(map(str, range(first, first + len(names)))):
        raise InputError(
            f"{path}: the features are numbered, those of training are named: {names[0]!r}, ..."
        )
    stop = first + len(names)
    if used > stop or (first and not matrix.indices.all()):
        extra = used - 1 if used > stop else 0
        raise InputError(f"{path}: feature {extra}; those of training are {first} to {stop - 1}.")
    matrix.resize(len(matrix.indptr) - 1, stop)
    return SparseRows(matrix[:, first:]), names


def _labels(
    path: str, numbers: list[tuple[float, ...]], count: int | None, options: ReadOptions
) -> tuple[LabelSets, tuple[str, ...]]:
    """Label sets and their names; all numbers below `count` are labels where it is given."""
    for row, labels in enumerate(numbers):
        for label in labels:
            if not label.is_integer() or (count is not None and not 0 <= label < count):
                bounds = "" if count is None else f" in [0, {count})"
                raise InputError(
                    f"{path}: labels must be whole numbers{bounds}, got {label:g} in row {row} "
                    "(the first row is 0)."
                )
    lists = [[str(int(label)) for label in labels] for labels in numbers]
    if count is not None:
        options = dataclasses.replace(options, label_names=tuple(map(str, range(count))))
    return label_lists.from_names(path, lists, options, declared=options.labels, key=int)
