"""Published vision transformers: the sizes and the names of their tensors, by layout."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sdjax import hub
from sdjax.checks import one_of
from sdjax.errors import InputError
from sdjax.models import image_inputs, weights
from sdjax.models.activations import ACTIVATIONS
from sdjax.models.weights import Shape

_PREFIXES = ("vit.", "dinov2.", "dinov2_with_registers.", "vision_model.", "model.", "module.")
_PREFIXES += ("backbone.", "visual.trunk.")
# Heads, the token of masked patches, and what belongs to CLIP's texts.
_HARMLESS = (
    r"(embeddings\.)?mask_token",
    r"embeddings\.position_ids",
    r"(pooler|classifier|decoder|head)\..*",
    r"(text_model|text_projection|visual_projection)\..*",
    r"logit_(scale|bias)",
)


@dataclass(frozen=True)
class Layout:
    """How a family names its tensors.

    Attributes:
      names: by the name of the part here; of several tensors, side by side.
      layer: what stands before the names within a layer.
      axes: of length 1 that stand before the shape here, by part.
    """

    names: Mapping[str, tuple[str, ...]]
    layer: str
    axes: Mapping[str, int]


_HF = {
    "class_token": ("embeddings.cls_token",),
    "registers": ("embeddings.register_tokens",),
    "positions": ("embeddings.position_embeddings",),
    "patch": ("embeddings.patch_embeddings.projection",),
    "norm": ("layernorm",),
    "qkv": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    "out": ("attention.output.dense",),
}
_MLP = {"norm1": ("norm1",), "norm2": ("norm2",), "up": ("mlp.fc1",), "down": ("mlp.fc2",)}
_AXES = {"class_token": 2, "registers": 1, "positions": 1}
LAYOUTS = {
    "vit": Layout(
        {
            **_HF,
            "norm1": ("layernorm_before",),
            "norm2": ("layernorm_after",),
            "up": ("intermediate.dense",),
            "down": ("output.dense",),
        },
        "encoder.layer.{}.",
        _AXES,
    ),
    "dinov2": Layout(
        {
            **_HF,
            **_MLP,
            "scale1": ("layer_scale1.lambda1",),
            "scale2": ("layer_scale2.lambda1",),
        },
        "encoder.layer.{}.",
        _AXES,
    ),
    "clip": Layout(
        {
            **_MLP,
            "class_token": ("embeddings.class_embedding",),
            "positions": ("embeddings.position_embedding.weight",),
            "patch": ("embeddings.patch_embedding",),
            "pre_norm": ("pre_layrnorm",),
            "norm": ("post_layernorm",),
            "norm1": ("layer_norm1",),
            "norm2": ("layer_norm2",),
            "qkv": tuple(f"self_attn.{name}_proj" for name in "qkv"),
            "out": ("self_attn.out_proj",),
        },
        "encoder.layers.{}.",
        {},
    ),
    "timm": Layout(
        {
            **_MLP,
            "class_token": ("cls_token",),
            "registers": ("reg_token",),
            "positions": ("pos_embed",),
            "patch": ("patch_embed.proj",),
            "pre_norm": ("norm_pre",),
            "norm": ("norm",),
            "qkv": ("attn.qkv",),
            "out": ("attn.proj",),
            "scale1": ("ls1.gamma",),
            "scale2": ("ls2.gamma",),
        },
        "blocks.{}.",
        _AXES,
    ),
}
# Layout and facts of the families that a config.json of transformers names; and for CLIP, whose
# nested configs leave out what is as usual, the usual.
_CLIP = {
    "layout": "clip",
    "pre_norm": True,
    "patch_bias": False,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"layout": "vit"},
    "dinov2": {"layout": "dinov2", "layer_scale": True},
    "dinov2_with_registers": {"layout": "dinov2", "layer_scale": True, "antialias": True},
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
}
MODEL_TYPES = tuple(FAMILIES)
# timm's files tell the width, and not the number of heads.
_TIMM_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}


@dataclass(frozen=True)
class ViTSizes:
    """What the network depends on, by the names of a published config.json where that has them.

    Attributes:
      layout: of the published tensors, a key of `LAYOUTS`.
      layer_scale: whether the output of each block is scaled, a number for each feature.
      pre_norm: whether the embeddings are normalised.
      patch_bias: of the linear map of patches.
      class_position: whether the class token has a position.
      antialias: whether positions are smoothed before they are made fewer.
    """

    layout: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    num_register_tokens: int = 0
    layer_scale: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    class_position: bool = True
    antialias: bool = False

    def check(self, origin: str) -> "ViTSizes":
        """The sizes.

        Raises:
          InputError: naming the field of `origin`, if its value is not supported.
        """
        one_of(f"layout of {origin}", self.layout, LAYOUTS)
        one_of(f"hidden_act of {origin}", self.hidden_act, ACTIVATIONS)
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"{origin}: hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                f"{self.num_attention_heads}."
            )
        return self

    @property
    def grid(self) -> int:
        """Patches along a side of a published image."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        return self.grid**2 + self.class_position

    @property
    def patch_features(self) -> int:
        """Numbers of a patch."""
        return self.patch_size**2 * self.num_channels

    @classmethod
    def of(cls, origin: str, fields: Mapping[str, Any]) -> "ViTSizes":
        """Of fields by their names here.

        Raises:
          InputError: if one is absent, or not supported.
        """
        return cls(**hub.fields_of(cls, origin, fields)).check(origin)


