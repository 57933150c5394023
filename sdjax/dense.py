"""The dense core: every similarity at once, in an [A, R] array."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from sdjax import labels as labels_lib
from sdjax import relations
from sdjax.labels import Labels
from sdjax.relations import Weight

Array = jax.Array
Form = Literal["out", "in"]
Normalizer = Literal["positives", "weights", "labels", "batch_labels"]


class Pairs(NamedTuple):
    """Anchors and candidates, as every implementation of the losses takes them.

    Attributes:
      anchors: float [A, D], of the dtype to compute in.
      candidates: float [R, D].
      anchor_labels: label sets of the anchors.
      candidate_labels: label sets of the candidates.
      where: bool [A], False for padding.
      candidate_where: bool [R], False for padding.
      self_index: int32 [A], the candidate that is the anchor itself; None excludes nothing.
    """

    anchors: Array
    candidates: Array
    anchor_labels: Labels
    candidate_labels: Labels
    where: Array
    candidate_where: Array
    self_index: Array | None


class Method(NamedTuple):
    """A loss of the family.

    Attributes:
      weight: the weight of a pair, from its overlap.
      normalizer: what divides an anchor's sum over its positives.
      balance_labels: count a shared label as 1 / (candidates of the anchor that carry it).
    """

    weight: Weight
    normalizer: Normalizer = "positives"
    balance_labels: bool = False


class Rows(NamedTuple):
    """Loss of each anchor [A], and its weight [A] in the mean over anchors."""

    loss: Array
    weight: Array


Implementation = Callable[[Pairs, Method, Array, Form], Rows]


def dense(pairs: Pairs, method: Method, temperature: Array, form: Form) -> Rows:
    """Losses of all anchors from the full matrix of similarities: O(A·R) memory.

      out: L_i = −1/d_i · Σ_p w_ip · log q_ip
      in:  L_i = −log( Σ_p w_ip e^{s_ip} / Σ_a e^{s_ia} / d_i )

    with s = z·z' / τ, q the softmax of s over the candidates and d_i the normalizer. An anchor
    without a positive has L_i = 0.
    """
    num_anchors, num_candidates = len(pairs.anchors), len(pairs.candidates)
    valid = pairs.where[:, None] & pairs.candidate_where[None, :]
    if pairs.self_index is not None:
        valid &= pairs.self_index[:, None] != jnp.arange(num_candidates, dtype=jnp.int32)[None, :]
    weight, anchor_size = _weights(pairs, method)
    chex.assert_shape((weight, valid), (num_anchors, num_candidates))
    # A weight of one's own may be 0/0 or 1/0 on an empty set.
    positive = valid & (weight > 0) & jnp.isfinite(weight)
    weight = lax.stop_gradient(jnp.where(positive, weight, 0))

    s = jnp.matmul(pairs.anchors, pairs.candidates.T, precision=lax.Precision.HIGHEST)
    s = s / temperature
    lse = _logsumexp(s, valid)
    divisor, has_loss = _divisor(method, weight, positive, anchor_size)
    if form == "out":
        # The similarity of an excluded pair may be infinite: it must not meet a zero weight.
        log_q = jnp.where(positive, s, lse[:, None]) - lse[:, None]
        loss = -(weight * log_q).sum(axis=1) / divisor
    else:
        log_weight = jnp.log(jnp.where(positive, weight, 1))
        loss = lse - _logsumexp(s + log_weight, positive) + jnp.log(divisor)
    mean_weight = anchor_size if method.normalizer == "batch_labels" else has_loss
    return Rows(
        loss=jnp.where(has_loss, loss, 0),
        weight=jnp.where(pairs.where, mean_weight.astype(loss.dtype), 0),
    )


def _weights(pairs: Pairs, method: Method) -> tuple[Array, Array]:
    """Weights [A, R] before masking, and |S_i| [A]."""
    dtype = pairs.anchors.dtype
    o = relations.unchecked_overlap(pairs.anchor_labels, pairs.candidate_labels, dtype)
    anchor_size = o.anchor_size[:, 0]
    if method.balance_labels:
        o = o._replace(shared=_balanced_shared(pairs))
    weight = jnp.asarray(method.weight(o))
    if weight.shape != o.shared.shape:
        raise ValueError(
            f"weight must return one number a pair, shape {o.shared.shape}, "
            f"got shape {weight.shape}."
        )
    return weight.astype(dtype), anchor_size


def _balanced_shared(pairs: Pairs) -> Array:
    """Σ_{l∈S∩T} 1/m_l(i), with m_l(i) the number of candidates of anchor i that carry l."""
    dtype = pairs.anchors.dtype
    anchors = labels_lib.multi_hot(pairs.anchor_labels, dtype)
    candidates = labels_lib.multi_hot(pairs.candidate_labels, dtype)
    valid = pairs.candidate_where.astype(dtype)
    count = (candidates * valid[:, None]).sum(axis=0)[None, :]
    if pairs.self_index is not None:
        count = count - anchors * valid[pairs.self_index][:, None]
    scaled = jnp.where(count > 0, anchors / jnp.maximum(count, 1), 0)
    return relations.shared_labels(scaled, candidates)


def _divisor(
    method: Method, weight: Array, positive: Array, anchor_size: Array
) -> tuple[Array, Array]:
    """Normalizer d_i [A], and whether the anchor has a loss: a positive and d_i > 0, bool [A].

    Where it has none, d_i is 1. A weight of one's own may make positives of an empty label set.
    """
    count = positive.sum(axis=1)
    divisors = {
        "positives": lambda: count.astype(weight.dtype),
        "weights": lambda: weight.sum(axis=1),
        "labels": lambda: anchor_size,
        "batch_labels": lambda: anchor_size,
    }
    divisor = divisors[method.normalizer]()
    has_loss = (count > 0) & (divisor > 0)
    return jnp.where(has_loss, divisor, 1), has_loss


def _logsumexp(x: Array, where: Array) -> Array:
    """log Σ exp(x) over the entries of each row where `where` holds; 0 for a row without any."""
    largest = lax.stop_gradient(jnp.max(x, axis=1, where=where, initial=-jnp.inf))
    some = where.any(axis=1)
    largest = jnp.where(some, largest, 0)
    # The inner select keeps entries that are left out from overflowing in the gradient.
    total = jnp.exp(jnp.where(where, x - largest[:, None], -jnp.inf)).sum(axis=1)
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + largest, 0)
