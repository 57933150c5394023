"""Image files: rows to predict given as pictures, and pictures that a table points to."""

import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdjax.data.examples import Examples
from sdjax.data.images import EncodedImages
from sdjax.data.readers.options import ReadOptions
from sdjax.errors import InputError

MOST_OPENED = 10_000  # files whose headers are looked at before a run starts
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


def named_in(path: str, column: Sequence[Any], options: ReadOptions) -> EncodedImages:
    """The images whose files a table names.

    Args:
      path: of the table.
      column: the names, seen from `options.images`, or from the table's folder without it.
      options: which column it is, and where the files are.

    Raises:
      InputError: naming the row, if a name is missing; or the file, if it is no image.
      FileNotFoundError: naming the first of the files that are not there.
    """
    for row, name in enumerate(column):
        if not isinstance(name, str) or not name:
            shown = "missing" if name is None or name != name else repr(name)[:60]
            raise InputError(
                f"{path}: the image {options.image!r} is {shown} in row {row} (the first row is "
                "0); the name of a file was expected."
            )
    folder = options.images or os.path.dirname(path)
    if not os.path.isdir(folder or "."):
        raise FileNotFoundError(f"data.images {folder}: there is no such folder.")
    return from_paths(path, [os.path.join(folder, name) for name in column], options)


def from_paths(origin: str, paths: list[str], options: ReadOptions) -> EncodedImages:
    """The images at `paths`, decoded when they are asked for.

    Raises:
      FileNotFoundError: naming the first of the files that are not there.
      InputError: naming the first file that is no image, as far as its beginning tells; of more
        than `MOST_OPENED` (10,000) files that many are looked at, evenly spaced.
    """
    absent = [path for path in paths if not os.path.exists(path)]
    if absent:
        raise FileNotFoundError(
            f"{origin}: {len(absent)} image files are missing, the first {absent[0]}."
            f"{_nearest(absent[0])}"
        )
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), MOST_OPENED)).astype(int)
    for place in chosen.tolist():
        _mode(origin, paths[place])
    return EncodedImages(
        paths.__getitem__,
        len(paths),
        channels=options.channels or _channels(origin, paths),
        image_size=options.image_size,
        origin=origin,
    )


def _nearest(path: str) -> str:
    folder, name = os.path.split(path)
    known = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    # The same name with another suffix, or with one.
    stems = {name.lower(), os.path.splitext(name)[0].lower()}
    found = [each for each in known if os.path.splitext(each)[0].lower() in stems]
    found = found or difflib.get_close_matches(name, known, 1, 0.6)
    return f" Did you mean {os.path.join(folder, found[0])}?" if found else ""


def _channels(origin: str, paths: list[str]) -> int:
    """1 where the first image is grey, else 3."""
    grey = not paths or _mode(origin, paths[0]) in ("1", "L", "I;16", "I", "F")
    return 1 if grey else 3


def _mode(origin: str, path: str) -> str:
    """The mode of an image by the beginning of its file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{origin}: cannot decode {path}: {error}") from error
