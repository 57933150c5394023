"""The folder of a run: what lies in it, and whether a run may use it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from sdjax.config import Config

CONFIG, PREPROCESS, RESULTS = "config.json", "preprocess.json", "results.json"
CHECKPOINTS, REPORT = "checkpoints", "report"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def open_workdir(workdir: Path, config: Config) -> None:
    """Makes `workdir` if need be, and the home of `config`'s run.

    Raises:
      OSError: if it cannot be written to.
      ValueError: if another config's run lives there; names the fields that differ.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written to: {error.strerror}.") from error
    wanted = dataclasses.asdict(config)
    path = workdir / CONFIG
    if path.exists():
        found = json.loads(path.read_text())
        differences = _differences(json.loads(json.dumps(wanted)), found)
        if differences:
            raise ValueError(
                f"workdir {workdir} holds the run of another config ({'; '.join(differences)}). "
                "Choose another --workdir, or remove this one to start again."
            )
    else:
        write_json(path, wanted)


def read_config(workdir: Path) -> Config:
    """The config of the run in `workdir`."""
    return _from_dict(Config, json.loads((workdir / CONFIG).read_text()))


def _from_dict(kind: Any, values: dict[str, Any]) -> Any:
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}
    nested = {name: _from_dict(kinds[name], v) for name, v in values.items() if type(v) is dict}
    return kind(**{**values, **nested})


def check_free_space(workdir: Path, needed: int) -> None:
    """Raises OSError if the disk under `workdir` has fewer than `needed` bytes left."""
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise OSError(
            f"workdir {workdir} needs about {needed / 2**20:,.0f} MiB for checkpoints and "
            f"results, but its disk has {free / 2**20:,.0f} MiB left."
        )


def _differences(wanted: dict[str, Any], found: dict[str, Any], prefix: str = "") -> list[str]:
    texts = []
    for key in sorted(wanted.keys() | found.keys()):
        ours, theirs = wanted.get(key), found.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            texts += _differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            texts.append(f"{prefix}{key}: there {theirs!r}, here {ours!r}")
    return texts