def is_such(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
    """Whether a config.json, or the tensors where it tells nothing, are of a vision transformer."""
    if "model_type" in config:
        return config["model_type"] in FAMILIES
    return any(name.endswith("patch_embed.proj.weight") for name in shapes)


def read_sizes(origin: str) -> ViTSizes:
    """The sizes of the published model at `origin`; see `sdjax.hub.local`.

    Of transformers' models from config.json; of timm's from the tensors' shapes, since its
    config.json has them in the name of the architecture alone.

    Raises:
      InputError: if it is no such model.
    """
    config = hub.read_config_if_any(origin)
    if "model_type" not in config:
        return _sizes_of_timm(origin, config, weights.shapes(origin))
    family = FAMILIES[one_of(f"model_type of {origin}", config["model_type"] or "", FAMILIES)]
    fields = {**family, **config.get("vision_config", config)}
    for name in ("image_size", "patch_size"):
        fields |= {name: image_inputs.side(origin, name, fields[name])} if name in fields else {}
    if fields.get("use_swiglu_ffn"):
        raise InputError(f"{origin}: use_swiglu_ffn is not supported.")
    if "mlp_ratio" in fields:
        fields["intermediate_size"] = int(fields["hidden_size"] * fields["mlp_ratio"])
    return ViTSizes.of(origin, fields)


def _sizes_of_timm(origin: str, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> ViTSizes:
    """Sizes from the shapes of timm's tensors, and from its config.json where there is one."""
    mark = "patch_embed.proj.weight"
    shapes = weights.without_prefix(origin, shapes, mark, "timm's")
    known = config.get("pretrained_cfg", {}) | config.get("model_args", {})
    name = str(config.get("architecture", ""))
    width, channels, side, _ = shapes[mark]
    positions = shapes.get("pos_embed", (1, 0, width))[1]
    grid = round(max(positions - 1, 0) ** 0.5)
    class_position = grid**2 + 1 == positions
    grid = grid if class_position else round(positions**0.5)
    heads = known.get("num_heads") or _TIMM_HEADS.get(width)
    if not heads:
        raise InputError(
            f"{origin}: the number of heads of a network of width {width} is not known; state it "
            f'in {hub.CONFIG}, as {{"model_args": {{"num_heads": ...}}}}.'
        )
    return ViTSizes(
        layout="timm",
        hidden_size=width,
        num_hidden_layers=sum(each.endswith(".norm1.weight") for each in shapes),
        num_attention_heads=heads,
        intermediate_size=shapes.get("blocks.0.mlp.fc1.weight", (4 * width,))[0],
        image_size=grid * side,
        patch_size=side,
        num_channels=channels,
        layer_norm_eps=1e-5 if "clip" in name else 1e-6,
        hidden_act="quick_gelu" if "quickgelu" in name else "gelu",
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
        num_register_tokens=shapes.get("reg_token", (1, 0))[1],
        layer_scale="blocks.0.ls1.gamma" in shapes,
        pre_norm="norm_pre.weight" in shapes,
        patch_bias="patch_embed.proj.bias" in shapes,
        class_position=class_position,
        antialias=True,
    ).check(origin)


def load(module: Any, origin: str) -> None:
    """Puts the weights of the published model at `origin` into `module`, a `ViT`.

    Raises:
      InputError: if they cannot be read, or do not fit; see `sdjax.models.weights.read`.
    """
    sizes: ViTSizes = module.sizes
    state = nnx.state(module, nnx.Param)
    leaves = dict(nnx.to_flat_state(state))
    names = {path: _published(path, LAYOUTS[sizes.layout]) for path in leaves}
    wanted = {}
    for path, leaf in leaves.items():
        shape = _published_shape(path, leaf.shape, sizes, len(names[path]))
        wanted |= dict.fromkeys(names[path], shape)
    tensors = weights.read(origin, wanted, prefixes=_PREFIXES, harmless=_HARMLESS)
    for path, leaf in leaves.items():
        parts = [tensors.pop(name) for name in names[path]]
        if path[-1] == "kernel":
            # PyTorch keeps matrices transposed, and those of patches as [H, channels, y, x].
            parts = [part.transpose(2, 3, 1, 0) if part.ndim == 4 else part.T for part in parts]
            parts = [part.reshape(-1, part.shape[-1]) for part in parts]
        value = np.concatenate(parts, axis=-1).reshape(leaf.shape)
        leaf[...] = jnp.asarray(value)
    nnx.update(module, state)


def _published(path: tuple[Any, ...], layout: Layout) -> list[str]:
    """The tensors that a parameter is made of, side by side."""
    ends = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}
    part = path[-2] if path[-1] in ends else path[-1]
    start = layout.layer.format(path[1]) if path[0] == "layers" else ""
    return [f"{start}{name}{ends.get(path[-1], '')}" for name in layout.names[part]]


def _published_shape(path: tuple[Any, ...], shape: Shape, sizes: ViTSizes, parts: int) -> Shape:
    """The shape of each of the tensors that a parameter of `shape` is made of."""
    *rest, last = shape
    if path[-2:] == ("patch", "kernel"):
        return (last, sizes.num_channels, sizes.patch_size, sizes.patch_size)
    if path[-1] == "kernel":
        return (last // parts, *rest)
    axes = LAYOUTS[sizes.layout].axes.get(path[-1], 0)
    return (*[1] * axes, *rest, last // parts)
