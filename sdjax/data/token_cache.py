"""Tokens on disk: texts that were tokenised once are read, and mapped into memory."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from sdjax.data.tokens import Tokens

_FIELDS = ("ids", "starts", "num_cut")


def cached(
    folder: Path, tokenizer: str, max_length: int, texts: Sequence[str], make: Callable[[], Tokens]
) -> Tokens:
    """The tokens that `make` makes, kept in a folder named by what they depend on.

    Args:
      folder: of all that is kept; it is made.
      tokenizer: content of the tokenizer.json.
      max_length: most tokens of a text.
      texts: that are tokenised.
      make: tokenises them. It is called where they are not kept yet, or what is kept is damaged.

    Returns:
      The tokens; their ids are mapped from the file where they could be written.
    """
    kept = folder / _key(tokenizer, max_length, texts)
    tokens = _read(kept, max_length, len(texts))
    if tokens is None:
        tokens = make()
        _write(kept, tokens)
    return tokens


def _key(tokenizer: str, max_length: int, texts: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (tokenizer, str(max_length), *texts):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return f"tokens_{digest.hexdigest()}"


def _read(kept: Path, max_length: int, rows: int) -> Tokens | None:
    try:
        ids = np.load(kept / "ids.npy", mmap_mode="r")
        starts, num_cut = (np.load(kept / f"{name}.npy") for name in _FIELDS[1:])
    except FileNotFoundError:
        return None
    except (EOFError, OSError, ValueError) as error:
        logging.warning("%s cannot be read, and is made anew: %s", kept, error)
        return None
    if starts.shape != (rows + 1,) or starts[-1] != len(ids):
        logging.warning("%s is not whole, and is made anew.", kept)
        return None
    return Tokens(ids, starts, max_length, int(num_cut))


def _write(kept: Path, tokens: Tokens) -> None:
    """Writes a folder whole or not at all; warns where the disk does not take it."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            for name in _FIELDS:
                np.save(made / f"{name}.npy", getattr(tokens, name))
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(made, kept)
    except OSError as error:  # such as another process that was sooner
        if not kept.exists():
            logging.warning("Tokens are not kept in %s: %s.", kept.parent, error.strerror)
