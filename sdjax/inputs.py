"""What the losses are given, checked and made ready: one `Side` for anchors, one for candidates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdjax import labels as labels_lib
from sdjax import relations
from sdjax.labels import LabelIndices, Labels

Array = jax.Array


class Side(NamedTuple):
    """Anchors, or candidates: embeddings [B, D], label sets, and which rows are not padding."""

    z: Array
    labels: Labels
    where: Array

    def embedded(self, normalize: bool, dtype: jnp.dtype) -> "Side":
        """With embeddings in the dtype of the computation, of unit length if asked for."""
        z = self.z.astype(dtype)
        return self._replace(z=normalized(z) if normalize else z)


def prepare(
    names: tuple[str, str, str], z: ArrayLike, labels: Labels, where: ArrayLike | None
) -> Side:
    """One side of the pairs, checked; its padding becomes zeros without labels.

    Args:
      names: of the three arguments that follow, as the user knows them.
      z: embeddings [B, D].
      labels: B label sets.
      where: bool [B], or None.
    """
    z_name, labels_name, where_name = names
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{z_name} must be floating, got {z.dtype}.")
    if z.ndim != 2:
        raise ValueError(f"{z_name} must be [rows, features], got shape {z.shape}.")
    if isinstance(labels, list | tuple):
        labels = np.asarray(labels)
    mask = None if where is None else check_mask(where_name, where, len(z))
    labels_lib.check_labels(labels_name, labels, mask)
    if labels_lib.num_rows(labels) != len(z):
        raise ValueError(
            f"{z_name} and {labels_name} must have the same number of rows, got {len(z)} and "
            f"{labels_lib.num_rows(labels)}."
        )
    if mask is None:
        return Side(z, labels, jnp.ones(len(z), bool))
    # Selected before any arithmetic, so that padding may hold NaN.
    return Side(jnp.where(mask[:, None], z, 0), labels_lib.keep_rows(labels, mask), mask)


def check_mask(name: str, where: ArrayLike, num_rows: int) -> Array:
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"{name} must be bool, got {where.dtype}.")
    if where.shape != (num_rows,):
        raise ValueError(f"{name} must have shape ({num_rows},), got {where.shape}.")
    return where


def check_not_sharded(z: ArrayLike) -> None:
    """Raises ValueError for rows that are typed as sharded, as those of an Explicit mesh are."""
    if isinstance(z, jax.Array) and (axes := jax.typeof(z).sharding.spec[:1]) not in ((), (None,)):
        raise ValueError(
            f"z is sharded over {axes[0]!r} of an Explicit mesh: use the loss of the same name in "
            f"sdjax.sharded with axis_name={axes[0]!r}."
        )


def check_same_space(anchors: Side, others: Side) -> None:
    if anchors.z.shape[1] != others.z.shape[1]:
        raise ValueError(
            f"z and candidates must have the same number of features, got shapes "
            f"{anchors.z.shape} and {others.z.shape}."
        )
    relations.check_same_classes("labels", anchors.labels, "candidate_labels", others.labels)


def check_temperature(temperature: ArrayLike) -> None:
    if np.ndim(temperature) != 0:
        raise ValueError(f"temperature must be a scalar, got shape {np.shape(temperature)}.")
    if labels_lib.is_known(temperature) and not 0 < np.asarray(temperature) < np.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}.")


def accumulation_dtype(*arrays: Array) -> jnp.dtype:
    wide = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def class_labels(name: str, class_ids: ArrayLike, z_name: str, z: ArrayLike | None) -> LabelIndices:
    """Class numbers [B] as label sets of one label, or of none for -1."""
    if z is None:
        raise ValueError(f"{name} need {z_name}, got none.")
    dtype, shape = jnp.result_type(class_ids), np.shape(class_ids)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {dtype}.")
    if shape != np.shape(z)[:1]:
        raise ValueError(
            f"{name} must be [B], one for each row of {z_name} {np.shape(z)}, got shape {shape}."
        )
    if labels_lib.is_known(class_ids):
        least = np.asarray(class_ids).astype(np.int64).min(initial=-1)
        if least < -1:
            raise ValueError(f"{name} must be at least -1, got {least}.")
    # Sets of one label each are only compared: no array has a column for each class.
    return LabelIndices(jnp.asarray(class_ids)[:, None], np.iinfo(np.int32).max)


def inverse_norms(z: Array, dtype: jnp.dtype) -> Array:
    """1 / ‖z_i‖ [B] in `dtype`; 0 for a zero row."""
    _, largest, norms = _scaled_norms(z.astype(dtype))
    return jnp.where(largest == 0, 0, 1 / (jnp.where(largest == 0, 1, largest) * norms))[:, 0]


def normalized(z: Array) -> Array:
    """Rows of unit length; a zero row stays zero, with a zero gradient."""
    scaled, largest, norms = _scaled_norms(z)
    return jnp.where(largest == 0, 0, scaled / norms)


def _scaled_norms(z: Array) -> tuple[Array, Array, Array]:
    """Rows divided by their largest entry [B, D], that entry [B, 1], and their norms [B, 1].

    Dividing first keeps the squares from overflowing or vanishing. A zero row has a norm of 1.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, keepdims=True, initial=0))
    zero = largest == 0
    scaled = z / jnp.where(zero, 1, largest)
    norms = jnp.sqrt(jnp.where(zero, 1, jnp.square(scaled).sum(axis=1, keepdims=True)))
    return scaled, largest, norms
