"""Prototypes, one learned row for each label, beside the rows of a batch.

They join the candidates at their end, and where the loss says so the anchors. On several devices
each device brings a share of them, so that each prototype is there once, as each example is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from sdjax import labels as labels_lib
from sdjax._src import collectives
from sdjax._src.collectives import Axes
from sdjax._src.problem import Inputs, Problem, accumulation_dtype
from sdjax._src.validation import check_not_sharded
from sdjax.labels import LabelIndices, Labels, is_known

Array = jax.Array


def check(prototypes: ArrayLike, z: ArrayLike, labels: Labels) -> Array:
    """The prototypes [C, D] as an array.

    Raises:
      TypeError, ValueError: unless they are one floating row for each label.
    """
    check_not_sharded("prototypes", prototypes)
    prototypes = jnp.asarray(prototypes)
    if not jnp.issubdtype(prototypes.dtype, jnp.floating):
        raise TypeError(f"prototypes must be floating, got {prototypes.dtype}.")
    shape = (labels_lib.num_classes(labels), np.shape(z)[1])
    if prototypes.shape != shape:
        raise ValueError(
            f"prototypes must be [labels, features], here {shape}, got shape {prototypes.shape}."
        )
    return prototypes


def labels_of(labels: Labels, numbers: Array) -> Labels:
    """Sets of one label each, of none for -1, in the format of `labels`."""
    if not isinstance(labels, LabelIndices):
        num_classes = jnp.arange(labels_lib.num_classes(labels), dtype=numbers.dtype)
        return numbers[:, None] == num_classes[None, :]
    dtype = jnp.asarray(labels.indices).dtype
    return LabelIndices(numbers[:, None].astype(dtype), labels.num_classes)


def joined(
    problem: Problem, prototypes: Array, *, as_anchors: bool, beta: ArrayLike | None = None
) -> Problem:
    """`problem` with the prototypes as candidates, and if wanted as anchors, too.

    Args:
      problem: without prototypes.
      prototypes: [C, D], the same on all devices.
      as_anchors: each is an anchor of all candidates but itself.
      beta: of an example's e^s in the log-sum-exp; None for 1.
    """
    anchors, candidates = problem.anchors, problem.candidates
    if beta is not None:
        dtype = accumulation_dtype(anchors.z, problem.contrasted.z, prototypes)
        log_beta = jnp.log(lax.stop_gradient(jnp.asarray(beta, dtype)))
    else:
        log_beta = None
    changes: dict[str, object] = {"bias_bound": _bias_bound(beta)}
    if candidates is not None:
        if as_anchors:
            # By their ids, since no place tells which candidate an anchor is.
            anchors, candidates = _with_ids(anchors), _with_ids(candidates)
        others = _share(prototypes, candidates, problem.candidate_axes, log_beta)
        changes["candidates"] = _after(_marked(candidates, log_beta), others)
    if candidates is None or as_anchors:
        new = _share(prototypes, anchors, problem.axes, log_beta)
        where = new.where & as_anchors
        if candidates is None and (problem.candidate_where is not None or not as_anchors):
            masks = collectives.varying((problem.contrasted.where, new.where), anchors)
            changes["candidate_where"] = jnp.concatenate(masks)
        changes["num_prototypes"] = len(where)
        changes["passive_prototypes"] = not as_anchors
        anchors = _after(_marked(anchors, log_beta), new._replace(where=where))
    return dataclasses.replace(problem, anchors=anchors, **changes)


def _bias_bound(beta: ArrayLike | None) -> float | None:
    if beta is None:
        return 0.0
    return abs(float(np.log(np.asarray(beta)))) if is_known(beta) else None


def _share(prototypes: Array, like: Inputs, axes: Axes, log_beta: Array | None) -> Inputs:
    """The prototypes that this device brings; those that make the shares equal are padding."""
    total, devices = len(prototypes), collectives.axis_size(axes)
    size = -(-total // devices)
    numbers = collectives.global_index(size, axes)
    if axes:
        padded = jnp.pad(prototypes, ((0, size * devices - total), (0, 0)))
        prototypes = lax.dynamic_slice_in_dim(padded, numbers[0], size) if size else padded
    numbers = jnp.where(numbers < total, numbers, -1)
    where = numbers >= 0
    log_bias = None if log_beta is None else jnp.zeros(size, log_beta.dtype)
    # Numbers from -2 down, which no example has.
    ids = None if like.ids is None else (-2 - numbers).astype(like.ids.dtype)
    return Inputs(prototypes, labels_of(like.labels, numbers), where, ids, log_bias, where)


def _marked(examples: Inputs, log_beta: Array | None) -> Inputs:
    """The examples as rows beside prototypes."""
    size = len(examples.z)
    log_bias = None if log_beta is None else jnp.broadcast_to(log_beta, size)
    return examples._replace(log_bias=log_bias, prototype=jnp.zeros(size, bool))


def _with_ids(examples: Inputs) -> Inputs:
    if examples.ids is not None:
        return examples
    return examples._replace(ids=jnp.full(len(examples.z), -1, jnp.int32))


def _after(examples: Inputs, prototypes: Inputs) -> Inputs:
    """The rows of both, the examples first."""
    dtype = jnp.promote_types(examples.z.dtype, prototypes.z.dtype)
    pair = collectives.varying((examples, prototypes), examples, prototypes)
    labels = _of_equal_length(*(side.labels for side in pair))
    sides = [
        side._replace(z=side.z.astype(dtype), labels=sets)
        for side, sets in zip(pair, labels, strict=True)
    ]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *sides)


def _of_equal_length(*sides: Labels) -> tuple[Labels, ...]:
    """The label sets, their lists padded to the longest."""
    lists = [jnp.asarray(side.indices) for side in sides if isinstance(side, LabelIndices)]
    length = max((x.shape[1] for x in lists), default=0)

    def padded(indices: Array) -> Array:
        widths = ((0, 0), (0, length - indices.shape[1]))
        return jnp.pad(indices, widths, constant_values=-1)

    def of(side: Labels) -> Labels:
        if not isinstance(side, LabelIndices):
            return side
        return LabelIndices(padded(jnp.asarray(side.indices)), side.num_classes)

    return tuple(map(of, sides))
