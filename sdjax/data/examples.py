"""The labelled examples of one split as they were read, before preprocessing."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from sdjax import label_sets
from sdjax.data.rows import RowArray, SparseRows, Subset, blocks
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices

# More labels than these are kept as lists of indices: a multi-hot row of them takes a kilobyte and
# more, a list of a few dozen labels a tenth of that.
MOST_MULTI_HOT = 1024


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs, and their labels where they are known.

    Attributes:
      origin: the file or split, for error messages.
      inputs: float [N, F], sparse ones as `SparseRows`; or images, uint8 or float
        [N, H, W, channels]; or texts, strings [N].
      labels: multi-hot uint8 [N, C], or `LabelIndices` of int32 [N, L]; None for new rows to
        predict.
      label_names: C names; empty where `labels` is None.
      feature_names: F names, or empty where the source has none.
      ids: N names of rows, or None.
      rows: int64 [N], where the rows stand in `origin`; None where they are all of it.
      hashes: of the inputs of each row, uint64 [N]; None before they are computed, and for more
        images than are worth it.
      categories: of text columns that were made one-hot, the values by column; the features are
        named `column=value`.
    """

    origin: str
    inputs: RowArray
    labels: LabelSets | None
    label_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None
    rows: np.ndarray | None = None
    hashes: np.ndarray | None = None
    categories: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def modality(self) -> str:
        """`text`, `vector` or `image`."""
        return {1: "text", 2: "vector"}.get(len(self.inputs.shape), "image")

    @property
    def names(self) -> np.ndarray:
        """What the rows are called, [N]: their `ids`, or else their numbers in `origin`."""
        if self.ids is not None:
            return np.array(self.ids, str)
        return np.arange(len(self)) if self.rows is None else self.rows

    def take(self, rows: np.ndarray) -> "Examples":
        """The examples at `rows`; inputs are not copied, unless they are sparse."""
        inputs = self.inputs
        return dataclasses.replace(
            self,
            inputs=inputs.take(rows) if isinstance(inputs, SparseRows) else Subset(inputs, rows),
            labels=None if self.labels is None else label_sets.take(self.labels, rows),
            ids=None if self.ids is None else tuple(self.ids[row] for row in rows),
            rows=np.asarray(rows) if self.rows is None else self.rows[rows],
            hashes=None if self.hashes is None else self.hashes[rows],
        )


