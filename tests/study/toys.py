"""Files of a toy data set."""

import numpy as np


def write_toy_files(folder, seed=0):
    """A small separable data set of four labels, one of them rare."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4, 6))
    for name, size in (("train", 48), ("validation", 24), ("test", 32)):
        labels = rng.random((size, 4)) < [0.5, 0.5, 0.3, 0.1]
        x = labels @ directions + 0.3 * rng.normal(size=(size, 6))
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), labels=labels)
