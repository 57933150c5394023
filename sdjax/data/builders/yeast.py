"""Yeast: gene function from expression and phylogenetic profiles, the multi-label classic."""

import csv
import gzip
import hashlib
import importlib.resources
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NUM_FEATURES, NUM_LABELS = 103, 14
LETTERS = {"train": "T", "validation": "V", "test": "E"}
SHA256 = (
    "fd17cb9b53acaaf5e82a9e0795e2667167775915c0e32c1f6fe0fadb0d3bd703"  # of the uncompressed CSV
)


class Yeast(tfds.core.GeneratorBasedBuilder):
    """Yeast, 2417 genes: 103 features, 14 labels, 1200 / 300 / 917 examples.

    Made from the copy that the package `river` carries. The test split is Mulan's; Mulan's 1500
    training rows are divided into train and validation as the authors of MulSupCon divided
    them. Rows keep the order of river's file: that of the published validation and test files;
    the published training file has the same rows in another order.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = [f"Class{k}" for k in range(1, NUM_LABELS + 1)]
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "features": tfds.features.Tensor(shape=(NUM_FEATURES,), dtype=np.float32),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
                }
            ),
            citation="Elisseeff and Weston. A kernel method for multi-labelled classification. "
            "NIPS 2001.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        rows = read_rows(csv_path())
        letters = split_letters()
        return {split: _examples(rows, letters, letter) for split, letter in LETTERS.items()}

    def _generate_examples(self) -> Iterator:  # the split generators are complete
        raise NotImplementedError


def csv_path() -> pathlib.Path:
    """The Yeast file of the package `river`, which is not imported.

    Raises:
      ImportError: if river is not installed.
    """
    river = importlib.util.find_spec("river")
    folders = list(river.submodule_search_locations or []) if river else []
    for folder in folders:
        path = pathlib.Path(folder, "datasets", "yeast.csv.gz")
        if path.exists():
            return path
    found = f"{folders[0]} lacks datasets/yeast.csv.gz" if folders else "it is not installed"
    raise ImportError(
        f"The Yeast data come with the package river, and {found}: pip install 'river>=0.26,<0.27'"
    )


def read_rows(path: pathlib.Path) -> np.ndarray:
    """The rows of the file, float64 [2417, 103 + 14], once it is seen to be the known one.

    Raises:
      ValueError: if the file is another, to which the split would not apply.
    """
    content = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path}: SHA-256 {found} of the uncompressed file, expected {SHA256}: the train and "
            "test split is of that version. pip install 'river>=0.26,<0.27'"
        )
    lines = csv.reader(content.decode().splitlines()[1:])
    return np.array([[float(value) for value in line] for line in lines])


def split_letters() -> str:
    """The split of each row, as a letter of `LETTERS`."""
    text = (
        importlib.resources.files("sdjax.data.builders")
        .joinpath("yeast_split.txt")
        .read_text("utf-8")
    )
    return "".join(line for line in text.splitlines() if not line.startswith("#"))


def _examples(rows: np.ndarray, letters: str, letter: str) -> Iterator:
    for number, row in enumerate(rows):
        if letters[number] == letter:
            labels = np.flatnonzero(row[NUM_FEATURES:])
            features = row[:NUM_FEATURES].astype(np.float32)
            yield number, {"features": features, "labels": labels.tolist()}
