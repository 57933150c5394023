"""What turns a raw input into a model's input; fitted on the training examples alone."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from sdjax.data.examples import Examples
from sdjax.data.images import resize
from sdjax.data.rows import RowArray, SparseRows, blocks, take_rows
from sdjax.errors import InputError

FIT_IMAGES = 1024  # images that the mean and standard deviation are taken over


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Standardisation, x -> (scale * x - mean) / std, with the names of what goes in.

    Attributes:
      kind: `vector` or `image`.
      input_shape: (F,) or (H, W, channels).
      feature_names: F names, or empty where the source has none.
      label_names: C names.
      scale: 1/255 for images of uint8, else 1.
      mean: of each feature (vectors) or channel (images), after scaling.
      std: likewise; 1 for constant features.
      image_size: images are resized to this square; 0 takes them as they are.
    """

    kind: str
    input_shape: tuple[int, ...]
    feature_names: tuple[str, ...]
    label_names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int = 0

    @classmethod
    def fit(cls, examples: Examples, image_size: int = 0) -> "Preprocess":
        """Fits mean and standard deviation to training `examples` (at most 1024 images)."""
        inputs, scale = examples.inputs, 1.0
        if examples.modality == "image":
            chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), FIT_IMAGES)).astype(int)
            inputs = take_rows(inputs, chosen)
            scale = 1 / 255 if inputs.dtype == np.uint8 else 1.0
        mean, std, largest = _moments(inputs)
        # What is left of a constant after rounding is no variation.
        constant = std <= 1e-6 * largest
        std = np.where(constant, 1 / scale, std)
        return cls(
            kind=examples.modality,
            input_shape=tuple(inputs.shape[1:]),
            feature_names=examples.feature_names,
            label_names=examples.label_names,
            scale=scale,
            mean=tuple((mean * scale).tolist()),
            std=tuple((std * scale).tolist()),
            image_size=image_size,
        )

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Preprocesses one raw input or a batch of them.

        Images of another size than those of training are resized as those were, where the training
        run resized its images (`image_size`).

        Args:
          inputs: [..., F], or [..., H, W, channels]; uint8 where `scale` is 1/255.

        Returns:
          float32 [..., *input_shape].

        Raises:
          ValueError: if the shape or the dtype is not that of the training inputs.
        """
        inputs = np.asarray(inputs)
        rank = len(self.input_shape)
        if self._may_resize(inputs):
            images = inputs.reshape(-1, *inputs.shape[-3:])
            self.check_dtype(images.dtype)
            images = images if images.dtype == np.uint8 else images.astype(np.float32)
            images = resize(images, self.image_size)
            inputs = images.reshape(*inputs.shape[:-3], *images.shape[1:])
        if inputs.ndim < rank or inputs.shape[-rank:] != self.input_shape:
            raise InputError(
                f"inputs must have the training inputs' shape [..., "
                f"{', '.join(map(str, self.input_shape))}], got {inputs.shape}."
            )
        self.check_dtype(inputs.dtype)
        scale, shift = self._affine
        x = inputs.astype(np.float32, copy=False) * scale
        x += shift
        return x

    def _may_resize(self, inputs: np.ndarray) -> bool:
        """Whether `inputs` are images that only differ in size from those of training."""
        return (
            self.kind == "image"
            and self.image_size > 0
            and inputs.ndim >= 3
            and 0 not in inputs.shape[-3:]
            and inputs.shape[-3:] != self.input_shape
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
        fields = dataclasses.asdict(self)
        return {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Preprocess":
        """The inverse of `to_json`."""
        read: dict[str, Any] = {
            k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()
        }
        return cls(**read)


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
