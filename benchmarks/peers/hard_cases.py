"""Small batches on which losses break."""

from typing import NamedTuple

import numpy as np

ROWS, DIM, NUM_CLASSES, WIDTH = 16, 8, 16, 3


class Batch(NamedTuple):
    """Embeddings float32 [B, D] and label indices [B, L] padded with -1."""

    z: np.ndarray
    labels: np.ndarray


def hard_cases(seed: int = 0) -> dict[str, Batch]:
    """Batches of one shape, but for the one with a single row."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES - 1, (ROWS, WIDTH)).astype(np.int32)
    alone = np.full_like(labels, -1)
    alone[:, 0] = np.arange(ROWS)
    some_empty, one_lonely, one_shared = labels.copy(), labels.copy(), labels.copy()
    some_empty[::4] = -1
    # The last label is drawn for no other row.
    one_lonely[0] = [NUM_CLASSES - 1, -1, -1]
    one_shared[:, 0] = 0
    clusters = z[np.arange(ROWS) % 4] + 1e-3 * rng.standard_normal(z.shape)
    norms = np.logspace(-3, 3, ROWS)[:, None] / np.linalg.norm(z, axis=1, keepdims=True)
    zeros = z.copy()
    zeros[:2] = 0
    return {
        "no positives": Batch(z, alone),
        "empty label sets": Batch(z, some_empty),
        "a label no other row has": Batch(z, one_lonely),
        "all rows share a label": Batch(z, one_shared),
        "B = 1": Batch(z[:1], labels[:1]),
        "all rows equal": Batch(np.repeat(z[:1], ROWS, axis=0), labels),
        "clusters of near duplicates": Batch(clusters.astype(np.float32), labels),
        "norms from 1e-3 to 1e3": Batch((z * norms).astype(np.float32), labels),
        "zero rows": Batch(zeros, labels),
    }
