"""Text files: compressed by gzip or not, in UTF-8 or what Western Windows and Unix wrote before."""

import codecs
import gzip
import io
import os
from typing import IO, cast

from absl import logging

from sdjax.data.readers.options import readable
from sdjax.errors import InputError

# The last one decodes whatever there is.
ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")
_BLOCK_BYTES = 1 << 20


def suffix(path: str) -> str:
    """The suffix in lower case; that of a compressed file has two parts, as `.csv.gz`."""
    stem, last = os.path.splitext(path.lower())
    return os.path.splitext(stem)[1] + last if last == ".gz" else last


def open_bytes(path: str) -> IO[bytes]:
    """Opens `path` for reading, through gzip where it ends in `.gz`."""
    if path.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    return open(path, "rb")


def open_text(path: str, form: str) -> io.TextIOWrapper:
    """Opens `path` for reading in the encoding that `encoding` finds."""
    found = encoding(path, form)
    return io.TextIOWrapper(open_bytes(path), encoding=found)


def encoding(path: str, form: str) -> str:
    """The first of `ENCODINGS` that decodes the file; another than UTF-8 is warned of.

    Args:
      path: of the file.
      form: the format's name, for error messages.

    Raises:
      InputError: if it cannot be read, or holds no text.
    """
    with readable(path, form):
        found = next(name for name in ENCODINGS if _decodes(path, name))
        with open_bytes(path) as file:
            binary = b"\0" in file.read(_BLOCK_BYTES)
    if binary:
        raise InputError(
            f"{path}: cannot be read as {form}: it holds zero bytes; binary, or text in UTF-16?"
        )
    if found != ENCODINGS[0]:
        logging.warning("%s: the text is not UTF-8; read as %s.", path, found)
    return found


def _decodes(path: str, name: str) -> bool:
    decoder = codecs.getincrementaldecoder(name)()
    try:
        with open_bytes(path) as file:
            while block := file.read(_BLOCK_BYTES):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
