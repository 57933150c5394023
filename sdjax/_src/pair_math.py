"""The mathematics of a tile of pairs, elementwise but for its sums.

A tile holds the similarities s [T, U] of T rows and U columns. In one direction the rows are
anchors and the columns their candidates (axis 1); in the other the columns are anchors and the
rows their candidates (axis 0). What belongs to the anchors is [T, 1] in the first direction and
[1, U] in the second, so that it broadcasts against the tile.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from sdjax.relations import Overlap

Array = jax.Array
Form = Literal["out", "in"]

# While no |s| is larger than this, e^s neither overflows nor vanishes in float32.
LARGEST_BOUNDED = 40.0


class LogSumExp(NamedTuple):
    """log Σ e^x as log(total) + shift, with total = Σ e^(x − shift)."""

    shift: Array
    total: Array

    @classmethod
    def over(cls, x: Array, where: Array, axis: int) -> "LogSumExp":
        """Of the entries of `x` along `axis` where `where` holds; keeps the axis."""
        # The select also keeps compilers from rounding a product x in one way to find the largest,
        # and in another to subtract it.
        x = jnp.where(where, x, -jnp.inf)
        shift = x.max(axis, keepdims=True)
        finite = jnp.where(shift > -jnp.inf, shift, 0)
        return cls(shift, jnp.exp(x - finite).sum(axis, keepdims=True))

    def value(self) -> Array:
        """The logarithm; 0 for an empty sum."""
        some = self.total > 0
        return jnp.where(some, jnp.log(jnp.where(some, self.total, 1)) + self.shift, 0)

    def softmax(self, x: Array) -> Array:
        """e^x / Σ e^x of an entry, at most 1 whatever its rounding; it broadcasts."""
        some = self.total > 0
        # The shift first: it is as large as x, and what is left of both is exact.
        x = x - jnp.where(some, self.shift, 0) - jnp.log(jnp.where(some, self.total, 1))
        return jnp.exp(jnp.minimum(x, 0))

    def add(self, other: "LogSumExp") -> "LogSumExp":
        shift = jnp.maximum(self.shift, other.shift)
        return LogSumExp(shift, self.total_at(shift) + other.total_at(shift))

    def total_at(self, shift: Array) -> Array:
        """The total for a shift that is as large or larger."""
        return self.total * jnp.exp(self.shift - jnp.where(shift > -jnp.inf, shift, 0))


class RunningSums(NamedTuple):
    """What is known of each anchor after some of its candidates; see `problem.Sums`.

    Attributes:
      logsumexp: of s over the candidates.
      attraction: Σ_p w s for the form "out"; the log-sum-exp of s + log w for "in".
      weight: Σ_p w.
      positives: number of positives.
    """

    logsumexp: LogSumExp
    attraction: "LogSumExp | Array"
    weight: Array
    positives: Array

    @classmethod
    def empty(cls, num: int, form: Form, dtype: jnp.dtype) -> "RunningSums":
        zeros = jnp.zeros(num, dtype)
        nothing = LogSumExp(jnp.full(num, -jnp.inf, dtype), zeros)
        return cls(nothing, zeros if form == "out" else nothing, zeros, zeros)

    def map(
        self,
        logsumexp: Callable[..., LogSumExp],
        number: Callable[..., Array],
        *others: "RunningSums",
    ) -> "RunningSums":
        """Applies one function to the log-sum-exps and another to the plain sums."""

        def field(*x: Any) -> Any:
            return logsumexp(*x) if isinstance(x[0], LogSumExp) else number(*x)

        return RunningSums(*map(field, self, *others))

    def add(self, other: "RunningSums") -> "RunningSums":
        return self.map(LogSumExp.add, jnp.add, other)


class AnchorGradient(NamedTuple):
    """What the backward pass knows of the anchors of a tile, each [T, 1] or [1, U].

    Attributes:
      logsumexp, attraction: of `RunningSums`; only the form "in" needs the attraction.
      of_logsumexp, of_attraction: derivatives of the result to them.
    """

    logsumexp: LogSumExp
    attraction: LogSumExp | None
    of_logsumexp: Array
    of_attraction: Array


class Direction(NamedTuple):
    """A tile seen from its anchors.

    Attributes:
      axis: along which the candidates lie.
      where: bool [T, U], the pairs of an anchor and one of its candidates.
      weight: [T, U], above 0 for positives, else 0.
      log_bias: of the candidates, [1, U] or [T, 1]; None for 0.
      gradient: of the anchors, in the backward pass.
    """

    axis: int
    where: Array
    weight: Array
    log_bias: Array | None = None
    gradient: AnchorGradient | None = None


def pair_weights(
    weight: Callable[[Overlap], Array],
    shared: Array,
    anchor_size: Array,
    candidate_size: Array,
    where: Array,
    prototype: Array | None = None,
) -> Array:
    """Weights [T, U] of the pairs in `where`, above 0 where a pair is a positive, else 0.

    Args:
      weight: from the overlap; finite and at least 0.
      shared: [T, U].
      anchor_size: [T, 1], or [1, U] where the columns are anchors.
      candidate_size: [1, U], or [T, 1].
      where: bool [T, U].
      prototype: bool [1, U] or [T, 1], candidates whose weight is 1; None for none.
    """
    chex.assert_equal_shape([shared, where])
    w = jnp.broadcast_to(weight(Overlap(shared, anchor_size, candidate_size)), shared.shape)
    if prototype is not None:
        w = jnp.where(prototype, 1, w)
    return jnp.where(where, w, 0)


def tile_sums(
    s: Array, directions: Sequence[Direction], form: Form, bounded: bool
) -> list[RunningSums]:
    """The sums of the tile for the anchors of each direction, [T, 1] or [1, U].

    Args:
      s: similarities [T, U].
      directions: of the tile.
      form: "out" or "in".
      bounded: |s| + |bias| is at most `LARGEST_BOUNDED`: one exponential without a shift serves
        both directions. Otherwise each anchor's largest similarity is its shift.
    """
    chex.assert_equal_shape([s, *(d.weight for d in directions)])
    e = jnp.exp(s) if bounded else None
    return [_direction_sums(s, e, direction, form) for direction in directions]


def _direction_sums(s: Array, e: Array | None, direction: Direction, form: Form) -> RunningSums:
    axis, where, weight, log_bias, _ = direction

    def total(x: Array) -> Array:
        return x.sum(axis, keepdims=True)

    if e is not None:
        zero = jnp.zeros_like(total(s))
        term = e if log_bias is None else e * jnp.exp(log_bias)
        logsumexp = LogSumExp(zero, total(jnp.where(where, term, 0)))
        attraction = total(weight * s) if form == "out" else LogSumExp(zero, total(weight * e))
    else:
        logsumexp, positive = LogSumExp.over(_biased(s, log_bias), where, axis), weight > 0
        if form == "out":
            # The similarity of an excluded pair may be infinite: it must not meet a zero weight.
            attraction = total(jnp.where(positive, weight * s, 0))
        else:
            log_weight = jnp.log(jnp.where(positive, weight, 1))
            attraction = LogSumExp.over(s + log_weight, positive, axis)
    # 1 for a positive: without a comparison, whose result XLA for CPU would hold for the tile.
    is_positive = jnp.minimum(jnp.ceil(weight), 1)
    return RunningSums(logsumexp, attraction, total(weight), total(is_positive))


def _biased(s: Array, log_bias: Array | None) -> Array:
    return s if log_bias is None else s + log_bias


def similarity_gradient(
    s: Array, directions: Sequence[Direction], bounded: bool, clipped: bool = False
) -> Array:
    """Derivative of the result to s [T, U], summed over the directions.

    out: ∂/∂s_ij = a_i · e^{s_ij + bias_j − logsumexp_i} + b_i · w_ij
    in:  ∂/∂s_ij = a_i · e^{s_ij + bias_j − logsumexp_i} + b_i · w_ij · e^{s_ij − attraction_i}

    with a_i and b_i the derivatives to logsumexp_i and attraction_i. If `clipped`, the first is 0
    for a positive that it would push away.
    """
    if clipped:
        return sum((_clipped(s, d, bounded) for d in directions), jnp.zeros_like(s))
    total = jnp.zeros_like(s)
    known = [(direction, x) for direction in directions if (x := direction.gradient) is not None]
    for direction, anchors in known:
        if bounded:
            # Every shift is 0, and one exponential below serves both directions.
            sum_exp = anchors.logsumexp.total
            factor = anchors.of_logsumexp / jnp.where(sum_exp > 0, sum_exp, 1)
            if direction.log_bias is not None:
                factor = factor * jnp.exp(direction.log_bias)
            total += jnp.where(direction.where, factor, 0)
        else:
            biased = _biased(s, direction.log_bias)
            softmax = anchors.logsumexp.softmax(jnp.where(direction.where, biased, -jnp.inf))
            total += anchors.of_logsumexp * softmax
    if bounded:
        total *= jnp.exp(s)
    for direction, anchors in known:
        pull = direction.weight
        if anchors.attraction is not None:
            log_weight = jnp.log(jnp.where(pull > 0, pull, 1))
            x = jnp.where(pull > 0, s + log_weight, -jnp.inf)
            pull = anchors.attraction.softmax(x)
        total += anchors.of_attraction * pull
    return total


def _clipped(s: Array, direction: Direction, bounded: bool) -> Array:
    """The derivative of one direction, without what pushes a positive from its anchor."""
    if direction.gradient is None:
        return jnp.zeros_like(s)
    slope = similarity_gradient(s, [direction], bounded)
    # The anchor's loss falls with the attraction: the sign says which way descent goes.
    falls = direction.gradient.of_attraction <= 0
    pulled = jnp.where(falls, jnp.minimum(slope, 0), jnp.maximum(slope, 0))
    return jnp.where(direction.weight > 0, pulled, slope)
