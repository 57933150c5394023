"""Label sets: multi-hot arrays [B, C], or padded lists of label indices [B, L]."""

import dataclasses

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
      indices: int [B, L], in [0, num_classes); -1 pads rows with fewer than L labels.
      num_classes: number of labels C, static under jit.
    """

    indices: ArrayLike
    num_classes: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_multi_hot(cls, labels: ArrayLike) -> "LabelIndices":
        """Label indices of multi-hot `labels` [B, C], L being the largest set. Not under jit."""
        rows = [np.flatnonzero(row) for row in np.asarray(labels)]
        width = max([1, *map(len, rows)])
        padded = [np.pad(row, (0, width - len(row)), constant_values=-1) for row in rows]
        shape = (len(rows), width)
        return cls(jnp.asarray(np.reshape(padded, shape), jnp.int32), np.shape(labels)[1])


Labels = ArrayLike | LabelIndices


def multi_hot(labels: Labels, dtype: jnp.dtype) -> Array:
    """`labels` as a multi-hot array [B, C] of `dtype`."""
    if not isinstance(labels, LabelIndices):
        return jnp.asarray(labels).astype(dtype)
    indices = jnp.asarray(labels.indices).astype(jnp.int32)
    rows = jnp.arange(indices.shape[0])[:, None]
    # Negative indices would wrap around: one past the end is dropped.
    columns = jnp.where(indices < 0, labels.num_classes, indices)
    zeros = jnp.zeros((indices.shape[0], labels.num_classes), dtype)
    return zeros.at[rows, columns].set(1, mode="drop")


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


def sizes(labels: Labels, dtype: jnp.dtype) -> Array:
    """Number of labels of each row, [B]."""
    if isinstance(labels, LabelIndices):
        present = unique_indices(labels) < labels.num_classes
    else:
        present = jnp.asarray(labels)
    return present.astype(dtype).sum(axis=1)


def counts(labels: Labels, where: Array, dtype: jnp.dtype) -> Array:
    """Number of the rows in `where` [B] that carry each label, [C]."""
    if isinstance(labels, LabelIndices):
        indices = unique_indices(labels)
        rows = jnp.broadcast_to(where[:, None], indices.shape).astype(dtype)
        return jnp.zeros(labels.num_classes, dtype).at[indices].add(rows, mode="drop")
    return jnp.where(where[:, None], jnp.asarray(labels).astype(dtype), 0).sum(axis=0)


def num_rows(labels: Labels) -> int:
    """Number of label sets."""
    array = labels.indices if isinstance(labels, LabelIndices) else labels
    return np.shape(array)[0]


def num_classes(labels: Labels) -> int:
    """Number of labels C."""
    return labels.num_classes if isinstance(labels, LabelIndices) else np.shape(labels)[1]


def check_labels(name: str, labels: Labels, where: Array | None = None) -> None:
    """Raises if `labels` are not label sets.

    Shapes and dtypes are always checked; values only where they are known, which is outside
    jit, and in the rows that `where` [B] keeps.

    Raises:
      TypeError: if the dtype cannot hold labels.
      ValueError: if the rank is not 2, a multi-hot value is neither 0 nor 1, or an index lies
        outside [-1, num_classes).
    """
    if isinstance(labels, LabelIndices):
        array, bound = labels.indices, labels.num_classes
        if not isinstance(bound, int) or bound < 1:
            raise ValueError(f"{name}.num_classes must be an integer above 0, got {bound!r}.")
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


def is_known(array: ArrayLike) -> bool:
    """Whether the values of `array` can be read here: not traced, and held by this process."""
    if isinstance(array, Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable
