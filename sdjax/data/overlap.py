"""Splits that share examples: scores on what a model was trained on mislead."""

import itertools
import os

import numpy as np
from absl import logging

from sdjax.data.examples import Examples
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices

_ADVICE = "scores on it would mislead (data.validation='' holds out a part of train)."


def check_paths(paths: dict[str, str]) -> None:
    """Raises ValueError if two splits are one file; `paths` by the name of the split."""
    for (first, path), (second, other) in itertools.combinations(paths.items(), 2):
        if os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other):
            raise InputError(f"data.{second} {other!r} is the file of data.{first}: {_ADVICE}")


def check_contents(splits: dict[str, Examples]) -> None:
    """Raises ValueError if two splits have the same inputs and labels in the same order."""
    for (first, examples), (second, other) in itertools.combinations(splits.items(), 2):
        if examples.hashes is None or other.hashes is None:
            continue
        if np.array_equal(examples.hashes, other.hashes) and _equal(examples.labels, other.labels):
            raise InputError(
                f"data.{second}: {other.origin} holds the same examples as {examples.origin}, "
                f"the {first} split: {_ADVICE}"
            )


def warn_of_duplicates(name: str, splits: dict[str, Examples]) -> None:
    """Warns, in one line, of rows of a split whose inputs another split has as well."""
    texts = []
    for (first, examples), (second, other) in itertools.combinations(splits.items(), 2):
        if examples.hashes is None or other.hashes is None:
            continue
        count = int(np.isin(other.hashes, examples.hashes).sum())
        if count:
            texts.append(f"{count} of {len(other)} {second} rows are also {first} rows")
    if texts:
        logging.warning(
            "Data %s: equal inputs in two splits: %s. Scores on them may mislead.",
            *(name, "; ".join(texts)),
        )


def _equal(first: LabelSets | None, second: LabelSets | None) -> bool:
    if isinstance(first, LabelIndices) and isinstance(second, LabelIndices):
        first, second = np.asarray(first.indices), np.asarray(second.indices)
    return np.array_equal(np.asarray(first), np.asarray(second))
