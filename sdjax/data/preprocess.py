"""What turns a raw input into a model's input; fitted on the training examples alone."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.data.examples import Examples, check_finite, listing
from sdjax.data.images import resize
from sdjax.data.readers.options import ReadOptions
from sdjax.data.rows import Computed, RowArray, SparseRows, blocks, take_rows
from sdjax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SPARSE_BELOW = 0.1  # share of numbers that are not 0
FIT_IMAGES = 1024  # images that the mean and standard deviation are taken over
_MEDIANS_AT_ONCE = 16  # features
# Fields that are written where they hold something.
_OPTIONAL = ("medians", "indicators", "categories", "column")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Scaling, x -> (scale * x - mean) / std, with the names of what goes in.

    With `medians`, missing values (NaN) are filled in before, and M further features tell where
    those of `indicators` were missing.

    Attributes:
      kind: `vector` or `image`.
      input_shape: (F,) or (H, W, channels).
      feature_names: F names, or empty where the source has none.
      label_names: C names.
      scale: 1/255 for images of uint8, else 1.
      mean: of each feature (vectors; F + M) or channel (images), after scaling.
      std: likewise; 1 for constant features. With Pareto scaling a multiple of its square root,
        such that the mean variance of the results is 1 too.
      image_size: images are resized to this square; 0 takes them as they are.
      medians: F numbers that missing values are replaced by; empty where they are an error.
      indicators: places of the M features that have missing values in training, rising.
      categories: of text columns that become one-hot, the values by column; the features are named
        `column=value`.
      column: that names the files of images, in tables.
    """

    kind: str
    input_shape: tuple[int, ...]
    feature_names: tuple[str, ...]
    label_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int = 0
    medians: tuple[float, ...] = ()
    indicators: tuple[int, ...] = ()
    categories: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    column: str = ""

    @classmethod
    def of_images(
        cls,
        examples: Examples,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        column: str = "",
    ) -> "Preprocess":
        """Of images, by a mean and a standard deviation of each channel, of values in [0, 1].

        Raises:
          ValueError: if they are not one of each channel, or a deviation is not above 0.
        """
        channels = examples.inputs.shape[-1]
        if examples.modality != "image":
            raise InputError(f"data.image_mean is for images; the inputs are {examples.modality}s.")
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise InputError(
                f"data.image_mean and data.image_std must be {channels} numbers each, one of each "
                f"channel, and deviations above 0; got {mean} and {std}."
            )
        return cls(
            kind="image",
            input_shape=tuple(examples.inputs.shape[1:]),
            feature_names=(),
            label_names=examples.label_names,
            scale=1 / 255 if examples.inputs.dtype == np.uint8 else 1.0,
            mean=mean,
            std=std,
            image_size=image_size,
            column=column,
        )

    @classmethod
    def fit(
        cls,
        examples: Examples,
        image_size: int = 0,
        missing: str = "error",
        scaling: str = "auto",
        column: str = "",
    ) -> "Preprocess":
        """Fits mean and standard deviation to training `examples` (at most 1024 images).

        With `missing="median"`, vectors may have missing values, and medians are fitted before.
        With `scaling="pareto"`, or "auto" where they are sparse, vectors are divided by the square
        root of the standard deviation: a rare word counts for more than a frequent one, but not by
        as much as standardisation makes it.

        Raises:
          ValueError: naming the features, where some have no value in training.
        """
        inputs, scale = examples.inputs, 1.0
        medians, indicators = (), ()
        if examples.modality == "image":
            chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), FIT_IMAGES)).astype(int)
            inputs = take_rows(inputs, chosen)
            scale = 1 / 255 if inputs.dtype == np.uint8 else 1.0
        elif missing == "median":
            medians, indicators = _medians(examples)
            fill = functools.partial(_filled, medians=medians, indicators=indicators)
            inputs = Computed(inputs, fill, (len(medians) + len(indicators),), np.float32)
        mean, std, largest = _moments(inputs)
        # What is left of a constant after rounding is no variation.
        constant = std <= 1e-6 * largest
        if scaling == "auto":
            scaling = "pareto" if is_sparse(inputs, examples.modality) else "standard"
        if scaling == "pareto" and examples.modality == "vector":
            left = std[~constant]
            std = np.sqrt(std) * np.sqrt(left.mean() if len(left) else 1.0)
        std = np.where(constant, 1 / scale, std)
        return cls(
            kind=examples.modality,
            input_shape=tuple(examples.inputs.shape[1:]),
            feature_names=examples.feature_names,
            label_names=examples.label_names,
            scale=scale,
            mean=tuple((mean * scale).tolist()),
            std=tuple((std * scale).tolist()),
            image_size=image_size,
            medians=medians,
            indicators=indicators,
            categories=examples.categories,
            column=column,
        )

    def __call__(self, inputs: "np.ndarray | pd.DataFrame") -> np.ndarray:
        """Preprocesses a batch of raw inputs.

        Images of another size than those of training are resized as those were, where the training
        run resized its images (`image_size`).

        Args:
          inputs: [N, F], or [N, H, W, channels]; uint8 where `scale` is 1/255. Of a table also a
            frame with the columns of the training file, in any order; of images also a list of the
            paths of their files.

        Returns:
          float32 [N, F + M], or [N, H, W, channels].

        Raises:
          ValueError: if the shape or the dtype is not that of the training inputs, or a number is
            not finite; NaN is a missing value where there are `medians`.
        """
        inputs = self._as_array(inputs)
        if inputs.dtype.kind not in "buif":
            raise InputError(f"inputs must be numbers, got {inputs.dtype}.")
        if self._may_resize(inputs):
            self.check_dtype(inputs.dtype)
            images = inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32)
            inputs = resize(images, self.image_size)
        if inputs.ndim != len(self.input_shape) + 1 or inputs.shape[1:] != self.input_shape:
            one = (
                "; one input is a batch of one, x[None]" if inputs.shape == self.input_shape else ""
            )
            raise InputError(
                f"inputs must be a batch of the training inputs' shape [N, "
                f"{', '.join(map(str, self.input_shape))}], got {inputs.shape}{one}."
            )
        self.check_dtype(inputs.dtype)
        with np.errstate(over="ignore"):  # an infinity is reported with its place
            x = inputs.astype(np.float32, copy=False)
        if inputs.dtype.kind == "f":
            advice = "" if self.medians else " (train with data.missing='median' to have that done)"
            check_finite(
                "inputs",
                x,
                self.feature_names,
                missing_allowed=bool(self.medians),
                advice=f"Fill them in{advice}.",
            )
        return self.of_checked(x)

    def of_sparse(self, matrix: Any) -> Computed:
        """Preprocesses one of scipy's sparse matrices [N, F], some rows at a time as asked for.

        Raises:
          ValueError: as for dense inputs.
        """
        rows = SparseRows(matrix)
        if self.kind != "vector" or rows.shape[1:] != self.input_shape:
            raise InputError(
                f"inputs must be a batch of the training inputs' shape [N, "
                f"{', '.join(map(str, self.input_shape))}], got a sparse matrix {rows.shape}."
            )
        check_finite("inputs", rows, self.feature_names, advice="Fill them in.")
        return Computed(rows, self.of_checked, (len(self.mean),), np.float32)

    def of_checked(self, inputs: np.ndarray) -> np.ndarray:
        """Preprocesses a batch of raw inputs that were checked when they were read."""
        return self._computed(inputs, np)

    def traced(self, inputs: jax.Array) -> jax.Array:
        """As `of_checked`, in JAX."""
        return self._computed(inputs, jnp)

    def _computed(self, inputs: Any, xp: Any) -> Any:
        """`of_checked` by numpy or by jax.numpy."""
        x = inputs.astype(np.float32, copy=False)
        if self.medians:
            x = _filled(x, self.medians, self.indicators, xp)
        scale, shift = self._affine
        x = x * scale
        x += shift
        return x

    def read_options(self, input_key: str = "", images: str = "") -> ReadOptions:
        """How to read new rows, with labels or without, for a model of these inputs."""
        return ReadOptions(
            image=(input_key or self.column) if self.kind == "image" else "",
            images=images,
            input_key=input_key,
            image_size=self.image_size,
            channels=self.input_shape[-1] if self.kind == "image" else 0,
            feature_names=self.feature_names,
            label_names=self.label_names,
            labelled=False,
            missing="median" if self.medians else "error",
            vocabulary=self.categories,
        )

    def _as_array(self, inputs: Any) -> np.ndarray:
        """`inputs` as an array; the columns of a frame as those of a file."""
        if hasattr(inputs, "columns"):
            from sdjax.data.readers import tables

            inputs = tables.from_frame("inputs", inputs, self.read_options()).inputs[:]
        elif self.kind == "image" and _are_paths(inputs):
            from sdjax.data.readers import image_files

            inputs = image_files.from_paths("inputs", inputs, self.read_options())[:]
        return np.asarray(inputs)

    def _may_resize(self, inputs: np.ndarray) -> bool:
        """Whether `inputs` are images that only differ in size from those of training."""
        return (
            self.kind == "image"
            and self.image_size > 0
            and inputs.ndim == 4
            and 0 not in inputs.shape[1:]
            and inputs.shape[1:] != self.input_shape
            and inputs.shape[-1] == self.input_shape[-1]
        )

    def check_dtype(self, dtype: np.dtype, origin: str = "inputs") -> None:
        """Raises ValueError where images of uint8 and of floats would be mixed up."""
        if self.kind == "image" and (dtype == np.uint8) != (self.scale != 1):
            expected = "uint8" if self.scale != 1 else "float"
            raise InputError(
                f"{origin}: images must be {expected} as the training images are, got {dtype}."
            )

    @functools.cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        return (self.scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The fields, as a dict of plain numbers, strings and lists."""
        fields = {
            name: list(x) if isinstance(x, tuple) else x
            for name, x in dataclasses.asdict(self).items()
            if x or name not in _OPTIONAL
        }
        if self.categories:
            fields["categories"] = {name: list(values) for name, values in self.categories.items()}
        return fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_json`."""
        read: dict[str, Any] = {
            k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()
        }
        categories = {k: tuple(values) for k, values in read.pop("categories", {}).items()}
        return cls(**read, categories=categories)


def _are_paths(inputs: Any) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], str)


