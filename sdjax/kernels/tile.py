"""The mathematics of one tile of pairs: traced inside a kernel, elementwise but for `Fold`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sdjax.kernels.sides import LANES, Vectors
from sdjax.pairs import Form
from sdjax.relations import Overlap, Weight

Array = jax.Array
LOWEST = float(jnp.finfo(jnp.float32).min)


class Pairs(NamedTuple):
    """Similarity, weight and masks of the pairs of a tile, [TA, TR]."""

    s: Array
    weight: Array  # 0 where the pair is not positive
    valid: Array
    positive: Array


class State(NamedTuple):
    """What a running sum over candidates knows; the shape is that of a `Fold`.

    Σ e^s is mass · e^top. For form "in", Σ w e^s is dot · e^top_in; for "out", dot is Σ w s.
    """

    top: Array
    mass: Array
    count: Array
    total: Array
    dot: Array
    top_in: Array


START = State(LOWEST, 0.0, 0.0, 0.0, 0.0, LOWEST)  # pyright: ignore[reportArgumentType]


class Fold(NamedTuple):
    """Reduction of a tile to the shape of a state, and the way back."""

    max: Callable[[Array], Array]
    sum: Callable[[Array], Array]
    spread: Callable[[Array], Array]


def row_fold(width: int) -> Fold:
    """[TA, TR] -> [TA, 128], lane by lane: what crosses lanes is left to the end."""
    starts = range(0, width, LANES)

    def parts(x: Array) -> list[Array]:
        return [lax.slice_in_dim(x, k, k + LANES, axis=1) for k in starts]

    def largest(x: Array) -> Array:
        first, *others = parts(x)
        for other in others:
            first = jnp.maximum(first, other)
        return first

    return Fold(
        max=largest,
        sum=lambda x: sum(parts(x)[1:], parts(x)[0]),
        spread=lambda x: jnp.concatenate([x] * len(starts), axis=1) if len(starts) > 1 else x,
    )


COLUMN_FOLD = Fold(
    max=lambda x: jnp.max(x, axis=0, keepdims=True),
    sum=lambda x: jnp.sum(x, axis=0, keepdims=True),
    spread=lambda x: x,
)


def similarity(columns: Vectors, rows: Vectors, product: Array) -> tuple[Array, Array]:
    """s [TA, TR], and the factor scale_i · scale_j."""
    factor = columns.scale * rows.scale
    return product * factor, factor


def shared_indices(columns: Vectors, rows: Vectors) -> Array:
    """|S∩T| [TA, TR] from label indices, each at most once in a row."""
    shared = jnp.zeros((columns.size.shape[0], rows.size.shape[1]), jnp.float32)
    for i in columns.ids:
        for j in rows.ids:
            shared += ((i == j) & (i >= 0)).astype(jnp.float32)
    return shared


def weigh(
    anchor: Vectors, candidate: Vectors, s: Array, shared: Array, weight: Weight, exclude_self: bool
) -> Pairs:
    """Weights and masks of a tile. `anchor` may be its columns or its rows."""
    # Broadcasting precedes comparing: vectors of booleans have no layout of their own.
    valid = jnp.broadcast_to(candidate.valid, s.shape) != 0
    if exclude_self:
        valid &= anchor.index != candidate.index
    w = jnp.asarray(weight(Overlap(shared, anchor.size, candidate.size)))
    if w.shape != s.shape:
        raise ValueError(
            f"weight must return one number a pair, shape {s.shape}, got shape {w.shape}."
        )
    w = w.astype(jnp.float32)
    # Not a number compares as False.
    positive = valid & (w > 0) & (w < jnp.inf)
    return Pairs(s, jnp.where(positive, w, 0.0), valid, positive)


def accumulate(state: State, pairs: Pairs, form: Form, fold: Fold) -> State:
    """`state` with the pairs of a tile added."""
    top, mass = _add_exp(state.top, state.mass, jnp.where(pairs.valid, pairs.s, -jnp.inf), fold)
    if form == "in":
        top_in, dot = _add_exp(state.top_in, state.dot, _log_weighted(pairs), fold)
    else:
        # The similarity of an excluded pair may be infinite: it must not meet a zero weight.
        product = jnp.where(pairs.positive, pairs.weight * pairs.s, 0.0)
        top_in, dot = state.top_in, state.dot + fold.sum(product)
    return State(
        top=top,
        mass=mass,
        count=state.count + fold.sum(pairs.positive.astype(jnp.float32)),
        total=state.total + fold.sum(pairs.weight),
        dot=dot,
        top_in=top_in,
    )


def merge(states: State, form: Form, axis: int) -> State:
    """One state from those along `axis`."""
    top, mass = _merge_exp(states.top, states.mass, axis)
    count = jnp.sum(states.count, axis=axis, keepdims=True)
    total = jnp.sum(states.total, axis=axis, keepdims=True)
    if form == "in":
        top_in, dot = _merge_exp(states.top_in, states.dot, axis)
    else:
        top_in, dot = top, jnp.sum(states.dot, axis=axis, keepdims=True)
    return State(top, mass, count, total, dot, top_in)


def log_sum(top: Array, mass: Array) -> Array:
    """log(mass · e^top), 0 where the mass is 0."""
    some = mass > 0
    return jnp.where(some, jnp.log(jnp.where(some, mass, 1.0)) + top, 0.0)


def similarity_gradient(anchor: Vectors, pairs: Pairs, form: Form) -> Array:
    """ds [TA, TR] of the direction whose anchor is given."""
    lse, dot, a, b = anchor.more
    q = jnp.exp(jnp.where(pairs.valid, pairs.s - lse, -jnp.inf))
    share = pairs.weight
    if form == "in":
        share = jnp.exp(_log_weighted(pairs) - dot)
    return a * q - b * share


def _log_weighted(pairs: Pairs) -> Array:
    log_weight = jnp.log(jnp.where(pairs.positive, pairs.weight, 1.0))
    return jnp.where(pairs.positive, pairs.s + log_weight, -jnp.inf)


def _add_exp(top: Array, mass: Array, x: Array, fold: Fold) -> tuple[Array, Array]:
    new = jnp.maximum(top, fold.max(x))
    return new, mass * jnp.exp(top - new) + fold.sum(jnp.exp(x - fold.spread(new)))


def _merge_exp(top: Array, mass: Array, axis: int) -> tuple[Array, Array]:
    new = jnp.max(top, axis=axis, keepdims=True)
    return new, jnp.sum(mass * jnp.exp(top - new), axis=axis, keepdims=True)
