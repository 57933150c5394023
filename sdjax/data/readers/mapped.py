"""Arrays that stay in their file: the parts that are asked for are read, by memory-mapping."""

import zipfile
from typing import Any

import numpy as np

# Smaller arrays are read: a file that is overwritten during a run then does no harm.
MAP_BYTES = 1 << 26


def npz_members(path: str) -> dict[str, np.memmap]:
    """The large arrays of an .npz file that `np.savez` wrote, uncompressed, by name."""
    members = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            stored = info.compress_type == zipfile.ZIP_STORED and info.filename.endswith(".npy")
            if not stored or info.file_size < MAP_BYTES:
                continue
            # The local header: 30 bytes, the last four the lengths of the name and of what follows.
            file.seek(info.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
            file.seek(name + extra, 1)
            array = _npy(path, file)
            if array is not None:
                members[info.filename.removesuffix(".npy")] = array
    return members


def _npy(path: str, file: Any) -> np.memmap | None:
    """The array in .npy format that starts where `file` stands, if it can be mapped by rows."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        return None
    shape, by_columns, dtype = readers[version](file)
    if by_columns or dtype.hasobject:
        return None
    return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape)


def hdf5_dataset(path: str, dataset: Any) -> Any:
    """`dataset` of an HDF5 file mapped where it is large and contiguous, else as it is."""
    numbers = isinstance(dataset.dtype, np.dtype) and dataset.dtype.kind in "buif"
    offset = dataset.id.get_offset()  # None where it is chunked, compressed or elsewhere
    if not numbers or offset is None or dataset.external or dataset.nbytes < MAP_BYTES:
        return dataset
    return np.memmap(path, dataset.dtype, "r", offset=offset, shape=dataset.shape)
