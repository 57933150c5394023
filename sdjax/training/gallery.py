"""Embedded rows with their ids and labels, and the nearest of them."""

import dataclasses
import functools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from sdjax import label_sets
from sdjax.checks import one_of
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices
from sdjax.writing import whole

SPACES = ("h", "z")
SUFFIXES = (".npz", ".parquet")


class Neighbors(NamedTuple):
    """The k nearest rows of a gallery, the nearest first, for each of N queries.

    Attributes:
      similarities: cosines, float32 [N, k].
      ids: of the rows, strings or whole numbers [N, k].
      labels: names of the labels of each, N lists of k tuples; None where the gallery has none.
      rows: places in the gallery, int64 [N, k].
    """

    similarities: np.ndarray
    ids: np.ndarray
    labels: list[list[tuple[str, ...]]] | None
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Rows to be searched.

    Args:
      embeddings: float32 [N, D], of `Predictor.embed`.
      ids: of the rows, strings or whole numbers [N].
      labels: multi-hot [N, C], or `LabelIndices` over C labels; None where they are not known.
      label_names: C names; empty without labels.
      space: "h" or "z", what the embeddings are.
      step: of the run's model that made them; -1 where it is not known.

    Raises:
      InputError: if the numbers of rows differ.
    """

    embeddings: np.ndarray
    ids: np.ndarray
    labels: LabelSets | None = None
    label_names: tuple[str, ...] = ()
    space: str = "h"
    step: int = -1

    def __post_init__(self) -> None:
        one_of("space", self.space, SPACES)
        if np.ndim(self.embeddings) != 2 or not len(self.embeddings):
            raise InputError(
                f"embeddings must be [N, D], at least one row, got {np.shape(self.embeddings)}."
            )
        rows = len(self.embeddings)
        if len(self.ids) != rows:
            raise InputError(f"ids must be {rows}, one a row of embeddings, got {len(self.ids)}.")
        if self.labels is None:
            return
        found = label_sets.num_rows(self.labels), label_sets.num_classes(self.labels)
        if found != (rows, len(self.label_names)):
            raise InputError(
                f"labels must be [{rows}, {len(self.label_names)}], a row for each of embeddings "
                f"and a column for each of label_names, got {list(found)}."
            )

    def neighbors(self, queries: np.ndarray, k: int) -> Neighbors:
        """The k nearest rows to embeddings [N, D], by the cosine.

        Raises:
          InputError: if the width or k does not fit.
        """
        rows, width = self.embeddings.shape
        if np.ndim(queries) != 2 or queries.shape[1] != width:
            raise InputError(
                f"queries must be [N, {width}] as the gallery is, got {np.shape(queries)}: it is "
                "of another model, or of the other space."
            )
        if not 1 <= k <= rows:
            raise InputError(f"k must be 1 to {rows}, the rows of the gallery, got {k}.")
        distances, places = np.zeros((0, k)), np.zeros((0, k), np.int64)
        if len(queries):  # scikit-learn wants one
            distances, places = self._index.kneighbors(queries, k)
        return Neighbors(
            (1 - distances).astype(np.float32),
            np.asarray(self.ids)[places],
            None if self.labels is None else [self.names_of(each) for each in places],
            places,
        )

    def names_of(self, rows: np.ndarray) -> list[tuple[str, ...]]:
        """The names of the labels of some rows."""
        assert self.labels is not None
        return names_of(label_sets.take(self.labels, rows), self.label_names)

    @functools.cached_property
    def _index(self) -> Any:
        from sklearn.neighbors import NearestNeighbors

        return NearestNeighbors(metric="cosine", algorithm="brute").fit(self.embeddings)

    def write(self, path: str | Path) -> None:
        """Writes all rows, as .npz or .parquet.

        .npz holds `id` [N], `embeddings` float32 [N, D], `space`, `step`, and where labels are
        known `label_names` [C] and `labels` bool [N, C], or `label_indices` int32 [N, L] padded
        with -1. .parquet has the columns `id`, `embedding`, lists of D float32, and `labels`, lists
        of names.

        Raises:
          InputError: if the suffix is another.
        """
        path = Path(path)
        one_of("output format", path.suffix, SUFFIXES)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            with open(path, "wb") as file:
                np.savez(file, **self._arrays())
            return
        import pyarrow
        import pyarrow.parquet

        flat = pyarrow.array(np.ascontiguousarray(self.embeddings, np.float32).ravel())
        columns: dict[str, Any] = {
            "id": pyarrow.array(np.asarray(self.ids)),
            "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, self.embeddings.shape[1]),
        }
        if self.labels is not None:
            names = [list(each) for each in self.names_of(np.arange(len(self.ids)))]
            columns["labels"] = pyarrow.array(names, pyarrow.list_(pyarrow.string()))
        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    def keep(self, path: Path) -> None:
        """Writes `path`, whole or not at all; warns where the disk does not take it."""
        try:
            with whole(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **self._arrays())
        except OSError as error:
            logging.warning("%s is not kept: %s.", path, error.strerror)

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {
            "id": np.asarray(self.ids),
            "embeddings": np.asarray(self.embeddings, np.float32),
            "space": np.array(self.space),
            "step": np.array(self.step),
        }
        if isinstance(self.labels, LabelIndices):
            arrays["label_indices"] = np.asarray(self.labels.indices, np.int32)
        elif self.labels is not None:
            arrays["labels"] = self.labels.astype(bool)
        if self.labels is not None:
            arrays["label_names"] = np.array(self.label_names, str)
        return arrays

    @classmethod
    def read(cls, path: str | Path) -> "Gallery":
        """What `write` wrote as .npz.

        Raises:
          FileNotFoundError: if there is no such file.
          InputError: if it is another file.
        """
        if Path(path).exists() and not zipfile.is_zipfile(path):
            raise InputError(f"{path}: not an .npz file, or not a whole one.")
        with np.load(path) as file:
            arrays = dict(file)
        absent = [name for name in ("id", "embeddings", "space") if name not in arrays]
        if absent:
            raise InputError(
                f"{path}: not a gallery, it holds no {' and no '.join(absent)}. "
                "`python -m sdjax.embed --output=NAME.npz` writes one."
            )
        names = tuple(map(str, arrays.get("label_names", ())))
        labels: LabelSets | None = arrays.get("labels")
        if "label_indices" in arrays:
            labels = LabelIndices(arrays["label_indices"], len(names))
        return cls(
            arrays["embeddings"],
            arrays["id"],
            labels,
            names,
            str(arrays["space"]),
            int(arrays.get("step", -1)),
        )


def names_of(labels: LabelSets, label_names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The names of each of some label sets."""
    if isinstance(labels, LabelIndices):
        lists = [sorted(row[row >= 0]) for row in np.asarray(labels.indices)]
    else:
        lists = [np.flatnonzero(row) for row in labels]
    return [tuple(label_names[place] for place in row) for row in lists]
