"""Errors that a user can do something about; any file may raise them, as this imports no other."""

import contextlib
import sys
from collections.abc import Iterator, Sequence


class InputError(ValueError):
    """A config, a file or a command that cannot be used; the text says what was expected."""


@contextlib.contextmanager
def ending_in_a_line() -> Iterator[None]:
    """A block of a command whose errors of the user's end the program with one line."""
    try:
        yield
    except (OSError, InputError) as error:
        sys.exit(f"Error: {error}")


def check_no_words(argv: Sequence[str]) -> None:
    """Raises absl's UsageError, which shows how a command is used, if words are left of `argv`.

    Args:
      argv: the command and what its flags did not take.
    """
    if argv[1:]:
        from absl import app

        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
