"""The dense core: every similarity at once, in an [A, R] array."""

import jax
import jax.numpy as jnp
from jax import lax

from sdjax import collectives, relations
from sdjax import labels as labels_lib
from sdjax.labels import Labels
from sdjax.pairs import Method, Pairs, Statistics, pair_weights

Array = jax.Array


def dense(pairs: Pairs, method: Method) -> Statistics:
    """Statistics from the full matrix of similarities s = z·z' / τ: O(A·R) memory."""
    anchors = others = pairs.anchors.embedded(pairs.normalize, pairs.dtype)
    if not pairs.self_contrast:
        others = pairs.candidates.embedded(pairs.normalize, pairs.dtype)
    # One conversion for both roles: their gradients add up before they are rounded.
    others = others._replace(where=pairs.candidates.where)
    others = collectives.all_gather(others, pairs.axis_name)
    valid = anchors.where[:, None] & others.where[None, :]
    if pairs.self_contrast:
        self_index = collectives.global_index(len(anchors.z), pairs.axis_name)
        index = jnp.arange(len(others.z), dtype=jnp.int32)
        valid &= self_index[:, None] != index[None, :]
    weight = lax.stop_gradient(_weights(pairs, others.labels, method, valid))
    positive = weight > 0

    s = jnp.matmul(anchors.z, others.z.T, precision=lax.Precision.HIGHEST) / pairs.tau
    if method.form == "out":
        # The similarity of an excluded pair may be infinite: it must not meet a zero weight.
        attraction = (weight * jnp.where(positive, s, 0)).sum(axis=1)
    else:
        attraction = _logsumexp(s + jnp.log(jnp.where(positive, weight, 1)), positive)
    count = positive.sum(axis=1, dtype=pairs.dtype)
    return Statistics(_logsumexp(s, valid), attraction, weight.sum(axis=1), count)


def _weights(pairs: Pairs, other_labels: Labels, method: Method, valid: Array) -> Array:
    """Weights [A, R], above 0 for positives; `other_labels` are of the candidates everywhere."""
    o = relations.unchecked_overlap(pairs.anchors.labels, other_labels, pairs.dtype)
    if method.balance_labels:
        others = labels_lib.multi_hot(other_labels, pairs.dtype)
        o = o._replace(shared=relations.shared_labels(balanced_labels(pairs), others))
    return pair_weights(method.weight, *o, valid)


def balanced_labels(pairs: Pairs) -> Array:
    """Labels of the anchors [A, C], each 1/m_l(i): m_l(i) candidates of anchor i carry label l."""
    candidates, dtype = pairs.candidates, pairs.dtype
    counts = labels_lib.counts(candidates.labels, candidates.where, dtype)
    counts = collectives.global_sum(counts, pairs.axis_name)[None, :]
    labels = labels_lib.multi_hot(pairs.anchors.labels, dtype)
    if pairs.self_contrast:
        counts = counts - labels * candidates.where.astype(dtype)[:, None]
    return jnp.where(counts > 0, labels / jnp.maximum(counts, 1), 0)


def _logsumexp(x: Array, where: Array) -> Array:
    """log Σ exp(x) over the entries of each row where `where` holds; 0 for a row without any."""
    largest = lax.stop_gradient(jnp.max(x, axis=1, where=where, initial=-jnp.inf))
    some = where.any(axis=1)
    largest = jnp.where(some, largest, 0)
    # The inner select keeps entries that are left out from overflowing in the gradient.
    total = jnp.exp(jnp.where(where, x - largest[:, None], -jnp.inf)).sum(axis=1)
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + largest, 0)
