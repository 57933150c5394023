"""What is input and what is label in a file: names and patterns, turned into columns."""

import contextlib
import csv
import dataclasses
import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence

from sdjax.data.examples import listing
from sdjax.errors import InputError

INPUT_KEYS = ("x", "X", "features", "feature", "inputs", "input", "images", "image", "data")
LABEL_KEYS = ("labels", "label", "targets", "target", "y", "Y")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How to read a file.

    Attributes:
      labels: label columns, comma-separated names or patterns, those with commas in quotation marks
        ('"a, b",c'); or a Mulan XML file.
      ignore: columns that are neither features nor labels, likewise.
      input_key: the input array or field; "" finds it.
      label_key: the label array or field; "" finds it.
      image_size: images are resized to this square; 0 keeps their size.
      channels: of images that are decoded; 0 takes the first image's.
      feature_names: those of training, where this is another split or rows to predict.
      label_names: likewise.
      label_separator: splits the text of the one label column into names; "" where labels are
        columns of 0/1.
      labelled: whether labels are needed; without, label columns are left out.
      missing: "error", or "median" where missing values of tables are filled in later.
      categories: text columns of at most so many values become one-hot; 0: text is an error.
      vocabulary: the values of those columns in training; None where this is training.
      text: the column or field of the texts, which are then the inputs; "" where there are none.
      image: the column or field of names of image files, which are then the inputs; likewise.
      images: the folder of those files; "" is that of the file that names them.
    """

    labels: str = ""
    ignore: str = ""
    input_key: str = ""
    label_key: str = ""
    image_size: int = 0
    channels: int = 0
    feature_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    label_separator: str = ""
    labelled: bool = True
    missing: str = "error"
    categories: int = 0
    vocabulary: Mapping[str, tuple[str, ...]] | None = None
    text: str = ""
    image: str = ""
    images: str = ""


def select(
    origin: str, option: str, patterns: str, names: Sequence[str], required: bool = True
) -> list[str]:
    """The `names` that comma-separated `patterns` match, in the order of `names`.

    Raises:
      ValueError: if a pattern matches none and is `required` to; the text lists the names.
    """
    known, chosen = set(names), set()
    for pattern in split_names(option, patterns, known):
        # A name is itself, whatever characters it holds.
        matches = [pattern] if pattern in known else fnmatch.filter(names, pattern)
        if not matches and required:
            raise InputError(
                f"{origin}: {option} {pattern!r} matches no column. Columns: {listing(names)}."
            )
        chosen.update(matches)
    return [name for name in names if name in chosen]


def split_names(option: str, text: str, known: Collection[str] = ()) -> list[str]:
    """The parts of comma-separated `text`, quoted as in a CSV file where they hold commas.

    A text that is one of the `known` names as a whole is that name.

    Raises:
      ValueError: if a quotation mark is not closed.
    """
    if text in known:
        return [text]
    try:
        parts = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise InputError(
            f"{option} must be comma-separated names, those with commas in quotation marks as in "
            f"a CSV file, got {text!r} ({error})."
        ) from error
    return list(filter(None, (part.strip() for part in parts)))


def find_key(
    origin: str, option: str, key: str, known: Sequence[str], keys: Sequence[str]
) -> str | None:
    """`key`, or where it is empty the first of the `known` names among `keys`; else None.

    Raises:
      ValueError: if `key` is given and not among `keys`; the text lists them.
    """
    if key and key not in keys:
        raise InputError(f"{origin}: {option} {key!r} is not there. Keys: {listing(keys)}.")
    return key or next((name for name in known if name in keys), None)


@contextlib.contextmanager
def readable(path: str, form: str) -> Iterator[None]:
    """Turns whatever a library raises over a broken file into a ValueError that names the file."""
    try:
        yield
    except (MemoryError, ImportError):
        raise
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as {form}; truncated, corrupt, or of another format? "
            f"({type(error).__name__}: {error})"
        ) from error
