"""Errors that a user can do something about; any file may raise them, as this imports no other."""

import contextlib
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """A config, a file or a command that cannot be used; the text says what was expected."""


@contextlib.contextmanager
def ending_in_a_line() -> Iterator[None]:
    """A block of a command whose errors of the user's end the program with one line."""
    try:
        yield
    except (OSError, InputError) as error:
        sys.exit(f"Error: {error}")
