"""`PretrainedImages`: a published encoder of images, and how images become its input."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sdjax.data.images import MODES, decode, fitted
from sdjax.errors import InputError
from sdjax.models import image_inputs, resnet, vit
from sdjax.models.image_inputs import ImageInputs

_BATCH = 64

Family = Any  # the module `vit` or `resnet`


def load(
    family: Family, origin: str, pooling: str, dtype: DTypeLike, remat: bool
) -> "PretrainedImages":
    """The published encoder at `origin`, of one of the families.

    Raises:
      InputError: if it cannot be read, is not of the family, or there is no such pooling.
    """
    sizes = family.read_sizes(origin)
    options: dict[str, Any] = {"dtype": dtype, "remat": remat, "rngs": nnx.Rngs(0)}
    if family is vit:
        module = vit.ViT(sizes, pooling=pooling or "cls", **options)
    elif pooling not in ("", "mean"):
        raise InputError(f"pooling of a ResNet is 'mean', got {pooling!r}.")
    else:
        module = resnet.ResNet(sizes, **options)
    inputs = image_inputs.read(origin)
    if sizes.num_channels not in MODES or len(inputs.mean) not in (1, sizes.num_channels):
        raise InputError(
            f"{origin}: images of {sizes.num_channels} channels, with means {inputs.mean}."
        )
    family.load(module, origin)
    return PretrainedImages(module, inputs)


class PretrainedImages:
    """An encoder of images.

    Attributes:
      module: from standardised images to representations; a `ViT` or a `ResNet`.
      inputs: size, mean and standard deviation of what `module` takes.
    """

    def __init__(self, module: vit.ViT | resnet.ResNet, inputs: ImageInputs):
        self.module, self.inputs = module, inputs

    def pixels(self, images: Sequence[Any]) -> np.ndarray:
        """What `module` takes of `images`, float32 [N, size, size, channels].

        They are resized as the published model was evaluated, turned upright, and standardised.

        Args:
          images: N paths of files, images of Pillow, or uint8 arrays [height, width, channels].

        Raises:
          InputError: naming the image, if one is something else or cannot be decoded.
        """
        size, channels = self.inputs.resizing.size, self.module.sizes.num_channels
        pixels = np.empty((len(images), size, size, channels), np.float32)
        for row, image in enumerate(images):
            pixels[row] = self._decoded(row, image, channels)
        pixels /= 255
        pixels -= np.asarray(self.inputs.mean, np.float32)
        pixels /= np.asarray(self.inputs.std, np.float32)
        return pixels

    def _decoded(self, row: int, image: Any, channels: int) -> np.ndarray:
        from PIL import Image

        resizing = self.inputs.resizing
        if isinstance(image, str | os.PathLike):
            try:
                return decode(os.fspath(image), channels, resizing)
            except FileNotFoundError:
                raise
            except (OSError, SyntaxError, ValueError) as error:
                raise InputError(f"cannot decode {image}: {error}") from error
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3:
            grey = image.shape[2] == 1
            if grey or image.shape[2] in (3, 4):
                image = Image.fromarray(image[:, :, 0] if grey else image)
        if not isinstance(image, Image.Image):
            shape = f" {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else ""
            raise InputError(
                "images must be paths, images of Pillow or uint8 arrays [height, width, channels], "
                f"got {type(image).__name__}{shape} at {row}."
            )
        return fitted(image, channels, resizing)

    def encode(
        self, images: Sequence[Any], *, normalize: bool = False, batch_size: int = _BATCH
    ) -> np.ndarray:
        """Representations of `images`, float32 [N, H], in their order.

        Args:
          images: see `pixels`.
          normalize: to length 1.
          batch_size: images that are decoded and encoded together.

        Raises:
          InputError: see `pixels`.
        """
        if isinstance(images, str | os.PathLike):
            raise InputError(f"images must be a list, got one path, {images}.")
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}.")
        result = np.zeros((len(images), self.module.out_features), np.float32)
        graph, state = nnx.split(self.module)
        size = min(batch_size, 1 << max(len(images) - 1, 0).bit_length())
        for start in range(0, len(images), size):
            pixels = self.pixels(images[start : start + size])
            count = len(pixels)
            pixels = np.pad(pixels, [(0, size - count)] + [(0, 0)] * 3)
            found = np.asarray(_forward(graph, state, pixels), np.float32)
            result[start : start + count] = found[:count]
        if normalize:
            result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)
        return result


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, state: Any, pixels: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(pixels)
