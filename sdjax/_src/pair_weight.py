"""The weight of a pair as jit takes it: a program that is compared by content, and its arrays.

A user's weight may be a new lambda at each call, may hold state, and may close over traced arrays.
So it is traced at each call, for one pair. The arrays that it captured become arguments of the
compiled program, and what is left is compared by its operations, so that an equal weight reuses
the compiled program of an earlier one.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import eval_jaxpr
from jax.extend import core

from sdjax._src import collectives
from sdjax.relations import WEIGHTS, Overlap, Weight

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairWeight:
    """A weight as a pytree: the arrays that it captured are its leaves.

    Attributes:
      program: from an `Overlap` that broadcasts, and the captured arrays, to weights; static.
      captured: arrays. No gradient flows to them.
    """

    program: Callable[..., Array] = dataclasses.field(metadata={"static": True})
    captured: tuple[Array, ...] = ()

    def __call__(self, o: Overlap) -> Array:
        return self.program(o, *self.captured)


def uniform(o: Overlap) -> Array:
    """1 for every pair."""
    return jnp.ones_like(o.shared)


def as_pair_weight(weight: Weight, dtype: jnp.dtype, like: Any = ()) -> PairWeight:
    """Traces a user's weight, a function of the overlap of one pair.

    Args:
      weight: the function.
      dtype: of the three numbers that it takes.
      like: arrays that vary across devices in the same way as the overlaps.

    Raises:
      ValueError: if it does not return a scalar.
    """
    if isinstance(weight, PairWeight):
        return weight
    if any(weight is known for known in WEIGHTS.values()):
        return PairWeight(weight)

    def of_pair(shared: Array, anchor_size: Array, candidate_size: Array) -> Array:
        try:
            w = jnp.asarray(weight(Overlap(shared, anchor_size, candidate_size))).astype(dtype)
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

    one = collectives.varying(jnp.ones((), dtype), like)
    traced = jax.make_jaxpr(of_pair)(one, one, one)
    captured = tuple(jax.lax.stop_gradient(jnp.asarray(x)) for x in traced.consts)

    def with_captured(captured: tuple[Array, ...], *pair: Array) -> list[Array]:
        return eval_jaxpr(traced.jaxpr, captured, *pair)

    # Once more, with what it captured as arguments: a program must not hold traced arrays.
    program = jax.make_jaxpr(with_captured)(captured, one, one, one)
    return PairWeight(TracedWeight(program), captured)


class TracedWeight:
    """A traced weight. Two of them are equal if they do the same operations."""

    def __init__(self, closed: core.ClosedJaxpr):
        _own_literals(closed.jaxpr)
        self.closed = closed
        self._content = _hashable(closed)
        self._hash = hash(self._content)

    def __call__(self, o: Overlap, *captured: Array) -> Array:
        def of_pair(*pair: Array) -> Array:
            return eval_jaxpr(self.closed.jaxpr, self.closed.consts, *captured, *pair)[0]

        shape = jnp.broadcast_shapes(*(x.shape for x in o))
        for _ in shape:
            of_pair = jax.vmap(of_pair)
        return of_pair(*(jnp.broadcast_to(x, shape) for x in o))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedWeight) and self._content == other._content

    def __hash__(self) -> int:
        return self._hash


def _own_literals(jaxpr: core.Jaxpr) -> None:
    """Copies the numbers in `jaxpr`, which may be arrays that their owner overwrites later."""
    for x in (*jaxpr.outvars, *(x for eqn in jaxpr.eqns for x in eqn.invars)):
        if isinstance(x, core.Literal):
            x.val = copy.deepcopy(x.val)
    params = [tuple(eqn.params.values()) for eqn in jaxpr.eqns]
    for inner in jax.tree.leaves(params, is_leaf=_is_jaxpr):
        if _is_jaxpr(inner):
            _own_literals(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)


class _Identity:
    """A value that is equal to itself alone; held, so that its identity is not used again."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(jaxpr: core.Jaxpr) -> tuple[Any, ...]:
    """The operations of `jaxpr` as a hashable value, whatever its variables are called."""
    numbers: dict[Any, int] = {}

    def atom(x: Any) -> Any:
        if isinstance(x, core.Literal):
            return str(x.aval), np.asarray(x.val).tobytes()
        return numbers.setdefault(x, len(numbers)), str(x.aval)

    def operation(eqn: core.JaxprEqn) -> tuple[Any, ...]:
        params = sorted(eqn.params.items())
        if eqn.primitive.name.startswith("custom_"):
            # Nothing is differentiated: the rules for it, new objects at each trace, do not count.
            params = [(k, v) for k, v in params if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]
        inputs, outputs = tuple(map(atom, eqn.invars)), tuple(map(atom, eqn.outvars))
        return eqn.primitive.name, inputs, outputs, _hashable(params)

    ends = (tuple(map(atom, x)) for x in (jaxpr.constvars, jaxpr.invars))
    return (*ends, tuple(map(operation, jaxpr.eqns)), tuple(map(atom, jaxpr.outvars)))


def _hashable(value: Any) -> Any:
    if isinstance(value, core.ClosedJaxpr):
        return _content(value.jaxpr), tuple(map(_Identity, value.consts))
    if isinstance(value, core.Jaxpr):
        return _content(value)
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return value
