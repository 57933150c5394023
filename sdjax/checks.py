"""Errors that name what came, what was expected, and the nearest thing that exists."""

import difflib
from collections.abc import Iterable

from sdjax.errors import InputError


def suggest(kind: str, name: str, known: Iterable[str]) -> str:
    """Text of the error for an unknown `name`, with the nearest known one where there is one."""
    names = list(known)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}."


def one_of(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns `name` if it is one of `known`, else raises ValueError with the nearest one."""
    names = list(known)
    if name not in names:
        raise InputError(suggest(kind, name, names))
    return name
