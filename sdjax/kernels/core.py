"""The sums of the tiled core by the TPU kernels."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax import blocks, collectives
from sdjax import labels as labels_lib
from sdjax.dense import balanced_labels
from sdjax.inputs import Side
from sdjax.kernels import sides, tpu
from sdjax.labels import LabelIndices
from sdjax.pairs import Method, Pairs, Statistics

Array = jax.Array


class _Config(NamedTuple):
    method: Method
    normalize: bool
    itself: bool  # each unordered pair of rows once
    exclude_self: bool
    interpret: Any


class _Known(NamedTuple):
    """What no gradient flows to: both sides without embeddings, and labels for MulSupCon."""

    anchors: sides.Side
    candidates: sides.Side
    balanced: Array | None


def pallas(pairs: Pairs, method: Method, interpret: Any = False) -> Statistics:
    """Statistics by Pallas kernels for TPU v5 and later; candidates of other devices are gathered.

    Args:
      pairs: with embeddings of 32 bits at most.
      method: whose weight closes over no arrays.
      interpret: `pltpu.InterpretParams()` to run on a CPU.
    """
    if pairs.dtype != jnp.float32:
        raise TypeError(f"implementation='pallas' computes in float32, got {pairs.dtype}.")
    axis = pairs.axis_name
    candidates = collectives.all_gather(pairs.candidates, axis)
    anchors = pairs.anchors
    index = collectives.global_index(len(anchors.z), axis)
    itself = pairs.self_contrast and axis is None and not method.balance_labels
    known = _Known(
        _side(anchors, index),
        _side(candidates, jnp.arange(len(candidates.z), dtype=jnp.int32)),
        balanced_labels(pairs) if method.balance_labels else None,
    )
    config = _Config(method, pairs.normalize, itself, pairs.self_contrast, interpret)
    return _statistics(config, anchors.z, candidates.z, pairs.tau, known)


def _side(side: Side, index: Array) -> sides.Side:
    labels = side.labels
    listed = isinstance(labels, LabelIndices)
    if not listed or jnp.shape(labels.indices)[1] > sides.MAX_LABEL_INDICES:
        labels = labels_lib.multi_hot(labels, jnp.dtype(jnp.int8))
    nothing = jnp.zeros(())
    size = labels_lib.sizes(side.labels, jnp.dtype(jnp.float32))
    return sides.Side(nothing, nothing, labels, size, side.where, index)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(
    config: _Config, z: Array, candidates: Array, temperature: Array, known: _Known
) -> Statistics:
    rows, columns, options = _operands(config, z, candidates, temperature, known)
    weight = config.method.weight
    if config.itself:
        rows = rows._replace(valid=columns.valid)
        found = tpu.self_statistics(rows, weight, **options)
    else:
        options |= {"exclude_self": config.exclude_self, "balanced": known.balanced}
        found = tpu.statistics(rows, columns, weight, **options)
    return Statistics(found.lse, found.dot, found.total, found.count)


def _forward(config: _Config, *arrays: Any) -> tuple[Any, tuple[Any, ...]]:
    statistics: Any = _statistics(config, *arrays)
    return statistics, (arrays, statistics)


def _backward(config: _Config, saved: tuple[Any, ...], cotangent: Statistics) -> tuple[Any, ...]:
    (z, candidates, temperature, known), statistics = saved
    rows, columns, options = _operands(config, z, candidates, temperature, known)
    lse, attraction, weight, positives = statistics
    stats = sides.Stats(lse, positives, weight, attraction)
    slopes = cotangent.lse, -cotangent.attraction

    def finish(x: Array, of_y: Array) -> tuple[Array, Array]:
        factor = blocks.factors(x, config.normalize, temperature)
        return blocks.gradient_to_z(x, factor, of_y, config.normalize, temperature)

    if config.itself:
        rows = rows._replace(valid=columns.valid)
        of_rows = tpu.self_gradient(rows, config.method.weight, stats, *slopes, **options)
        of_z, of_temperature = finish(z, of_rows)
        return of_z, jnp.zeros_like(candidates), of_temperature, None
    options |= {"exclude_self": config.exclude_self, "balanced": known.balanced}
    of_rows, of_columns = tpu.gradient(
        rows, columns, config.method.weight, stats, *slopes, **options
    )
    (of_z, one), (of_candidates, other) = finish(z, of_rows), finish(candidates, of_columns)
    return of_z, of_candidates, one + other, None


_statistics.defvjp(_forward, _backward)


def _operands(
    config: _Config, z: Array, candidates: Array, temperature: Array, known: _Known
) -> tuple[sides.Side, sides.Side, dict[str, Any]]:
    def embedded(z: Array, side: sides.Side) -> sides.Side:
        y, scale = blocks.factored(z, blocks.factors(z, config.normalize, temperature))
        return side._replace(y=y, scale=jnp.ones(len(z), jnp.float32) if scale is None else scale)

    options = {"form": config.method.form, "interpret": config.interpret}
    return embedded(z, known.anchors), embedded(candidates, known.candidates), options
