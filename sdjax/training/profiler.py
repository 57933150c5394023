"""A trace of a few training steps."""

from pathlib import Path
from typing import Any

import jax

# Of an attempt: the first step compiles, the next fill caches.
_FIRST, _LAST = 3, 7


class StepProfiler:
    """Traces a few steps for TensorBoard, XProf or Perfetto; use as a context manager.

    Args:
      folder: where the trace goes; None is no trace.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._steps = 0
        self._running = False

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def before_step(self, previous: Any) -> None:
        """To be called before each training step, with what the one before it returns."""
        self._steps += 1
        if self._folder is not None and self._steps == _FIRST:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif self._steps == _LAST + 1:
            jax.block_until_ready(previous)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
