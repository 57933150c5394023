"""`load`: from a `DataConfig` to the three splits of a data set, ready to be batched."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from sdjax.checks import one_of
from sdjax.config import MISSING, SCALINGS, DataConfig
from sdjax.data import few_examples, hashing, overlap, tfds
from sdjax.data.examples import Examples, check_finite, listing
from sdjax.data.few_examples import FewExamples
from sdjax.data.images import EncodedImages
from sdjax.data.preprocess import Preprocess, is_sparse
from sdjax.data.readers import files
from sdjax.data.readers.options import ReadOptions
from sdjax.data.rows import Computed, RowArray
from sdjax.data.sources import Source, make_source
from sdjax.data.splits import with_splits_off, without_unknown_values
from sdjax.data.texts import TextPreprocess, TextSource
from sdjax.data.tokens import NO_LIMIT, Tokenizer, Tokens
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three splits that share labels and preprocessing.

    Attributes:
      name: for people.
      train, validation, test: the splits.
      label_names: of the C labels.
      preprocess: that the sources apply to raw inputs; None where they hold the model's own.
      kind: "dense" or "sparse" vectors, "image" or "text"; "" for others.
      few: what `data.examples_per_label` left of train; None where that is all of it.
    """

    name: str
    train: Source
    validation: Source
    test: Source
    label_names: tuple[str, ...]
    preprocess: Preprocess | TextPreprocess | None = None
    kind: str = ""
    few: FewExamples | None = None

    @property
    def num_classes(self) -> int:
        """Number of labels C."""
        return len(self.label_names)

    @property
    def input_spec(self) -> Any:
        """Shape and dtype of one example's inputs, a pytree of `jax.ShapeDtypeStruct`."""
        return self.train.input_spec


def load(config: DataConfig) -> Dataset:
    """Loads the data set that `config` names, prepared on first use.

    Means and standard deviations, label names and feature names are those of the training
    split. Where `test` is empty, `test_fraction` of the training rows, drawn by `split_seed`,
    become the test split, or with `folds` one fold of them; where there is no validation split,
    `validation_fraction` of those that are left become one. Where a test split is drawn both are
    stratified by label sets (Sechidis et al. 2011), up to 20,000 rows and 1,024 labels; otherwise
    they are random. Of the training split that is left, `examples_per_label` keeps so many rows for
    each label, drawn by `split_seed`.

    Rows with the same inputs in two splits are counted, and warned of; images that are encoded,
    where they are at most 10,000 a split, by their files.

    Args:
      config: a TFDS name and its splits, or `name="files"` and paths.

    Returns:
      The data set, inputs preprocessed.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the name, a split, or what a file holds is not usable, or two splits are the
        same file, or files of the same content; the text says why.
    """
    if config.image_size < 0:
        raise InputError(f"data.image_size must be 0 or more, got {config.image_size}.")
    if config.split_seed < 0:
        raise InputError(f"data.split_seed must be 0 or more, got {config.split_seed}.")
    one_of("data.missing", config.missing, MISSING)
    one_of("data.scaling", config.scaling, SCALINGS)
    for field in ("image", "images"):
        if getattr(config, field) and config.name != "files":
            raise InputError(f"data.{field} is for files; data.name is {config.name!r}.")
    if config.skip_objects and config.name == "files":
        raise InputError("data.skip_objects is for the objects of TFDS sets, not for files.")
    if config.text and config.image:
        raise InputError("data.text and data.image exclude each other; both are given.")
    if config.images and not config.image:
        raise InputError("data.images needs data.image, the column that names the files in it.")
    if bool(config.image_mean) != bool(config.image_std):
        raise InputError("data.image_mean and data.image_std are given together or not at all.")
    given = _read(config)
    splits, few = with_splits_off(given, config), None
    if config.examples_per_label:
        wanted = config.examples_per_label
        splits["train"], few = few_examples.take(splits["train"], wanted, config.split_seed)
        logging.info("Data %s: %s", config.name, few)
    splits = without_unknown_values(splits)
    preprocess = _fitted(config, splits["train"])
    splits = _all_matched(splits, preprocess)
    name = config.name
    if name == "files":
        name = os.path.splitext(os.path.basename(config.train))[0]
        # Before others were split off, train was the whole file.
        overlap.check_contents(
            {split: splits[split] for split in given} | {"train": given["train"]}
        )
    overlap.warn_of_duplicates(name, splits)
    return _made(name, splits, preprocess, config.data_dir, few)


