"""What is contrasted with what, and from the sums over an anchor's candidates to its loss."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdjax import labels as labels_lib
from sdjax.collectives import AxisName
from sdjax.inputs import Side
from sdjax.relations import Overlap, Weight

Array = jax.Array
Form = Literal["out", "in"]
Normalizer = Literal["positives", "weights", "labels", "batch_labels"]


class Pairs(NamedTuple):
    """Anchors and candidates, as every implementation of the losses takes them.

    Attributes:
      anchors: rows on this device.
      candidates: rows on this device; the anchors' own arrays in self-contrast.
      self_contrast: candidate i is anchor i, and no candidate of itself.
      normalize: divide embeddings by their L2 norm.
      temperature: τ as given, a scalar.
      dtype: of the sums, float32 or float64.
      axis_name: mesh axis along which the rows of both sides are sharded.
    """

    anchors: Side
    candidates: Side
    self_contrast: bool
    normalize: bool
    temperature: ArrayLike
    dtype: jnp.dtype
    axis_name: AxisName | None

    @property
    def tau(self) -> Array:
        return jnp.asarray(self.temperature, self.dtype)


class Method(NamedTuple):
    """A loss of the family.

    Attributes:
      weight: the weight of a pair from its overlap, finite and at least 0.
      normalizer: what divides an anchor's sum over its positives.
      balance_labels: count a shared label as 1 / (candidates of the anchor that carry it).
      form: "out" or "in".
      own_weight: `weight` is a user's, and may close over traced arrays.
    """

    weight: Weight
    normalizer: Normalizer = "positives"
    balance_labels: bool = False
    form: Form = "out"
    own_weight: bool = False


class Statistics(NamedTuple):
    """Sums over the candidates of each anchor, all [A]. The first two carry the gradient.

    Attributes:
      lse: log Σ_a e^{s_ia}; 0 without candidates.
      attraction: Σ_p w_ip s_ip for the form "out", log Σ_p w_ip e^{s_ip} for "in"; 0 without
        positives.
      weight: Σ_p w_ip.
      positives: |P(i)|.
    """

    lse: Array
    attraction: Array
    weight: Array
    positives: Array


Implementation = Callable[[Pairs, Method], Statistics]


class Rows(NamedTuple):
    """Loss of each anchor [A], and its weight [A] in the mean over anchors."""

    loss: Array
    weight: Array


def rows(statistics: Statistics, pairs: Pairs, method: Method) -> Rows:
    """The loss of each anchor.

      out: L_i = (lse_i · Σ_p w_ip − Σ_p w_ip s_ip) / d_i
      in:  L_i = lse_i − log( Σ_p w_ip e^{s_ip} ) + log d_i

    with d_i the normalizer. An anchor without a positive, or with d_i = 0, has L_i = 0.
    """
    size = labels_lib.sizes(pairs.anchors.labels, pairs.dtype)
    divisors = {
        "positives": statistics.positives,
        "weights": statistics.weight,
        "labels": size,
        "batch_labels": size,
    }
    divisor = divisors[method.normalizer]
    # A weight of one's own may make positives of an empty label set.
    has_loss = pairs.anchors.where & (statistics.positives > 0) & (divisor > 0)
    divisor = jnp.where(has_loss, divisor, 1)
    if method.form == "out":
        loss = (statistics.weight * statistics.lse - statistics.attraction) / divisor
    else:
        loss = statistics.lse - statistics.attraction + jnp.log(divisor)
    mean_weight = size if method.normalizer == "batch_labels" else has_loss.astype(loss.dtype)
    return Rows(
        loss=jnp.where(has_loss, loss, 0),
        weight=jnp.where(pairs.anchors.where, mean_weight, 0),
    )


@functools.lru_cache(maxsize=64)
def sound(weight: Weight) -> Weight:
    """A weight of one's own for one pair, but 0 where it is negative or not finite."""

    def sound_weight(o: Overlap) -> Array:
        try:
            w = jnp.asarray(weight(o)).astype(o.shared.dtype)
        except Exception as error:
            error.add_note("weight is given one pair at a time: an Overlap of three scalars.")
            raise
        if w.shape:
            raise ValueError(
                "weight is given one pair at a time, an Overlap of three scalars, and must return "
                f"a scalar; got shape {w.shape}."
            )
        # It may be 0/0 or 1/0 on an empty set.
        return jnp.where((w > 0) & (w < jnp.inf), w, jnp.zeros_like(w))

    return sound_weight


def pair_weights(
    weight: Weight, shared: Array, anchor_size: Array, candidate_size: Array, where: Array
) -> Array:
    """Weights [A, R], above 0 where a pair is a positive, else 0.

    `weight` sees one pair at a time, so that it means the same for a tile of pairs as for all.

    Args:
      weight: of one pair, from its overlap; finite and at least 0.
      shared: [A, R].
      anchor_size: [A, 1], or [1, R] where the anchors lie along the second axis.
      candidate_size: [1, R], or [A, 1].
      where: bool [A, R], which pairs there are.
    """

    def one(shared: Array, anchor_size: Array, candidate_size: Array) -> Array:
        return weight(Overlap(shared, anchor_size, candidate_size))

    along_rows, along_columns = (0, 0, None), (0, None, 0)
    if anchor_size.shape[1] != 1:
        along_rows, along_columns = along_columns, along_rows
    w = jax.vmap(jax.vmap(one, along_columns), along_rows)(
        shared, anchor_size.reshape(-1), candidate_size.reshape(-1)
    )
    return jnp.where(where, w, 0)
