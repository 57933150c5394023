"""Label sets of a whole split, in host memory: multi-hot, or lists of label indices.

Where labels are many, the lists are never made multi-hot as a whole: `rows` gives the part that
is asked for, `to_csr` what is set.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sdjax.labels import LabelIndices, num_classes, num_rows

# Multi-hot, uint8 or bool [N, C]; or indices int32 [N, L] padded with -1, each once in a row.
LabelSets = np.ndarray | LabelIndices

__all__ = [
    "LabelSets",
    "concatenate",
    "counts",
    "num_classes",
    "num_rows",
    "rows",
    "sizes",
    "take",
    "to_csr",
]


def take(labels: LabelSets, rows: np.ndarray | slice) -> LabelSets:
    """The label sets at `rows`, in the same format."""
    if isinstance(labels, LabelIndices):
        return LabelIndices(np.asarray(labels.indices)[rows], labels.num_classes)
    return labels[rows]


def concatenate(parts: Sequence[LabelSets]) -> LabelSets:
    """The label sets of some splits, of the same labels and format, one after the other."""
    if not isinstance(parts[0], LabelIndices):
        return np.concatenate([np.asarray(part) for part in parts])
    lists = [np.asarray(part.indices) for part in parts if isinstance(part, LabelIndices)]
    longest = max(indices.shape[1] for indices in lists)
    padded = [
        np.pad(indices, [(0, 0), (0, longest - indices.shape[1])], constant_values=-1)
        for indices in lists
    ]
    return LabelIndices(np.concatenate(padded), parts[0].num_classes)


def sizes(labels: LabelSets) -> np.ndarray:
    """Number of labels of each row, int64 [N]."""
    if isinstance(labels, LabelIndices):
        return (np.asarray(labels.indices) >= 0).sum(axis=1)
    return labels.astype(bool, copy=False).sum(axis=1)


def counts(labels: LabelSets) -> np.ndarray:
    """Number of rows that carry each label, int64 [C]."""
    if isinstance(labels, LabelIndices):
        indices = np.asarray(labels.indices)
        return np.bincount(indices[indices >= 0], minlength=labels.num_classes)
    return labels.astype(bool, copy=False).sum(axis=0)


def rows(labels: LabelSets, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` as multi-hot, bool [stop - start, C]."""
    part = take(labels, slice(start, stop))
    if not isinstance(part, LabelIndices):
        return part.astype(bool, copy=False)
    indices = np.asarray(part.indices)
    dense = np.zeros((len(indices), part.num_classes), bool)
    row, place = np.nonzero(indices >= 0)
    dense[row, indices[row, place]] = True
    return dense


def to_csr(labels: LabelIndices) -> sparse.csr_array:
    """The label sets as a sparse matrix of bool [N, C] in rows; a repeated index counts once."""
    indices = np.asarray(labels.indices)
    row, place = np.nonzero(indices >= 0)
    matrix = sparse.coo_array(
        (np.ones(len(row), bool), (row, indices[row, place])), (len(indices), labels.num_classes)
    )
    return matrix.tocsr()
