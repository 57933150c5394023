"""TFDS: the bundled sets and those of its catalogue, read without TensorFlow."""

import contextlib
import importlib
import io
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from sdjax.checks import suggest
from sdjax.config import DataConfig
from sdjax.data import tfds_features
from sdjax.data.examples import Examples, check_finite, from_lists, listing
from sdjax.data.images import EncodedImages
from sdjax.errors import InputError

BUNDLED = {"yeast": "Yeast", "digits": "Digits"}


def read_splits(config: DataConfig) -> tuple[Examples, Examples | None, Examples | None]:
    """Reads train, validation and test of the set `config` names; None for one to split off."""
    builder = prepare(config.name, config.data_dir)
    train = _read(builder, "train", config.train, config)
    validation = config.validation
    absent = _split_name(validation) not in builder.info.splits
    if validation == DataConfig().validation and absent:
        validation = ""
    splits = (
        train,
        _read(builder, "validation", validation, config) if validation else None,
        _read(builder, "test", config.test, config) if config.test else None,
    )
    options = {"train": config.train, "validation": validation, "test": config.test}
    _check_disjoint(builder, {option: split for option, split in options.items() if split})
    return splits


def _check_disjoint(builder: Any, options: dict[str, str]) -> None:
    """Raises ValueError if two of the split expressions share examples."""
    import tensorflow_datasets as tfds

    seen: list[tuple[str, str, range]] = []
    for option, expression in options.items():
        parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(builder.info.splits)
        for part in parts:
            size = builder.info.splits[part.splitname].num_examples
            rows = range(part.from_ or 0, size if part.to is None else part.to)
            for other, split, taken in seen:
                shared = min(rows.stop, taken.stop) - max(rows.start, taken.start)
                if other != option and split == part.splitname and shared > 0:
                    raise InputError(
                        f"data.{option} {expression!r} shares {shared} examples with "
                        f"data.{other} {options[other]!r}: scores on it would mislead."
                        + (" data.validation='' holds out a part of train." * (other == "train"))
                    )
            seen.append((option, part.splitname, rows))


def prepare(name: str, data_dir: str = "") -> Any:
    """The TFDS builder of a set, which is downloaded and written as ArrayRecords on first use.

    Processes may prepare one set at the same time: each writes a folder of its own, the first
    to finish renames it into place, and the others take that.
    """
    builder = _make_builder(name, data_dir)
    if not builder.data_path.exists():
        try:
            _download_and_prepare(name, builder)
        except Exception as error:
            # Whatever went wrong here, another process may have finished the set meanwhile.
            if not builder.data_path.exists():
                raise _explained(name, error) from error
        builder = _make_builder(name, data_dir)
    return builder


def _make_builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    options = {"data_dir": data_dir or None, "file_format": "array_record"}
    if name in BUNDLED:
        module = importlib.import_module(f"sdjax.data.builders.{name}")
        return getattr(module, BUNDLED[name])(**options)
    try:
        return tfds.builder(name, **options)
    except tfds.core.DatasetNotFoundError:
        known = [*BUNDLED, "files", *tfds.list_builders(with_community_datasets=False)]
        text = suggest("data.name", name, known).split(" Known:")[0]
        raise InputError(
            f"{text} It is {', '.join(BUNDLED)}, a set of the TFDS catalogue, or 'files'."
        ) from None
    except Exception as error:
        # Some builders cannot even be made without TensorFlow; what they wrote can be read.
        written = _written(name, options) if isinstance(error, ImportError) else None
        if written is not None:
            return written
        raise _explained(name, error) from error


def _written(name: str, options: dict[str, Any]) -> Any:
    """The set as files alone describe it; None where it is not prepared."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder

    try:
        return read_only_builder.builder_from_files(name, **options)
    except tfds.core.DatasetNotFoundError:
        return None
    except ValueError as error:
        raise _explained(name, error) from error


def _download_and_prepare(name: str, builder: Any) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS draws the name of the folder that it writes from `random`, which a program may have
    # seeded alike in all of its processes.
    state = random.getstate()
    random.seed()
    try:
        # Bundled sets take seconds; those of the catalogue may take hours, and show it.
        with _quiet() if name in BUNDLED else contextlib.nullcontext():
            builder.download_and_prepare(download_config=config)
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _explained(name: str, error: Exception) -> Exception:
    text = f"data.name {name!r}: TFDS could not prepare it ({type(error).__name__}: {error})."
    if isinstance(error, ImportError) and "tensorflow" in str(error).lower():
        text += (
            " This set needs TensorFlow to be prepared: pip install tensorflow-cpu, once; "
            "reading it afterwards does not."
        )
    elif re.search("File format (is already|.* does not match)", str(error)):
        text += (
            " It is there in a format without random access: set data.data_dir to another "
            "folder, or delete the prepared set."
        )
    elif "manual" in str(error).lower():
        text += " This set has files that you must download by hand, as the text above says."
    elif isinstance(error, ImportError):
        return ImportError(text)
    return InputError(text)


def _split_name(expression: str) -> str:
    """The first split that an expression such as `train[:80%]` names."""
    found = re.match(r"\w+", expression)
    return found.group(0) if found else ""


def _read(builder: Any, option: str, split: str, config: DataConfig) -> Examples:
    """The examples of one split."""
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    if _split_name(split) not in splits:
        raise InputError(
            f"data.{option} {split!r} is no split of {config.name}; splits: "
            f"{listing(list(splits))}, or parts of them such as 'train[:80%]'."
        )
    origin = f"{config.name} {split}"
    features = builder.info.features
    labels = tfds_features.find_labels(config.name, features, config.label_key, config.skip_objects)
    try:
        records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except ValueError as error:
        raise InputError(f"data.{option} {split!r} is no split of {origin}: {error}") from error
    lists = [labels.indices(labels.parse(records[row])) for row in range(len(records))]
    label_sets = from_lists(lists, len(labels.names))
    if config.text:
        text = tfds_features.find_text(config.name, features, config.text)
        texts = np.empty(len(records), object)
        texts[:] = [text(records[row]) for row in range(len(records))]
        return Examples(origin, texts, label_sets, labels.names)
    inputs = tfds_features.find_inputs(config.name, features, config.input_key, labels.keys)
    if inputs.channels:
        if not (config.image_size or inputs.fixed_size):
            raise InputError(
                f"{config.name}: its images differ in size; set data.image_size, to 224 say."
            )
        values = EncodedImages(
            lambda row: inputs.parse(records[row]),
            len(records),
            channels=inputs.channels,
            image_size=config.image_size,
            origin=origin,
        )
    else:
        rows = [inputs.parse(records[row]) for row in range(len(records))]
        values = np.array(rows, np.float32).reshape(len(records), len(rows[0]) if rows else 1)
        check_finite(origin, values, inputs.names)
    return Examples(origin, values, label_sets, labels.names, inputs.names)
