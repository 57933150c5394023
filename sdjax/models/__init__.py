"""Flax NNX encoders, by a registry, and heads."""

from sdjax.models.bert import Bert
from sdjax.models.encoders import MLP, ConvNet, TokenStates
from sdjax.models.label_attention import LabelAttention
from sdjax.models.model import Model, Projection
from sdjax.models.published import Pretrained, pretrained
from sdjax.models.registry import ENCODERS, make_encoder, register_encoder

__all__ = [
    "ENCODERS",
    "MLP",
    "Bert",
    "ConvNet",
    "LabelAttention",
    "Model",
    "Pretrained",
    "Projection",
    "TokenStates",
    "make_encoder",
    "pretrained",
    "register_encoder",
]
