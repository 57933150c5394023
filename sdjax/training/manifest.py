"""The manifest of a checkpoint: what was saved, by which damage is found.

A checkpoint is damaged only where that is proven: by a checksum, or by what TensorStore says. Every
other error in reading it may be gone the next time.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax

from sdjax.errors import InputError
from sdjax.training.fingerprint import fingerprint
from sdjax.training.storage import SUMS

Position = dict[str, int | str]
Manifest = dict[str, Any]

STATE, MANIFEST = "state", "manifest"  # the items of a checkpoint, each a folder
_FORMAT = 3
_MANIFEST_FILE = f"{MANIFEST}/metadata"
_SUMS_FILE = f"{STATE}/{SUMS}"


class ForeignCheckpointError(InputError):
    """A checkpoint is sound, but not one of this run."""


class DamagedCheckpointError(InputError):
    """A checkpoint does not hold what was saved."""


def make_manifest(state: Any, position: Position, metrics: dict[str, float]) -> Manifest:
    """The manifest of `state`; all processes have to call this alike."""
    described = _described(state)
    sums = fingerprint(state)
    arrays = {
        name: {**values, "checksum": value}
        for (name, values), value in zip(described.items(), sums, strict=True)
    }
    content = {"format": _FORMAT, "position": position, "metrics": metrics, "arrays": arrays}
    return signed(content)


def signed(content: dict[str, Any]) -> Manifest:
    """`content` with its checksum."""
    return {**content, "crc32": _crc32(content)}


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint whose small files are what was saved.

    Args:
      checkpoint: its folder.

    Raises:
      DamagedCheckpointError: if one of the files is missing, or not what was saved.
      ForeignCheckpointError: if another version of sdjax wrote it.
      OSError: if one cannot be read.
    """
    manifest = _json(checkpoint, _MANIFEST_FILE)
    content = {name: value for name, value in manifest.items() if name != "crc32"}
    if manifest.get("crc32") != _crc32(content):
        raise DamagedCheckpointError("its manifest is not what was saved")
    if content.get("format") != _FORMAT:
        raise ForeignCheckpointError(
            f"The checkpoint of step {checkpoint.name} in {checkpoint.parent} was written by "
            "another version of sdjax, which can read it."
        )
    for name, saved in _json(checkpoint, _SUMS_FILE).items():
        if saved != zlib.crc32(_content(checkpoint, f"{STATE}/{name}")):
            raise DamagedCheckpointError(f"its file {STATE}/{name} is not what was saved")
    return content


def verify(state: Any, manifest: Manifest) -> None:
    """Raises DamagedCheckpointError unless the arrays are those of the manifest."""
    for (name, saved), found in zip(manifest["arrays"].items(), fingerprint(state), strict=True):
        if saved["checksum"] != found:
            raise DamagedCheckpointError(f"the array {name} is not what was saved")


def check_model(manifest: Manifest, abstract_state: Any) -> None:
    """Raises ForeignCheckpointError unless names, shapes and dtypes of the arrays are the same."""
    saved, wanted = manifest["arrays"], _described(abstract_state)
    texts = [
        f"{name}: {_text(saved.get(name))} there, {_text(wanted.get(name))} here"
        for name in sorted(saved.keys() | wanted.keys())
        if _text(saved.get(name)) != _text(wanted.get(name))
    ]
    if texts:
        more = f"; and {len(texts) - 5} more" if len(texts) > 5 else ""
        raise ForeignCheckpointError(
            f"The checkpoint is of another model or optimizer ({'; '.join(texts[:5])}{more})."
        )


def _described(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): {"shape": list(x.shape), "dtype": str(x.dtype)}
        for path, x in leaves
    }


def _text(array: dict[str, Any] | None) -> str:
    return "absent" if array is None else f"{array['dtype']} {array['shape']}"


def _crc32(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _json(checkpoint: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(_content(checkpoint, name))
    except (json.JSONDecodeError, UnicodeDecodeError):
        value = None
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"its file {name} is not what was saved")
    return value


def _content(checkpoint: Path, name: str) -> bytes:
    try:
        return (checkpoint / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        os.listdir(checkpoint)  # An OSError where the whole disk is away.
        raise DamagedCheckpointError(f"its file {name} is missing") from None
