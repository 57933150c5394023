"""What `--help` shows: flags, configs, recipes, losses, encoders and every field of the config.

All of it is read off the sources, and nothing is imported that takes seconds.
"""

import ast
import dataclasses
import functools
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from sdjax.losses import LOSSES

ASKED_BY = ("help", "helpshort", "h", "?")
_WIDTH = 100
_COLUMN = 32  # where texts begin
_REGISTRY = Path(__file__).parent / "models" / "registry.py"


def is_asked_for(argv: Iterable[str]) -> bool:
    """Whether one of the arguments asks for help."""
    return any(each.startswith("-") and each.lstrip("-") in ASKED_BY for each in argv)


def page(about: str, module: str, config: Any, configs: Iterable[Path]) -> str:
    """The whole page of a command.

    Args:
      about: what the command does, its module's docstring.
      module: that defines the command's own flags, as absl calls it.
      config: whose values the fields have, an instance of `sdjax.config.Config`.
      configs: the files of those that come with sdjax.
    """
    width = min(shutil.get_terminal_size((_WIDTH, 0)).columns, _WIDTH)
    sections = [
        *(textwrap.fill(part, width) for part in about.strip().split("\n\n")),
        _section("Configs, --config=NAME or PATH", _headlines(configs), width),
        _section("Recipes, --config.recipe=NAME", _recipes(type(config)), width),
        _section("Losses, --config.loss.name=NAME", _losses(), width),
        _section("Encoders, --config.model.encoder=NAME", _encoders(), width),
        _section("Flags", _flags(module), width),
        *_field_sections("Fields, --config.NAME=VALUE", config, "", width, set()),
    ]
    return "\n\n".join(sections) + "\n"


def _section(title: str, entries: Iterable[tuple[str, str]], width: int) -> str:
    """A title above a name and a text a line, or more of them where the text is longer."""
    lines = [textwrap.fill(title, width, subsequent_indent="  ")]
    indent = " " * _COLUMN
    for name, text in entries:
        head = textwrap.wrap(name, width, initial_indent="  ", subsequent_indent="    ")
        wrapped = textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
        )
        if wrapped and len(head) == 1 and len(head[0]) < _COLUMN - 1:
            head, wrapped[0] = [], head[0].ljust(_COLUMN) + wrapped[0][_COLUMN:]
        lines += [*head, *wrapped]
    return "\n".join(lines)


def _field_sections(
    title: str, config: Any, prefix: str, width: int, seen: set[type]
) -> Iterator[str]:
    """A section for `config`, and one for each of the configs in it.

    Of a kind that was `seen` before only the values are shown.
    """
    kind, nested, entries = type(config), [], []
    texts = {} if kind in seen else comments(kind)
    for each in dataclasses.fields(kind):
        name, value = f"{prefix}{each.name}", getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            about = _joined(_about(type(value)), comments(kind).get(each.name, ""))
            nested.append((f"{name}: {about}", value, f"{name}."))
        else:
            limits = "" if kind in seen else _limits(each)
            entries.append((f"{name}={_shown(value)}", _joined(texts.get(each.name, ""), limits)))
    if kind in seen:
        entries = [("  ".join(head for head, _ in entries), "")]
    seen.add(kind)
    yield _section(title, entries, width)
    for inner_title, value, inner in nested:
        yield from _field_sections(inner_title, value, inner, width, seen)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " | ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _limits(each: dataclasses.Field) -> str:
    """What the field may be."""
    if known := each.metadata.get("known"):
        return " | ".join(name or "''" for name in known)
    signs = {"at least": "≥", "at most": "≤", "above": ">", "below": "<"}
    bounds = each.metadata.get("bounds", {})
    return ", ".join(f"{signs[name]} {bound:g}" for name, bound in bounds.items())


def _joined(*texts: str) -> str:
    return "; ".join(text.rstrip(".,") for text in texts if text)


@functools.cache
def comments(kind: type) -> dict[str, str]:
    """The comments that stand above and behind the fields of a dataclass, by field."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:  # There are no sources.
        return {}
    found = {
        token.start[0]: (token.string.lstrip("# "), token.line.strip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    result = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            line = node.lineno - 1
            above: list[str] = []
            while line in found and found[line][1]:
                above.insert(0, found[line][0])
                line -= 1
            behind = found.get(node.end_lineno or 0, ("", False))[0]
            result[node.target.id] = _joined(" ".join(above), behind)
    return result


def _recipes(kind: type) -> Iterator[tuple[str, str]]:
    """Of the class's docstring, the lines that begin with a quoted name."""
    for line in (inspect.getdoc(kind) or "").splitlines():
        name, _, text = line.strip().partition(" ")
        if name.startswith('"'):
            yield name.strip('"'), text.strip().rstrip(";.")


def _about(kind: type) -> str:
    """The docstring of a config, as one paragraph."""
    return " ".join((inspect.getdoc(kind) or "").split()).rstrip(".")


def _headlines(configs: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for path in configs:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        yield path.stem, text.partition("\n")[0].rstrip(".")


def _losses() -> Iterator[tuple[str, str]]:
    for name, loss in LOSSES.items():
        yield name, (inspect.getdoc(loss) or "").partition("\n")[0].rstrip(".")


def _encoders() -> Iterator[tuple[str, str]]:
    """Names of the encoders that come with sdjax, and what they take: of the registry's source."""
    for node in ast.walk(ast.parse(_REGISTRY.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "register_encoder":
            takes = [ast.literal_eval(each.value) for each in node.keywords if each.arg == "takes"]
            yield ast.literal_eval(node.args[0]), "".join(takes)


def _flags(module: str) -> Iterator[tuple[str, str]]:
    for each in flags.FLAGS.flags_by_module_dict().get(module, []):
        default = ",".join(each.default) if isinstance(each.default, list) else each.default
        default = f" [{default}]" if default not in (None, False, "") else ""
        text = (each.help or "").partition(";\n")[0]  # absl adds that a flag may be repeated
        yield f"--{each.name}" + ("" if each.boolean else "="), f"{text}{default}"
