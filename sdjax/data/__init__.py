"""Data: TFDS sets and the user's own files, as seeded, resumable batches of arrays."""

from sdjax.data.augment import random_view
from sdjax.data.batches import (
    evaluation_batches,
    evaluation_order,
    steps_per_epoch,
    to_device,
    training_batches,
)
from sdjax.data.dataset import Dataset, load, read_inputs
from sdjax.data.preprocess import Preprocess
from sdjax.data.sources import ArraySource, JoinedSource, Source
from sdjax.data.summary import summarise
from sdjax.data.texts import TextPreprocess, TextSource

__all__ = [
    "ArraySource",
    "Dataset",
    "JoinedSource",
    "Preprocess",
    "Source",
    "TextPreprocess",
    "TextSource",
    "evaluation_batches",
    "evaluation_order",
    "load",
    "random_view",
    "read_inputs",
    "steps_per_epoch",
    "summarise",
    "to_device",
    "training_batches",
]
