"""The dense core: every similarity at once, in an [A, R] array."""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sdjax import labels as labels_lib
from sdjax import relations
from sdjax._src import collectives
from sdjax._src.embeddings import normalized
from sdjax._src.pair_math import pair_weights
from sdjax._src.problem import Inputs, Method, Problem, Sums

Array = jax.Array


def dense(problem: Problem, method: Method) -> Sums:
    """`Sums` from the full matrix of similarities: O(A·R) memory."""
    anchors = candidates = embedded(problem.anchors, problem)
    if problem.candidates is not None:
        candidates = embedded(problem.candidates, problem)
    # In self-contrast one conversion for both roles: gradients add up before they are rounded.
    candidates = candidates._replace(where=problem.contrasted.where)
    candidates = collectives.all_gather(candidates, problem.candidate_axes)
    where = _candidates_of(anchors, candidates, problem)
    weight = lax.stop_gradient(_weights(problem, candidates, method, where))
    if problem.positive_where is not None:
        weight = jnp.where(problem.positive_where, weight, 0)
    positive = weight > 0

    s = jnp.matmul(anchors.z, candidates.z.T, precision=lax.Precision.HIGHEST)
    chex.assert_equal_shape([s, where, weight])
    biased = s if candidates.log_bias is None else s + candidates.log_bias[None, :]
    log_total = logsumexp(biased, where)
    if method.form == "out":
        # The similarity of an excluded pair may be infinite: it must not meet a zero weight.
        attraction = (weight * jnp.where(positive, s, 0)).sum(axis=1)
    else:
        attraction = logsumexp(s + jnp.log(jnp.where(positive, weight, 1)), positive)
    total = weight.sum(axis=1)
    if method.clipped:
        softmax = jnp.exp(jnp.where(where, biased, -jnp.inf) - log_total[:, None])
        excess = jnp.where(positive, jnp.maximum(total[:, None] * softmax - weight, 0), 0)
        excess = lax.stop_gradient(excess)
        # The value stays; from the slope of each positive goes what pushes it away.
        push = (excess * jnp.where(positive, s, 0)).sum(axis=1)
        attraction = attraction + push - lax.stop_gradient(push)
    count = positive.sum(axis=1, dtype=problem.dtype)
    return Sums(log_total, attraction, total, count)


def embedded(examples: Inputs, problem: Problem) -> Inputs:
    z = examples.z.astype(problem.dtype)
    z = normalized(z) if problem.normalize else z
    # Not after the product: compiled, large similarities may be divided once to find the largest
    # and once, with another rounding, to subtract it.
    return examples._replace(z=z / jnp.sqrt(problem.tau))


def _candidates_of(anchors: Inputs, candidates: Inputs, problem: Problem) -> Array:
    """Which candidates each anchor has, bool [A, R]."""
    where = anchors.where[:, None] & candidates.where[None, :]
    if problem.candidates is None:
        index = jnp.arange(len(candidates.z), dtype=jnp.int32)
        own = collectives.global_index(len(anchors.z), problem.axes)
        where &= own[:, None] != index[None, :]
    if anchors.ids is not None and candidates.ids is not None:
        ids = anchors.ids[:, None]
        where &= (ids != candidates.ids[None, :]) | (ids == -1)
    return where


def _weights(problem: Problem, candidates: Inputs, method: Method, where: Array) -> Array:
    """Weights [A, R], above 0 for positives."""
    anchors, dtype = problem.anchors, problem.dtype
    prototype = None if candidates.prototype is None else candidates.prototype[None, :]
    if method.labels == "counted" or not method.uniform:
        o = relations.unchecked_overlap(anchors.labels, candidates.labels, dtype)
        weight = pair_weights(method.weight, *o, where, prototype)
    else:
        weight = where.astype(dtype)
    if method.labels == "counted":
        return weight
    labels, others = (labels_lib.multi_hot(x.labels, dtype) for x in (anchors, candidates))
    shares = _shares(weight, labels, others)
    if method.labels == "agreeing":
        shares += _shares(weight, 1 - labels, 1 - others)
    return jnp.where(where, weight * shares, 0)


def _shares(weight: Array, labels: Array, others: Array) -> Array:
    """Σ_{l∈S∩T} 1/N_l(i) [A, R], N_l(i) being the weights of the candidates that carry l."""
    carriers = jnp.matmul(weight, others, precision=lax.Precision.HIGHEST)
    balanced = jnp.where(carriers > 0, labels / jnp.where(carriers > 0, carriers, 1), 0)
    return jnp.matmul(balanced, others.T, precision=lax.Precision.HIGHEST)


def logsumexp(x: Array, where: Array) -> Array:
    """log Σ exp(x) over the entries of each row where `where` holds; 0 for a row without any."""
    largest = lax.stop_gradient(jnp.max(x, axis=1, where=where, initial=-jnp.inf))
    some = where.any(axis=1)
    largest = jnp.where(some, largest, 0)
    # The inner select keeps entries that are left out from overflowing in the gradient.
    total = jnp.exp(jnp.where(where, x - largest[:, None], -jnp.inf)).sum(axis=1)
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + largest, 0)