def of_examples(name: str, splits: Mapping[str, Examples], config: DataConfig) -> Dataset:
    """The data set of examples that are in memory, preprocessed as those of files are.

    Args:
      name: for people.
      splits: "train", "validation" and "test"; all but train may have no rows.
      config: how to preprocess: `scaling`, `missing`, and of texts `tokenizer` and `max_length`.

    Raises:
      InputError: if the splits do not fit each other, or a value is not finite.
    """
    for examples in splits.values():
        if examples.modality != "text":
            missing = config.missing == "median"
            names = examples.feature_names
            check_finite(examples.origin, examples.inputs, names, missing_allowed=missing)
    preprocess = _fitted(config, splits["train"])
    return _made(name, _all_matched(splits, preprocess), preprocess)


def kind_of(examples: Examples) -> str:
    """The `Dataset.kind` of examples."""
    if examples.modality != "vector":
        return examples.modality
    return "sparse" if is_sparse(examples.inputs, "vector") else "dense"


def _made(
    name: str,
    splits: Mapping[str, Examples],
    preprocess: Preprocess | TextPreprocess,
    data_dir: str = "",
    few: FewExamples | None = None,
) -> Dataset:
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    sources = [_source(examples, preprocess, data_dir) for examples in (train, validation, test)]
    logging.info(
        "Data %s: %d train, %d validation, %d test examples; inputs %s, %d labels.",
        *(name, *map(len, sources), sources[0].input_spec, len(train.label_names)),
    )
    return Dataset(
        name,
        *sources,
        label_names=train.label_names,
        preprocess=preprocess,
        kind=kind_of(train),
        few=few,
    )


def _fitted(config: DataConfig, train: Examples) -> Preprocess | TextPreprocess:
    """What turns the inputs of all splits into the model's."""
    if train.modality != "text":
        size, column = config.image_size, config.image
        if config.image_mean:
            return Preprocess.of_images(train, size, config.image_mean, config.image_std, column)
        return Preprocess.fit(train, size, config.missing, config.scaling, column)
    if not config.tokenizer:
        raise InputError("data.text needs data.tokenizer, or model.weights that have one.")
    tokenizer = Tokenizer.of_model(config.tokenizer).content
    length = config.max_length or NO_LIMIT
    return TextPreprocess(config.text, tokenizer, length, train.label_names)


def _source(
    examples: Examples, preprocess: Preprocess | TextPreprocess, data_dir: str = ""
) -> Source:
    if isinstance(preprocess, Preprocess):
        return make_source(examples, preprocess)
    assert examples.labels is not None
    tokens = preprocess(examples.inputs[:], Path(data_dir) if data_dir else None)
    return TextSource(tokens, examples.labels, examples.inputs, examples.names)


def read_preprocess(fields: dict[str, Any]) -> Preprocess | TextPreprocess:
    """What `to_json` of either kind of preprocessing wrote."""
    kind = TextPreprocess if fields["kind"] == TextPreprocess.kind else Preprocess
    return kind.from_json(fields)


def _read(config: DataConfig) -> dict[str, Examples]:
    """The splits that `config` names, by name in the order train, validation, test (if any)."""
    read = files.read_splits if config.name == "files" else tfds.read_splits
    splits = {}
    for split, examples in zip(("train", "validation", "test"), read(config), strict=True):
        if examples is None:
            continue
        if not len(examples):
            raise InputError(f"{examples.origin}: the {split} split is empty.")
        if not hashing.is_sampled(examples.inputs):
            hashes = hashing.row_hashes(examples.inputs)
            examples = dataclasses.replace(examples, hashes=hashes)
        splits[split] = examples
    return splits


def read_inputs(
    path: str, preprocess: Preprocess | TextPreprocess, input_key: str = "", images: str = ""
) -> tuple[RowArray | Tokens, list[str] | None]:
    """Reads new rows to predict, from a file of the formats that `load` reads.

    Label columns may be there or not. Images may also be single files or a folder of them.

    Args:
      path: of the file.
      preprocess: of the training run.
      input_key: the inputs of an .npz, .h5 or .jsonl file, or the column of the texts or of the
        names of images; "" finds them.
      images: the folder of the images that a table names; "" is the table's own.

    Returns:
      x: float32 [N, ...], preprocessed, images when they are asked for; or the tokens of N texts.
      ids: N names of rows, from a column `id` or the images' file names; None without.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the inputs are not those of the training run.
    """
    examples = _read_rows(path, preprocess, preprocess.read_options(input_key, images))
    if isinstance(preprocess, Preprocess) and isinstance(examples.inputs, EncodedImages):
        shape = preprocess.input_shape
        x = Computed(examples.inputs, preprocess.of_checked, shape, np.float32)
    else:
        x = preprocess(examples.inputs[:])
    return x, None if examples.ids is None else list(examples.ids)