def is_sparse(inputs: RowArray, modality: str) -> bool:
    """Whether fewer than a tenth of the numbers of vectors is not 0, as in counts of words."""
    if modality != "vector":
        return False
    if isinstance(inputs, SparseRows):
        found = inputs.matrix.nnz
    else:
        found = sum(np.count_nonzero(inputs[block]) for block in blocks(inputs))
    return bool(found < SPARSE_BELOW * math.prod(inputs.shape))


def _medians(examples: Examples) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The median of each feature [F], and the places of those that have missing values."""
    inputs, width = examples.inputs, examples.inputs.shape[1]
    missing = np.zeros(width, np.int64)
    for block in blocks(inputs):
        missing += np.isnan(inputs[block]).sum(axis=0)
    empty = np.flatnonzero(missing == len(inputs))
    if len(empty):
        names = [examples.feature_names[k] if examples.feature_names else str(k) for k in empty]
        raise InputError(
            f"{examples.origin}: features without any value in train: {listing(names)}. Leave them "
            "out with data.ignore."
        )
    medians = []
    # Some features at a time: no second copy of all rows is made.
    for start in range(0, width, _MEDIANS_AT_ONCE):
        places = slice(start, start + _MEDIANS_AT_ONCE)
        part = np.concatenate([inputs[block][:, places] for block in blocks(inputs)])
        medians += [float(np.median(values[~np.isnan(values)])) for values in part.T]
    return tuple(medians), tuple(np.flatnonzero(missing).tolist())


def _filled(
    x: Any, medians: tuple[float, ...], indicators: tuple[int, ...], xp: Any = np
) -> np.ndarray:
    """x [N, F] with `medians` for NaN, then 1 where the features `indicators` are NaN, else 0.

    `xp` is numpy or jax.numpy.
    """
    missing = xp.isnan(x)
    filled = xp.where(missing, np.asarray(medians, np.float32), x)
    places = np.asarray(indicators, np.int32)
    return xp.concatenate([filled, missing[:, places]], axis=1, dtype=np.float32)


def _moments(inputs: RowArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and largest magnitude of each feature or channel, in float64.

    Sums run over one block of rows after another: no copy of all is made.
    """
    if isinstance(inputs, SparseRows):
        return _sparse_moments(inputs)
    width = inputs.shape[-1]
    count = math.prod(inputs.shape) // width
    total, square, largest = np.zeros(width), np.zeros(width), np.zeros(width)
    for block in blocks(inputs):
        values = inputs[block].reshape(-1, width)
        total += values.sum(axis=0, dtype=np.float64)
        np.maximum(largest, np.abs(values).max(axis=0), out=largest)
    mean = total / count
    for block in blocks(inputs):
        square += np.square(inputs[block].reshape(-1, width) - mean).sum(axis=0)
    return mean, np.sqrt(square / count), largest


def _sparse_moments(inputs: SparseRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_moments` from what is stored: sum (x - mean)^2 = stored sum + (number of zeros) mean^2."""
    matrix, (count, width) = inputs.matrix, inputs.shape
    columns, values = matrix.indices, matrix.data.astype(np.float64)
    mean = np.bincount(columns, values, width) / count
    zeros = count - np.bincount(columns, minlength=width)
    square = np.bincount(columns, np.square(values - mean[columns]), width)
    largest = np.zeros(width)
    np.maximum.at(largest, columns, np.abs(values))
    return mean, np.sqrt((square + zeros * np.square(mean)) / count), largest
