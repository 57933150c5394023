"""Splits that a source does not have: rows that are held out of train."""

import dataclasses
from typing import Any

import numpy as np
from absl import logging

from sdjax import label_sets
from sdjax.config import DataConfig
from sdjax.data.examples import Examples, listing
from sdjax.data.rows import blocks
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets

# Stratification visits rows one by one: of this size it takes 8 seconds.
MOST_STRATIFIED_ROWS, MOST_STRATIFIED_LABELS = 20_000, 1024


def with_splits_off(given: dict[str, Examples], config: DataConfig) -> dict[str, Examples]:
    """Train, validation and test; those that are not `given` are split off train."""
    splits = dict(given)
    # Where a test split is given, validation is the random one that runs have always had.
    stratified = "test" not in given
    if config.folds:
        if not stratified:
            raise InputError(
                "data.folds takes the test split from data.train, and data.test names one: leave "
                "one of them out."
            )
        splits["train"], splits["test"] = _fold(splits["train"], config)
    for split in ("test", "validation"):
        if split not in splits:
            fraction = getattr(config, f"{split}_fraction")
            splits["train"], splits[split] = split_off(
                splits["train"], split, fraction, config.split_seed, stratified
            )
    return {split: splits[split] for split in ("train", "validation", "test")}


def _fold(train: Examples, config: DataConfig) -> tuple[Examples, Examples]:
    """Fold `config.fold` of `train` as the second part, the others as the first."""
    folds, fold, rows = config.folds, config.fold, len(train)
    if not 2 <= folds <= rows:
        raise InputError(f"data.folds must be 2 to {rows}, the number of rows, got {folds}.")
    if not 0 <= fold < folds:
        raise InputError(f"data.fold must be 0 to {folds - 1}, got {fold}.")
    assert train.labels is not None
    if _can_be_stratified(train.labels):
        from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

        splitter = MultilabelStratifiedKFold(
            folds, shuffle=True, random_state=_random_state(config.split_seed)
        )
        multi_hot = _strata(train.labels)
        parts = [part for _, part in splitter.split(multi_hot, multi_hot)]
    else:
        order = np.random.default_rng(config.split_seed).permutation(rows)
        parts = np.array_split(order, folds)
    chosen = np.sort(parts[fold])
    kept = np.setdiff1d(np.arange(rows), chosen)
    if not len(chosen) or not len(kept):
        raise InputError(f"{train.origin}: fold {fold} of {folds} would be empty; take fewer.")
    return train.take(kept), train.take(chosen)


def split_off(
    train: Examples, split: str, fraction: float, seed: int, stratified: bool
) -> tuple[Examples, Examples]:
    """Splits `train` at random, or `stratified` where it is small enough; rows keep their order.

    Args:
      train: to be split.
      split: what the second part is called.
      fraction: of the rows that become the second part.
      seed: of the draw.
      stratified: whether each label is to have its share of both parts.

    Raises:
      InputError: if there are too few rows.
    """
    if not 0 < fraction < 1:
        raise InputError(f"data.{split}_fraction must lie between 0 and 1, got {fraction}.")
    rows = len(train)
    count = max(1, round(fraction * rows))
    if count >= rows:
        raise InputError(f"{train.origin}: {rows} rows cannot be split into train and {split}.")
    assert train.labels is not None
    if stratified and _can_be_stratified(train.labels):
        kept, drawn = _stratified(train.labels, count, seed)
        if len(kept) and len(drawn):
            return train.take(kept), train.take(drawn)
    order = np.random.default_rng(seed).permutation(rows)
    return train.take(np.sort(order[count:])), train.take(np.sort(order[:count]))


def _stratified(labels: LabelSets, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in rising order, of which about `count` are drawn with their share of each label."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    size: Any = count  # declared a string there
    splitter = MultilabelStratifiedShuffleSplit(1, test_size=size, random_state=_random_state(seed))
    multi_hot = _strata(labels)
    return next(splitter.split(multi_hot, multi_hot))


def _can_be_stratified(labels: LabelSets) -> bool:
    few = label_sets.num_rows(labels) <= MOST_STRATIFIED_ROWS
    return few and label_sets.num_classes(labels) <= MOST_STRATIFIED_LABELS


def _strata(labels: LabelSets) -> np.ndarray:
    """Multi-hot [N, C + 1]: rows without labels are a stratum too, and the library wants two."""
    multi_hot = label_sets.rows(labels, 0, label_sets.num_rows(labels))
    return np.column_stack([multi_hot, ~multi_hot.any(axis=1)])


def _random_state(seed: int) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def without_unknown_values(splits: dict[str, Examples]) -> dict[str, Examples]:
    """`splits` without the one-hot features of text values that no row of train has.

    They are there where other splits were split off, since files are read as a whole.
    """
    train = splits["train"]
    values = {f"{name}={value}" for name, known in train.categories.items() for value in known}
    if not values:
        return splits
    seen = np.zeros(train.inputs.shape[1], bool)
    for block in blocks(train.inputs):
        seen |= (train.inputs[block] != 0).any(axis=0)
    names = train.feature_names
    kept = [k for k, name in enumerate(names) if seen[k] or name not in values]
    if len(kept) == len(names):
        return splits
    known = {names[k] for k in kept}
    categories = {
        name: tuple(value for value in each if f"{name}={value}" in known)
        for name, each in train.categories.items()
    }
    categories = {name: each for name, each in categories.items() if each}
    logging.warning(
        "Data %s: values that no row of train has are encoded as zeros: %s.",
        *(train.origin, listing([name for name in names if name not in known], limit=5)),
    )
    return {
        split: dataclasses.replace(
            each,
            inputs=np.ascontiguousarray(each.inputs[:][:, kept]),
            feature_names=tuple(names[k] for k in kept),
            categories=categories,
        )
        for split, each in splits.items()
    }
