"""Pretrained weights: safetensors files, matched by name and shape, or an error that says all."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sdjax import hub
from sdjax.errors import InputError

Shape = tuple[int, ...]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_LISTED = 8


def read(
    origin: str,
    wanted: Mapping[str, Shape],
    *,
    prefixes: Iterable[str] = (),
    renamed: Mapping[str, str] | None = None,
    harmless: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """The tensors of a model that are `wanted`, each of which must be there, float32.

    Args:
      origin: a safetensors file, a folder, or an id of the hub; see `sdjax.hub.local`.
      wanted: shapes by name.
      prefixes: that may stand before the names; the one under which most are found is taken off.
      renamed: ends of names as other versions of the format wrote them, and as they are wanted.
      harmless: patterns of names that are known to be of no use here.

    Raises:
      InputError: if it cannot be read; and if tensors are missing, left over, or of other shapes:
        names them all, with near misses.
    """
    files = _files(origin)
    found = {name: each for file in files for name, each in _header(file).items()}
    names = _wanted_names(found, wanted, tuple(prefixes), renamed or {})
    twice = sorted(name for name, count in Counter(names.values()).items() if count > 1)
    if twice:
        raise InputError(f"{origin}: tensors that are there twice: {_listing(twice)}.")
    shapes = {names[name]: shape for name, (shape, _) in found.items()}
    unused = sorted(set(shapes) - set(wanted))
    ignored = [name for name in unused if any(re.fullmatch(each, name) for each in harmless)]
    _check(origin, shapes, wanted, [name for name in unused if name not in set(ignored)])
    if ignored:
        logging.info("%s: left out: %s.", origin, _listing(ignored))
    tensors = {}
    for file in files:
        with _opened(file) as content:
            for name in content.keys():  # noqa: SIM118 (no mapping)
                if names[name] not in wanted:
                    continue
                kind = found[name][1]
                if kind not in _FLOATS:
                    raise InputError(f"{origin}: {name} must be floats, got {kind}.")
                tensors[names[name]] = content.get_tensor(name).astype(np.float32)
    return tensors


def without_prefix(
    origin: str, shapes: Mapping[str, Shape], mark: str, whose: str
) -> dict[str, Shape]:
    """`shapes` by names without what stands before that of the tensor `mark`.

    Raises:
      InputError: if there is no such tensor, as `whose` files have it.
    """
    prefix = next((name.removesuffix(mark) for name in shapes if name.endswith(mark)), None)
    if prefix is None:
        raise InputError(
            f"{origin}: there is neither a {hub.CONFIG} with a model_type nor a tensor {mark}, as "
            f"in {whose} files."
        )
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()}


def shapes(origin: str) -> dict[str, Shape]:
    """The shape of each tensor of a model, by name; none is read.

    Raises:
      InputError: if a file cannot be read.
    """
    return {name: shape for each in _files(origin) for name, (shape, _) in _header(each).items()}


def _files(origin: str) -> list[Path]:
    """The safetensors files of a model."""
    path = hub.local(origin)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InputError(f"{origin}: weights are read from .safetensors files alone. {_ADVICE}")
        return [path]
    if (path / hub.WEIGHTS).is_file():
        return [path / hub.WEIGHTS]
    if (path / hub.INDEX).is_file():
        try:
            parts = sorted(set(json.loads((path / hub.INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path / hub.INDEX}: not an index of weights: {error!r}.") from error
        absent = [name for name in parts if not (path / name).is_file()]
        if absent:
            raise InputError(f"{origin}: files that {hub.INDEX} names are missing: {absent}.")
        return [path / name for name in parts]
    pickles = sorted(each.name for pattern in _PICKLES for each in path.glob(pattern))
    if pickles:
        raise InputError(
            f"{origin}: there is no {hub.WEIGHTS}, only {', '.join(pickles)}: a pickle, which may "
            f"run any code, and is never loaded. {_ADVICE}"
        )
    raise InputError(f"{origin}: there is no {hub.WEIGHTS} in {path}.")


_ADVICE = (
    "Convert it where you trust it: in transformers, "
    "AutoModel.from_pretrained(...).save_pretrained(FOLDER) writes model.safetensors."
)


def _opened(file: Path) -> Any:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise InputError(
            f"{file}: to read it needs the package safetensors: "
            "pip install 'sdjax[text]' or 'sdjax[images]'."
        ) from error
    try:
        return safe_open(file, framework="np")
    except Exception as error:
        raise InputError(
            f"{file}: cannot be read as safetensors; truncated, corrupt, or of another format? "
            f"({type(error).__name__}: {error})"
        ) from error


def _header(file: Path) -> dict[str, tuple[Shape, str]]:
    """Shape and dtype of each tensor, by name; no tensor is read."""
    with _opened(file) as content:
        slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
        return {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def _wanted_names(
    found: Iterable[str],
    wanted: Mapping[str, Shape],
    prefixes: tuple[str, ...],
    renamed: Mapping[str, str],
) -> dict[str, str]:
    """Each name that was found, as it is wanted: without its prefix, its end renamed."""

    def current(name: str) -> str:
        old = next((end for end in renamed if name.endswith(end)), "")
        return name.removesuffix(old) + renamed[old] if old else name

    def stripped(prefix: str) -> dict[str, str]:
        return {name: current(name.removeprefix(prefix)) for name in found}

    candidates = [stripped(prefix) for prefix in ("", *prefixes)]
    # The first of equal ones, so that no prefix is taken off in vain.
    return max(candidates, key=lambda names: len(set(names.values()) & set(wanted)))


def _check(
    origin: str, shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], surplus: list[str]
) -> None:
    """Raises InputError for tensors that are missing, left over, or of another shape."""
    missing = [name for name in wanted if name not in shapes]
    misshapen = [name for name in wanted if shapes.get(name, wanted[name]) != wanted[name]]
    texts = []
    if missing:
        described = []
        for name in missing[:_MOST_LISTED]:
            near = difflib.get_close_matches(name, surplus, 1, 0.8)
            hint = f", near miss {near[0]} {list(shapes[near[0]])}" if near else ""
            described.append(f"{name} {list(wanted[name])}{hint}")
        texts.append(f"missing: {_listing(described, len(missing))}")
    if surplus:
        described = [f"{name} {list(shapes[name])}" for name in surplus]
        texts.append(f"not known: {_listing(described)}")
    if misshapen:
        described = [
            f"{name} {list(wanted[name])} wanted, {list(shapes[name])} found" for name in misshapen
        ]
        texts.append(f"of another shape: {_listing(described)}")
    if texts:
        raise InputError(f"{origin}: the tensors do not fit the model. {'. '.join(texts)}.")


def _listing(texts: list[str], count: int = 0) -> str:
    count = count or len(texts)
    more = f"; and {count - _MOST_LISTED} more" if count > _MOST_LISTED else ""
    return "; ".join(texts[:_MOST_LISTED]) + more
