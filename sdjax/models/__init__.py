"""Flax NNX encoders, by a registry, and heads."""

from sdjax.models.encoders import MLP, ConvNet
from sdjax.models.model import Model, Projection
from sdjax.models.registry import ENCODERS, make_encoder, register_encoder

__all__ = [
    "ENCODERS",
    "MLP",
    "ConvNet",
    "Model",
    "Projection",
    "make_encoder",
    "register_encoder",
]
