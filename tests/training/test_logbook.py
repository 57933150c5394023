"""What is seen of a run as it goes."""

import io

import pytest
from rich.console import Console

from sdjax.training.logbook import TrainingProgress


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_last_validation(terminal):
    output = io.StringIO()
    with TrainingProgress(Console(file=output, force_terminal=terminal, width=140)) as progress:
        values = {"loss": 0.5, "examples_per_second": 1234.5}
        progress.update("joint", 10, 40, {**values, "mAP": 0.4321})
        progress.update("joint", 40, 40, values)
    shown = [line for line in output.getvalue().splitlines() if "40/40" in line]
    assert "loss 0.5000  1,234 examples/s  validation mAP 0.4321" in shown[-1]


def test_progress_without_a_validation_says_none():
    output = io.StringIO()
    with TrainingProgress(Console(file=output, width=140)) as progress:
        progress.update("pretrain", 40, 40, {"loss": 0.5, "examples_per_second": 7.0, "mAP": None})
    assert "validation" not in output.getvalue()
