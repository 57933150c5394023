"""The tiled core: the same sums as the dense one, a tile of pairs at a time.

Nothing of size [A, R] exists. The backward pass computes the similarities again, from the
embeddings and the log-sum-exp of each anchor.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sdjax import blocks, collectives, exchange
from sdjax import labels as labels_lib
from sdjax.blocks import Block, Facts, Task
from sdjax.dense import dense
from sdjax.exchange import Route
from sdjax.inputs import Side
from sdjax.labels import is_known
from sdjax.overlaps import tile_labels
from sdjax.pairs import Method, Pairs, Statistics
from sdjax.relations import Overlap
from sdjax.tiles import LARGEST_PLAIN, Slopes

Array = jax.Array


class Config(NamedTuple):
    """What is known when the loss is traced.

    Attributes:
      method: its weight takes what it captured, of `Known`, as further arguments.
      normalize: see `Pairs`.
      mutual: self-contrast.
      plain: see `Task`; None if it is not known.
      route: the way that blocks take between devices.
    """

    method: Any
    normalize: bool
    mutual: bool
    plain: bool | None
    route: Route


class Embeddings(NamedTuple):
    """What the gradient flows to; without columns the rows are contrasted with themselves."""

    rows: Array
    columns: Array | None
    temperature: Array


class Known(NamedTuple):
    """What no gradient flows to."""

    rows: Facts
    columns: Facts | None
    values: tuple[Array, ...]
    captured: tuple[Array, ...] = ()


def tiled(pairs: Pairs, method: Method) -> Statistics:
    """Statistics from tiles of similarities: O((A + R)·(D + L)) memory, and a few tiles.

    In self-contrast each unordered pair is computed once and serves both of its rows. Candidates
    of other devices are gathered.
    """
    return _tiled(pairs, method, Route.along(pairs.axis_name, around=False))


def ring(pairs: Pairs, method: Method) -> Statistics:
    """As `tiled`, but candidates travel around the first mesh axis, and none is held for long.

    Along further axes they are gathered.
    """
    return _tiled(pairs, method, Route.along(pairs.axis_name, around=True))


def _tiled(pairs: Pairs, method: Method, route: Route) -> Statistics:
    if not len(pairs.anchors.z) or not len(pairs.candidates.z):
        return dense(pairs, method)
    plain = None
    if pairs.normalize and is_known(pairs.temperature):
        plain = 1 / float(np.asarray(pairs.temperature)) <= LARGEST_PLAIN
    captured = ()
    if method.own_weight:
        # What it closes over is handed on as arguments: no gradient flows to them.
        scalar = collectives.varying(jnp.zeros((), pairs.dtype), pairs.anchors.z)
        weight, captured = jax.closure_convert(method.weight, Overlap(scalar, scalar, scalar))
        # Without any, the weight itself: whoever gives it again finds the program compiled.
        method = method._replace(weight=weight if captured else method.weight)
    config = Config(method, pairs.normalize, pairs.self_contrast, plain, route)
    candidates = pairs.candidates
    if pairs.self_contrast:
        masked = candidates.where is not pairs.anchors.where
        candidates = candidates.where if masked else None
    return _compiled(config, pairs.anchors, candidates, pairs.tau, tuple(captured))


@functools.partial(jax.jit, static_argnums=0)
def _compiled(
    config: Config,
    anchors: Side,
    candidates: Side | Array | None,
    temperature: Array,
    captured: tuple[Array, ...],
) -> Statistics:
    """Statistics of anchors over candidates: others, or themselves with a mask or without."""
    others = anchors
    if isinstance(candidates, Side):
        others = candidates
    elif candidates is not None:
        others = anchors._replace(where=candidates)
    axes = config.route.axes or None
    pairs = Pairs(
        anchors, others, config.mutual, config.normalize, temperature, temperature.dtype, axes
    )
    columns = None if config.mutual else others.z
    arrays = Embeddings(anchors.z, columns, temperature), _known(pairs, config.method)
    embeddings, known = collectives.varying(arrays, arrays)
    return _statistics(config, embeddings, known._replace(captured=captured))


def _known(pairs: Pairs, method: Method) -> Known:
    anchors, candidates, dtype = pairs.anchors, pairs.candidates, pairs.dtype
    values, shares = (), ()
    if method.balance_labels:
        values, shares = _balance(pairs)

    def facts(side, labels, anchor, candidate, shares):
        return Facts(labels, labels_lib.sizes(side.labels, dtype), anchor, candidate, shares)

    if pairs.self_contrast:
        (labels,) = tile_labels(anchors.labels)
        return Known(facts(anchors, labels, anchors.where, candidates.where, shares), None, values)
    labels, other_labels = tile_labels(anchors.labels, candidates.labels)
    rows = facts(anchors, labels, anchors.where, anchors.where, shares)
    columns = facts(candidates, other_labels, candidates.where, candidates.where, ())
    return Known(rows, columns, values)


def _balance(pairs: Pairs) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Values of the labels [C] and shares of the anchors [A], see `Facts`.

    A label counts 1/m for an anchor with m candidates that carry it. One that is a candidate
    itself is none of its own.
    """
    candidates = pairs.candidates
    counts = labels_lib.counts(candidates.labels, candidates.where, pairs.dtype)
    counts = collectives.global_sum(counts, pairs.axis_name)

    def inverse(m: Array) -> Array:
        return jnp.where(m > 0, 1 / jnp.maximum(m, 1), 0)

    ones = jnp.ones(len(pairs.anchors.z), pairs.dtype)
    if not pairs.self_contrast:
        return (inverse(counts),), (ones,)
    if candidates.where is pairs.anchors.where:
        return (inverse(counts - 1),), (ones,)
    itself = candidates.where.astype(pairs.dtype)
    return (inverse(counts), inverse(counts - 1)), (1 - itself, itself)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(config: Config, embeddings: Embeddings, known: Known) -> Statistics:
    task, rows, columns = _blocks(config, embeddings, known)
    return exchange.sums(task, rows, columns, config.route).statistics()


