"""The arguments of the losses: checked, and made into a `Problem`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdjax import labels as labels_lib
from sdjax import relations
from sdjax._src import collectives
from sdjax._src.collectives import Axes, AxisName
from sdjax._src.problem import Inputs, Problem
from sdjax.labels import LabelIndices, Labels, is_known

Array = jax.Array


def make_problem(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None,
    candidate_labels: Labels | None,
    *,
    temperature: ArrayLike,
    normalize: bool,
    where: ArrayLike | None,
    candidate_where: ArrayLike | None,
    positive_where: ArrayLike | None,
    ids: ArrayLike | None,
    candidate_ids: ArrayLike | None,
    axis_name: AxisName | None,
    candidates_sharded: bool | None,
) -> Problem:
    """The problem that the arguments of `contrastive_loss` pose.

    Raises:
      TypeError, ValueError: for arguments that do not fit, by their names.
    """
    for name, x in dict(locals()).items():
        check_not_sharded(name, x)
    check_temperature(temperature)
    anchors = _examples("", z, labels, where, ids)
    axes = collectives.names(axis_name)
    given = {
        "candidates": candidates,
        "candidate_labels": candidate_labels,
        "candidate_ids": candidate_ids,
        "candidates_sharded": candidates_sharded,
    }
    others, mask, candidate_axes = None, None, axes
    if candidates is not None and candidate_labels is not None:
        if (ids is None) != (candidate_ids is None):
            raise ValueError("ids and candidate_ids go together, got one of them alone.")
        others = _examples(
            "candidate_", candidates, candidate_labels, candidate_where, candidate_ids
        )
        _check_same_space(anchors, others)
        candidate_axes = _axes_of_candidates(others, axes, candidates_sharded)
    elif alone := [name for name, x in given.items() if x is not None]:
        raise ValueError(
            f"candidates and candidate_labels go together, got {alone[0]} without them."
        )
    elif candidate_where is not None:
        mask = anchors.where & _mask("candidate_where", candidate_where, (len(anchors.z),))
    _check_anchors_vary(anchors, axes)
    if positive_where is not None:
        num_candidates = len((others or anchors).z) * collectives.axis_size(candidate_axes)
        shape = (len(anchors.z), num_candidates)
        positive_where = _mask("positive_where", positive_where, shape)
    return Problem(
        anchors, others, mask, positive_where, temperature, normalize, axes, candidate_axes
    )


def _examples(
    prefix: str, z: ArrayLike, labels: Labels, where: ArrayLike | None, ids: ArrayLike | None
) -> Inputs:
    """Anchors, or with the prefix "candidate_" candidates; padding becomes zeros without labels."""
    z_name, labels_name = "candidates" if prefix else "z", f"{prefix}labels"
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{z_name} must be floating, got {z.dtype}.")
    if z.ndim != 2:
        raise ValueError(f"{z_name} must be [rows, features], got shape {z.shape}.")
    if z.dtype.itemsize == 1:
        # Exact, and a dtype that can be multiplied everywhere.
        z = z.astype(jnp.bfloat16)
    if isinstance(labels, list | tuple):
        labels = np.asarray(labels)
    mask = None if where is None else _mask(f"{prefix}where", where, (len(z),))
    labels_lib.check_labels(labels_name, labels, mask)
    if labels_lib.num_rows(labels) != len(z):
        raise ValueError(
            f"{z_name} and {labels_name} must have the same number of rows, got {len(z)} and "
            f"{labels_lib.num_rows(labels)}."
        )
    if ids is not None:
        ids = _ids(f"{prefix}ids", ids, len(z))
    if mask is None:
        return Inputs(z, labels_lib.canonical(labels), jnp.ones(len(z), bool), ids)
    # Selected before any arithmetic, so that padding may hold NaN.
    labels = labels_lib.canonical(labels_lib.keep_rows(labels, mask))
    return Inputs(jnp.where(mask[:, None], z, 0), labels, mask, ids)


def _mask(name: str, where: ArrayLike, shape: tuple[int, ...]) -> Array:
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"{name} must be bool, got {where.dtype}.")
    if where.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {where.shape}.")
    return where


def _ids(name: str, ids: ArrayLike, num_rows: int) -> Array:
    dtype, shape = jnp.result_type(ids), np.shape(ids)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {dtype}.")
    if shape != (num_rows,):
        raise ValueError(f"{name} must have shape ({num_rows},), got {shape}.")
    ids = _narrow(name, ids)
    # One number for none leaves the others to prototypes.
    return jnp.maximum(ids, jnp.full_like(ids, -1))


def _narrow(name: str, numbers: ArrayLike) -> Array:
    """Integers as int32; those of 64 bits whose values are not known stay as they are.

    Raises:
      ValueError: if a value does not fit.
    """
    limits = np.iinfo(np.int32)
    if is_known(numbers):
        values = np.asarray(numbers)
        if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
            raise ValueError(
                f"{name} must fit into 32 bits, got values from {values.min()} to {values.max()}."
            )
        return jnp.asarray(numbers).astype(jnp.int32)
    numbers = jnp.asarray(numbers)
    if numbers.dtype in (jnp.uint32, jnp.uint64):
        raise TypeError(f"{name} must be signed integers under jit, got {numbers.dtype}.")
    return numbers if numbers.dtype == jnp.int64 else numbers.astype(jnp.int32)


def check_not_sharded(name: str, x: Any) -> None:
    """Raises ValueError for arrays that are typed as sharded, as those of an Explicit mesh are."""
    for leaf in jax.tree.leaves(x):
        if not isinstance(leaf, jax.Array):
            continue
        axes = [axis for axis in jax.typeof(leaf).sharding.spec if axis is not None]
        if axes:
            raise ValueError(
                f"{name} is sharded over {axes[0]!r} of an Explicit mesh: use the loss of the same "
                f"name in sdjax.sharded with axis_name={axes[0]!r}."
            )


def _check_same_space(anchors: Inputs, others: Inputs) -> None:
    if anchors.z.shape[1] != others.z.shape[1]:
        raise ValueError(
            f"z and candidates must have the same number of features, got shapes "
            f"{anchors.z.shape} and {others.z.shape}."
        )
    relations.check_same_classes("labels", anchors.labels, "candidate_labels", others.labels)


def _axes_of_candidates(others: Inputs, axes: Axes, sharded: bool | None) -> Axes:
    """The axes along which explicit candidates differ from device to device."""
    if not axes:
        if sharded is not None:
            raise ValueError("candidates_sharded needs axis_name, got none.")
        return ()
    if sharded is not None:
        return axes if sharded else ()
    if not collectives.are_tracked(axes):
        raise ValueError(
            "candidates_sharded must say whether each device holds its share of the candidates "
            "(True) or all of them (False) in pmap, and in shard_map with check_vma=False; got "
            "None."
        )
    varying = collectives.varying_axes(others)
    return tuple(axis for axis in axes if axis in varying)


def _check_anchors_vary(anchors: Inputs, axes: Axes) -> None:
    """Raises if shard_map says that the anchors are the same on all devices along an axis."""
    if not collectives.are_tracked(axes):
        return
    if same := set(axes) - collectives.varying_axes(anchors):
        raise ValueError(
            f"z must be sharded along axis_name {axes}, got the same rows on every device along "
            f"{', '.join(sorted(same))}."
        )


def check_temperature(temperature: ArrayLike) -> None:
    if np.ndim(temperature) != 0:
        raise ValueError(f"temperature must be a scalar, got shape {np.shape(temperature)}.")
    if is_known(temperature) and not 0 < np.asarray(temperature) < np.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}.")


def check_threshold(threshold: ArrayLike) -> None:
    if np.ndim(threshold) != 0:
        raise ValueError(f"threshold must be a scalar, got shape {np.shape(threshold)}.")
    if is_known(threshold) and not 0 < np.asarray(threshold) <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}.")


def check_number(
    name: str, value: ArrayLike, *, least: float = -np.inf, above: float = -np.inf
) -> None:
    """Raises ValueError unless `value` is a finite scalar, within bounds where it is known."""
    if np.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}.")
    if is_known(value):
        number = float(np.asarray(value))
        if not (np.isfinite(number) and number >= least and number > above):
            bound = f", above {above:g}" if above > -np.inf else ""
            bound = f", at least {least:g}" if least > -np.inf else bound
            raise ValueError(f"{name} must be a finite number{bound}, got {value}.")


def class_labels(name: str, class_ids: ArrayLike, z_name: str, z: ArrayLike | None) -> LabelIndices:
    """Class numbers [B] as label sets of one label, or of none for -1."""
    check_not_sharded(name, class_ids)
    if z is None:
        raise ValueError(f"{name} need {z_name}, got none.")
    dtype, shape = jnp.result_type(class_ids), np.shape(class_ids)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {dtype}.")
    if shape != np.shape(z)[:1]:
        raise ValueError(
            f"{name} must be [B], one for each row of {z_name} {np.shape(z)}, got shape {shape}."
        )
    if is_known(class_ids):
        least = np.asarray(class_ids).min(initial=0)
        if least < -1:
            raise ValueError(f"{name} must be at least -1, got {least}.")
    # Sets of one label each are only compared: no array has a column for each class.
    return LabelIndices(_narrow(name, class_ids)[:, None], np.iinfo(np.int64).max)
