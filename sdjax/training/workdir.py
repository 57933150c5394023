"""The folder of a run: what lies in it, and whether a run may use it."""

import dataclasses
import json
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.checks import one_of
from sdjax.config import Config, flat, from_dict
from sdjax.data import Dataset, JoinedSource, Preprocess, Source, TextPreprocess, load
from sdjax.errors import InputError
from sdjax.labels import LabelIndices
from sdjax.training.processes import failing_together, gather_texts, is_main
from sdjax.training.state import ExampleSpec
from sdjax.writing import whole

CONFIG, PREPROCESS, DATA, RESULTS = "config.json", "preprocess.json", "data.json", "results.json"
SELECTION, SELECTED = "selection", "selection.json"
CHECKPOINTS, REPORT, PROFILE = "checkpoints", "report", "profile"

# How a run is carried out, not what it computes: a run that resumes may change these.
_CHANGEABLE = (
    "mesh.",
    "microbatches",
    "model.remat",
    "loss.implementation",
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "thresholds",
    "report.",
    # Where the data are; that they are the same is checked by their content.
    "data.name",
    "data.train",
    "data.validation",
    "data.test",
    "data.data_dir",
    "data.tokenizer",
)
SPLITS = ("train", "validation", "test")
_TOKEN = ".shared"
_SECONDS_TO_SEE = 10.0  # network file systems may show a new file late


def write_json(path: Path, value: Any) -> None:
    """Writes `value` whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def check_workdir(
    workdir: Path, config: Config, data: dict[str, Any], home: Path | None = None
) -> None:
    """Checks that `config`'s run may use `workdir`, and writes nothing that stays.

    Args:
      workdir: made if need be.
      config: with all sizes.
      data: of `describe_data`.
      home: folder under it in which the run keeps its config; None is `workdir` itself.

    Raises:
      OSError: if it cannot be written to.
      InputError: if another config's run lives there, or one on other data; names what differs.
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
    home = home or workdir
    if (home / CONFIG).exists():
        here, there = flat(config), flat(read_config(home))
        names = [
            name
            for name in sorted(here)
            if here[name] != there[name] and not name.startswith(_CHANGEABLE)
        ]
        if names:
            texts = [f"{name}: there {there[name]!r}, here {here[name]!r}" for name in names]
            raise InputError(
                f"workdir {workdir} holds the run of another config ({'; '.join(texts)}). "
                f"Choose another, such as --workdir={_named(workdir, names, here)}, or remove this "
                "one to start again."
            )
    if (home / DATA).exists():
        saved = json.loads((home / DATA).read_text())
        changed = [split for split in (*SPLITS, "label_names") if saved[split] != data[split]]
        if changed:
            raise InputError(
                f"workdir {workdir} holds a run on other data: changed since then: "
                f"{', '.join(changed)}. Choose another --workdir, or remove this one to start "
                "again."
            )


def _named(workdir: Path, names: list[str], values: dict[str, Any]) -> Path:
    """A workdir beside another, named by the fields in which its run differs."""
    parts = [f"{name.rpartition('.')[2]}={values[name]}" for name in names[:3]]
    return workdir.with_name("_".join([workdir.name, *parts]).replace("/", "-").replace(" ", ""))


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """The content of `data.json`: the splits by their checksums, and what an example is."""
    labels = dataset.train.labels
    listed = isinstance(labels, LabelIndices)
    array = np.asarray(labels.indices if listed else labels)
    sources = {name: getattr(dataset, name) for name in SPLITS}
    splits = {
        name: {"examples": len(source), "checksum": source.fingerprint}
        for name, source in sources.items()
    }
    return {
        **splits,
        "label_names": list(dataset.label_names),
        "label_indices": array.shape[1] if listed else 0,
        "label_dtype": str(array.dtype),
        "inputs": jax.tree.map(
            lambda x: {"shape": list(x.shape), "dtype": str(x.dtype)}, dataset.input_spec
        ),
    }


