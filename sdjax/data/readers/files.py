"""The user's own files: which reader a file takes, and the splits that files make up."""

import dataclasses
import difflib
import os
from collections.abc import Callable

from sdjax.config import DataConfig
from sdjax.data import overlap
from sdjax.data.examples import Examples
from sdjax.data.readers import (
    arff,
    arrays,
    delimited,
    image_files,
    jsonl,
    label_lists,
    svmlight,
    tables,
    text,
)
from sdjax.data.readers.options import ReadOptions
from sdjax.errors import InputError

Reader = Callable[[str, ReadOptions], Examples]
TEXT_READERS: dict[str, Reader] = {
    ".csv": delimited.read_csv,
    ".tsv": delimited.read_tsv,
    ".arff": arff.read_arff,
    ".svm": svmlight.read_svmlight,
    ".libsvm": svmlight.read_svmlight,
    ".txt": svmlight.read_svmlight,
    ".jsonl": jsonl.read_jsonl,
}
READERS: dict[str, Reader] = {
    ".npz": arrays.read_npz,
    ".h5": arrays.read_hdf5,
    ".hdf5": arrays.read_hdf5,
    ".parquet": tables.read_parquet,
    **TEXT_READERS,
    **{f"{suffix}.gz": reader for suffix, reader in TEXT_READERS.items()},
}
TEXT_COLUMNS = (".csv", ".tsv", ".parquet", ".jsonl")
KNOWN = f"{', '.join(name for name in READERS if not name.endswith('.gz'))}; text also as .gz"


def read_splits(config: DataConfig) -> tuple[Examples, Examples | None, Examples | None]:
    """Reads the files of `config`: train, validation, test; None for one to split off train."""
    options = ReadOptions(
        labels=config.labels,
        ignore=config.ignore,
        input_key=config.input_key,
        label_key=config.label_key,
        label_separator=config.label_separator,
        image_size=config.image_size,
        missing=config.missing,
        categories=config.categories,
        text=config.text,
        label_names=label_lists.read_names(config.label_names) if config.label_names else (),
        image=config.image,
        images=config.images,
        channels=len(config.image_mean),
    )
    defaults = DataConfig()
    for split, path in (("train", config.train), ("test", config.test)):
        if split == "test" and not path:
            continue
        if not path or (path == getattr(defaults, split) and not os.path.exists(path)):
            raise InputError(
                f"data.name is 'files': data.{split} must be the path of a file "
                f"({KNOWN}){', or empty' * (split == 'test')}, got {path!r}."
            )
    validation = config.validation
    if validation == defaults.validation and not os.path.exists(validation):
        validation = ""
    paths = {"train": config.train, "validation": validation, "test": config.test}
    overlap.check_paths({split: path for split, path in paths.items() if path})
    train = read_examples(config.train, options)
    options = dataclasses.replace(
        options,
        feature_names=train.feature_names,
        label_names=train.label_names,
        vocabulary=train.categories,
    )
    if train.modality == "image":
        options = dataclasses.replace(options, channels=train.inputs.shape[-1])
    return (
        train,
        read_examples(validation, options) if validation else None,
        read_examples(config.test, options) if config.test else None,
    )


def read_examples(path: str, options: ReadOptions) -> Examples:
    """Reads one file.

    Raises:
      FileNotFoundError: if it is missing; the text suggests a file of a like name.
      ValueError: if its suffix is unknown, or what it holds is not usable.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file.{_nearest(path)}")
    if not options.labelled and image_files.is_images(path):
        return image_files.read_images(path, options)
    suffix = text.suffix(path)
    if suffix not in READERS or os.path.isdir(path):
        what = "a folder" if os.path.isdir(path) else f"suffix {suffix!r}"
        raise InputError(f"{path}: {what}; data files are {KNOWN}.")
    field = "text" if options.text else "image" if options.image and options.labelled else ""
    if field and suffix.removesuffix(".gz") not in TEXT_COLUMNS:
        raise InputError(
            f"{path}: data.{field} is a column of {', '.join(TEXT_COLUMNS)} files, which this is "
            "not."
        )
    return READERS[suffix](path, options)


def _nearest(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f" The folder {folder} does not exist either."
    nearest = difflib.get_close_matches(os.path.basename(path), os.listdir(folder), 1, 0.5)
    return f" Did you mean {os.path.join(os.path.dirname(path), nearest[0])}?" if nearest else ""
