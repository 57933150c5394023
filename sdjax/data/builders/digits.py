"""Digits: composite canvases of real scans of handwritten digits."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

CANVAS = 24  # pixels
SCAN = 8
MAX_DIGITS = 4
SIZES = {"train": 4000, "validation": 500, "test": 1000}  # canvases
SCANS = {"train": 1197, "validation": 200, "test": 400}  # of the 1797 scans, no scan in two
SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """Digits, a composite: grey 24x24 canvases with one to four scans of handwritten digits.

    The scans are those of scikit-learn's `load_digits` (UCI, 1797 scans of 8x8), put at
    random places where they do not overlap. The labels are the digits that are present. Train,
    validation and test are made from different scans.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        names = [str(digit) for digit in range(10)]
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(CANVAS, CANVAS, 1), encoding_format="png"),
                    "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
                }
            ),
            citation="Kaynak. Methods of combining multiple classifiers and their applications to "
            "handwritten digit recognition. MSc thesis, Bogazici University, 1995.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: _examples(split) for split in SIZES}

    def _generate_examples(self) -> Iterator:  # the split generators are complete
        raise NotImplementedError


def scan_indices() -> dict[str, np.ndarray]:
    """The scans that each split is made from, by their index in `load_digits`."""
    order = np.random.default_rng(SEED).permutation(sum(SCANS.values()))
    parts = np.split(order, np.cumsum(list(SCANS.values()))[:-1])
    return {split: np.sort(part) for split, part in zip(SCANS, parts, strict=True)}


def canvases(split: str) -> Iterator[tuple[np.ndarray, list[int]]]:
    """The canvases of a split, uint8 [24, 24], each with the indices of its scans."""
    scans = _load_digits().images
    scans = np.round(scans * (255 / 16)).astype(np.uint8)
    own = scan_indices()[split]
    random = np.random.default_rng([SEED, list(SIZES).index(split)])
    for _ in range(SIZES[split]):
        chosen = random.choice(own, random.integers(1, MAX_DIGITS + 1), replace=False)
        canvas = np.zeros((CANVAS, CANVAS), np.uint8)
        for index, (top, left) in zip(chosen, _places(random, len(chosen)), strict=True):
            canvas[top : top + SCAN, left : left + SCAN] = scans[index]
        yield canvas, chosen.tolist()


def _load_digits() -> Any:
    import sklearn.datasets

    return sklearn.datasets.load_digits()


def _examples(split: str) -> Iterator:
    from PIL import Image

    digits = _load_digits().target
    for number, (canvas, scans) in enumerate(canvases(split)):
        file = io.BytesIO()
        Image.fromarray(canvas).save(file, "PNG")
        file.seek(0)
        labels = sorted({int(digits[index]) for index in scans})
        yield number, {"image": file, "labels": labels}


def _places(random: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Top left corners of `count` squares that do not overlap, drawn again until they do not."""
    while True:
        corners = random.integers(0, CANVAS - SCAN + 1, (count, 2))
        apart = np.abs(corners[:, None] - corners[None]).max(axis=-1) >= SCAN
        if (apart | np.eye(count, dtype=bool)).all():
            return [(int(top), int(left)) for top, left in corners]
