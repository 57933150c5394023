"""Configs that come with sdjax: one `get_config()` a file, headed by its command and its result."""

import inspect
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app
from ml_collections import config_flags

from sdjax import usage
from sdjax.checks import one_of
from sdjax.config import Config, overrides
from sdjax.errors import InputError

FOLDER = Path(__file__).parent


def run_with_config(main: Callable[[list[str]], None]) -> None:
    """Runs a command that has a flag `--config`, a name or a path, with "yeast" as its default.

    `--help` shows the docstring of the command's module, its flags, and all that a config may hold.
    """
    try:
        sys.argv = with_paths(sys.argv)
        overrides(sys.argv[1:], Config)
    except InputError as error:
        sys.exit(f"Error: {error}")
    if usage.is_asked_for(sys.argv[1:]):
        encoding = sys.stdout.encoding or "utf-8"
        print(_help(main).encode(encoding, "replace").decode(encoding), end="")
        sys.exit(0)
    config_flags.DEFINE_config_file("config", str(FOLDER / "yeast.py"))
    app.run(main)


def typed_command() -> str:
    """The command as it was typed, but for the path of Python."""
    interpreter, *arguments = sys.orig_argv
    return shlex.join([Path(interpreter).name, *arguments])


def _help(main: Callable[[list[str]], None]) -> str:
    """The page of the command, with the values of the config that `sys.argv` names."""
    module = sys.argv[0] if main.__module__ == "__main__" else main.__module__
    path = FOLDER / "yeast.py"
    for flag, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        if flag.lstrip("-") == "config":
            path = Path(value)
        elif flag.lstrip("-").startswith("config="):
            path = Path(flag.partition("=")[2])
    config = runpy.run_path(str(path))["get_config"]() if path.is_file() else Config()
    return usage.page(inspect.getdoc(sys.modules[main.__module__]) or "", module, config, _files())


def _files() -> list[Path]:
    return sorted(FOLDER.glob("[!_]*.py"))


def with_paths(argv: list[str]) -> list[str]:
    """`argv` with the path of the config that `--config=NAME` or `--config NAME` names.

    Raises:
      InputError: if a name without a suffix is none of the configs that come with sdjax.
    """
    known = [path.stem for path in _files()]
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
