"""Preprocessed examples with random access, one by one or a batch of rows at a time."""

import abc
from typing import Any

import numpy as np

from sdjax.data.examples import Examples
from sdjax.data.images import EncodedImages
from sdjax.data.preprocess import Preprocess


class Source(abc.ABC):
    """Random access to preprocessed examples; a Grain `RandomAccessDataSource`."""

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """All labels, uint8 [N, C]."""

    @abc.abstractmethod
    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """The inputs at `rows` [B], float32 [B, F] or [B, H, W, channels]."""

    @property
    def in_memory(self) -> bool:
        """Whether fetching rows is mere copying, not worth a thread."""
        return True

    def fetch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `rows` [B], as one batch {"x", "labels"}."""
        return {"x": self.inputs(rows), "labels": self.labels[rows]}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: Any) -> dict[str, np.ndarray]:
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a source of {len(self)} rows")
        batch = self.fetch(np.array([row % len(self)]))
        return {name: value[0] for name, value in batch.items()}


class VectorSource(Source):
    """Vectors: preprocessed once, kept in memory."""

    def __init__(self, x: np.ndarray, labels: np.ndarray):
        self._x, self._labels = x, labels

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        return self._x[rows]


class ImageSource(Source):
    """Images: kept as they are, preprocessed when they are fetched."""

    def __init__(
        self, images: np.ndarray | EncodedImages, labels: np.ndarray, preprocess: Preprocess
    ):
        self._images, self._labels, self._preprocess = images, labels, preprocess

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    @property
    def in_memory(self) -> bool:
        return isinstance(self._images, np.ndarray)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        return self._preprocess(self._images[np.asarray(rows)])


def make_source(examples: Examples, preprocess: Preprocess) -> Source:
    """The source of labelled `examples`."""
    assert examples.labels is not None
    if examples.modality == "image":
        return ImageSource(examples.inputs, examples.labels, preprocess)
    return VectorSource(preprocess(np.asarray(examples.inputs)), examples.labels)
