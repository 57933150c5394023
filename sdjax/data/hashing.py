"""Hashes of examples: what tells whether two rows, or two sets, are the same."""

import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from sdjax import label_sets
from sdjax.data.images import EncodedImages
from sdjax.data.rows import RowArray, SparseRows, Subset, blocks
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices

# Of more images than these, a sample is hashed: reading every file would delay a run's start.
MOST_HASHED_IMAGES = 10_000


def row_hashes(inputs: Any) -> np.ndarray:
    """One hash of 64 bits for each row of `inputs`, uint64 [N].

    Images that are decoded when they are asked for are hashed as they are encoded, sparse rows by
    what is stored of them.

    Args:
      inputs: an array of N rows, or a pytree of such arrays.
    """
    columns = [_of_array(array) for array in jax.tree.leaves(inputs)]
    return columns[0] if len(columns) == 1 else _of_array(np.stack(columns, axis=1))


def is_sampled(inputs: Any) -> bool:
    """Whether some of `inputs` are more encoded images than are worth reading."""
    return any(
        _encoded(array) is not None and len(array) > MOST_HASHED_IMAGES
        for array in jax.tree.leaves(inputs)
    )


def sample(inputs: Any) -> Any:
    """`MOST_HASHED_IMAGES` rows of `inputs`, evenly spaced."""

    def rows(array: RowArray) -> Subset:
        return Subset(array, np.linspace(0, len(array) - 1, MOST_HASHED_IMAGES).astype(int))

    return jax.tree.map(rows, inputs)


def fingerprint(hashes: np.ndarray, labels: LabelSets, shapes: Any) -> str:
    """Hex hash of the inputs, given by the `hashes` of their rows, their `shapes`, and `labels`."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(shapes).encode())
    digest.update(hashes.tobytes())
    indexed = isinstance(labels, LabelIndices)
    array = np.asarray(labels.indices) if indexed else labels
    digest.update(repr((indexed, label_sets.num_classes(labels), array.shape)).encode())
    for block in blocks(array):
        digest.update(array[block].tobytes())
    return digest.hexdigest()


def _of_array(array: RowArray) -> np.ndarray:
    encoded = _encoded(array)
    if encoded is not None:
        rows = array.rows if isinstance(array, Subset) else range(len(array))
        return digests(encoded.encoded(int(row)) for row in rows)
    if isinstance(array, Subset) and isinstance(array.base, SparseRows):
        array = array.base.take(array.rows)
    if isinstance(array, SparseRows):
        return digests(array.content())
    if array.dtype == object:  # texts
        return digests(text.encode() for text in array[:])
    parts = [np.zeros(0, np.uint64)]
    for block in blocks(array):
        values = np.ascontiguousarray(array[block])
        parts.append(digests(values.reshape(len(values), -1).view(np.uint8)))
    return np.concatenate(parts)


def digests(rows: Iterable[Any]) -> np.ndarray:
    """One hash of 64 bits of each of the `rows`, which are bytes, uint64 [N]."""
    content = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(content, "<u8").astype(np.uint64)


def _encoded(array: RowArray) -> EncodedImages | None:
    base = array.base if isinstance(array, Subset) else array
    return base if isinstance(base, EncodedImages) else None
