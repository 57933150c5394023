"""Label sets: multi-hot arrays [B, C], or padded lists of label indices [B, L]."""

import dataclasses
import itertools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelIndices:
    """Label sets as lists of label indices: lean where labels are many and rows carry few.

    A pytree, accepted wherever multi-hot labels are. A row is a set: its order means nothing,
    and an index that is repeated counts once.

    Args:
      indices: int [B, L], in [0, num_classes); -1 pads rows with fewer than L labels. Lists of
        unequal length are padded.
      num_classes: number of labels C, static under jit.
    """

    indices: ArrayLike
    num_classes: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        if isinstance(self.indices, list | tuple):
            object.__setattr__(self, "indices", _padded(self.indices))
        if isinstance(self.num_classes, np.integer):
            object.__setattr__(self, "num_classes", int(self.num_classes))

    @classmethod
    def from_multi_hot(cls, labels: ArrayLike) -> "LabelIndices":
        """Label indices of multi-hot `labels` [B, C], L being the largest set. Not under jit."""
        rows = [np.flatnonzero(row) for row in np.asarray(labels)]
        return cls(jnp.asarray(_padded(rows), jnp.int32), np.shape(labels)[1])


Labels = ArrayLike | LabelIndices


def _padded(rows: Any) -> np.ndarray:
    """Rows of indices as one array, padded with -1."""
    if not all(np.ndim(row) == 1 for row in rows):
        return np.asarray(rows)
    columns = list(itertools.zip_longest(*rows, fillvalue=-1))
    return np.asarray(columns or [(-1,) * len(rows)]).T


def canonical(labels: Labels) -> Labels:
    """Multi-hot labels as bool [B, C], in which any value but 0 is True; indices as int arrays."""
    if isinstance(labels, LabelIndices):
        return dataclasses.replace(labels, indices=jnp.asarray(labels.indices))
    labels = jnp.asarray(labels)
    return labels if labels.dtype == jnp.bool_ else labels != jnp.zeros_like(labels)


def multi_hot(labels: Labels, dtype: jnp.dtype) -> Array:
    """`labels` as a multi-hot array [B, C] of `dtype`."""
    if not isinstance(labels, LabelIndices):
        return jnp.asarray(canonical(labels)).astype(dtype)
    indices = unique_indices(labels)
    rows = jnp.arange(indices.shape[0])[:, None]
    zeros = jnp.zeros((indices.shape[0], labels.num_classes), dtype)
    return zeros.at[rows, indices].set(1, mode="drop")


def keep_rows(labels: Labels, where: Array) -> Labels:
    """`labels` with the rows where `where` [B] is False turned into empty sets."""
    if isinstance(labels, LabelIndices):
        indices = jnp.asarray(labels.indices)
        return dataclasses.replace(labels, indices=jnp.where(where[:, None], indices, -1))
    labels = jnp.asarray(labels)
    return jnp.where(where[:, None], labels, jnp.zeros_like(labels))


def unique_indices(labels: LabelIndices) -> Array:
    """Indices int32 [B, L] in ascending order, each once; `num_classes` stands for padding."""
    indices = jnp.asarray(labels.indices).astype(jnp.int32)
    indices = jnp.sort(jnp.where(indices < 0, labels.num_classes, indices), axis=1)
    repeated = jnp.pad(indices[:, 1:] == indices[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(repeated, labels.num_classes, indices)


def single_index(labels: LabelIndices) -> Array:
    """The one index [B] of lists of length 1, in their dtype; -1 for none."""
    index = jnp.asarray(labels.indices)[:, 0]
    present = index >= 0
    if labels.num_classes <= jnp.iinfo(index.dtype).max:
        present &= index < labels.num_classes
    return jnp.where(present, index, -1)


def sizes(labels: Labels, dtype: jnp.dtype) -> Array:
    """Number of labels of each row, [B]."""
    if isinstance(labels, LabelIndices):
        if np.shape(labels.indices)[1] == 1:
            present = single_index(labels)[:, None] >= 0
        else:
            present = unique_indices(labels) < labels.num_classes
    else:
        present = jnp.asarray(canonical(labels))
    return present.astype(dtype).sum(axis=1)


def counts(labels: Labels, where: Array, dtype: jnp.dtype) -> Array:
    """Number of the rows in `where` [B] that carry each label, [C]."""
    if isinstance(labels, LabelIndices):
        indices = unique_indices(labels)
        rows = jnp.broadcast_to(where[:, None], indices.shape).astype(dtype)
        return jnp.zeros(labels.num_classes, dtype).at[indices].add(rows, mode="drop")
    return jnp.where(where[:, None], multi_hot(labels, dtype), 0).sum(axis=0)


def num_rows(labels: Labels) -> int:
    """Number of label sets."""
    array = labels.indices if isinstance(labels, LabelIndices) else labels
    return np.shape(array)[0]


def num_classes(labels: Labels) -> int:
    """Number of labels C."""
    return labels.num_classes if isinstance(labels, LabelIndices) else np.shape(labels)[1]


def check_labels(name: str, labels: Labels, where: ArrayLike | None = None) -> None:
    """Raises if `labels` are not label sets.

    Shapes and dtypes are always checked; values only where they are known, which is outside
    jit, and in the rows that `where` [B] keeps.

    Raises:
      TypeError: if the dtype cannot hold labels.
      ValueError: if the rank is not 2, a multi-hot value is neither 0 nor 1, or an index lies
        outside [-1, num_classes).
    """
    if isinstance(labels, LabelIndices):
        array, bound = labels.indices, _whole(labels.num_classes)
        if bound is None or bound < 1:
            raise ValueError(
                f"{name}.num_classes must be an integer above 0, got {labels.num_classes!r}."
            )
        name, shape_text = f"{name}.indices", "[B, L]"
    else:
        array, bound, shape_text = labels, None, "multi-hot [B, C]"
    shape, dtype = np.shape(array), jnp.result_type(array)
    if len(shape) != 2:
        raise ValueError(f"{name} must be {shape_text}, got shape {shape}.")
    if bound is not None and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {dtype}.")
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be bool, integer or float, got {dtype}.")
    if not is_known(array):
        return
    values = np.asarray(array)
    if bound is not None:
        wrong = (values < -1) | (values >= bound)
        expected = f"lie in [0, {bound}), or be -1 as padding"
    else:
        wrong = (values != 0) & (values != 1)
        expected = "be 0 or 1"
    if where is not None and is_known(where) and np.shape(where) == shape[:1]:
        wrong &= np.asarray(where)[:, None]
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} must {expected}; got {values[row, column]} in row {row}, column {column}."
        )


def _whole(number: Any) -> int | None:
    try:
        return operator.index(number)
    except TypeError:
        return None


def is_known(array: Any) -> bool:
    """Whether the values of `array` can be read here: not traced, and held by this process."""
    if isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable
