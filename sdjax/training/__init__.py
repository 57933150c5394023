"""Training: phases, steps, checkpoints, test, and the trained model."""

from sdjax.training.interrupt import Interrupted
from sdjax.training.loop import NonFiniteLossError
from sdjax.training.predictor import Predictor, load
from sdjax.training.results import print_results
from sdjax.training.run import Run

__all__ = ["Interrupted", "NonFiniteLossError", "Predictor", "Run", "load", "print_results"]
