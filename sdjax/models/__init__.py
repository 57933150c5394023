"""Flax NNX encoders, by a registry, and heads."""

from sdjax.models.bert import Bert
from sdjax.models.encoders import MLP, ConvNet, TokenStates
from sdjax.models.label_attention import LabelAttention
from sdjax.models.model import Model, Projection
from sdjax.models.published import Pretrained, pretrained
from sdjax.models.published_images import PretrainedImages
from sdjax.models.registry import ENCODERS, make_encoder, register_encoder
from sdjax.models.resnet import ResNet
from sdjax.models.vit import ViT

__all__ = [
    "ENCODERS",
    "MLP",
    "Bert",
    "ConvNet",
    "LabelAttention",
    "Model",
    "Pretrained",
    "PretrainedImages",
    "Projection",
    "ResNet",
    "TokenStates",
    "ViT",
    "make_encoder",
    "pretrained",
    "register_encoder",
]
