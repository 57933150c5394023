"""The errors that end a run, and what the user sees of them."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax

from sdjax.errors import InputError


class NonFiniteLossError(FloatingPointError):
    """The loss, or its gradient, is infinite or not a number."""


class PeerError(RuntimeError):
    """Another process of the run failed."""


class LostPeerError(RuntimeError):
    """Another process of the run is gone."""


class Interrupted(SystemExit):
    """The run was asked to stop; the exit status is that of the signal.

    Args:
      number: of the signal.
      text: what was done, and what is saved.
    """

    def __init__(self, number: int, text: str):
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.text = f"Stopped by {self.signal.name} {text}"

    def __str__(self) -> str:
        return self.text


# Errors that the user can do something about: their text says it all.
_EXPECTED = (InputError, NonFiniteLossError, OSError, PeerError)


@contextlib.contextmanager
def reported_errors(debug: bool = False) -> Iterator[None]:
    """A block whose expected errors end the program with one line, others with a traceback.

    A process that fails among several ends at once: the others wait for it, and Python would have
    it wait for them.

    Args:
      debug: show the traceback of every error.
    """
    try:
        yield
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("Stopped by SIGINT. The same command resumes from what is saved.", file=sys.stderr)
        _exit(128 + signal.SIGINT)
    except Exception as error:
        several = jax.process_count() > 1
        lost = several and isinstance(error, LostPeerError | jax.errors.JaxRuntimeError)
        if debug or not (lost or isinstance(error, _EXPECTED)):
            traceback.print_exc()
        elif lost:
            text = str(error).splitlines()[0][:300]
            print(
                f"Error: process {jax.process_index()} lost another process ({text}). What was "
                "saved is kept; the same command on all processes resumes from there.",
                file=sys.stderr,
            )
        else:
            print(f"Error: {error}", file=sys.stderr)
        _exit(1)


def _exit(status: int) -> NoReturn:
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
