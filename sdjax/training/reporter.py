"""What the main process tells of a run as it goes; the others are silent."""

import contextlib
from pathlib import Path

from sdjax.training.processes import is_main
from sdjax.training.progress import TrainingProgress
from sdjax.training.records import Record, Recorder


class Reporter(contextlib.ExitStack):
    """Records and progress of a run on the main process, nothing elsewhere; a context manager.

    Args:
      workdir: folder of the run.
      step: where the run starts.
    """

    def __init__(self, workdir: Path, step: int):
        super().__init__()
        self._recorder = self._progress = None
        if is_main():
            self._recorder = self.enter_context(contextlib.closing(Recorder(workdir, step)))
            self._progress = self.enter_context(TrainingProgress())

    def write(self, record: Record) -> None:
        """Adds a record to the learning curves."""
        if self._recorder is not None:
            self._recorder.write(record)

    def update(self, phase: str, done: int, total: int, loss: float, rate: float) -> None:
        """Shows the state of `phase` after `done` of `total` steps, at `rate` examples a second."""
        if self._progress is not None:
            self._progress.update(phase, done, total, loss, rate)

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._progress is not None:
            self._progress.say(text)
