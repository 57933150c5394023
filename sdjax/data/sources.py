"""Preprocessed examples with random access, one by one or a batch of rows at a time."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdjax import label_sets
from sdjax.data import hashing
from sdjax.data import rows as rows_lib
from sdjax.data.examples import Examples, check_labels
from sdjax.data.preprocess import Preprocess
from sdjax.data.rows import RowArray
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets

_HASHED_AT_ONCE = 4096  # rows


class Source(abc.ABC):
    """Random access to preprocessed examples; a Grain `RandomAccessDataSource`."""

    @property
    @abc.abstractmethod
    def labels(self) -> LabelSets:
        """All labels: multi-hot uint8 [N, C], or `LabelIndices` of int32 [N, L]."""

    @abc.abstractmethod
    def inputs(self, rows: np.ndarray) -> Any:
        """The inputs at `rows` [B]: an array [B, ...], or a pytree of such arrays.

        A source with `widths` takes a second argument, the width to pad to.
        """

    @property
    def widths(self) -> np.ndarray | None:
        """What the sequence of each row is padded to by itself, int [N]; None where none is padded.

        A batch is as wide as its widest row, and rows of like widths share a batch.
        """
        return None

    @property
    def names(self) -> np.ndarray:
        """What the rows are called, strings or whole numbers [N]: by default their numbers."""
        return np.arange(len(self))

    def contents(self, rows: np.ndarray) -> Any:
        """The rows at `rows` [B] for people: images or texts; None where there are none."""
        return None

    @property
    def in_memory(self) -> bool:
        """Whether fetching rows is mere copying, not worth a thread."""
        return True

    @property
    def input_spec(self) -> Any:
        """Shape and dtype of the inputs of one example, a pytree of `jax.ShapeDtypeStruct`."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.inputs(np.array([0]))
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex hash of all inputs and labels: equal for equal content, wherever it was read from."""
        chunks = np.array_split(np.arange(len(self)), -(-len(self) // _HASHED_AT_ONCE))
        hashes = [hashing.row_hashes(self.inputs(rows)) for rows in chunks]
        return hashing.fingerprint(np.concatenate(hashes), self.labels, self.input_spec)

    def fetch(self, rows: np.ndarray, *width: int) -> dict[str, Any]:
        """The examples at `rows` [B], as one batch {"x", "labels"}, or as part of one.

        Args:
          rows: of the examples.
          width: of the batch, where a source with `widths` is to pad to that.
        """
        return {"x": self.inputs(rows, *width), "labels": label_sets.take(self.labels, rows)}

    def __len__(self) -> int:
        return label_sets.num_rows(self.labels)

    def __getitem__(self, row: Any) -> dict[str, Any]:
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a source of {len(self)} rows")
        return jax.tree.map(lambda x: x[0], self.fetch(np.array([row % len(self)])))


class ArraySource(Source):
    """Arrays, of which rows are preprocessed when they are fetched.

    Args:
      inputs: an array of N rows, or a pytree of such arrays (a dict, say). Anything that has a
        shape, a dtype, a length and `[rows]` will do: `np.ndarray`, `np.memmap`, `h5py.Dataset`;
        and scipy's sparse matrices, of which the rows that are fetched become dense, in float32.
      labels: multi-hot [N, C], or `LabelIndices` of [N, L].
      preprocess: of the inputs of a batch, the same pytree; None takes them as they are.
      hashes: of the rows of `inputs`, by `hashing.row_hashes`, where they are known.
      names: of the rows, [N]; None numbers them.

    Raises:
      ValueError: if the numbers of rows differ, or the labels are not label sets.
    """

    def __init__(
        self,
        inputs: RowArray | Any,
        labels: LabelSets,
        preprocess: Callable[[Any], Any] | None = None,
        hashes: np.ndarray | None = None,
        names: np.ndarray | None = None,
    ):
        inputs = jax.tree.map(rows_lib.as_row_array, inputs)
        self._inputs, self._preprocess, self._hashes = inputs, preprocess, hashes
        self._labels = check_labels("labels", labels)
        self._names = names
        for path, array in jax.tree_util.tree_leaves_with_path(inputs):
            if len(array) != len(self):
                name = f"inputs{jax.tree_util.keystr(path)}"
                raise InputError(f"{name} has {len(array)} rows, and labels {len(self)}.")

    @property
    def labels(self) -> LabelSets:
        return self._labels

    @property
    def names(self) -> np.ndarray:
        return super().names if self._names is None else self._names

    def contents(self, rows: np.ndarray) -> Any:
        shape = getattr(self._inputs, "shape", ())
        return self.raw_inputs(rows) if len(shape) == 4 else None

    @property
    def in_memory(self) -> bool:
        return all(map(rows_lib.in_memory, jax.tree.leaves(self._inputs)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex hash of all inputs, before they are preprocessed, and labels.

        Images that are decoded when they are asked for are hashed as they are encoded; of more than
        `hashing.MOST_HASHED_IMAGES` (10,000) that many, evenly spaced, and all labels.
        """
        hashes = self._hashes
        if hashes is None:
            sampled = hashing.is_sampled(self._inputs)
            hashes = hashing.row_hashes(hashing.sample(self._inputs) if sampled else self._inputs)
        shapes = [(array.shape, str(array.dtype)) for array in jax.tree.leaves(self._inputs)]
        return hashing.fingerprint(hashes, self._labels, shapes)

    def raw_inputs(self, rows: np.ndarray) -> Any:
        """The inputs at `rows` [B], before they are preprocessed."""
        rows = np.asarray(rows)
        return jax.tree.map(lambda array: rows_lib.take_rows(array, rows), self._inputs)

    def inputs(self, rows: np.ndarray) -> Any:
        x = self.raw_inputs(rows)
        return x if self._preprocess is None else self._preprocess(x)


