"""HeroCon: for each label a contrast of its own, whose denominators are those of pairs."""

import jax
import jax.numpy as jnp
from jax import lax

from sdjax import labels as labels_lib
from sdjax import relations
from sdjax._src import collectives
from sdjax._src.dense import embedded, logsumexp
from sdjax._src.problem import Inputs, Problem

Array = jax.Array


def herocon(problem: Problem) -> Array:
    """The loss of the batch, a scalar: O(B²) memory, O(B²·(C + D)) time."""
    anchors = embedded(problem.anchors, problem)
    everyone = collectives.all_gather(anchors, problem.axes)
    s = jnp.matmul(anchors.z, everyone.z.T, precision=lax.Precision.HIGHEST)
    o = relations.unchecked_overlap(anchors.labels, everyone.labels, problem.dtype)
    num_classes = labels_lib.num_classes(anchors.labels)
    distance = o.anchor_size + o.candidate_size - 2 * o.shared
    # Of pairs that differ in no label, or in all, no use is made.
    negative = s + jnp.log(jnp.where(distance > 0, distance, 1))
    agreement = 1 - distance / max(num_classes, 1)
    positive = s + jnp.log(jnp.where(agreement > 0, agreement, 1))

    # Anew in the backward pass, or the arrays [B, B] of all labels would be kept.
    @jax.checkpoint
    def of_label(total: Array, columns: tuple[Array, Array]) -> tuple[Array, None]:
        has, others_have = columns
        lacks = everyone.where & ~others_have
        log_negatives, some = logsumexp(negative, lacks[None, :] & has[:, None]), lacks.any()
        excess = jnp.logaddexp(0.0, log_negatives[:, None] - positive)
        number = jnp.log1p(lacks.sum(dtype=s.dtype))
        terms = jnp.where(some, excess - number, 0)
        pairs = has[:, None] & others_have[None, :]
        carriers = jnp.maximum(others_have.sum(dtype=s.dtype), 1)
        return total + jnp.where(pairs, terms, 0).sum() / carriers**2, None

    columns = tuple(_columns(side) for side in (anchors, everyone))
    zero = collectives.varying(jnp.zeros((), s.dtype), s)
    total, _ = lax.scan(of_label, zero, columns)
    return collectives.global_sum(total, problem.axes)


def _columns(rows: Inputs) -> Array:
    """Which rows carry each label, bool [C, N]."""
    return (labels_lib.multi_hot(rows.labels, rows.z.dtype) > 0).T & rows.where[None, :]
