"""Arrays by name: .npz and HDF5."""

from collections.abc import Mapping

import numpy as np

from sdjax.data.examples import Examples, check_binary, check_finite, listing
from sdjax.data.images import resize
from sdjax.data.readers.options import INPUT_KEYS, LABEL_KEYS, ReadOptions, find_key, readable
from sdjax.errors import InputError


def read_npz(path: str, options: ReadOptions) -> Examples:
    """Reads the arrays that `np.savez` wrote."""
    with open(path, "rb") as file:
        with readable(path, ".npz"):
            arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise InputError(f"{path}: a single array, no .npz file; write it with np.savez.")
        with arrays:
            return _from_arrays(path, arrays, options)


def read_hdf5(path: str, options: ReadOptions) -> Examples:
    """Reads the data sets of an HDF5 file; those in groups are named `group/name`."""
    import h5py

    with readable(path, "HDF5"):
        file = h5py.File(path, "r")
    with file:
        found = {}
        file.visititems(lambda name, node: found.update({name: node}) if _is_array(node) else None)
        return _from_arrays(path, found, options)


def _is_array(node: object) -> bool:
    import h5py

    return isinstance(node, h5py.Dataset)


def _from_arrays(path: str, arrays: Mapping, options: ReadOptions) -> Examples:
    keys = list(arrays)
    inputs = _get(path, arrays, "data.input_key", options.input_key, INPUT_KEYS, keys)
    inputs, labels = as_inputs(path, inputs, options.image_size), None
    label_names: tuple[str, ...] = ()
    feature_names = _names(path, arrays, "feature_names", inputs.shape[-1])
    check_finite(path, inputs, feature_names)
    if options.labelled:
        labels = _get(path, arrays, "data.label_key", options.label_key, LABEL_KEYS, keys)
        if labels.ndim != 2 or len(labels) != len(inputs) or not labels.shape[1]:
            raise InputError(
                f"{path}: labels must be multi-hot [{len(inputs)}, C] beside inputs "
                f"{inputs.shape}, got {labels.shape}."
            )
        label_names = _names(path, arrays, "label_names", labels.shape[1])
        label_names = label_names or tuple(f"label_{k}" for k in range(labels.shape[1]))
        labels = check_binary(path, labels, label_names)
    inputs, feature_names = _align(path, inputs, feature_names, options)
    return Examples(
        origin=path,
        inputs=inputs,
        labels=labels,
        label_names=label_names,
        feature_names=feature_names if inputs.ndim == 2 else (),
        ids=_names(path, arrays, "id", len(inputs)) or None,
    )


def as_inputs(path: str, inputs: np.ndarray, image_size: int) -> np.ndarray:
    """`inputs` as float32 [N, F], or uint8 or float32 [N, H, W, channels].

    Raises:
      ValueError: if the shape or the dtype is of neither.
    """
    if inputs.dtype.kind not in "buif":
        raise InputError(f"{path}: inputs must be numbers, got {inputs.dtype}.")
    if inputs.ndim == 2 and inputs.shape[1]:
        return inputs.astype(np.float32)
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
    images = images if images.dtype == np.uint8 else images.astype(np.float32)
    return resize(images, image_size) if image_size else images


def _get(
    path: str, arrays: Mapping, option: str, key: str, known: tuple[str, ...], keys: list[str]
) -> np.ndarray:
    found = find_key(path, option, key, known, keys)
    if found is None:
        raise InputError(
            f"{path}: no array is called {' or '.join(known)}; set {option}. "
            f"Arrays: {listing(keys)}."
        )
    with readable(path, f"array {found!r}"):
        return np.asarray(arrays[found])


def _names(path: str, arrays: Mapping, key: str, count: int) -> tuple[str, ...]:
    """The strings of array `key`, or nothing where there is none."""
    if key not in arrays:
        return ()
    with readable(path, f"array {key!r}"):
        values = np.asarray(arrays[key])
    if values.shape != (count,):
        raise InputError(f"{path}: {key} must be [{count}], got shape {values.shape}.")
    return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in values.tolist())


def _align(
    path: str, inputs: np.ndarray, names: tuple[str, ...], options: ReadOptions
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Features in the order of training, where both have names."""
    expected = options.feature_names
    if inputs.ndim != 2 or not names or not expected or names == expected:
        return inputs, names
    if len(set(names)) < len(names) or set(names) != set(expected):
        absent = [name for name in expected if name not in names]
        new = [name for name in names if name not in expected]
        raise InputError(
            f"{path}: the features are not those of training. Absent here: {listing(absent)}; "
            f"only here: {listing(new)}."
        )
    places = {name: place for place, name in enumerate(names)}
    return inputs[:, [places[name] for name in expected]], expected
