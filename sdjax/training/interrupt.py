"""SIGTERM and Ctrl-C end a run after its current step, with all of it saved."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


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
    """Notes SIGTERM and SIGINT instead of dying; a second one of them kills as usual.

    Where there are several processes, a signal to one of them stops all after the same step. JAX
    itself listens for SIGTERM then, and tells the others.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "InterruptGuard":
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def requested(self, step: int) -> int | None:
        """The signal after which to stop with `step`, the same on every process; None to go on."""
        if self._alone:
            return self._received
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
