"""The model that is trained: encoder, projection head, linear classifier."""

import jax
from flax import nnx

from sdjax.checks import suggest
from sdjax.config import ModelConfig
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
        if config.encoder == "mlp":
            self.encoder = MLP(*sizes, config.frequencies, rngs=rngs)
            features = config.width
        elif config.encoder == "convnet":
            self.encoder = ConvNet(*sizes, rngs=rngs)
            features = config.width * 2 ** (config.depth - 1)
        else:
            raise ValueError(suggest("encoder", config.encoder, ("mlp", "convnet")))
        self.projection = Projection(
            features, config.projection_width, config.projection_dim, rngs=rngs
        )
        self.classifier = nnx.Linear(features, num_classes, rngs=rngs)

    def encode(self, x: Array, *, rngs: nnx.Rngs | None = None) -> Array:
        """Representations [B, H] of examples x [B, ...]; `rngs` turn dropout on."""
        return self.encoder(x, rngs=rngs)

    def project(self, representation: Array) -> Array:
        """Embeddings [B, D] to contrast, of representations [B, H]."""
        return self.projection(representation)

    def classify(self, representation: Array) -> Array:
        """Logits [B, C] of representations [B, H]."""
        return self.classifier(representation)


class Projection(nnx.Module):
    """Projection head: linear, or with one hidden layer where `hidden` is above 0."""

    def __init__(self, features: int, hidden: int, dim: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, hidden, rngs=rngs) if hidden else None
        self.out = nnx.Linear(hidden or features, dim, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.out(x if self.hidden is None else nnx.relu(self.hidden(x)))
