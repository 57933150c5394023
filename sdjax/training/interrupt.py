"""SIGTERM and Ctrl-C end a run after its current step, with all of it saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from sdjax.training.errors import Interrupted


class InterruptGuard:
    """Notes SIGTERM and SIGINT instead of dying; a second one of them kills as usual.

    Where there are several processes, a signal to one of them stops all after the same step. JAX
    itself listens for SIGTERM then, and tells the others. Outside the main thread, which alone may
    listen for signals, it notes nothing.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "InterruptGuard":
        numbers = (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,)
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
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


@contextlib.contextmanager
def sigterm_raises(text: str) -> Iterator[None]:
    """Has SIGTERM raise `Interrupted` with `text` where no run notes it, in the main thread."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number, text)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
