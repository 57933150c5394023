"""The model that is trained: encoder, projection head, linear classifier."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sdjax.checks import suggest
from sdjax.config import ModelConfig
from sdjax.errors import InputError
from sdjax.models.encoders import MLP, ConvNet

Array = jax.Array


class Model(nnx.Module):
    """Encoder with two heads: a projection for contrast, a linear classifier for labels.

    Args:
      config: sizes, all of them above 0.
      input_shape: shape of one example, (F,) or (height, width, channels).
      num_classes: number of labels C.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        config: ModelConfig,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = (input_shape[-1], config.width, config.depth, config.dropout)
        options: dict[str, Any] = {"dtype": config.dtype, "remat": config.remat, "rngs": rngs}
        if config.encoder == "mlp":
            self.encoder = MLP(*sizes, config.frequencies, **options)
            features = config.width
        elif config.encoder == "convnet":
            self.encoder = ConvNet(*sizes, **options)
            features = config.width * 2 ** (config.depth - 1)
        else:
            raise InputError(suggest("encoder", config.encoder, ("mlp", "convnet")))
        self.projection = Projection(
            features, config.projection_width, config.projection_dim, config.dtype, rngs=rngs
        )
        self.classifier = nnx.Linear(features, num_classes, dtype=config.dtype, rngs=rngs)

    def encode(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Representations [B, H] of examples x [B, ...]; `rngs` turn dropout on."""
        return self.encoder(x, rngs=rngs)

    def project(self, representation: Array) -> Array:
        """Embeddings float32 [B, D] to contrast, of representations [B, H]."""
        return self.projection(representation).astype(jnp.float32)

    def classify(self, representation: Array) -> Array:
        """Logits float32 [B, C] of representations [B, H]."""
        return self.classifier(representation).astype(jnp.float32)


class Projection(nnx.Module):
    """Projection head: linear, or with one hidden layer where `hidden` is above 0."""

    def __init__(self, features: int, hidden: int, dim: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs) if hidden else None
        self.out = nnx.Linear(hidden or features, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.out(x if self.hidden is None else nnx.relu(self.hidden(x)))