def read_labelled(
    path: str, preprocess: Preprocess | TextPreprocess, config: DataConfig
) -> Examples:
    """Reads new rows with their labels, which stand in the file as in those of the training run.

    Args:
      path: of the file.
      preprocess: of the training run.
      config: of the training run, which says what is input and what is label.

    Raises: as `read_inputs`, and
      ValueError: if the labels are not those of the training run.
    """
    options = dataclasses.replace(
        preprocess.read_options(config.input_key, config.images),
        labelled=True,
        labels=config.labels,
        label_key=config.label_key,
        label_separator=config.label_separator,
        ignore=config.ignore,
    )
    examples = _read_rows(path, preprocess, options)
    return _with_label_names(examples, preprocess.label_names, "the training run")


def _read_rows(
    path: str, preprocess: Preprocess | TextPreprocess, options: ReadOptions
) -> Examples:
    examples = files.read_examples(path, options)
    if not len(examples):
        raise InputError(f"{examples.origin}: no rows.")
    _check_inputs(examples, preprocess)
    return examples


def _all_matched(
    splits: Mapping[str, Examples], preprocess: Preprocess | TextPreprocess
) -> dict[str, Examples]:
    train = splits["train"]
    return {split: _matched(each, train, preprocess) for split, each in splits.items()}


def _matched(
    examples: Examples, train: Examples, preprocess: Preprocess | TextPreprocess
) -> Examples:
    """`examples` after checking that they fit training, labels in the order of training."""
    _check_inputs(examples, preprocess)
    return _with_label_names(examples, train.label_names, train.origin)


def _with_label_names(examples: Examples, expected: tuple[str, ...], there: str) -> Examples:
    """`examples` with their labels in the order `expected`, which is that of `there`."""
    names = examples.label_names
    assert examples.labels is not None
    if names == expected:
        return examples
    if set(names) != set(expected):
        absent = [name for name in expected if name not in names]
        new = [name for name in names if name not in expected]
        raise InputError(
            f"{examples.origin}: {len(names)} labels, and {len(expected)} in {there}; "
            f"absent here: {listing(absent)}; absent there: {listing(new)}."
        )
    return dataclasses.replace(
        examples, labels=_reordered(examples.labels, names, expected), label_names=expected
    )


def _reordered(labels: LabelSets, names: Sequence[str], expected: Sequence[str]) -> LabelSets:
    """`labels` of classes `names`, as those of the same classes in the order `expected`."""
    old = {name: place for place, name in enumerate(names)}
    order = np.array([old[name] for name in expected])
    if not isinstance(labels, LabelIndices):
        return labels[:, order]
    # Place -1, the padding, is last.
    new = np.append(np.argsort(order), -1).astype(np.int32)
    return LabelIndices(new[np.asarray(labels.indices)], labels.num_classes)


def _check_inputs(examples: Examples, preprocess: Preprocess | TextPreprocess) -> None:
    inputs, origin = examples.inputs, examples.origin
    if examples.modality != preprocess.kind:
        raise InputError(
            f"{origin}: the inputs are {examples.modality}s, those of training {preprocess.kind}s."
        )
    if isinstance(preprocess, TextPreprocess):
        return
    shape = tuple(inputs.shape[1:])
    if shape != preprocess.input_shape:
        what = "features" if preprocess.kind == "vector" else "image shape"
        raise InputError(
            f"{origin}: {what} {shape}, and {preprocess.input_shape} in training"
            + ("." if preprocess.kind == "vector" else ": set data.image_size.")
        )
    names = examples.feature_names
    if names and preprocess.feature_names and names != preprocess.feature_names:
        raise InputError(
            f"{origin}: the features are not those of training; "
            f"here {listing(names)}; there {listing(preprocess.feature_names)}."
        )
    preprocess.check_dtype(inputs.dtype, origin)