def listing(names: Sequence[str], limit: int = 12) -> str:
    """`names` in one line, the middle left out where they are many."""
    shown = [repr(str(name)) for name in names]
    if len(shown) > limit:
        shown = [*shown[: limit // 2], f"... ({len(shown) - limit} more)", *shown[-limit // 2 :]]
    return ", ".join(shown) or "none"


def check_finite(
    origin: str,
    inputs: RowArray,
    feature_names: Sequence[str],
    *,
    missing_allowed: bool = False,
    advice: str = "Fill them in, or leave the column out with data.ignore.",
) -> None:
    """Raises ValueError, naming the place, where a feature is missing or not finite.

    Args:
      origin: the file or split, for the error message.
      inputs: [N, ...].
      feature_names: F names, or empty.
      missing_allowed: whether NaN is a missing value that is filled in later.
      advice: ends the message.
    """
    if inputs.dtype.kind != "f":
        return
    wrong = np.isinf if missing_allowed else _not_finite
    if isinstance(inputs, SparseRows):
        found = _first_stored(inputs, wrong)
    else:
        found = _first(inputs, wrong)
    if found is None:
        return
    count, row, place, value = found
    column = f"feature {feature_names[place[0]]!r}" if feature_names else f"input {tuple(place)}"
    raise InputError(
        f"{origin}: {column} is {value} in row {row} (the first row is 0); "
        f"{count} inputs in all are {'not' if missing_allowed else 'missing or not'} finite. "
        f"{advice}"
    )


def _not_finite(x: np.ndarray) -> np.ndarray:
    return ~np.isfinite(x)


def _first(
    inputs: RowArray, wrong: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int, list[int], Any] | None:
    """How many values are `wrong`; row, place in it, and value of the first."""
    first, count = None, 0
    for block in blocks(inputs):
        part = inputs[block]
        found = wrong(part)
        if not found.any():
            continue
        count += int(found.sum())
        if first is None:
            row, *place = (int(index) for index in np.argwhere(found)[0])
            first = (block.start + row, place, part[(row, *place)])
    return None if first is None else (count, *first)


def _first_stored(
    inputs: SparseRows, wrong: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int, list[int], Any] | None:
    """`_first` of a sparse matrix, whose zeros are never wrong."""
    matrix = inputs.matrix
    places = np.flatnonzero(wrong(matrix.data))
    if not len(places):
        return None
    row, column = _row_and_column(matrix, places[0])
    return len(places), row, [column], matrix.data[places[0]]


def _row_and_column(matrix: sparse.csr_array, place: int) -> tuple[int, int]:
    """Where the stored value number `place` stands."""
    row = int(np.searchsorted(matrix.indptr, place, side="right")) - 1
    return row, int(matrix.indices[place])


def check_labels(origin: str, labels: LabelSets, label_names: Sequence[str] = ()) -> LabelSets:
    """`labels` as multi-hot uint8 [N, C], or as `LabelIndices` of int32 [N, L].

    Raises:
      ValueError: naming the place, where they are not label sets.
    """
    if not isinstance(labels, LabelIndices):
        return check_binary(origin, np.asanyarray(labels), label_names)
    return check_indices(origin, np.asanyarray(labels.indices), labels.num_classes)


def from_lists(lists: Sequence[Sequence[int]], num_classes: int) -> LabelSets:
    """Label sets of a list of indices for each row: multi-hot where labels are few."""
    if num_classes <= MOST_MULTI_HOT:
        labels = np.zeros((len(lists), num_classes), np.uint8)
        for row, places in enumerate(lists):
            labels[row, places] = 1
        return labels
    sets: Any = [sorted(set(places)) for places in lists]
    padded = LabelIndices(sets, num_classes).indices
    return LabelIndices(np.asarray(padded, np.int32), num_classes)


def from_csr(origin: str, sets: SparseRows, label_names: Sequence[str] = ()) -> LabelSets:
    """Label sets of a sparse matrix [N, C] of 0/1: multi-hot where labels are few.

    Raises:
      ValueError: naming the place, where a label is neither 0 nor 1.
    """
    matrix = sets.matrix
    wrong = np.flatnonzero(matrix.data != 1)
    if len(wrong):
        row, column = _row_and_column(matrix, wrong[0])
        raise _not_binary(origin, label_names, column, matrix.data[wrong[0]], row)
    count, num_classes = matrix.shape
    if num_classes <= MOST_MULTI_HOT:
        return matrix.toarray().astype(np.uint8)
    sizes = np.diff(matrix.indptr)
    indices = np.full((count, max(int(sizes.max(initial=0)), 1)), -1, np.int32)
    # True fills a row from the left, in the order in which its indices are stored.
    indices[np.arange(indices.shape[1]) < sizes[:, None]] = matrix.indices
    return LabelIndices(indices, num_classes)


def check_binary(origin: str, labels: np.ndarray, label_names: Sequence[str] = ()) -> np.ndarray:
    """Multi-hot `labels` [N, C] as uint8; those of uint8 or bool are not copied.

    Raises:
      ValueError: naming the place, where a label is neither 0 nor 1.
    """
    if labels.ndim != 2:
        raise InputError(f"{origin}: labels must be multi-hot [N, C], got shape {labels.shape}.")
    same = labels.dtype in (np.uint8, np.bool_)
    result = labels.view(np.uint8) if same else np.empty(labels.shape, np.uint8)
    for block in blocks(labels):
        part = labels[block]
        values = part if same else _numbers(part)
        wrong = values > 1 if same else (values != 0) & (values != 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise _not_binary(origin, label_names, column, part[row, column], block.start + row)
        if not same:
            result[block] = values
    return result


def _not_binary(
    origin: str, label_names: Sequence[str], column: int, value: object, row: int
) -> InputError:
    name = repr(label_names[column]) if label_names else column
    return InputError(
        f"{origin}: labels must be 0 or 1; label {name} is {value!s} in row {row} "
        "(the first row is 0)."
    )


def check_indices(origin: str, indices: np.ndarray, num_classes: int) -> LabelIndices:
    """Lists of label indices [N, L], -1 as padding, as `LabelIndices` of int32.

    Raises:
      ValueError: naming the place, where an index lies outside [-1, num_classes) or is repeated in
        its row.
    """
    if indices.ndim != 2 or indices.dtype.kind not in "iu":
        raise InputError(
            f"{origin}: label indices must be integers [N, L], got {indices.dtype} {indices.shape}."
        )
    for block in blocks(indices):
        part = indices[block]
        wrong = (part < -1) | (part >= num_classes)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(
                f"{origin}: label indices must lie in [0, {num_classes}), or be -1 as padding; got "
                f"{part[row, column]} in row {block.start + row} (the first row is 0)."
            )
        ordered = np.sort(part, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if repeated.any():
            row, column = np.argwhere(repeated)[0]
            raise InputError(
                f"{origin}: a row of label indices holds each once; {ordered[row, column]} is "
                f"repeated in row {block.start + row} (the first row is 0)."
            )
    return LabelIndices(indices.astype(np.int32, copy=False), num_classes)


def _numbers(values: np.ndarray) -> np.ndarray:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError):
        return np.array([[_number(value) for value in row] for row in values.astype(object)])


def _number(value: object) -> float:
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return np.nan
