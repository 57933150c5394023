"""Scores and embeddings of a whole split, and the numbers of its learning curve."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax import metrics as metrics_lib
from sdjax.config import VALIDATION_METRICS, Config
from sdjax.data import Source, evaluation_batches, evaluation_order, to_device
from sdjax.training.mesh import Mesh, batch_sharding, replicated, rows_of_process
from sdjax.training.objective import Batch, Objective
from sdjax.training.processes import is_main
from sdjax.training.recipes import Phase
from sdjax.training.state import TrainState, Weights

Array = jax.Array
Forward = Callable[[Weights, Any], tuple[Array, ...]]

# Of the views of validation examples: the same at every step, so that its curve is smooth.
_VIEWS_SEED = 0


class Outputs(NamedTuple):
    """Of N examples.

    Attributes:
      scores: probabilities of the labels, float32 [N, C].
      embeddings: representations h of the encoder, float32 [N, H]; those of several members stand
        side by side.
      projections: embeddings z that the contrastive loss compares, of unit length, float32 [N, D],
        side by side likewise; None where they were not asked for.
    """

    scores: np.ndarray
    embeddings: np.ndarray
    projections: np.ndarray | None = None


@functools.lru_cache(maxsize=128)
def make_forward(
    graph: nnx.GraphDef, mesh: Mesh | None = None, *, projects: bool = False
) -> Forward:
    """The jitted model, as a function of (weights, x) -> (scores, embeddings).

    Where it `projects`, projections are a third result. On a mesh, every device and so every
    process gets the outputs of the whole batch.
    """

    def member(weights: Weights, x: Any) -> tuple[Array, ...]:
        model = nnx.merge(graph, *weights)
        representation = model.encode(x)
        h = model.pooled(representation)
        if not projects:
            return model.classify(representation), h
        z = model.project(representation)
        z /= jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
        return model.classify(representation), h, z

    @functools.partial(jax.jit, out_shardings=replicated(mesh) if mesh else None)
    def forward(weights: Weights, x: Any) -> tuple[Array, ...]:
        logits, *vectors = jax.vmap(member, in_axes=(0, None))(weights, x)
        scores = jax.nn.sigmoid(logits.mean(axis=0))
        return scores, *(jnp.moveaxis(v, 0, 1).reshape(v.shape[1], -1) for v in vectors)

    return forward


def run_model(
    forward: Forward, weights: Weights, source: Source, batch_size: int, mesh: Mesh
) -> Outputs:
    """What `forward` gives of every example of `source`, in order."""
    parts = []
    rows = rows_of_process(batch_size, mesh)
    for batch in evaluation_batches(source, batch_size, rows=rows):
        x = to_device({"x": batch["x"]}, batch_sharding(mesh))["x"]
        outputs = jax.device_get(forward(weights, x))
        # Padding, if any, ends the last batch.
        left = len(source) - batch_size * len(parts)
        parts.append([output[:left] for output in outputs])
    return Outputs(*(_in_order(source, each) for each in zip(*parts, strict=True)))


def _in_order(source: Source, parts: Iterable[np.ndarray]) -> np.ndarray:
    """What batches gave, as one array in the order of the source's rows."""
    given = np.concatenate(list(parts))
    result = np.empty_like(given)
    result[evaluation_order(source)] = given
    return result


@functools.lru_cache(maxsize=128)
def make_losses(
    config: Config, phase: Phase, graph: nnx.GraphDef, mesh: Mesh
) -> Callable[[Weights, Any, Batch], dict[str, Array]]:
    """The jitted losses of a batch, as a function of (weights, aux, batch); means over members."""
    objective = Objective(config, phase, graph, mesh)

    @jax.jit
    def losses(weights: Weights, aux: Any, batch: Batch) -> dict[str, Array]:
        def member(weights: Weights, aux: Any) -> dict[str, Array]:
            aux = {**aux, "variables": weights.variables}
            key = jax.random.key(_VIEWS_SEED)
            loss, (_, terms) = objective(weights.params, aux, batch, key, False)
            return {"loss": loss, **terms}

        return jax.tree.map(jnp.mean, jax.vmap(member)(weights, aux))

    return losses


def make_validate(
    config: Config,
    phase: Phase,
    graph: nnx.GraphDef,
    mesh: Mesh,
    source: Source,
    batch_size: int,
) -> Callable[[TrainState], dict[str, float | None]]:
    """A function from state to the numbers that the learning curves show of a split.

    Losses are means over the batches, by their number of examples, with dropout off: the
    contrastive one of two views of each example, as in training, the supervised one of the
    examples as they are. mAP and F1 are added where the phase trains the classifier, on the main
    process; None where they are not defined.
    """
    losses, forward = make_losses(config, phase, graph, mesh), make_forward(graph, mesh)
    rows = rows_of_process(batch_size, mesh)

    def validate(state: TrainState) -> dict[str, float | None]:
        totals: dict[str, Any] = {}
        scores = []
        starts = range(0, len(source), batch_size)
        batches = evaluation_batches(source, batch_size, rows=rows)
        for start, batch in zip(starts, batches, strict=True):
            on_device = to_device(batch, batch_sharding(mesh))
            count = min(batch_size, len(source) - start)
            values = jax.device_get(losses(state.best, state.aux, on_device))
            for name, value in values.items():
                totals[name] = totals.get(name, 0.0) + float(value) * count / len(source)
            if phase.supervised:
                scores.append(jax.device_get(forward(state.best, on_device["x"])[0])[:count])
        if phase.supervised and is_main():
            totals |= metrics_lib.evaluate(
                source.labels, _in_order(source, scores), only=VALIDATION_METRICS
            )
        return totals

    return validate
