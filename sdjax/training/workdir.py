"""The folder of a run: what lies in it, and whether a run may use it."""

import dataclasses
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import jax

from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.training.processes import gather_texts, is_main, together

CONFIG, PREPROCESS, RESULTS = "config.json", "preprocess.json", "results.json"
CHECKPOINTS, REPORT, PROFILE = "checkpoints", "report", "profile"

# How a run is carried out, not what it computes: a run that resumes may change these.
_CHANGEABLE = (
    "mesh.",
    "microbatches",
    "model.remat",
    "loss.implementation",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
)
_TOKEN = ".shared"
_SECONDS_TO_SEE = 10.0  # network file systems may show a new file late


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
    if re.match(r"\w+:/", str(workdir)):
        raise InputError(
            f"workdir {workdir} is a URL, not a folder: mount the bucket (gcsfuse for gs://) and "
            "name the mounted folder."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written to: {error.strerror}.") from error
    path = workdir / CONFIG
    if path.exists():
        here, there = flat(config), flat(read_config(workdir))
        texts = [
            f"{name}: there {there.get(name)!r}, here {here.get(name)!r}"
            for name in sorted(here)
            if here[name] != there[name] and not name.startswith(_CHANGEABLE)
        ]
        if texts:
            raise InputError(
                f"workdir {workdir} holds the run of another config ({'; '.join(texts)}). "
                "Choose another --workdir, or remove this one to start again."
            )
    write_json(path, dataclasses.asdict(config))


def with_saved_batch_size(config: Config, workdir: Path) -> Config:
    """`config`; a batch size that it leaves open is that of the run in `workdir`, if there is one.

    It would depend on the number of devices otherwise.
    """
    saved = 0
    if is_main() and not config.batch_size and (workdir / CONFIG).exists():
        saved = read_config(workdir).batch_size
    saved = int(gather_texts(str(saved))[0])
    return dataclasses.replace(config, batch_size=config.batch_size or saved)


def check_shared(workdir: Path) -> None:
    """Raises ValueError on a process that does not see what process 0 writes into `workdir`."""
    token = f"{time.time_ns()} {socket.gethostname()}"
    with together():
        if is_main():
            (workdir / _TOKEN).write_text(token)
    token = gather_texts(token)[0]
    with together():
        deadline = time.monotonic() + _SECONDS_TO_SEE
        while not _holds(workdir / _TOKEN, token):
            if time.monotonic() > deadline:
                raise InputError(
                    f"workdir {workdir} is not shared: process {jax.process_index()} on "
                    f"{socket.gethostname()} does not see what process 0 on {token.split()[1]} "
                    "writes there. Choose a folder on a disk that all machines mount."
                )
            time.sleep(0.1)
    if is_main():
        (workdir / _TOKEN).unlink()


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


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


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a config as {"model.width": 256, ...}."""
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), prefix + each.name
        fields |= flat(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return fields
