"""Training: processes, phases, steps, checkpoints, test, and the trained model."""

from sdjax.training.errors import reported_errors
from sdjax.training.interrupt import Interrupted
from sdjax.training.loop import NonFiniteLossError
from sdjax.training.predictor import Predictor, load
from sdjax.training.processes import PeerError, initialize
from sdjax.training.results import print_results
from sdjax.training.run import Run

__all__ = [
    "Interrupted",
    "NonFiniteLossError",
    "PeerError",
    "Predictor",
    "Run",
    "initialize",
    "load",
    "print_results",
    "reported_errors",
]
