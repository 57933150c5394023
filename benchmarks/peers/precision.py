"""Error of sdjax's gradients against float64."""

import ml_dtypes
import numpy as np

from peers import float64
from peers.case import Case, make_batch
from peers.step import Unavailable, to_numpy

TEMPERATURES = (0.01, 0.02, 0.05, 0.07, 0.1, 1.0)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
IMPLEMENTATIONS = ("tiled", "dense")
NUM_CLASSES, LABELS_PER_ROW, CLUSTER = 80, 3, 16


def batches(batch: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random rows; and clusters of near duplicates, each cluster with one label set."""
    z, labels = make_batch(Case(batch, NUM_CLASSES, LABELS_PER_ROW))
    cluster = np.arange(batch) % max(1, batch // CLUSTER)
    near = z[cluster] + 0.01 * make_batch(Case(batch, NUM_CLASSES, LABELS_PER_ROW), seed=1)[0]
    return {"random": (z, labels), "near duplicates": (near, labels[cluster])}


def errors(z: np.ndarray, labels: np.ndarray, dtype: str, temperature: float) -> list[str]:
    """‖g − g64‖ / ‖g64‖ of each implementation, at embeddings rounded to `dtype`."""
    from peers import sdjax_losses

    z = z.astype(DTYPES[dtype]).astype(np.float32)
    batch = (z, labels, NUM_CLASSES, temperature)
    _, expected = float64.value_and_gradient(*batch, float64.Loss())
    cells = []
    for implementation in IMPLEMENTATIONS:
        try:
            step = sdjax_losses.prepare(*batch, implementation=implementation, dtype=dtype)
        except Unavailable:
            cells.append("not available")
            continue
        difference = to_numpy(step.run()[1]) - expected
        cells.append(f"{np.linalg.norm(difference) / np.linalg.norm(expected):.1e}")
    return cells
