"""Sizes to measure at, and the random batches of those sizes."""

import dataclasses

import numpy as np

TEMPERATURE = 0.07
# Of the losses with prototypes.
ALPHA, BETA = 1.0, 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch of B rows of D numbers, with labels out of C.

    Attributes:
      subjects: regular expression of the subjects that are measured here.
      time_cap: most seconds for one call, None for the harness's own.
    """

    batch: int
    num_classes: int
    labels_per_row: int
    dim: int = 256
    subjects: str = ""
    time_cap: float | None = None

    def __str__(self) -> str:
        return f"B={self.batch:,} C={self.num_classes:,} L={self.labels_per_row}"


def default_cases() -> list[Case]:
    small = [Case(batch, 20, 2) for batch in (32, 128, 512)]
    large = [Case(2048, 80, 3), Case(8192, 80, 3)]
    labels = [Case(8192, *rest) for rest in ((20, 2), (1000, 8), (8921, 16), (100_000, 16))]
    huge = Case(65536, 80, 3, subjects="^sdjax (auto|tiled)", time_cap=600)
    return [*small, *large, *labels, Case(16384, 8921, 16), huge]


def quick_cases() -> list[Case]:
    few = "^(sdjax auto|plain JAX)$"
    return [Case(32, 20, 2, dim=32), Case(128, 20, 2, dim=32, subjects=few)]


def parse_cases(texts: list[str], dim: int) -> list[Case]:
    """Cases from texts such as "8192:80:3": B, C and the mean number of labels a row."""
    cases = []
    for text in texts:
        batch, num_classes, labels_per_row = (int(part) for part in text.split(":"))
        cases.append(Case(batch, num_classes, labels_per_row, dim))
    return cases


def make_batch(case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian embeddings float32 [B, D], and label indices int32 [B, L] padded with -1.

    A row has 1 to 2L labels, L on average, drawn without replacement.
    """
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((case.batch, case.dim), dtype=np.float32)
    mean = case.labels_per_row
    sizes = 1 + rng.binomial(2 * mean - 1, (mean - 1) / (2 * mean - 1), case.batch)
    sizes = np.minimum(sizes, case.num_classes)
    labels = np.full((case.batch, sizes.max()), -1, np.int32)
    for row, size in enumerate(sizes):
        labels[row, :size] = rng.choice(case.num_classes, size, replace=False)
    return z, labels


def make_prototypes(num_classes: int, dim: int) -> np.ndarray:
    """Gaussian prototypes float32 [C, D], the same at each call."""
    return np.random.default_rng(1).standard_normal((num_classes, dim), dtype=np.float32)


def multi_hot(labels: np.ndarray, num_classes: int, dtype: type = np.float32) -> np.ndarray:
    """[B, C] of label indices [B, L]."""
    result = np.zeros((len(labels), num_classes), dtype)
    rows, columns = np.nonzero(labels >= 0)
    result[rows, labels[rows, columns]] = 1
    return result


def single_label(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, int]:
    """The first label of each row [B, 1], a row without any becoming a class of its own."""
    first = labels[:, :1]
    own = num_classes + np.arange(len(labels), dtype=labels.dtype)[:, None]
    return np.where(first >= 0, first, own), num_classes + len(labels)
