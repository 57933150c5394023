"""One training step: a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sdjax import losses, sharded
from sdjax.checks import one_of
from sdjax.config import Config, LossConfig
from sdjax.data.augment import random_view
from sdjax.errors import InputError
from sdjax.training.mesh import Mesh, batch_axes, state_sharding
from sdjax.training.microbatches import in_microbatches
from sdjax.training.optimizer import learning_rate_schedule, make_optimizer
from sdjax.training.phases import Phase
from sdjax.training.state import TrainState, update_average

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]
Objective = Callable[[nnx.State, nnx.State, Batch, Array | None], tuple[Array, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_contrastive_loss(config: LossConfig, mesh: Mesh) -> Callable[..., Array]:
    """The loss of the family that `config` names, as a function of (z, labels, where).

    On a mesh of several devices each holds its rows, and they exchange what the others need.
    """
    name = one_of("loss", config.name, losses.LOSSES)
    options: dict[str, Any] = {"temperature": config.temperature, "form": config.form}
    options["implementation"] = config.implementation
    family = losses.LOSSES
    if mesh.size > 1:
        family = sharded.LOSSES
        options |= {"axis_name": batch_axes(mesh), "mesh": mesh}
    if name == "jaccard":
        options["threshold"] = config.threshold
    if config.normalizer:
        if name != "mulsupcon":
            raise InputError(f"loss.normalizer is for mulsupcon, not for {name!r}.")
        options["normalizer"] = config.normalizer
    loss = functools.partial(family[name], **options)
    if name != "supcon":
        return loss

    def single_label_loss(z: Array, labels: Array, *, where: Array) -> Array:
        return loss(z, jnp.argmax(labels, axis=1), where=where)

    return single_label_loss


def binary_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Mean over the labels of each row, [B], of logits and labels [B, C]."""
    targets = (1 - smoothing) * labels.astype(logits.dtype) + smoothing / 2
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(axis=1)


def mean_of_rows(values: Array, where: Array) -> Array:
    """Mean of values [B] over the rows that are not padding; 0 if all are."""
    return jnp.where(where, values, 0).sum() / jnp.maximum(where.sum(), 1)


def make_objective(
    config: Config, phase: Phase, graph: nnx.GraphDef, modality: str, mesh: Mesh
) -> Objective:
    """The loss of a phase, as a function of (params, variables, batch, key) of one member.

    Two views of each example are drawn where the encoder learns; they are one batch of twice
    the size to the contrastive loss, in which an example's views are positives of each other.
    Without a key, examples are taken as they are and dropout is off.
    """
    contrastive_loss = make_contrastive_loss(config.loss, mesh)

    def objective(
        params: nnx.State, variables: nnx.State, batch: Batch, key: Array | None
    ) -> tuple[Array, Metrics]:
        x, labels, where, dropout = batch["x"], batch["labels"], batch["where"], None
        if key is not None and phase.trains_encoder:
            first, second, dropout = jax.random.split(key, 3)
            views = [random_view(k, x, where, config.augment, modality) for k in (first, second)]
            # Side by side, so that both views of an example stay on its device.
            x, labels, where = (
                jnp.stack(pair, axis=1).reshape(-1, *pair[0].shape[1:])
                for pair in (views, [labels] * 2, [where] * 2)
            )

        def of_rows(rows: Batch, dropout: Array | None) -> dict[str, Array]:
            """What the losses need of each row; neither its activations nor its logits."""
            model = nnx.merge(graph, params, variables)
            rngs = None if dropout is None else nnx.Rngs(dropout=dropout)
            h = model.encode(rows["x"], rngs=rngs)
            if not phase.trains_encoder:
                h = jax.lax.stop_gradient(h)
            results = {}
            if phase.contrastive:
                results["z"] = model.project(h)
            if phase.supervised:
                smoothing = 0.0 if key is None else config.label_smoothing
                results["bce"] = binary_cross_entropy(model.classify(h), rows["labels"], smoothing)
            return results

        of_batch = in_microbatches(of_rows, config.microbatches, mesh)
        results = of_batch({"x": x, "labels": labels}, dropout)
        terms: Metrics = {}
        if phase.contrastive:
            terms["contrastive"] = contrastive_loss(results["z"], labels, where=where)
        if phase.supervised:
            terms["bce"] = mean_of_rows(results["bce"], where)
        weights = {"contrastive": phase.contrastive, "bce": phase.supervised}
        return sum((weights[k] * v for k, v in terms.items()), jnp.zeros(())), terms

    return objective


def make_train_step(phase: Phase, objective: Objective, mesh: Mesh) -> TrainStep:
    """The jitted step of a phase; it takes over (donates) the state that it is given."""
    optimizer = make_optimizer(phase)
    schedule = learning_rate_schedule(phase.config, phase.num_steps)
    gradient = jax.value_and_grad(objective, has_aux=True)

    def member_step(params, variables, opt_state, key, batch):
        (loss, terms), grads = gradient(params, variables, batch, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), opt_state, metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.random.split(key, jax.tree.leaves(state.params)[0].shape[0])
        params, opt_state, metrics = jax.vmap(member_step, in_axes=(0, 0, 0, 0, None))(
            state.params, state.variables, state.opt_state, keys, batch
        )
        count = state.step - phase.start
        state = state._replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            average=update_average(state.average, params, phase.config.ema_decay, count),
        )
        metrics = {name: values.mean() for name, values in metrics.items()}
        state = jax.lax.with_sharding_constraint(state, state_sharding(state, mesh))
        return state, {**metrics, "learning_rate": jnp.asarray(schedule(count))}

    return jax.jit(train_step, donate_argnums=0)
