"""Arrays by name: .npz and HDF5."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from sdjax.data.examples import (
    Examples,
    check_binary,
    check_finite,
    check_indices,
    from_csr,
    listing,
)
from sdjax.data.images import resize
from sdjax.data.readers import mapped
from sdjax.data.readers.options import INPUT_KEYS, LABEL_KEYS, ReadOptions, find_key, readable
from sdjax.data.rows import Computed, RowArray, SparseRows
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets

# What a matrix in rows (CSR) consists of.
SPARSE_PARTS = ("data", "indices", "indptr", "shape")
Arrays = Mapping[str, Callable[[], Any]]  # by name, read when they are called


def read_npz(path: str, options: ReadOptions) -> Examples:
    """Reads the arrays that `np.savez` wrote; large ones stay in the file, see `mapped`."""
    with open(path, "rb") as file:
        with readable(path, ".npz"):
            arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise InputError(f"{path}: a single array, no .npz file; write it with np.savez.")
        with arrays:
            with readable(path, ".npz"):
                large = mapped.npz_members(path)

            def read(name: str) -> np.ndarray:
                return large[name] if name in large else arrays[name]

            found = {name: functools.partial(read, name) for name in arrays}
            if {"format", "shape", "data"} <= set(found):
                found = _of_scipy(path, options)
            return _from_arrays(path, found, options)


def read_hdf5(path: str, options: ReadOptions) -> Examples:
    """Reads the data sets of an HDF5 file; those in groups are named `group/name`.

    Large ones that are contiguous stay in the file, see `mapped`.
    """
    import h5py

    with readable(path, "HDF5"):
        file = h5py.File(path, "r")
    with file:
        found: dict[str, Callable[[], Any]] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                found[name] = functools.partial(mapped.hdf5_dataset, path, node)

        file.visititems(visit)
        return _from_arrays(path, found, options)


def _from_arrays(path: str, arrays: Arrays, options: ReadOptions) -> Examples:
    arrays = _with_sparse(path, arrays)
    array = _get(path, arrays, "data.input_key", options.input_key, INPUT_KEYS)
    inputs, labels = as_inputs(path, array, options.image_size), None
    label_names: tuple[str, ...] = ()
    feature_names = _names(path, arrays, "feature_names", inputs.shape[-1])
    check_finite(path, inputs, feature_names)
    if options.labelled:
        labels, label_names = _labels(path, arrays, inputs.shape, options)
    inputs, feature_names = _align(path, inputs, feature_names, options)
    return Examples(
        origin=path,
        inputs=inputs,
        labels=labels,
        label_names=label_names,
        feature_names=feature_names if len(inputs.shape) == 2 else (),
        ids=_names(path, arrays, "id", len(inputs)) or None,
    )


def _of_scipy(path: str, options: ReadOptions) -> dict[str, Callable[[], Any]]:
    """The matrix that `scipy.sparse.save_npz` wrote, by a name of inputs: it has no labels."""
    if options.labelled:
        raise InputError(
            f"{path}: a sparse matrix alone, and no labels. Save inputs x and labels y, both in "
            "rows (CSR), by np.savez(path, x_data=x.data, x_indices=x.indices, "
            "x_indptr=x.indptr, x_shape=x.shape, y_data=y.data, y_indices=y.indices, "
            "y_indptr=y.indptr, y_shape=y.shape), or dense labels as y=y."
        )
    with readable(path, "a sparse matrix"):
        matrix = sparse.load_npz(path)
    return {options.input_key or INPUT_KEYS[0]: lambda: matrix}


def _with_sparse(path: str, arrays: Arrays) -> Arrays:
    """`arrays`, those of NAME_data, NAME_indices, NAME_indptr and NAME_shape as NAME."""

    def read(name: str) -> sparse.csr_array:
        data, indices, indptr, shape = (
            _read(path, arrays, f"{name}_{part}") for part in SPARSE_PARTS
        )
        with readable(path, f"sparse matrix {name!r}"):
            matrix = sparse.csr_array((data, indices, indptr), tuple(shape.tolist()))
            matrix.check_format()
        return matrix

    names = [key.removesuffix("_indptr") for key in arrays if key.endswith("_indptr")]
    names = [name for name in names if all(f"{name}_{part}" in arrays for part in SPARSE_PARTS)]
    parts = {f"{name}_{part}" for name in names for part in SPARSE_PARTS}
    rest = {key: array for key, array in arrays.items() if key not in parts}
    return rest | {name: functools.partial(read, name) for name in names}


def _labels(
    path: str, arrays: Arrays, shape: tuple[int, ...], options: ReadOptions
) -> tuple[LabelSets, tuple[str, ...]]:
    """The labels beside inputs of `shape`, and their names.

    They are multi-hot [N, C], dense or sparse. They are lists of label indices [N, L] instead,
    padded with -1, where the file has a number `num_classes`, or `label_names` of another number
    than there are columns.
    """
    labels = _get(path, arrays, "data.label_key", options.label_key, LABEL_KEYS)
    if labels.ndim != 2 or labels.shape[0] != shape[0] or not labels.shape[1]:
        raise InputError(
            f"{path}: labels must be multi-hot [{shape[0]}, C], or label indices [{shape[0]}, L], "
            f"beside inputs {shape}, got {labels.shape}."
        )
    names = _names(path, arrays, "label_names")
    if sparse.issparse(labels):
        names = names or _numbered(labels.shape[1])
        if len(names) != labels.shape[1]:
            raise InputError(f"{path}: {len(names)} label_names, and labels are {labels.shape}.")
        return from_csr(path, SparseRows(labels), names), names
    num_classes = len(names) or labels.shape[1]
    if "num_classes" in arrays:
        num_classes = _number(path, arrays, "num_classes")
    elif num_classes == labels.shape[1]:
        names = names or _numbered(num_classes)
        return check_binary(path, labels, names), names
    if names and len(names) != num_classes:
        raise InputError(f"{path}: {len(names)} label_names, and num_classes is {num_classes}.")
    try:
        return check_indices(path, labels, num_classes), names or _numbered(num_classes)
    except InputError as error:
        why = "there is num_classes" if "num_classes" in arrays else f"{len(names)} label_names"
        raise InputError(
            f"{error} (labels {labels.shape} are label indices, not multi-hot, as {why}.)"
        ) from error


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"label_{k}" for k in range(count))


def as_inputs(path: str, inputs: Any, image_size: int) -> RowArray:
    """`inputs` as float32 [N, F], sparse where they are, or uint8 or float32 [N, H, W, channels].

    What is memory-mapped is converted when it is asked for.

    Raises:
      ValueError: if the shape or the dtype is of neither.
    """
    if inputs.dtype.kind not in "buif":
        raise InputError(f"{path}: inputs must be numbers, got {inputs.dtype}.")
    if sparse.issparse(inputs) and inputs.shape[1]:
        return SparseRows(inputs)
    if inputs.ndim == 2 and inputs.shape[1]:
        return _converted(inputs, _as_float32, inputs.shape[1:], np.float32)
    if inputs.ndim not in (3, 4) or 0 in inputs.shape[1:]:
        raise InputError(
            f"{path}: inputs must be vectors [N, F], or images [N, H, W] or [N, H, W, channels], "
            f"got shape {inputs.shape}."
        )
    if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
        raise InputError(f"{path}: images must be uint8 or float, got {inputs.dtype}.")
    images = inputs if inputs.ndim == 4 else inputs[..., None]
    if images.shape[1] in (1, 3, 4) and images.shape[3] > 16:
        raise InputError(
            f"{path}: images must have their channels last, [N, H, W, channels], got "
            f"{inputs.shape}."
        )
    side = (image_size, image_size) if image_size else images.shape[1:3]

    def convert(rows: np.ndarray) -> np.ndarray:
        rows = rows if rows.dtype == np.uint8 else _as_float32(rows)
        return resize(rows, image_size) if image_size else rows

    dtype = np.uint8 if images.dtype == np.uint8 else np.float32
    return _converted(images, convert, (*side, images.shape[3]), dtype)


def _as_float32(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32, copy=False)


def _converted(
    array: np.ndarray,
    convert: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    dtype: Any,
) -> RowArray:
    """`convert(array)`: at once, or row by row where `array` is memory-mapped."""
    if not isinstance(array, np.memmap):
        return convert(array)
    if array.dtype == dtype and array.shape[1:] == shape:
        return array
    return Computed(array, convert, shape, dtype)


def _get(path: str, arrays: Arrays, option: str, key: str, known: tuple[str, ...]) -> np.ndarray:
    keys = list(arrays)
    found = find_key(path, option, key, known, keys)
    if found is None:
        raise InputError(
            f"{path}: no array is called {' or '.join(known)}; set {option}. "
            f"Arrays: {listing(keys)}."
        )
    return _read(path, arrays, found)


def _read(path: str, arrays: Arrays, key: str) -> np.ndarray:
    with readable(path, f"array {key!r}"):
        array = arrays[key]()
        return array if sparse.issparse(array) else np.asanyarray(array)


def _names(path: str, arrays: Arrays, key: str, count: int | None = None) -> tuple[str, ...]:
    """The strings of array `key`, `count` of them where it is given; nothing without the array."""
    if key not in arrays:
        return ()
    values = _read(path, arrays, key)
    if values.ndim != 1 or count not in (None, len(values)):
        expected = "N" if count is None else count
        raise InputError(f"{path}: {key} must be [{expected}], got shape {values.shape}.")
    return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in values.tolist())


def _number(path: str, arrays: Arrays, key: str) -> int:
    value = _read(path, arrays, key)
    if value.shape or value.dtype.kind not in "iu" or value < 1:
        raise InputError(f"{path}: {key} must be one integer above 0, got {value!r}.")
    return int(value)


def _align(
    path: str, inputs: RowArray, names: tuple[str, ...], options: ReadOptions
) -> tuple[RowArray, tuple[str, ...]]:
    """Features in the order of training, where both have names."""
    expected = options.feature_names
    if len(inputs.shape) != 2 or not names or not expected or names == expected:
        return inputs, names
    if len(set(names)) < len(names) or set(names) != set(expected):
        absent = [name for name in expected if name not in names]
        new = [name for name in names if name not in expected]
        raise InputError(
            f"{path}: the features are not those of training. Absent here: {listing(absent)}; "
            f"only here: {listing(new)}."
        )
    places = {name: place for place, name in enumerate(names)}
    order = [places[name] for name in expected]
    if isinstance(inputs, SparseRows):
        return SparseRows(inputs.matrix[:, order]), expected
    if isinstance(inputs, np.memmap | Computed):
        return Computed(inputs, lambda x: x[:, order], (len(order),), inputs.dtype), expected
    return inputs[:, order], expected
