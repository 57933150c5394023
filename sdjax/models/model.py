"""The model that is trained: encoder, projection head, linear classifier, the loss's parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from sdjax.config import LEAST_TEMPERATURE, LossConfig, ModelConfig
from sdjax.losses import PROTOTYPE_LOSSES
from sdjax.models.registry import InputSpec, make_encoder

Array = jax.Array

_LEAST_LOG = math.log(LEAST_TEMPERATURE)


class Model(nnx.Module):
    """Encoder with two heads: a projection for contrast, a linear classifier for labels.

    Args:
      config: sizes, all of them above 0.
      loss: tells whether the loss has parameters.
      input_spec: of one example, a pytree of `jax.ShapeDtypeStruct`.
      num_classes: number of labels C.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        config: ModelConfig,
        loss: LossConfig,
        input_spec: InputSpec,
        num_classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = make_encoder(config, input_spec, rngs)
        features = self.encoder.out_features
        self.projection = Projection(
            features, config.projection_width, config.projection_dim, config.dtype, rngs=rngs
        )
        self.classifier = nnx.Linear(features, num_classes, dtype=config.dtype, rngs=rngs)
        learned = LossParameters(loss, num_classes, config.projection_dim, rngs=rngs)
        self.loss = learned if learned.any else None

    def encode(self, x: Any, *, rngs: nnx.Rngs | None = None, where: Array | None = None) -> Array:
        """Representations [B, H] of examples x [B, ...].

        `rngs` turn dropout on, and batch statistics to those of the rows in `where` [B].
        """
        return self.encoder(x, rngs=rngs, where=where)

    def project(self, representation: Array) -> Array:
        """Embeddings float32 [B, D] to contrast, of representations [B, H]."""
        return self.projection(representation).astype(jnp.float32)

    def classify(self, representation: Array) -> Array:
        """Logits float32 [B, C] of representations [B, H]."""
        return self.classifier(representation).astype(jnp.float32)

    def classify_block(self, representation: Array, start: Array | int, size: int) -> Array:
        """Logits float32 [B, size] of the labels from `start` on."""
        dtype = self.classifier.dtype
        kernel = jax.lax.dynamic_slice_in_dim(self.classifier.kernel[...], start, size, axis=1)
        assert self.classifier.bias is not None
        bias = jax.lax.dynamic_slice_in_dim(self.classifier.bias[...], start, size)
        logits = representation.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)
        return logits.astype(jnp.float32)


class Projection(nnx.Module):
    """Projection head: linear, or with one hidden layer where `hidden` is above 0."""

    def __init__(self, features: int, hidden: int, dim: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs) if hidden else None
        self.out = nnx.Linear(hidden or features, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.out(x if self.hidden is None else nnx.relu(self.hidden(x)))


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
