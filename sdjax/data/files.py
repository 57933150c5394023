"""The user's own files: which reader a file takes, and the splits that files make up."""

import dataclasses
import difflib
import os
from collections.abc import Callable

from sdjax.config import DataConfig
from sdjax.data import arff_files, array_files, image_files, jsonl_files, table_files
from sdjax.data.examples import Examples
from sdjax.data.layout import Layout

READERS: dict[str, Callable[[str, Layout], Examples]] = {
    ".npz": array_files.read_npz,
    ".h5": array_files.read_hdf5,
    ".hdf5": array_files.read_hdf5,
    ".csv": table_files.read_csv,
    ".parquet": table_files.read_parquet,
    ".arff": arff_files.read_arff,
    ".jsonl": jsonl_files.read_jsonl,
}


def read_splits(config: DataConfig) -> tuple[Examples, Examples | None, Examples]:
    """Reads the files of `config`: train, validation (None to split it off), test."""
    layout = Layout(
        labels=config.labels,
        ignore=config.ignore,
        input_key=config.input_key,
        label_key=config.label_key,
        image_size=config.image_size,
    )
    defaults = DataConfig()
    for split, path in (("train", config.train), ("test", config.test)):
        if not path or (path == getattr(defaults, split) and not os.path.exists(path)):
            raise ValueError(
                f"data.name is 'files': data.{split} must be the path of a file "
                f"({', '.join(READERS)}), got {path!r}."
            )
    train = read_examples(config.train, layout)
    layout = dataclasses.replace(
        layout, feature_names=train.feature_names, label_names=train.label_names
    )
    if train.modality == "image":
        layout = dataclasses.replace(layout, channels=train.inputs.shape[-1])
    validation = config.validation
    if validation == defaults.validation and not os.path.exists(validation):
        validation = ""
    return (
        train,
        read_examples(validation, layout) if validation else None,
        read_examples(config.test, layout),
    )


def read_examples(path: str, layout: Layout) -> Examples:
    """Reads one file.

    Raises:
      FileNotFoundError: if it is missing; the text suggests a file of a like name.
      ValueError: if its suffix is unknown, or what it holds is not usable.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file.{_nearest(path)}")
    if not layout.labelled and image_files.is_images(path):
        return image_files.read_images(path, layout)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in READERS or os.path.isdir(path):
        what = "a folder" if os.path.isdir(path) else f"suffix {suffix!r}"
        raise ValueError(f"{path}: {what}; data files are {', '.join(READERS)}.")
    return READERS[suffix](path, layout)


def _nearest(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f" The folder {folder} does not exist either."
    nearest = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), 1, 0.5)
    return f" Did you mean {os.path.join(os.path.dirname(path), nearest[0])}?" if nearest else ""
