"""Arrays written as users write them."""

import h5py
import numpy as np


def write_arrays(path, **arrays):
    """`arrays` by name, as .npz or HDF5 by the suffix of `path`."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
