"""Few-example mode: so many rows of train for each label, and no others."""

import dataclasses

import numpy as np

from sdjax import label_sets
from sdjax.data.examples import Examples
from sdjax.data.rows import blocks
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices


@dataclasses.dataclass(frozen=True)
class FewExamples:
    """What `data.examples_per_label` left of the train split.

    Attributes:
      examples_per_label: that were asked for.
      kept: rows that are left.
      rows: that there were.
      short: labels with fewer rows than that, all of which are kept.
    """

    examples_per_label: int
    kept: int
    rows: int
    short: int

    def __str__(self) -> str:
        text = f"few examples, {self.examples_per_label} a label: {self.kept:,} of {self.rows:,}"
        return text + (f"; {self.short:,} labels have fewer" if self.short else "")


def take(train: Examples, examples_per_label: int, seed: int) -> tuple[Examples, FewExamples]:
    """The rows of `train` that `draw` keeps, and what that means.

    Raises:
      InputError: if no row has a label.
    """
    assert train.labels is not None
    rows = draw(train.labels, examples_per_label, seed)
    if not len(rows):
        raise InputError(
            f"{train.origin}: no row has a label, so that data.examples_per_label="
            f"{examples_per_label} leaves none."
        )
    counts = label_sets.counts(train.labels)
    short = int((counts < examples_per_label).sum())
    return train.take(rows), FewExamples(examples_per_label, len(rows), len(train), short)


def draw(labels: LabelSets, examples_per_label: int, seed: int) -> np.ndarray:
    """Rows that leave each label `examples_per_label` of its rows, or all where it has fewer.

    A row counts for all of its labels. Labels take rows one after the other, the rarest first, so
    that those of frequent ones do as much for rare ones as they can; a label that has enough by
    then takes none. Rows are taken in an order that is drawn once; those without labels never are.

    Args:
      labels: N label sets over C labels; they are read in blocks.
      examples_per_label: at least 1.
      seed: of the order.

    Returns:
      Rows in rising order, int64.
    """
    count, num_classes = label_sets.num_rows(labels), label_sets.num_classes(labels)
    rank = np.random.default_rng(seed).permutation(count)
    row, label = _pairs(labels)
    order = np.lexsort((rank[row], label))
    row, label = row[order], label[order]
    starts = np.searchsorted(label, np.arange(num_classes + 1))
    taken = np.zeros(count, bool)
    for each in np.argsort(np.diff(starts), kind="stable"):
        rows = row[starts[each] : starts[each + 1]]
        free = rows[~taken[rows]]
        missing = examples_per_label - (len(rows) - len(free))
        taken[free[: max(missing, 0)]] = True
    return np.flatnonzero(taken)


def _pairs(labels: LabelSets) -> tuple[np.ndarray, np.ndarray]:
    """Row and label of all that is set."""
    array = np.asarray(labels.indices) if isinstance(labels, LabelIndices) else labels
    rows, found = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    for block in blocks(array):
        part = array[block]
        row, place = np.nonzero(part >= 0 if isinstance(labels, LabelIndices) else part)
        rows.append(row + block.start)
        label = part[row, place] if isinstance(labels, LabelIndices) else place
        found.append(label.astype(np.int32))
    return np.concatenate(rows), np.concatenate(found)
