"""Encoders by name: how each is built, what it takes, and how weights are loaded into it."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.checks import one_of
from sdjax.config import ModelConfig
from sdjax.data.tokens import are_tokens
from sdjax.errors import InputError
from sdjax.models import bert, image_inputs, resnet, vit
from sdjax.models.encoders import MLP, ConvNet
from sdjax.models.image_inputs import ImageInputs

# One example: arrays' shapes and dtypes, in the structure of a batch's inputs.
InputSpec = Any


@dataclass(frozen=True)
class Encoder:
    """An entry of the registry.

    Attributes:
      build: of (config, input_spec, rngs), the module; see `sdjax.models.encoders` for how it is
        called.
      takes: what the inputs must be, for error messages.
      accepts: whether an input spec is such.
      load: of (module, path), puts pretrained weights into the module; None where there are none.
      architecture: of (path), the sizes of the network whose weights are there, as JSON; None where
        the config has them.
      max_length: of (config), most tokens of a text; None where there is no limit.
      image_inputs: of (path), the images that the weights there are for; None where it is open.
    """

    build: Callable[[ModelConfig, InputSpec, nnx.Rngs], nnx.Module]
    takes: str
    accepts: Callable[[InputSpec], bool]
    load: Callable[[Any, str], None] | None = None
    architecture: Callable[[str], str] | None = None
    max_length: Callable[[ModelConfig], int] | None = None
    image_inputs: Callable[[str], ImageInputs] | None = None


ENCODERS: dict[str, Encoder] = {}


def register_encoder(
    name: str,
    build: Callable[[ModelConfig, InputSpec, nnx.Rngs], nnx.Module],
    *,
    takes: str = "any inputs",
    accepts: Callable[[InputSpec], bool] = lambda spec: True,
    load: Callable[[Any, str], None] | None = None,
    architecture: Callable[[str], str] | None = None,
    max_length: Callable[[ModelConfig], int] | None = None,
    image_inputs: Callable[[str], ImageInputs] | None = None,
) -> None:
    """Adds an encoder, or replaces one, under the name that `config.model.encoder` then takes.

    Args:
      name: of the encoder.
      build: of (config, input_spec, rngs), an NNX module with `out_features`, called with
        (x, rngs=, where=); see `sdjax.models.encoders`. `input_spec` is a pytree of
        `jax.ShapeDtypeStruct`: one example, without the batch's axis.
      takes: what the inputs must be, for error messages.
      accepts: whether an input spec is such.
      load: of (module, path), puts the weights at `config.model.weights` into the module.
      architecture: of (path), what `config.model.architecture` is for those weights.
      max_length: of (config), most tokens of a text.
      image_inputs: of (path), the size and the statistics of the images that those weights take.
    """
    ENCODERS[name] = Encoder(build, takes, accepts, load, architecture, max_length, image_inputs)


def with_architecture(config: ModelConfig) -> ModelConfig:
    """`config` with the sizes of the network whose weights it names, where its encoder wants them.

    A run keeps them, so that its model needs no other file.
    """
    if config.encoder == "auto" or config.architecture or not config.weights:
        return config
    encoder = ENCODERS[one_of("encoder", config.encoder, ENCODERS)]
    if encoder.architecture is None:
        return config
    return dataclasses.replace(config, architecture=encoder.architecture(config.weights))


def make_encoder(config: ModelConfig, input_spec: InputSpec, rngs: nnx.Rngs) -> Any:
    """The encoder that `config` names, for inputs of `input_spec`.

    Raises:
      InputError: if there is none of that name, it does not take such inputs, or it cannot load the
        weights that `config` names.
    """
    encoder = ENCODERS[one_of("encoder", config.encoder, ENCODERS)]
    if not encoder.accepts(input_spec):
        shapes = jax.tree.map(lambda x: x.shape, input_spec)
        raise InputError(
            f"model.encoder {config.encoder!r} does not fit inputs of shape {shapes}: it takes "
            f"{encoder.takes}."
        )
    module = encoder.build(config, input_spec, rngs)
    if config.weights and encoder.load is None:
        able = [name for name, each in ENCODERS.items() if each.load is not None]
        raise InputError(
            f"model.weights: encoder {config.encoder!r} cannot load weights; those that can: "
            f"{', '.join(able) or 'none'}."
        )
    return module


def max_length(config: ModelConfig) -> int:
    """Most tokens of a text that the encoder of `config` takes; 0 where there is no limit."""
    known = ENCODERS[one_of("encoder", config.encoder, ENCODERS)].max_length
    return 0 if known is None else known(config)


def image_inputs_reader(config: ModelConfig) -> Callable[[str], ImageInputs] | None:
    """What tells which images the weights of the encoder of `config` are for."""
    return ENCODERS[config.encoder].image_inputs if config.encoder != "auto" else None


def load_weights(config: ModelConfig, module: nnx.Module) -> None:
    """Puts the weights at `config.weights` into an encoder that `make_encoder` made."""
    load = ENCODERS[config.encoder].load
    assert load is not None
    load(module, config.weights)


def _of_rank(rank: int) -> Callable[[InputSpec], bool]:
    return lambda spec: isinstance(spec, jax.ShapeDtypeStruct) and len(spec.shape) == rank


def _options(config: ModelConfig, rngs: nnx.Rngs) -> dict[str, Any]:
    return {"dtype": config.dtype, "remat": config.remat, "rngs": rngs}


def _mlp(config: ModelConfig, input_spec: InputSpec, rngs: nnx.Rngs) -> MLP:
    return MLP(
        input_spec.shape[-1],
        config.width,
        config.depth,
        config.dropout,
        config.frequencies,
        norm=config.norm,
        **_options(config, rngs),
    )


def _convnet(config: ModelConfig, input_spec: InputSpec, rngs: nnx.Rngs) -> ConvNet:
    return ConvNet(
        input_spec.shape[-1],
        config.width,
        config.depth,
        config.dropout,
        norm=config.norm or "group",
        **_options(config, rngs),
    )


def _bert(config: ModelConfig, input_spec: InputSpec, rngs: nnx.Rngs) -> bert.Bert:
    return bert.Bert(
        _bert_sizes(config),
        pooling=config.pooling or "mean",
        segment_length=config.segment_length,
        segment_overlap=config.segment_overlap,
        dropout=config.dropout,
        **_options(config, rngs),
    )


def _bert_sizes(config: ModelConfig) -> bert.BertSizes:
    return bert.BertSizes.of("model.architecture", _architecture(config))


def _vit(config: ModelConfig, input_spec: InputSpec, rngs: nnx.Rngs) -> vit.ViT:
    one_of("model.norm of a vit", config.norm, ("",))
    sizes = vit.ViTSizes.of("model.architecture", _architecture(config))
    _check_channels(config, input_spec, sizes.num_channels)
    options = {"pooling": config.pooling or "cls", "dropout": config.dropout}
    return vit.ViT(sizes, **options, **_options(config, rngs))


def _resnet(config: ModelConfig, input_spec: InputSpec, rngs: nnx.Rngs) -> resnet.ResNet:
    statistics = one_of("model.norm of a resnet", config.norm or "batch", resnet.STATISTICS)
    one_of("model.pooling of a resnet", config.pooling or "mean", ("mean",))
    sizes = resnet.ResNetSizes.of("model.architecture", _architecture(config))
    _check_channels(config, input_spec, sizes.num_channels)
    options = {"statistics": statistics, "dropout": config.dropout}
    return resnet.ResNet(sizes, **options, **_options(config, rngs))


def _check_channels(config: ModelConfig, input_spec: InputSpec, wanted: int) -> None:
    if input_spec.shape[-1] != wanted:
        raise InputError(
            f"model.encoder {config.encoder!r} with these weights takes images of {wanted} "
            f"channels, and those of the data have {input_spec.shape[-1]}."
        )


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """The sizes that `config.architecture` tells."""
    if not config.architecture:
        raise InputError(
            f"model.encoder {config.encoder!r} needs model.weights: a folder with config.json, "
            "which gives the network's sizes, and model.safetensors; or an id of the Hugging Face "
            "hub."
        )
    try:
        return json.loads(config.architecture)
    except ValueError as error:
        raise InputError(f"model.architecture is not JSON: {error}.") from error


def _as_json(read_sizes: Callable[[str], Any]) -> Callable[[str], str]:
    return lambda origin: json.dumps(dataclasses.asdict(read_sizes(origin)))


def _are_tokens(spec: InputSpec) -> bool:
    if not are_tokens(spec):
        return False
    return all(len(x.shape) == 1 for x in spec.values()) and jnp.issubdtype(
        spec["ids"].dtype, jnp.integer
    )


register_encoder("mlp", _mlp, takes="vectors [F]", accepts=_of_rank(1))
register_encoder("convnet", _convnet, takes="images [height, width, channels]", accepts=_of_rank(3))
register_encoder(
    "bert",
    _bert,
    takes='tokens {"ids": [T], "mask": [T]}, as texts become by data.text',
    accepts=_are_tokens,
    load=bert.load,
    architecture=_as_json(bert.read_sizes),
    max_length=lambda config: 0 if config.segment_length else _bert_sizes(config).max_length,
)
register_encoder(
    "vit",
    _vit,
    takes="images [height, width, channels]",
    accepts=_of_rank(3),
    load=vit.load,
    architecture=_as_json(vit.read_sizes),
    image_inputs=image_inputs.read,
)
register_encoder(
    "resnet",
    _resnet,
    takes="images [height, width, channels]",
    accepts=_of_rank(3),
    load=resnet.load,
    architecture=_as_json(resnet.read_sizes),
    image_inputs=image_inputs.read,
)
