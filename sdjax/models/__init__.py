"""Flax NNX encoders and heads."""

from sdjax.models.encoders import ConvNet, ResidualMLP
from sdjax.models.model import Model, Projection

__all__ = ["ConvNet", "Model", "Projection", "ResidualMLP"]
