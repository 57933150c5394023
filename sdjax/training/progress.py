"""A live progress bar on a terminal, plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 5.0


class TrainingProgress:
    """Shows phase, step, loss, rate and time left; use as a context manager.

    Args:
      console: where to write; standard error by default, which leaves standard output to results.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(file=sys.stderr)
        self._bar = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
        self._tasks = {}
        self._last_line = 0.0

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, done: int, total: int, loss: float, rate: float) -> None:
        """Shows the state of `phase` after `done` of `total` steps, at `rate` examples a second."""
        status = f"loss {loss:.4f}  {rate:,.0f} examples/s"
        if self._bar is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total, status="")
            self._bar.update(self._tasks[phase], completed=done, status=status)
            return
        now = time.monotonic()
        if done == total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.say(f"{phase:>9}  step {done}/{total}  {status}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._console.print(text, highlight=False, soft_wrap=True)
