"""Images that are decoded when they are asked for, by Pillow."""

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.errors import InputError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # and Pillow's numbers
CACHE_BYTES = 1 << 30  # decoded images are kept in memory up to this size
_DRAFT = 2  # so many times the size that is wanted is decoded, so that it is not blurred


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How an image becomes a square.

    Attributes:
      size: of the square.
      shorter: what the shorter side becomes, before the square is cut out of the middle; 0 presses
        the whole image into the square.
      method: one of `FILTERS`.
    """

    size: int
    shorter: int = 0
    method: str = "bilinear"


class EncodedImages:
    """N encoded images, indexed like a uint8 array [N, H, W, channels].

    Decoded images are kept in memory where all of them fit into `CACHE_BYTES`.

    Args:
      read: returns the encoded bytes, or the path, of image i.
      count: N.
      channels: 1, 3 or 4.
      image_size: images are resized to this square; 0 keeps their size, which must be one.
      origin: where the images come from, for error messages.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        read: Callable[[int], bytes | str],
        count: int,
        *,
        channels: int,
        image_size: int,
        origin: str,
    ):
        if channels not in MODES:
            raise InputError(f"{origin}: images must have 1, 3 or 4 channels, not {channels}.")
        self._read, self._channels, self._origin = read, channels, origin
        self._resizing = Resizing(image_size) if image_size else None
        side = (image_size, image_size)
        if not image_size:
            side = self._decode(0).shape[:2] if count else (1, 1)
        self.shape = (count, *side, channels)
        keep = int(np.prod(self.shape, dtype=np.int64)) <= CACHE_BYTES
        self._cache = np.empty(self.shape, np.uint8) if keep else None
        self._cached = np.zeros(count, bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images at `rows`, uint8 [len(rows), H, W, channels]."""
        rows = np.arange(len(self))[rows]
        if self._cache is None:
            return np.stack([self._image(int(row)) for row in rows])
        for row in np.unique(rows[~self._cached[rows]]):
            # The flag comes after the image: another thread reads either nothing or all of it.
            self._cache[row] = self._image(int(row))
            self._cached[row] = True
        return self._cache[rows]

    def encoded(self, row: int) -> bytes:
        """The encoded bytes of image `row`."""
        encoded = self._read(row)
        return Path(encoded).read_bytes() if isinstance(encoded, str | os.PathLike) else encoded

    def _image(self, row: int) -> np.ndarray:
        image = self._decode(row)
        if image.shape != self.shape[1:]:
            raise InputError(
                f"{self._origin}: image {row} is {image.shape[0]}x{image.shape[1]} and others are "
                f"{self.shape[1]}x{self.shape[2]}: set data.image_size."
            )
        return image

    def _decode(self, row: int) -> np.ndarray:
        encoded = self._read(row)
        try:
            return decode(encoded, self._channels, self._resizing)
        except (OSError, SyntaxError, ValueError) as error:
            name = encoded if isinstance(encoded, str) else f"image {row}"
            raise InputError(f"{self._origin}: cannot decode {name}: {error}") from error


def decode(encoded: bytes | str, channels: int, resizing: Resizing | None) -> np.ndarray:
    """The image of `encoded` bytes or of a path, uint8 [H, W, channels], upright and resized."""
    from PIL import Image, ImageOps

    source = encoded if isinstance(encoded, str | os.PathLike) else io.BytesIO(encoded)
    try:
        with Image.open(source) as image:
            if resizing is not None:
                # JPEG decodes a half, a quarter or an eighth in a fraction of the time.
                side = _DRAFT * max(resizing.size, resizing.shorter)
                image.draft(None, (side, side))
            ImageOps.exif_transpose(image, in_place=True)
            return fitted(image, channels, resizing)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def fitted(image: Any, channels: int, resizing: Resizing | None) -> np.ndarray:
    """An image of Pillow as uint8 [H, W, channels], resized."""
    from PIL import Image

    image = image.convert(MODES[channels])
    if resizing is not None:
        width, height = image.size
        side, method = resizing.size, Image.Resampling[resizing.method.upper()]
        if not resizing.shorter:
            if image.size != (side, side):
                image = image.resize((side, side), method)
        else:
            least = min(width, height)
            size = (resizing.shorter * width // least, resizing.shorter * height // least)
            image = image if size == image.size else image.resize(size, method)
            left, top = (size[0] - side) // 2, (size[1] - side) // 2
            image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, np.uint8).reshape(image.height, image.width, channels)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """`images` [N, H, W, channels], uint8 or float, resized to [N, size, size, channels]."""
    from PIL import Image

    count, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    out = np.empty((count, size, size, channels), images.dtype)
    for row, channel in np.ndindex(count, channels):
        plane = Image.fromarray(np.ascontiguousarray(images[row, :, :, channel]))
        out[row, :, :, channel] = plane.resize((size, size), Image.Resampling.BILINEAR)
    return out
