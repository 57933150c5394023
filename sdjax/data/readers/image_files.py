"""Image files: rows to predict given as pictures, and pictures that a table points to."""

import os

from sdjax.data.examples import Examples
from sdjax.data.images import EncodedImages
from sdjax.data.readers.options import ReadOptions
from sdjax.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def is_images(path: str) -> bool:
    """Whether `path` is an image file, or a folder."""
    return os.path.isdir(path) or path.lower().endswith(SUFFIXES)


def read_images(path: str, options: ReadOptions) -> Examples:
    """One unlabelled example for the image `path`, or for each image in the folder `path`."""
    paths = [path]
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(SUFFIXES))
        if not names:
            raise InputError(f"{path}: no image in the folder; images are {', '.join(SUFFIXES)}.")
        paths = [os.path.join(path, name) for name in names]
    images = from_paths(path, paths, options)
    return Examples(path, images, None, ids=tuple(map(os.path.basename, paths)))


def from_paths(origin: str, paths: list[str], options: ReadOptions) -> EncodedImages:
    """The images at `paths`, decoded when they are asked for."""
    absent = [path for path in paths if not os.path.exists(path)]
    if absent:
        raise FileNotFoundError(
            f"{origin}: {len(absent)} image files are missing, the first {absent[0]}."
        )
    return EncodedImages(
        paths.__getitem__,
        len(paths),
        channels=options.channels or _channels(origin, paths),
        image_size=options.image_size,
        origin=origin,
    )


def _channels(origin: str, paths: list[str]) -> int:
    """1 where the first image is grey, else 3."""
    from PIL import Image

    if not paths:
        return 1
    try:
        with Image.open(paths[0]) as image:
            return 1 if image.mode in ("1", "L", "I;16", "I", "F") else 3
    except OSError as error:
        raise InputError(f"{origin}: cannot decode {paths[0]}: {error}") from error
