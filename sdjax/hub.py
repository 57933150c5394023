"""The files of a published model: a local folder or file, or a model of the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.errors import InputError

CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Nothing else is fetched: no pickle, and no second copy of the weights in another format.
_FETCHED = (CONFIG, TOKENIZER, IMAGES, WEIGHTS, INDEX, "model-*-of-*.safetensors")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def local(origin: str) -> Path:
    """The local folder or file of a model; one of the hub is fetched first.

    Args:
      origin: path of a folder or a safetensors file, or an id of the hub, "NAME" or "OWNER/NAME",
        also with "@REVISION".

    Raises:
      InputError: if there is no such path, and it is no id or cannot be fetched.
    """
    path = Path(origin).expanduser()
    if origin and path.exists():
        return path
    if not _ID.fullmatch(origin):
        raise InputError(f"{origin}: no such file or folder, and not an id of the hub, OWNER/NAME.")
    name, _, revision = origin.partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            f"{origin}: no such file or folder; to fetch it from the hub needs the package "
            "huggingface_hub: pip install 'sdjax[text]' or 'sdjax[images]'."
        ) from error
    try:
        folder = snapshot_download(name, revision=revision or None, allow_patterns=list(_FETCHED))
    except Exception as error:  # of the hub's client, of HTTP and of sockets, with no common base
        raise InputError(
            f"{origin}: no such file or folder, and it cannot be fetched from the hub "
            f"({type(error).__name__}: {_first_line(error)}). Off line, give the path of a folder "
            f"with {CONFIG}, {WEIGHTS} and, for texts, {TOKENIZER}."
        ) from error
    return Path(folder)


def companion(origin: str, name: str) -> Path:
    """The file `name` in the folder of a model, or beside its safetensors file.

    Raises:
      InputError: if there is none, or `local` raises it.
    """
    path = local(origin)
    folder = path if path.is_dir() else path.parent
    if not has(origin, name):
        raise InputError(f"{origin}: there is no {name} in {folder}.")
    return folder / name


def read_config(origin: str) -> dict[str, Any]:
    """The content of a model's config.json.

    Raises:
      InputError: if there is none, or it is no JSON object.
    """
    return read_json(origin, CONFIG)


def read_json(origin: str, name: str) -> dict[str, Any]:
    """The content of the file `name` of a model.

    Raises:
      InputError: if there is none, or it is no JSON object.
    """
    path = companion(origin, name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: a JSON object was expected, got {str(config)[:60]}.")
    return config


def read_config_if_any(origin: str) -> dict[str, Any]:
    """The content of a model's config.json, which some publish without: then there is none of it.

    Raises:
      InputError: if it is no JSON object.
    """
    return read_config(origin) if has(origin, CONFIG) else {}


def has(origin: str, name: str) -> bool:
    """Whether there is a file `name` in the folder of a model, or beside its safetensors file."""
    path = local(origin)
    return ((path if path.is_dir() else path.parent) / name).is_file()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def fields_of(kind: Any, origin: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the content of a config.json tells of the fields of `kind`, a dataclass.

    Raises:
      InputError: if it lacks one that has no default.
    """
    fields = {name: config[name] for name in kind.__dataclass_fields__ if name in config}
    absent = [name for name in kind.__annotations__ if name not in {**vars(kind), **fields}]
    if absent:
        raise InputError(f"{origin}: its {CONFIG} lacks {', '.join(absent)}.")
    return fields
