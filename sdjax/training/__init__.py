"""Training: setup, phases, steps, checkpoints, test, and the trained model."""

from sdjax.training.errors import Interrupted, NonFiniteLossError, PeerError, reported_errors
from sdjax.training.gallery import Gallery, Neighbors
from sdjax.training.predictor import Predictor, load
from sdjax.training.processes import initialize, is_main
from sdjax.training.results import print_results
from sdjax.training.run import score, train
from sdjax.training.selection import select
from sdjax.training.setup import Setup, make_setup
from sdjax.training.workdir import with_saved_batch_size

__all__ = [
    "Gallery",
    "Interrupted",
    "Neighbors",
    "NonFiniteLossError",
    "PeerError",
    "Predictor",
    "Setup",
    "initialize",
    "is_main",
    "load",
    "make_setup",
    "print_results",
    "reported_errors",
    "score",
    "select",
    "train",
    "with_saved_batch_size",
]
