"""The tiled core: the same sums as the dense one, a tile of pairs at a time.

Nothing of size [A, R] exists. The backward pass computes the similarities again, from the
embeddings and the log-sum-exp of each anchor.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from sdjax import labels as labels_lib
from sdjax._src import (
    collectives,
    distributed,
    embeddings,
    label_balance,
    label_overlap,
    reverse_mode,
)
from sdjax._src.dense import dense
from sdjax._src.distributed import Route
from sdjax._src.pair_math import LARGEST_BOUNDED, AnchorGradient, LogSumExp, RunningSums
from sdjax._src.problem import Inputs, Method, Problem, Sums
from sdjax._src.sweep import sweep, sweep_self
from sdjax._src.tile import Backward, Carriers, Forward, Pass, Rows, Table

Array = jax.Array
T = TypeVar("T")


def tiled(problem: Problem, method: Method) -> Sums:
    """`Sums` from tiles of similarities: O((A + R)·(D + L)) memory, and a few tiles.

    In self-contrast each unordered pair is computed once and serves both of its rows. Candidates
    of other devices are gathered.
    """
    return _over_tiles(problem, method, around_ring=False)


def ring(problem: Problem, method: Method) -> Sums:
    """As `tiled`, but candidates travel around the first mesh axis, and none is held for long.

    Along further axes they are gathered.
    """
    return _over_tiles(problem, method, around_ring=True)


def _over_tiles(problem: Problem, method: Method, around_ring: bool) -> Sums:
    if not len(problem.anchors.z) or not len(problem.contrasted.z):
        return dense(problem, method)
    axes = problem.candidate_axes
    static = Static(
        normalize=problem.normalize,
        bounded=problem.bounded,
        num_anchors=len(problem.anchors.z) - problem.passive_prototypes * problem.num_prototypes,
        route=Route(axes[0], axes[1:]) if around_ring and axes else Route(None, axes),
    )
    with reverse_mode.clear_error():
        return _compiled(static, problem, method)


class Static(NamedTuple):
    """What is known when the loss is traced.

    Attributes:
      normalize: see `Problem`.
      bounded: likewise; None where it is chosen when the program runs.
      num_anchors: see `Pass`.
      route: the way that candidates take between devices.
    """

    normalize: bool
    bounded: bool | None
    num_anchors: int
    route: Route


class Embeddings(NamedTuple):
    """What the gradient flows to; `candidates` is None in self-contrast."""

    anchors: Array
    candidates: Array | None
    temperature: Array


class Constants(NamedTuple):
    """What no gradient flows to: rows without embeddings, the loss, values of the labels."""

    anchors: Rows
    candidates: Rows | None
    method: Method
    values: tuple[Array, ...]


@functools.partial(jax.jit, static_argnums=0)
def _compiled(static: Static, problem: Problem, method: Method) -> Sums:
    anchors, candidates = problem.anchors, problem.candidates
    with_table = label_balance.needs_table(problem, method)

    def rows(examples: Inputs, labels: Any, candidate: Array) -> Rows:
        size = labels_lib.sizes(examples.labels, problem.dtype)
        where, z = examples.where, jnp.zeros((len(size), 1))
        extra = (examples.ids, examples.log_bias, examples.prototype)
        return Rows(z, None, labels, size, where, candidate, *extra)

    if candidates is None:
        (labels,) = label_overlap.prepare(anchors.labels, with_table=with_table)
        sides = rows(anchors, labels, problem.contrasted.where), None
    else:
        sets = anchors.labels, candidates.labels
        labels, others = label_overlap.prepare(*sets, with_table=with_table)
        sides = rows(anchors, labels, anchors.where), rows(candidates, others, candidates.where)
    z = Embeddings(anchors.z, None if candidates is None else candidates.z, problem.tau)
    z = jax.tree.map(reverse_mode.reverse_mode_only, z)
    z, sides = collectives.varying((z, sides), (z, sides))
    sides, values = _balanced(static, sides, problem, method)
    z, (sides, values) = collectives.varying((z, (sides, values)), (z, sides))
    return _sums(static, z, Constants(*sides, method, values))


def _balanced(
    static: Static, sides: tuple[Rows, Rows | None], problem: Problem, method: Method
) -> tuple[tuple[Rows, Rows | None], tuple[Array, ...]]:
    """Both sides with what their labels count, and the values of the labels, see `Shares`."""
    anchors, candidates = sides
    if method.labels == "counted":
        return sides, ()
    if label_balance.needs_table(problem, method):
        step = Carriers(method, (), True, candidates is None, anchors, static.num_anchors)
        carriers, _ = _over_all(static, step, anchors, candidates, for_candidates=False)
        inverse = jnp.where(carriers > 0, 1 / jnp.where(carriers > 0, carriers, 1), 0)
        table = Table(anchors.labels.present(problem.dtype) * inverse)
        return (anchors._replace(balance=table), candidates), ()
    values, of_anchors, of_candidates = label_balance.of_factors(problem, method)
    if candidates is not None:
        candidates = candidates._replace(balance=of_candidates)
    return (anchors._replace(balance=of_anchors), candidates), values


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(static: Static, z: Embeddings, constants: Constants) -> Sums:
    return _forward(static, z, constants)[0]


def _forward(static: Static, z: Embeddings, constants: Constants) -> tuple[Sums, tuple]:
    anchors, candidates = _blocks(static, z, constants)
    bounded = static.bounded
    if bounded is None:
        largest = jnp.stack([_longest(rows) for rows in (anchors, candidates or anchors)])
        if static.route.axes:
            largest = lax.pmax(largest, static.route.axes)
        bounded = largest.prod() + _largest_bias(static, candidates or anchors) <= LARGEST_BOUNDED

    def run(bounded: bool) -> RunningSums:
        step = _step(Forward, static, constants, bounded, anchors)
        total, _ = _over_all(static, step, anchors, candidates, for_candidates=False)
        return total

    sums = _either(bounded, run)
    attraction = sums.attraction if isinstance(sums.attraction, LogSumExp) else None
    final = Sums(*(x.value() if isinstance(x, LogSumExp) else x for x in sums))
    return final, (z, constants, bounded, sums.logsumexp, attraction)


def _step(
    kind: type[Pass[T]], static: Static, constants: Constants, bounded: bool, anchors: Rows
) -> Pass[T]:
    mutual = constants.candidates is None
    return kind(constants.method, constants.values, bounded, mutual, anchors, static.num_anchors)


def _largest_bias(static: Static, candidates: Rows) -> Array | float:
    if candidates.log_bias is None:
        return 0.0
    largest = jnp.abs(candidates.log_bias).max()
    return lax.pmax(largest, static.route.axes) if static.route.axes else largest


def _either(bounded: Array | bool, run: Callable[[bool], T]) -> T:
    """`run(bounded)`; where that is not known when it is traced, one program or the other."""
    if isinstance(bounded, bool):
        return run(bounded)
    return lax.cond(bounded, lambda: run(True), lambda: run(False))


def _backward(static: Static, saved: tuple, cotangent: Sums) -> tuple[Embeddings, None]:
    z, constants, bounded, logsumexp, attraction = saved
    known = AnchorGradient(logsumexp, attraction, cotangent.logsumexp, cotangent.attraction)
    anchors, candidates = _blocks(static, z, constants)
    anchors = anchors._replace(gradient=known)

    def run(bounded: bool) -> tuple[Array, Array | None]:
        step = _step(Backward, static, constants, bounded, anchors)
        return _over_all(static, step, anchors, candidates, for_candidates=True)

    of_anchors, of_candidates = _either(bounded if static.bounded is None else static.bounded, run)

    def finish(rows: Rows, of_z: Array) -> tuple[Array, Array]:
        assert rows.scale is not None
        normalize, temperature = static.normalize, z.temperature
        return embeddings.gradient_to_z(rows.z, rows.scale, of_z, normalize, temperature)

    of_anchors, of_temperature = finish(anchors, of_anchors)
    if candidates is not None and of_candidates is not None:
        of_candidates, more = finish(candidates, of_candidates)
        of_temperature += more
    return _differentiable_once(Embeddings(of_anchors, of_candidates, of_temperature)), None


_sums.defvjp(_forward, _backward)


@jax.custom_jvp
def _differentiable_once(gradient: Embeddings) -> Embeddings:
    """The gradient, of which there is no derivative."""
    return gradient


@_differentiable_once.defjvp
def _no_second_derivative(primals, tangents):
    raise NotImplementedError(
        "the tiled core has no second derivative: use implementation='dense' for it."
    )


def _blocks(static: Static, z: Embeddings, constants: Constants) -> tuple[Rows, Rows | None]:
    """Anchors and candidates with their embeddings."""

    def block(rows: Rows, z: Array, temperature: Array) -> Rows:
        return rows._replace(z=z, scale=embeddings.scales(z, static.normalize, temperature))

    anchors = block(constants.anchors, z.anchors, z.temperature)
    if constants.candidates is None or z.candidates is None:
        return anchors, None
    return anchors, block(constants.candidates, z.candidates, z.temperature)


def _longest(rows: Rows) -> Array:
    assert rows.scale is not None
    return embeddings.longest(rows.z, rows.scale)


def _over_all(
    static: Static, step: Pass[T], anchors: Rows, candidates: Rows | None, for_candidates: bool
) -> tuple[T, T | None]:
    """Totals of the anchors and, if wanted, of explicit candidates, over all devices."""
    if static.route.axes:
        return distributed.over_all(step, anchors, candidates, static.route, for_candidates)
    total = step.empty(len(anchors.z))
    if candidates is None:
        return sweep_self(step, anchors, total), None
    of_candidates = step.empty(len(candidates.z)) if for_candidates else None
    return sweep(step, anchors, candidates, (total, of_candidates))
