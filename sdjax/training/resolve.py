"""Sizes that a config leaves at 0 are read off the data."""

import dataclasses

from sdjax._src.evaluate import IMPLEMENTATIONS
from sdjax.checks import one_of
from sdjax.config import DTYPES, ENCODERS, MASK_FILLS, OPTIMIZERS, RECIPES, Config
from sdjax.errors import InputError
from sdjax.losses import LOSSES


def check_config(config: Config) -> None:
    """Raises ValueError for unknown names and numbers out of range, before any data is read."""
    one_of("recipe", config.recipe, RECIPES)
    one_of("loss", config.loss.name, LOSSES)
    one_of("form", config.loss.form, ("out", "in"))
    one_of("encoder", config.model.encoder, ENCODERS)
    one_of("model.dtype", config.model.dtype, DTYPES)
    one_of("implementation", config.loss.implementation, IMPLEMENTATIONS)
    one_of("feature_fill", config.augment.feature_fill, MASK_FILLS)
    for name, phase in (("pretrain", config.pretrain), ("supervise", config.supervise)):
        one_of("optimizer", phase.optimizer, OPTIMIZERS)
        _at_least(f"{name}.epochs", phase.epochs, 1)
        _at_least(f"{name}.learning_rate", phase.learning_rate, 0)
        _within(f"{name}.warmup", phase.warmup)
        _within(f"{name}.ema_decay", phase.ema_decay)
    if config.loss.temperature <= 0:
        raise InputError(f"loss.temperature must be above 0, got {config.loss.temperature}.")
    _within("model.dropout", config.model.dropout)
    _within("label_smoothing", config.label_smoothing)
    _within("augment.feature_mask", config.augment.feature_mask)
    _within("data.validation_fraction", config.data.validation_fraction)
    _at_least("model.members", config.model.members, 1)
    _at_least("model.frequencies", config.model.frequencies, 0)
    _at_least("mesh.data", config.mesh.data, 0)
    _at_least("mesh.fsdp", config.mesh.fsdp, 1)
    _at_least("microbatches", config.microbatches, 1)
    for name in ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints"):
        _at_least(name, getattr(config, name), 1)


def resolve(
    config: Config, num_examples: int, input_shape: tuple[int, ...], num_devices: int
) -> Config:
    """`config` with a network and a batch that suit the data where it names none.

    Batches are the power of two nearest below an eighth of the train split, from 32 to 512 and
    a multiple of the devices; vectors get an MLP of width 256 (512 from 20,000 examples on), images
    a ConvNet of width 32.
    """
    vector = len(input_shape) == 1
    encoder = config.model.encoder
    if encoder == "auto":
        encoder = "mlp" if vector else "convnet"
    if (encoder == "mlp") != vector:
        raise InputError(
            f"model.encoder {encoder!r} does not fit inputs of shape {input_shape}: "
            "'mlp' is for vectors, 'convnet' for images."
        )
    width = config.model.width
    if not width:
        width = 32 if not vector else 256 if num_examples < 20_000 else 512
    batch_size = config.batch_size
    if not batch_size:
        batch_size = min(max(_power_of_two_below(num_examples // 8), 32), 512, num_examples)
        batch_size = max(batch_size - batch_size % num_devices, num_devices)
    model = dataclasses.replace(config.model, encoder=encoder, width=width)
    return dataclasses.replace(config, model=model, batch_size=batch_size)


def _power_of_two_below(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise InputError(f"{name} must be at least {least}, got {value}.")


def _within(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} must lie in [0, 1), got {value}.")