def example_spec(data: dict[str, Any]) -> ExampleSpec:
    """The spec of an example, of the content of `data.json`."""

    def array(value: dict[str, Any]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(value["shape"]), np.dtype(value["dtype"]))

    inputs = jax.tree.map(array, data["inputs"], is_leaf=lambda x: "shape" in x)
    num_classes, length = len(data["label_names"]), data["label_indices"]
    labels: Any = jax.ShapeDtypeStruct((length or num_classes,), np.dtype(data["label_dtype"]))
    return ExampleSpec.of(inputs, LabelIndices(labels, num_classes) if length else labels)


def open_workdir(
    workdir: Path,
    config: Config,
    data: dict[str, Any],
    preprocess: Preprocess | TextPreprocess | None,
) -> None:
    """Makes `workdir`, which was checked, the home of a run."""
    write_json(workdir / CONFIG, dataclasses.asdict(config))
    write_json(workdir / DATA, data)
    if preprocess is not None:
        write_json(workdir / PREPROCESS, preprocess.to_json())


def with_saved_batch_size(config: Config, workdir: Path) -> Config:
    """`config`; a batch size that it leaves open is that of the run in `workdir`, if there is one.

    It would depend on the number of devices otherwise.
    """
    saved = 0
    with failing_together():
        homes = [home for home in (workdir / SELECTION, workdir) if (home / CONFIG).exists()]
        if is_main() and not config.batch_size and homes:
            saved = read_config(homes[0]).batch_size
    saved = int(gather_texts(str(saved))[0])
    return dataclasses.replace(config, batch_size=config.batch_size or saved)


def check_shared(workdir: Path) -> None:
    """Raises ValueError on a process that does not see what process 0 writes into `workdir`."""
    token = f"{time.time_ns()} {socket.gethostname()}"
    with failing_together():
        if is_main():
            (workdir / _TOKEN).write_text(token)
    token = gather_texts(token)[0]
    with failing_together():
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


def check_is_run(workdir: Path) -> None:
    """Raises FileNotFoundError if no run lives in `workdir`."""
    for name in (CONFIG, DATA, CHECKPOINTS):
        if not (workdir / name).exists():
            raise FileNotFoundError(
                f"{workdir} is not the workdir of a run: it holds no {name}. A run is made by "
                "`python train.py --workdir=...`."
            )


def read_config(workdir: Path) -> Config:
    """The config of the run in `workdir`.

    Raises:
      InputError: if it has fields that this version lacks, or is no JSON.
    """
    path = workdir / CONFIG
    try:
        return from_dict(Config, json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    except InputError as error:
        raise InputError(
            f"{path} was written by another version of sdjax, which can read it. {error}"
        ) from error


def read_selection(workdir: Path) -> dict[str, Any] | None:
    """What validation chose among the candidates of the run in `workdir`; None without a choice."""
    path = workdir / SELECTED
    return json.loads(path.read_text()) if path.exists() else None


def read_split(workdir: Path | None, config: Config, split: str) -> Source:
    """A split of the data of the run in `workdir`, read anew; that of train is what it learnt from.

    Raises:
      InputError: if the data are not those of the run, or there is no workdir.
      FileNotFoundError: if a file of the data is missing.
    """
    one_of("split", split, SPLITS)
    advice = (
        "Embed rows of your own: a gallery of `embed(x)`, or `python -m sdjax.embed --input=...`."
    )
    if workdir is None:
        raise InputError(f"Without a workdir the data of the run are not known. {advice}")
    if config.data.name == "files" and not config.data.train:
        raise InputError(f"{workdir}: its run was given its data as arrays. {advice}")
    saved = json.loads((workdir / DATA).read_text())[split]["checksum"]
    dataset = load(config.data)
    found = getattr(dataset, split)
    if split == "train" and found.fingerprint != saved:
        # A run that was trained anew on both.
        found = JoinedSource(dataset.train, dataset.validation)
    if found.fingerprint != saved:
        raise InputError(
            f"{workdir}: the {split} split of {config.data.name!r} is not what the run had: its "
            f"data have changed since, or were given to it as arrays. {advice}"
        )
    return found


def check_free_space(workdir: Path, needed: int) -> None:
    """Raises OSError if the disk under `workdir` has fewer than `needed` bytes left."""
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise OSError(
            f"workdir {workdir} needs about {needed / 2**20:,.0f} MiB for checkpoints and "
            f"results, but its disk has {free / 2**20:,.0f} MiB left."
        )
