"""What a recipe trains, in which order, for how long, and with which optimizer."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import optax
from flax import nnx

from sdjax.checks import suggest
from sdjax.config import Config, PhaseConfig, learning_rate_factors
from sdjax.errors import InputError


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one objective and one optimizer.

    Attributes:
      name: "pretrain", "probe", "finetune", "joint" or "bce".
      contrastive: weight of the contrastive loss.
      supervised: weight of the supervised loss.
      trained: the parts of the model that learn.
      config: length and optimizer.
      start: first step, counted from the start of the run.
      stop: one past the last step.
      schedule_steps: length of the learning rate's schedule, which may be cut off before its end.
    """

    name: str
    contrastive: float
    supervised: float
    trained: tuple[str, ...]
    config: PhaseConfig
    start: int
    stop: int
    schedule_steps: int

    @property
    def num_steps(self) -> int:
        return self.stop - self.start

    @property
    def trains_encoder(self) -> bool:
        return not {"encoder", "adapters"}.isdisjoint(self.trained)


def make_phases(config: Config, steps_per_epoch: int) -> tuple[Phase, ...]:
    """The phases of `config.recipe`, one after the other."""
    encoder = "adapters" if config.model.lora_rank else "encoder"
    whole = (encoder, "projection", "classifier", "loss")
    objectives = {
        "pretrain": (1.0, 0.0, (encoder, "projection", "loss"), config.pretrain),
        "probe": (0.0, 1.0, ("classifier",), config.supervise),
        "finetune": (0.0, 1.0, (encoder, "classifier"), config.supervise),
        "joint": (config.contrastive_weight, 1.0, whole, config.supervise),
        "bce": (0.0, 1.0, (encoder, "classifier"), config.supervise),
    }
    names = {"probe": ("pretrain", "probe"), "finetune": ("pretrain", "finetune")}
    phases, start = [], 0
    for name in names.get(config.recipe, (config.recipe,)):
        contrastive, supervised, trained, length = objectives[name]
        stop = start + (length.stop_after or length.epochs) * steps_per_epoch
        schedule = length.epochs * steps_per_epoch
        phases.append(Phase(name, contrastive, supervised, trained, length, start, stop, schedule))
        start = stop
    return tuple(phases)


def with_enough_epochs(config: Config, steps_per_epoch: int) -> Config:
    """`config`; in few-example mode with the epochs that `min_steps` of each phase takes.

    Validations are as much further apart as the last phase is longer. A phase that `stop_after`
    cuts off stays as it is.
    """
    if not config.data.examples_per_label:
        return config
    phases = {}
    for name in ("pretrain", "supervise"):
        phase = getattr(config, name)
        needed = 0 if phase.stop_after else -(-phase.min_steps // steps_per_epoch)
        phases[name] = dataclasses.replace(phase, epochs=max(phase.epochs, needed))
    longer = phases["supervise"].epochs / config.supervise.epochs
    every = round(config.evaluate_every * longer)
    return dataclasses.replace(config, **phases, evaluate_every=every)


def phase_of_step(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that a state belongs to after `step` steps of the run."""
    return next(phase for phase in phases if step <= phase.stop)


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
    """Optimizer of the parts of the model that `phase` trains; the others stay as they are.

    Raises:
      InputError: when it is initialised, if `learning_rates` names no parameter.
    """
    config = phase.config
    schedule = learning_rate_schedule(config, phase.schedule_steps)
    factors = learning_rate_factors("learning_rates", config.learning_rates)
    if config.optimizer == "adamw":
        steps = [optax.adamw(schedule, weight_decay=config.weight_decay, mask=_is_matrix)]
    else:
        steps = [
            optax.add_decayed_weights(config.weight_decay, mask=_is_matrix),
            optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.momentum > 0),
        ]
    if config.clip_norm:
        steps = [optax.clip_by_global_norm(config.clip_norm), *steps]
    if factors or config.layer_decay < 1:
        steps = [*steps, _scaled_by(factors, config.layer_decay)]
    update = steps[0] if len(steps) == 1 else optax.chain(*steps)

    def parts(params: nnx.State) -> nnx.State:
        _check_names(factors, params)
        if config.layer_decay < 1 and not _num_layers(params):
            raise InputError("layer_decay must be 1 for an encoder without layers.")
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "train" if _trains(path, phase.trained, factors) else "freeze", params
        )

    return optax.partition({"train": update, "freeze": optax.set_to_zero()}, parts)


def parameter_name(path: Any) -> str:
    """The path of a parameter as a dotted name, such as "encoder.layers.0.kernel"."""
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return ".".join(key for key in keys if key != "value")


def _factor(path: Any, factors: dict[str, float]) -> float:
    """The factor of the longest name that the parameter's starts with; 1 without any."""
    name = parameter_name(path) + "."
    fitting = [prefix for prefix in factors if name.startswith(prefix + ".")]
    return factors[max(fitting, key=len)] if fitting else 1.0


def _trains(path: Any, trained: tuple[str, ...], factors: dict[str, float]) -> bool:
    return path[0].key in trained and _factor(path, factors) > 0


def _scaled_by(factors: dict[str, float], decay: float) -> optax.GradientTransformation:
    """Scales the update, so that the learning rate of each part is its own."""

    def scaled(updates: Any, params: Any) -> Any:
        del params
        layers = _num_layers(updates)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x * (_factor(path, factors) * decay ** _layers_above(path, layers)),
            updates,
        )

    return optax.stateless(scaled)


def _num_layers(params: nnx.State) -> int:
    """Of the encoder: one more than the largest K of its parameters "encoder.layers.K"."""

    def is_leaf(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)  # in an update: a part that does not learn

    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)]
    return max((layer + 1 for path in paths if (layer := _layer(path)) is not None), default=0)


def _layers_above(path: Any, num_layers: int) -> int:
    """How many layers of the encoder, of `num_layers`, stand between a parameter and its output."""
    layer = _layer(path)
    if layer is not None:
        return num_layers - 1 - layer
    return num_layers if parameter_name(path).startswith("encoder.embeddings.") else 0


def _layer(path: Any) -> int | None:
    encoder, layers, number, *_ = [*parameter_name(path).split("."), "", ""]
    return int(number) if (encoder, layers) == ("encoder", "layers") else None


def _check_names(factors: dict[str, float], params: nnx.State) -> None:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = [parameter_name(path) for path in paths]
    for prefix in factors:
        if not any((name + ".").startswith(prefix + ".") for name in names):
            text = suggest("part of learning_rates", prefix, names).split(" Known:")[0]
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise InputError(f"{text} Parts: {parts}.")


def _is_matrix(params: nnx.State) -> nnx.State:
    """Weight decay is for matrices and kernels, not for biases and norms."""
    return jax.tree.map(lambda x: x.ndim > 1, params)
