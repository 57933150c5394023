"""Ctrl-C and SIGTERM end a command of sdjax at once, with a line at most, never a traceback.

Python raises KeyboardInterrupt wherever it happens to be. Libraries that are being imported turn it
into other errors, callbacks of C code lose it, and threads that still compile crash at the exit.
"""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

# What may be replaced: where a signal is ignored, as in the background of a shell, it stays so.
_replaced: list[Any] = [signal.default_int_handler, signal.SIG_DFL]


def is_command() -> bool:
    """Whether Python is about to run `python -m sdjax.NAME`, and imports the package for that."""
    names = (name for flag, name in itertools.pairwise(sys.orig_argv) if flag == "-m")
    return sys.argv[:1] == ["-m"] and next(names, "").startswith("sdjax.")


def silently() -> None:
    """Lets Ctrl-C end the process without a word."""
    _handle_by(signal.SIG_DFL, signal.SIGINT)


def with_a_line(text: str = "") -> None:
    """Lets Ctrl-C or SIGTERM end the process with "Stopped by" its name, and `text`.

    What was being written stays as it is, as after a SIGKILL.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        terminal = os.isatty(2)
        # A new line after the "^C", and the cursor that a progress bar has hidden.
        before = "\x1b[?25h\n" if terminal else ""
        line = f"Stopped by {signal.Signals(number).name}. {text}".strip()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"{before}{line}\n".encode())
        os._exit(128 + number)

    _handle_by(leave, signal.SIGINT, signal.SIGTERM)


def _handle_by(handler: Callable[..., None] | signal.Handlers, *numbers: signal.Signals) -> None:
    _replaced.append(handler)
    for number in numbers:
        if signal.getsignal(number) in _replaced:
            signal.signal(number, handler)
