"""The loss of a phase: a pure function of parameters, aux, batch and key."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax import config as config_lib
from sdjax import losses, sharded
from sdjax.checks import one_of
from sdjax.config import AugmentConfig, Config, LossConfig, SupervisedConfig
from sdjax.data.augment import random_view, text_view
from sdjax.data.tokens import are_tokens
from sdjax.labels import LabelIndices, num_classes, num_rows
from sdjax.models import Model
from sdjax.training import momentum_queue
from sdjax.training.mesh import Mesh, batch_axes
from sdjax.training.microbatches import in_microbatches, num_microbatches
from sdjax.training.recipes import Phase
from sdjax.training.state import Aux, Weights
from sdjax.training.supervised import elementwise_loss

Array = jax.Array
Batch = dict[str, Any]
Metrics = dict[str, Array]

# Logits that a device holds at once; where there are more, the labels pass in blocks.
LOGITS_AT_ONCE = 2**26
LABEL_BLOCK = 4096


def make_contrastive_loss(config: LossConfig, mesh: Mesh) -> Callable[..., Array]:
    """The loss of the family that `config` names, without its arrays.

    On a mesh of several devices each holds its rows, and they exchange what the others need.
    """
    name = one_of("loss", config.name, losses.LOSSES)
    options = config_lib.loss_options(config)
    family = losses.LOSSES
    if mesh.size > 1:
        family = sharded.LOSSES
        options |= {"axis_name": batch_axes(mesh), "mesh": mesh}
    return functools.partial(family[name], **options)


def class_ids(labels: Any) -> Array:
    """The one label [B] of each row; of rows without any, whichever."""
    if isinstance(labels, LabelIndices):
        return jnp.max(jnp.asarray(labels.indices), axis=1)
    return jnp.argmax(labels, axis=1)


def classifier_loss(
    model: Model,
    h: Any,
    labels: Any,
    config: SupervisedConfig,
    smoothing: float = 0.0,
    num_devices: int = 1,
) -> Array:
    """The supervised loss [B] of representations, a mean over labels, without many logits at once.

    Args:
      model: whose classifier it is.
      h: representations of B examples, as `model.encode` gives them.
      labels: multi-hot [B, C], or `LabelIndices`.
      config: of the loss.
      smoothing: labels become s/2 and 1 - s/2.
      num_devices: over which the rows are spread.
    """
    total, rows = num_classes(labels), num_rows(labels)
    weights = None if model.label_weights is None else model.label_weights.values[...]
    if total <= LABEL_BLOCK or rows // num_devices * total <= LOGITS_AT_ONCE:
        hot = _block(labels, 0, total)
        return elementwise_loss(model.classify(h), hot, config, smoothing, weights).mean(axis=1)

    @functools.partial(jax.checkpoint, static_argnums=1)
    def of_block(start: Array | int, size: int) -> Array:
        logits, hot = model.classify_block(h, start, size), _block(labels, start, size)
        part = weights
        if weights is not None:
            part = jax.lax.dynamic_slice_in_dim(weights, start, size, axis=1)
        return size * elementwise_loss(logits, hot, config, smoothing, part).mean(axis=1)

    whole, rest = divmod(total, LABEL_BLOCK)
    starts = LABEL_BLOCK * jnp.arange(whole)
    zero = jnp.zeros(rows, jnp.float32)
    sums, _ = jax.lax.scan(lambda sums, s: (sums + of_block(s, LABEL_BLOCK), None), zero, starts)
    if rest:
        sums = sums + of_block(total - rest, rest)
    return sums / total


def _block(labels: Any, start: Array | int, size: int) -> Array:
    """Labels `start` to `start + size` as multi-hot [B, size]."""
    if not isinstance(labels, LabelIndices):
        if size == num_classes(labels):
            return labels
        return jax.lax.dynamic_slice_in_dim(labels, start, size, axis=1)
    indices = jnp.asarray(labels.indices) - start
    rows = jnp.arange(indices.shape[0])[:, None]
    # Negative indices would count from the end.
    places = jnp.where(indices < 0, size, indices)
    zeros = jnp.zeros((indices.shape[0], size), jnp.uint8)
    return zeros.at[rows, places].set(1, mode="drop")


def mean_of_rows(values: Array, where: Array) -> Array:
    """Mean of values [B] over the rows that are not padding; 0 if all are."""
    return jnp.where(where, values, 0).sum() / jnp.maximum(where.sum(), 1)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a phase, of one member of the model.

        (params, aux, batch, key, training) -> (loss, (aux, metrics))

    Two views of each example are drawn where the encoder learns; they are one batch of twice the
    size to the contrastive loss, in which an example's views are positives of each other. Views of
    texts differ by the encoder's dropout alone; without a contrastive loss they are one. With a
    queue, one view is the anchor, and the other, as the follower sees it, a candidate beside those
    that are remembered.

    Without `training`, dropout is off, batch statistics are the running ones, and the supervised
    term is of the examples as they are; the contrastive term is of two views and of as many
    candidates as in training, so that both mean the same. The aux comes back as it was.

    Attributes:
      config: of the run.
      phase: tells which losses there are, and what learns.
      graph: structure of the model.
      mesh: over which the rows of a batch are spread.
    """

    config: Config
    phase: Phase
    graph: nnx.GraphDef
    mesh: Mesh

    def __call__(
        self, params: nnx.State, aux: Aux, batch: Batch, key: Array, training: bool
    ) -> tuple[Array, tuple[Aux, Metrics]]:
        phase, weights = self.phase, Weights(params, aux["variables"])
        anchors, second_view, dropout = batch, batch, None
        if phase.trains_encoder:
            first, second, dropout = jax.random.split(key, 3)
            first_view, second_view = (
                _view(each, batch, self.config.augment) for each in (first, second)
            )
            # Without random views there is nothing to take twice, unless to contrast.
            one = self._queued or (first_view is batch and not phase.contrastive)
            anchors = first_view if one else _side_by_side(first_view, second_view)
        if training:
            classified, smoothing = anchors, self.config.label_smoothing
            results, variables = self._network(
                weights, anchors, dropout, ("z", "supervised"), smoothing
            )
            aux = {**aux, "variables": variables}
        else:
            classified, dropout = batch, None
            results = self._network(weights, anchors, None, ("z",))[0]
            results |= self._network(weights, batch, None, ("supervised",))[0]
        metrics: Metrics = {}
        loss = jnp.zeros(())
        if phase.contrastive:
            candidates = None
            if self._queued:
                aux, candidates = self._remembered(aux, params, second_view, dropout, training)
            metrics |= self._contrast(weights, results["z"], anchors, candidates)
            loss += phase.contrastive * metrics["contrastive"]
        if phase.supervised:
            name = self.config.supervised.name
            metrics[name] = mean_of_rows(results["supervised"], classified["where"])
            loss += phase.supervised * metrics[name]
        return loss, (aux, metrics)

    @property
    def _queued(self) -> bool:
        return bool(self.config.queue.size and self.phase.contrastive)

    def _network(
        self,
        weights: Weights,
        rows: Batch,
        dropout: Array | None,
        names: tuple[str, ...],
        smoothing: float = 0.0,
    ) -> tuple[dict[str, Array], nnx.State]:
        """What the losses need of each row, and the model's variables; no activations, no logits.

        Args:
          weights: of the model.
          rows: a batch.
          dropout: a key; with it, batch statistics are those of the batch.
          names: "z" and "supervised"; those that the phase has no use for are left out.
          smoothing: of the labels.
        """
        phase = self.phase
        wants_z = "z" in names and bool(phase.contrastive)
        wants_logits = "supervised" in names and bool(phase.supervised)

        def of_rows(rows: Batch, dropout: Array | None, variables: nnx.State):
            # NNX refuses to change variables of an outer trace: these are copies of them.
            model = nnx.merge(self.graph, *jax.tree.map(lambda x: x, (weights.params, variables)))
            rngs = None if dropout is None else nnx.Rngs(dropout=dropout)
            h = model.encode(rows["x"], rngs=rngs, where=rows["where"])
            if not phase.trains_encoder:
                h = jax.lax.stop_gradient(h)
            results = {}
            if wants_z and self.config.loss.rows == "labels":
                results["z"] = model.project_labels(h, rows["labels"])
            elif wants_z:
                results["z"] = model.project(h)
            if wants_logits:
                results["supervised"] = classifier_loss(
                    *(model, h, rows["labels"], self.config.supervised, smoothing),
                    num_devices=self.mesh.size,
                )
            return results, nnx.split(model, nnx.Param, ...)[2]

        if not (wants_z or wants_logits):
            return {}, weights.variables
        microbatches = num_microbatches(self.config, rows["x"], self.mesh)
        of_batch = in_microbatches(of_rows, microbatches, self.mesh)
        return of_batch(rows, dropout, weights.variables)

    def _contrast(self, weights: Weights, z: Array, rows: Batch, candidates: Any) -> Metrics:
        """The contrastive loss, and the temperature where it is learned."""
        config, metrics = self.config.loss, {}
        temperature: Any = config.temperature
        given, where = [z, _labels_of(config, rows["labels"])], rows["where"]
        if config.rows == "labels":
            *given, where = _label_rows(z, rows["labels"], where)
        if config.learn_temperature:
            temperature = self._loss_parameters(weights).temperature
            metrics["temperature"] = temperature
        if config.name in losses.PROTOTYPE_LOSSES:
            given.append(self._loss_parameters(weights).prototypes[...])
        options = {"temperature": temperature, "where": where}
        if candidates is not None:
            others, labels, options["candidate_where"] = candidates
            given += [others, _labels_of(config, labels)]
        loss = make_contrastive_loss(config, self.mesh)(*given, **options)
        return {"contrastive": loss, **metrics}

    def _loss_parameters(self, weights: Weights) -> Any:
        return nnx.merge(self.graph, *weights).loss

    def _remembered(
        self, aux: Aux, params: nnx.State, rows: Batch, dropout: Array | None, training: bool
    ) -> tuple[Aux, Any]:
        """The aux after the batch, and the candidates that the follower and the queue give it."""
        follower = aux["follower"]
        if training:
            follower = momentum_queue.follow(follower, params, self.config.queue.momentum)
        weights = Weights(*momentum_queue.weights_of(follower, params, aux["variables"]))
        key = None if dropout is None else jax.random.fold_in(dropout, 1)
        results, variables = self._network(weights, rows, key, ("z",))
        new = (jax.lax.stop_gradient(results["z"]), rows["labels"], rows["where"])
        candidates = momentum_queue.candidates(aux["queue"], *new)
        if training:
            aux = {
                **aux,
                "follower": momentum_queue.with_statistics(follower, variables),
                "queue": momentum_queue.remember(aux["queue"], *new),
            }
        return aux, candidates