class JoinedSource(Source):
    """The rows of one source, then those of another, with the same labels.

    Where rows of both are called alike, those of the second are called "validation:NAME".
    """

    def __init__(self, first: Source, second: Source):
        self._parts = (first, second)
        self._labels = label_sets.concatenate([first.labels, second.labels])

    @property
    def labels(self) -> LabelSets:
        return self._labels

    @property
    def names(self) -> np.ndarray:
        first, second = (part.names for part in self._parts)
        if np.isin(second, first).any():  # of two files
            first, second = first.astype(str), np.char.add("validation:", second.astype(str))
        return np.concatenate([first, second])

    def contents(self, rows: np.ndarray) -> Any:
        first, second = self._parts
        found = []
        for row in np.asarray(rows):
            part, place = (first, row) if row < len(first) else (second, row - len(first))
            content = part.contents(np.array([place]))
            if content is None:
                return None
            found.append(content[0])
        return found

    @property
    def in_memory(self) -> bool:
        return all(part.in_memory for part in self._parts)

    @functools.cached_property
    def widths(self) -> np.ndarray | None:
        first, second = (part.widths for part in self._parts)
        if first is None or second is None:
            return None
        return np.concatenate([first, second])

    @property
    def input_spec(self) -> Any:
        first, second = self._parts
        if first.widths is None or second.widths is None:
            return super().input_spec
        return (first if first.widths.max() >= second.widths.max() else second).input_spec

    @functools.cached_property
    def fingerprint(self) -> str:
        return "+".join(part.fingerprint for part in self._parts)

    def inputs(self, rows: np.ndarray, *width: int) -> Any:
        rows = np.asarray(rows)
        if self.widths is not None and not width:
            width = (int(self.widths[rows].max(initial=1)),)
        first, second = self._parts
        in_second = rows >= len(first)
        parts = [
            (first, ~in_second, rows[~in_second]),
            (second, in_second, rows[in_second] - len(first)),
        ]
        parts = [(each.inputs(there, *width), here) for each, here, there in parts if here.any()]
        if len(parts) == 1 or not parts:
            return parts[0][0] if parts else first.inputs(rows, *width)
        order = np.argsort(np.concatenate([np.flatnonzero(here) for _, here in parts]))
        return jax.tree.map(lambda *x: np.concatenate(x)[order], *(x for x, _ in parts))


def make_source(examples: Examples, preprocess: Preprocess) -> Source:
    """The source of labelled `examples`."""
    assert examples.labels is not None
    return ArraySource(
        examples.inputs, examples.labels, preprocess.of_checked, examples.hashes, examples.names
    )