def _forward(config: Config, embeddings: Embeddings, known: Known) -> tuple[Statistics, tuple]:
    statistics: Any = _statistics(config, embeddings, known)
    return statistics, (embeddings, known, statistics.lse, statistics.attraction)


def _backward(config: Config, saved: tuple, cotangent: Statistics) -> tuple[Embeddings, None]:
    embeddings, known, lse, attraction = saved
    task, rows, columns = _blocks(config, embeddings, known)
    slopes = Slopes(lse, attraction, cotangent.lse, cotangent.attraction)
    rows = rows._replace(slopes=slopes)
    of_rows, of_columns = exchange.gradient(task, rows, columns, config.route)

    def finish(block: Block, of_y: Array) -> tuple[Array, Array]:
        normalize, temperature = config.normalize, embeddings.temperature
        return blocks.gradient_to_z(block.z, block.factor, of_y, normalize, temperature)

    of_rows, of_temperature = finish(rows, of_rows)
    if columns is not None and of_columns is not None:
        of_columns, more = finish(columns, of_columns)
        of_temperature += more
    return _only_once(Embeddings(of_rows, of_columns, of_temperature)), None


@jax.custom_jvp
def _only_once(gradient: Embeddings) -> Embeddings:
    """The gradient, of which there is no derivative."""
    return gradient


@_only_once.defjvp
def _no_second_derivative(primals, tangents):
    raise NotImplementedError(
        "the tiled loss has no second derivative: use implementation='dense' for it."
    )


_statistics.defvjp(_forward, _backward)


def _with_captured(weight: Any, captured: tuple[Array, ...], o: Overlap) -> Array:
    return weight(o, *captured)


def _blocks(
    config: Config, embeddings: Embeddings, known: Known
) -> tuple[Task, Block, Block | None]:
    temperature = embeddings.temperature

    def block(z: Array, facts: Facts) -> Block:
        return Block(z, blocks.factors(z, config.normalize, temperature), facts)

    rows = block(embeddings.rows, known.rows)
    columns = None
    if embeddings.columns is not None and known.columns is not None:
        columns = block(embeddings.columns, known.columns)
    plain = config.plain
    if plain is None:
        longest = jnp.stack([blocks.longest(side) for side in (rows, columns or rows)])
        if config.route.axes:
            longest = lax.pmax(longest, config.route.axes)
        plain = longest.prod() <= LARGEST_PLAIN

    method: Method = config.method
    if known.captured:
        weight = functools.partial(_with_captured, config.method.weight, known.captured)
        method = method._replace(weight=weight)
    return Task(method, known.values, plain, config.mutual), rows, columns
