"""The model that is trained: encoder, projection head, classifier, the loss's parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sdjax.config import LEAST_TEMPERATURE, LossConfig, ModelConfig
from sdjax.errors import InputError
from sdjax.labels import LabelIndices
from sdjax.losses import PROTOTYPE_LOSSES
from sdjax.models.adapters import Adapters
from sdjax.models.encoders import TokenStates
from sdjax.models.label_attention import LabelAttention
from sdjax.models.registry import InputSpec, make_encoder

Array = jax.Array
# Of the examples of a batch: vectors [B, H], or all tokens where the labels attend to them.
Representation = Array | TokenStates

_LEAST_LOG = math.log(LEAST_TEMPERATURE)


class Model(nnx.Module):
    """Encoder with two heads: a projection for contrast, a classifier for labels.

    The classifier is linear, or where `config.pooling` is "label_wise" a `LabelAttention` to the
    tokens, the mean of which is then what is projected.

    Args:
      config: sizes, all of them above 0.
      loss: tells whether the loss has parameters.
      input_spec: of one example, a pytree of `jax.ShapeDtypeStruct`.
      num_classes: number of labels C.
      weighted: whether it holds weights of the labels, for the supervised loss.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        config: ModelConfig,
        loss: LossConfig,
        input_spec: InputSpec,
        num_classes: int,
        *,
        weighted: bool = False,
        rngs: nnx.Rngs,
    ):
        self.encoder = make_encoder(config, input_spec, rngs)
        rank = config.lora_rank
        self.adapters = Adapters(self.encoder, rank, rngs=rngs) if rank else None
        features = self.encoder.out_features
        self.projection = Projection(
            features, config.projection_width, config.projection_dim, config.dtype, rngs=rngs
        )
        self.classifier = _make_classifier(config, self.encoder, num_classes, rngs)
        self.label_weights = LabelWeights(num_classes) if weighted else None
        learned = LossParameters(loss, num_classes, config.projection_dim, rngs=rngs)
        self.loss = learned if learned.any else None

    def encode(
        self, x: Any, *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> Representation:
        """Representations [B, H] of examples x [B, ...], or the states of their tokens.

        `rngs` turn dropout on, and batch statistics to those of the rows in `where` [B].
        """
        encoder = self.encoder if self.adapters is None else self.adapters.adapted(self.encoder)
        return encoder(x, rngs=rngs, where=where)

    def pooled(self, representation: Representation) -> Array:
        """Representations as vectors [B, H]."""
        tokens = isinstance(representation, TokenStates)
        return representation.mean() if tokens else representation

    def project(self, representation: Representation) -> Array:
        """Embeddings float32 [B, D] to contrast, of representations."""
        return self.projection(self.pooled(representation)).astype(jnp.float32)

    def project_labels(self, representation: TokenStates, labels: Any) -> Array:
        """Embeddings float32 of each example for labels, each by its own attention.

        Args:
          representation: of B examples.
          labels: multi-hot [B, C], or `LabelIndices` [B, L].

        Returns:
          [B, C, D] for all labels; or [B, L, D] for those of the lists, whatever at their padding.
        """
        indices = None
        if isinstance(labels, LabelIndices):
            indices = jnp.maximum(jnp.asarray(labels.indices), 0)
        vectors = self.classifier.embeddings(representation, indices)
        return self.projection(vectors).astype(jnp.float32)

    def classify(self, representation: Representation) -> Array:
        """Logits float32 [B, C] of representations."""
        return self.classifier(representation).astype(jnp.float32)

    def classify_block(
        self, representation: Representation, start: Array | int, size: int
    ) -> Array:
        """Logits float32 [B, size] of the labels from `start` on."""
        return self.classifier.block(representation, start, size).astype(jnp.float32)


class LinearClassifier(nnx.Linear):
    """Linear layer of which a block of outputs can be had."""

    def block(self, x: Array, start: Array | int, size: int) -> Array:
        """Outputs [B, size] from `start` on, of x [B, H]."""
        kernel = jax.lax.dynamic_slice_in_dim(self.kernel[...], start, size, axis=1)
        assert self.bias is not None
        bias = jax.lax.dynamic_slice_in_dim(self.bias[...], start, size)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def _make_classifier(config: ModelConfig, encoder: Any, num_classes: int, rngs: nnx.Rngs) -> Any:
    features = encoder.out_features
    if config.pooling != "label_wise":
        return LinearClassifier(features, num_classes, dtype=config.dtype, rngs=rngs)
    if getattr(encoder, "pooling", "") != "label_wise":
        raise InputError(
            f"model.pooling 'label_wise' is for encoders of tokens, such as 'bert'; "
            f"{config.encoder!r} gives one vector an example."
        )
    return LabelAttention(
        features,
        num_classes,
        width=config.attention_width or features,
        chunk=config.label_chunk,
        dtype=config.dtype,
        rngs=rngs,
    )


class Projection(nnx.Module):
    """Projection head: linear, or with one hidden layer where `hidden` is above 0."""

    def __init__(self, features: int, hidden: int, dim: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs) if hidden else None
        self.out = nnx.Linear(hidden or features, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.out(x if self.hidden is None else nnx.relu(self.hidden(x)))


class LabelWeights(nnx.Module):
    """What the supervised loss of a label is multiplied by; read off the data, and never learned.

    Attributes:
      values: float32 [2, C], where a label is present and where it is absent; ones at first.
    """

    def __init__(self, num_classes: int):
        self.values = nnx.Variable(jnp.ones((2, num_classes), jnp.float32))


class LossParameters(nnx.Module):
    """What a loss learns: its temperature, as a logarithm, and prototypes of the labels [C, D].

    Args:
      config: tells which of them there are.
      num_classes: number of labels C.
      dim: of an embedding.
      rngs: of the prototypes, whose directions are uniform.

    References:
      Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021
      (https://arxiv.org/abs/2103.00020), which also bounds it by 0.01.
    """

    def __init__(self, config: LossConfig, num_classes: int, dim: int, *, rngs: nnx.Rngs):
        log_temperature, prototypes = None, None
        if config.learn_temperature:
            log_temperature = nnx.Param(jnp.asarray(math.log(config.temperature), jnp.float32))
        if config.name in PROTOTYPE_LOSSES:
            prototypes = nnx.Param(jax.random.normal(rngs.params(), (num_classes, dim)))
        self.log_temperature, self.prototypes = log_temperature, prototypes

    @property
    def any(self) -> bool:
        """Whether there is something to learn."""
        return self.log_temperature is not None or self.prototypes is not None

    @property
    def temperature(self) -> Array:
        """At least 0.01."""
        assert self.log_temperature is not None
        return jnp.exp(_bounded(self.log_temperature[...]))


@jax.custom_vjp
def _bounded(x: Array) -> Array:
    """max(x, log 0.01), whose gradient is that of x where descent would raise it.

    A parameter below the bound would stay there for ever otherwise.
    """
    return jnp.maximum(x, _LEAST_LOG)


def _bounded_forward(x: Array) -> tuple[Array, Array]:
    return _bounded(x), x


def _bounded_backward(x: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where((x > _LEAST_LOG) | (gradient < 0), gradient, 0),)


_bounded.defvjp(_bounded_forward, _bounded_backward)
