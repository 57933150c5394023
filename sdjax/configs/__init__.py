"""Configs that come with sdjax: one `get_config()` a file, headed by its command and its result."""

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app
from ml_collections import config_flags

from sdjax.checks import one_of
from sdjax.config import Config, overrides
from sdjax.errors import InputError

FOLDER = Path(__file__).parent


def run_with_config(main: Callable[[list[str]], None]) -> None:
    """Runs a command that has a flag `--config`, a name or a path, with "yeast" as its default."""
    try:
        sys.argv = with_paths(sys.argv)
        overrides(sys.argv[1:], Config)
    except InputError as error:
        sys.exit(f"Error: {error}")
    config_flags.DEFINE_config_file("config", str(FOLDER / "yeast.py"))
    app.run(main)


def with_paths(argv: list[str]) -> list[str]:
    """`argv` with the path of the config that `--config=NAME` or `--config NAME` names.

    Raises:
      InputError: if a name without a suffix is none of the configs that come with sdjax.
    """
    known = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    result = list(argv)
    for place, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag.lstrip("-") != "config" or not argument.startswith("-"):
            continue
        at = place if equals else place + 1
        name = value if equals else (argv[at] if at < len(argv) else "")
        if name and not name.endswith(".py") and ".py:" not in name:
            path = FOLDER / f"{one_of('config', name, known)}.py"
            result[at] = f"{flag}={path}" if equals else str(path)
    return result
