"""Residual networks as published: ResNet-18 to -152, of torchvision, timm and transformers.

References:
  He et al., Deep Residual Learning for Image Recognition, 2015 (https://arxiv.org/abs/1512.03385).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sdjax import hub
from sdjax.checks import one_of
from sdjax.errors import InputError
from sdjax.models import weights
from sdjax.models.norms import normalized
from sdjax.models.weights import Shape

Array = jax.Array

LAYOUTS = ("transformers", "torchvision")
MODEL_TYPES = ("resnet",)
BLOCKS = {"basic": 2, "bottleneck": 3}  # convolutions of a block
STATISTICS = ("batch", "frozen")
_REDUCTION = 4  # of the channels within a bottleneck
_EPSILON, _MOMENTUM = 1e-5, 0.9
_PREFIXES = ("resnet.", "model.", "module.", "backbone.")
_HARMLESS = (r"(.*\.)?num_batches_tracked", r"(fc|classifier)\..*")


@dataclass(frozen=True)
class ResNetSizes:
    """What the network depends on, by the names of transformers' config.json.

    Attributes:
      layout: of the published tensors, one of `LAYOUTS`.
      embedding_size: channels of the stem.
      hidden_sizes: channels of each stage.
      depths: blocks of each stage.
      layer_type: "basic" or "bottleneck".
      downsample_in_bottleneck: by its first convolution, in place of the second.
      downsample_in_first_stage: as the later stages do.
    """

    layout: str
    embedding_size: int
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    layer_type: str
    num_channels: int = 3
    downsample_in_bottleneck: bool = False
    downsample_in_first_stage: bool = False

    @classmethod
    def of(cls, origin: str, fields: Mapping[str, Any]) -> "ResNetSizes":
        """Of fields by their names here.

        Raises:
          InputError: naming the field, if one is absent or its value is not supported.
        """
        given = hub.fields_of(cls, origin, fields)
        lists = {name: tuple(given[name]) for name in ("hidden_sizes", "depths")}
        sizes = cls(**{**given, **lists})
        one_of(f"layout of {origin}", sizes.layout, LAYOUTS)
        one_of(f"layer_type of {origin}", sizes.layer_type, BLOCKS)
        one_of(f"hidden_act of {origin}", fields.get("hidden_act", "relu"), ("relu",))
        if len(sizes.hidden_sizes) != len(sizes.depths) or not sizes.depths:
            raise InputError(
                f"{origin}: hidden_sizes and depths must be as long as each other, got "
                f"{sizes.hidden_sizes} and {sizes.depths}."
            )
        return sizes


class ResNet(nnx.Module):
    """Encoder of images: a stem, stages of residual blocks, and the mean over positions.

    It is called with float images [B, height, width, channels], standardised as the published
    model wants them.

    Args:
      sizes: of the network.
      statistics: of the batch norms in training: "batch", those of the batch, which running ones
        follow; or "frozen", the published ones, so that rows do not depend on each other.
      dropout: rate on the representation.
      dtype: of the computation; parameters are float32.
      remat: compute the blocks' activations anew in the backward pass.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        sizes: ResNetSizes,
        *,
        statistics: str = "batch",
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.sizes, self.remat = sizes, remat
        self.frozen = one_of("statistics", statistics, STATISTICS) == "frozen"
        self.stem = ConvNorm(sizes.num_channels, sizes.embedding_size, 7, 2, dtype, rngs)
        stages, before = [], sizes.embedding_size
        for number, (after, depth) in enumerate(zip(sizes.hidden_sizes, sizes.depths, strict=True)):
            stride = 2 if number or sizes.downsample_in_first_stage else 1
            blocks = []
            for _ in range(depth):
                blocks.append(Block(sizes, before, after, stride, dtype, rngs))
                before, stride = after, 1
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.dropout = nnx.Dropout(dropout)
        self.out_features = sizes.hidden_sizes[-1]

    def __call__(
        self, x: Array, *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> Array:
        """Representations [B, H] of the images x."""
        last = self.hidden_states(x, rngs=rngs, where=where)[-1]
        pooled = jnp.mean(last.astype(jnp.float32), axis=(1, 2)).astype(last.dtype)
        return self.dropout(pooled, deterministic=rngs is None, rngs=rngs)

    def hidden_states(
        self, x: Array, *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> tuple[Array, ...]:
        """What the stem and each stage give, [B, height, width, channels] each.

        Raises:
          InputError: if the channels are not the model's.
        """
        if x.shape[-1] != self.sizes.num_channels:
            raise InputError(
                f"images of {x.shape[-1]} channels: the model takes {self.sizes.num_channels}."
            )
        training = rngs is not None and not self.frozen
        x = nnx.relu(self.stem(x, training, where))
        padding: Any = ((1, 1), (1, 1))
        states = [nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)]
        apply = nnx.remat(Block.__call__, static_argnums=2) if self.remat else Block.__call__
        for stage in self.stages:
            x = states[-1]
            for block in stage:
                x = apply(block, x, training, where)
            states.append(x)
        return tuple(states)


class ConvNorm(nnx.Module):
    """A convolution without bias, padded by half its size, and its batch norm."""

    def __init__(
        self, before: int, after: int, size: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.conv = nnx.Conv(
            before,
            after,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            dtype=dtype,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(
            after,
            momentum=_MOMENTUM,
            epsilon=_EPSILON,
            dtype=dtype,
            use_fast_variance=False,
            rngs=rngs,
        )

    def __call__(self, x: Array, training: bool, where: Array | None) -> Array:
        return normalized(self.norm, self.conv(x), training, where)


class Block(nnx.Module):
    """Two convolutions of 3x3, or three as a bottleneck, added to what came in."""

    def __init__(
        self,
        sizes: ResNetSizes,
        before: int,
        after: int,
        stride: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        inner = after // _REDUCTION
        shapes = [(before, after, 3, stride), (after, after, 3, 1)]
        if sizes.layer_type == "bottleneck":
            strides = (stride, 1) if sizes.downsample_in_bottleneck else (1, stride)
            shapes = [
                (before, inner, 1, strides[0]),
                (inner, inner, 3, strides[1]),
                (inner, after, 1, 1),
            ]
        self.convs = nnx.List([ConvNorm(*shape, dtype, rngs) for shape in shapes])
        plain = before == after and stride == 1
        self.shortcut = None if plain else ConvNorm(before, after, 1, stride, dtype, rngs)

    def __call__(self, x: Array, training: bool, where: Array | None) -> Array:
        y = x
        for number, conv in enumerate(self.convs):
            y = conv(nnx.relu(y) if number else y, training, where)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x, training, where)))


def is_such(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
    """Whether a config.json, or the tensors where it tells nothing, are of a residual network."""
    if "model_type" in config:
        return config["model_type"] in MODEL_TYPES
    return any(name.endswith("layer1.0.conv1.weight") for name in shapes)


def read_sizes(origin: str) -> ResNetSizes:
    """The sizes of the published model at `origin`; see `sdjax.hub.local`.

    Of transformers' models from config.json, of others from the tensors' shapes.

    Raises:
      InputError: if it is no such model.
    """
    config = hub.read_config_if_any(origin)
    if "model_type" in config:
        one_of(f"model_type of {origin}", config["model_type"] or "", MODEL_TYPES)
        return ResNetSizes.of(origin, {"layout": "transformers", **config})
    shapes, mark = weights.shapes(origin), "layer1.0.conv1.weight"
    shapes = weights.without_prefix(origin, shapes, mark, "torchvision's")
    last = 3 if "layer1.0.conv3.weight" in shapes else 2
    hidden, depths = [], []
    while (name := f"layer{len(depths) + 1}.0.conv{last}.weight") in shapes:
        hidden.append(shapes[name][0])
        marks = [f"layer{len(depths) + 1}.", f".conv{last}.weight"]
        depths.append(sum(n.startswith(marks[0]) and n.endswith(marks[1]) for n in shapes))
    fields = {
        "layout": "torchvision",
        "embedding_size": shapes.get("conv1.weight", (hidden[0],))[0],
        "hidden_sizes": hidden,
        "depths": depths,
        "layer_type": "bottleneck" if last == 3 else "basic",
        "num_channels": shapes.get("conv1.weight", (0, 3))[1],
    }
    return ResNetSizes.of(origin, fields)


def load(module: ResNet, origin: str) -> None:
    """Puts the weights and statistics of the published model at `origin` into `module`.

    Raises:
      InputError: if they cannot be read, or do not fit; see `sdjax.models.weights.read`.
    """
    state = nnx.state(module, (nnx.Param, nnx.BatchStat))
    leaves = dict(nnx.to_flat_state(state))
    names = {path: _published(path, module.sizes.layout) for path in leaves}

    def published(shape: Shape) -> Shape:
        return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape

    wanted = {names[path]: published(leaf.shape) for path, leaf in leaves.items()}
    tensors = weights.read(origin, wanted, prefixes=_PREFIXES, harmless=_HARMLESS)
    for path, leaf in leaves.items():
        tensor = tensors.pop(names[path])
        leaf[...] = jnp.asarray(tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor)
    nnx.update(module, state)


_ENDS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def _published(path: tuple[Any, ...], layout: str) -> str:
    """The name of the tensor that a parameter or a statistic is."""
    *place, part, kind = path
    if layout == "transformers":
        part = {"conv": "convolution", "norm": "normalization"}[part]
        if place == ["stem"]:
            return f"embedder.embedder.{part}.{_ENDS[kind]}"
        _, stage, block, *rest = place
        within = "shortcut" if rest == ["shortcut"] else f"layer.{rest[1]}"
        return f"encoder.stages.{stage}.layers.{block}.{within}.{part}.{_ENDS[kind]}"
    part = {"conv": "conv", "norm": "bn"}[part]
    if place == ["stem"]:
        return f"{part}1.{_ENDS[kind]}"
    _, stage, block, *rest = place
    if rest == ["shortcut"]:
        within = "downsample.0" if part == "conv" else "downsample.1"
    else:
        within = f"{part}{rest[1] + 1}"
    return f"layer{stage + 1}.{block}.{within}.{_ENDS[kind]}"
