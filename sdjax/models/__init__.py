"""Flax NNX encoders and heads."""

from sdjax.models.encoders import MLP, ConvNet
from sdjax.models.model import Model, Projection

__all__ = ["MLP", "ConvNet", "Model", "Projection"]
