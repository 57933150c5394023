"""How a run that fails tells so."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

import jax

from sdjax.training.interrupt import Interrupted
from sdjax.training.loop import NonFiniteLossError
from sdjax.training.processes import LostPeerError, PeerError

# Errors that the user can do something about: their text says it all.
_EXPECTED = (NonFiniteLossError, OSError, PeerError, ValueError)


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """A block whose expected errors end the program with one line, others with a traceback.

    A process that fails among several ends at once: the others wait for it, and Python would have
    it wait for them.
    """
    try:
        yield
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise
    except Exception as error:
        several = jax.process_count() > 1
        if isinstance(error, _EXPECTED):
            print(f"Error: {error}", file=sys.stderr)
        elif several and isinstance(error, LostPeerError | jax.errors.JaxRuntimeError):
            text = str(error).splitlines()[0][:300]
            print(
                f"Error: process {jax.process_index()} lost another process ({text}). What was "
                "saved is kept; the same command on all processes resumes from there.",
                file=sys.stderr,
            )
        elif several:
            traceback.print_exc()
        else:
            raise
        if several:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        sys.exit(1)
