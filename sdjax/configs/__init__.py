"""Configs that come with sdjax: one `get_config()` a file, headed by its command and its result."""

from pathlib import Path

from sdjax.checks import one_of

FOLDER = Path(__file__).parent


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