def _view(key: Array, batch: Batch, config: AugmentConfig) -> Batch:
    """The batch with a random view of each example, or itself where nothing changes an input."""
    x = batch["x"]
    if are_tokens(x):
        view = text_view(key, x, batch["where"], config)
    else:
        kind = {2: "vector", 4: "image"}.get(x.ndim) if hasattr(x, "ndim") else None
        if kind is None or not jnp.issubdtype(x.dtype, jnp.floating):
            return batch
        view = random_view(key, x, batch["where"], config, kind)
    return batch if view is x else {**batch, "x": view}


def _side_by_side(first: Batch, second: Batch) -> Batch:
    """Both views as one batch [2B], those of an example in turn, so that they share a device."""
    return jax.tree.map(
        lambda *pair: jnp.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:]), first, second
    )


def _labels_of(config: LossConfig, labels: Any) -> Any:
    return class_ids(labels) if config.name == "supcon" else labels


def _label_rows(z: Array, labels: Any, where: Array) -> tuple[Array, Array, Array]:
    """(embeddings, classes, where) of a row for each label of each example; see `rows_from_labels`.

    Args:
      z: of all labels [B, C, D], or of those of the lists [B, L, D].
      labels: multi-hot [B, C], or `LabelIndices` [B, L].
      where: bool [B].
    """
    if not isinstance(labels, LabelIndices):
        rows = losses.rows_from_labels(z, labels, where)
        return rows.z, rows.class_ids, rows.where
    indices = jnp.asarray(labels.indices)
    present = (indices >= 0) & where[:, None]
    return z.reshape(-1, z.shape[-1]), jnp.maximum(indices, 0).reshape(-1), present.reshape(-1)
