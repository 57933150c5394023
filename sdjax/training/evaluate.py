"""Scores and embeddings of a whole split."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from sdjax import metrics as metrics_lib
from sdjax.data import Source, evaluation_batches, to_device
from sdjax.training.mesh import Mesh, batch_sharding, replicated, rows_of_process
from sdjax.training.phases import Phase
from sdjax.training.processes import is_main
from sdjax.training.state import TrainState
from sdjax.training.step import Objective

Array = jax.Array
Forward = Callable[[nnx.State, nnx.State, ArrayLike], tuple[Array, Array]]


class Outputs(NamedTuple):
    """Of N examples.

    Attributes:
      scores: probabilities of the labels, float32 [N, C].
      embeddings: representations of the encoder, float32 [N, H]; those of several members stand
        side by side.
    """

    scores: np.ndarray
    embeddings: np.ndarray


def make_forward(graph: nnx.GraphDef, mesh: Mesh | None = None) -> Forward:
    """The jitted model, as a function of (params, variables, x) -> (scores, embeddings).

    On a mesh, every device and so every process gets the outputs of the whole batch.
    """

    def member(params: nnx.State, variables: nnx.State, x: Any) -> tuple[Array, Array]:
        model = nnx.merge(graph, params, variables)
        representation = model.encode(x)
        return model.classify(representation), representation

    @functools.partial(jax.jit, out_shardings=replicated(mesh) if mesh else None)
    def forward(params: nnx.State, variables: nnx.State, x: ArrayLike) -> tuple[Array, Array]:
        logits, representations = jax.vmap(member, in_axes=(0, 0, None))(params, variables, x)
        embeddings = jnp.moveaxis(representations, 0, 1).reshape(representations.shape[1], -1)
        return jax.nn.sigmoid(logits.mean(axis=0)), embeddings

    return forward


def run_model(
    forward: Forward,
    params: nnx.State,
    variables: nnx.State,
    source: Source,
    batch_size: int,
    mesh: Mesh,
) -> Outputs:
    """Scores and embeddings of every example of `source`, in order."""
    parts = []
    rows = rows_of_process(batch_size, mesh)
    for batch in evaluation_batches(source, batch_size, rows=rows):
        x = to_device({"x": batch["x"]}, batch_sharding(mesh))["x"]
        outputs = jax.device_get(forward(params, variables, x))
        # Padding, if any, ends the last batch.
        left = len(source) - batch_size * len(parts)
        parts.append([output[:left] for output in outputs])
    scores, embeddings = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Outputs(scores, embeddings)


def make_validate(
    objective: Objective,
    forward: Forward,
    source: Source,
    batch_size: int,
    mesh: Mesh,
    phase: Phase,
) -> Callable[[TrainState], dict[str, float]]:
    """A function from state to the numbers that the learning curves show of a split.

    Losses are means over the batches, by their number of examples, without augmentation; mAP and
    F1 are added, on the main process, where the phase trains the classifier.
    """

    @jax.jit
    def losses(params, variables, batch):
        def member(params, variables):
            loss, terms = objective(params, variables, batch, None)
            return {"loss": loss, **terms}

        return jax.tree.map(jnp.mean, jax.vmap(member)(params, variables))

    rows = rows_of_process(batch_size, mesh)

    def validate(state: TrainState) -> dict[str, float]:
        params, variables = state.best_params, state.variables
        totals: dict[str, float] = {}
        scores = []
        starts = range(0, len(source), batch_size)
        for start, batch in zip(
            starts, evaluation_batches(source, batch_size, rows=rows), strict=True
        ):
            on_device = to_device(batch, batch_sharding(mesh))
            count = min(batch_size, len(source) - start)
            for name, value in jax.device_get(losses(params, variables, on_device)).items():
                totals[name] = totals.get(name, 0.0) + float(value) * count / len(source)
            if phase.supervised:
                outputs = jax.device_get(forward(params, variables, on_device["x"]))
                scores.append(outputs[0][:count])
        if phase.supervised and is_main():
            values = metrics_lib.evaluate(source.labels, np.concatenate(scores))
            totals |= {name: values[name] for name in ("mAP", "micro_f1", "macro_f1")}
        return totals

    return validate
