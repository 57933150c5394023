"""The optimizer of a phase."""

import jax
import optax
from flax import nnx

from sdjax.checks import suggest
from sdjax.config import OPTIMIZERS, PhaseConfig
from sdjax.errors import InputError
from sdjax.training.phases import Phase


def learning_rate_schedule(config: PhaseConfig, num_steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to zero, over the steps of a phase."""
    warmup = min(round(config.warmup * num_steps), num_steps - 1)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(num_steps, 1),
    )


def make_optimizer(phase: Phase) -> optax.GradientTransformation:
    """Optimizer of the parts of the model that `phase` trains; the others stay as they are."""
    config = phase.config
    schedule = learning_rate_schedule(config, phase.num_steps)
    if config.optimizer == "adamw":
        update = optax.adamw(schedule, weight_decay=config.weight_decay, mask=_is_matrix)
    elif config.optimizer == "sgd":
        update = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask=_is_matrix),
            optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.momentum > 0),
        )
    else:
        raise InputError(suggest("optimizer", config.optimizer, OPTIMIZERS))
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)

    def parts(params: nnx.State) -> nnx.State:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "train" if path[0].key in phase.trained else "freeze", params
        )

    return optax.partition({"train": update, "freeze": optax.set_to_zero()}, parts)


def _is_matrix(params: nnx.State) -> nnx.State:
    """Weight decay is for matrices and kernels, not for biases and norms."""
    return jax.tree.map(lambda x: x.ndim > 1, params)
