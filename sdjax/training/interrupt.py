"""SIGTERM and Ctrl-C end a run after its current step, with all of it saved."""

import signal
from types import FrameType


class Interrupted(SystemExit):
    """The run was asked to stop, and has saved; the exit status is that of the signal."""

    def __init__(self, number: int, step: int):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.step = step

    def __str__(self) -> str:
        return (
            f"Stopped by {self.signal.name} after step {self.step}; saved. "
            "The same command resumes from there."
        )


class InterruptGuard:
    """Notes SIGTERM and SIGINT instead of dying; a second one of them kills as usual."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous = {}

    def __enter__(self) -> "InterruptGuard":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for each, handler in self._previous.items():
            signal.signal(each, handler)
