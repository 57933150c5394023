"""Texts as a model's input: tokenised once when they are read, padded when they are fetched."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sdjax import label_sets
from sdjax.data import hashing, token_cache
from sdjax.data.examples import check_labels
from sdjax.data.readers.options import ReadOptions
from sdjax.data.rows import RowArray, take_rows
from sdjax.data.sources import Source
from sdjax.data.tokens import TokenBatch, Tokenizer, Tokens, check_texts
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class TextPreprocess:
    """Tokenisation, with all that it needs.

    Attributes:
      column: that holds the texts, in files.
      tokenizer: content of a tokenizer.json.
      max_length: most tokens of a text; the rest is left out.
      label_names: C names.
    """

    column: str
    tokenizer: str = dataclasses.field(repr=False)
    max_length: int
    label_names: tuple[str, ...]

    kind = "text"

    def __call__(
        self,
        texts: "Sequence[str] | np.ndarray | pd.DataFrame",
        data_dir: Path | None = None,
    ) -> Tokens:
        """The tokens of N texts, or of the column `column` of a frame.

        Args:
          texts: N strings, or a frame.
          data_dir: where tokens are kept, or None.

        Raises:
          InputError: if they are no sequence of strings.
        """
        rows: Any = texts
        if hasattr(rows, "columns"):
            from sdjax.data.readers import tables

            rows = tables.from_frame("inputs", rows, self.read_options()).inputs
        if data_dir is None:
            return self._tokenizer(rows, self.max_length)
        check_texts(rows)
        make = functools.partial(self._tokenizer, rows, self.max_length)
        return token_cache.cached(data_dir, self.tokenizer, self.max_length, rows, make)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self.tokenizer)

    def read_options(self, input_key: str = "", images: str = "") -> ReadOptions:
        """How to read new rows, with labels or without."""
        return ReadOptions(
            text=input_key or self.column, label_names=self.label_names, labelled=False
        )

    def to_json(self) -> dict[str, Any]:
        """The fields, as a dict of plain numbers, strings and lists."""
        fields = dataclasses.asdict(self)
        return {"kind": self.kind, **fields, "label_names": list(self.label_names)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TextPreprocess":
        """The inverse of `to_json`."""
        given = {name: value for name, value in fields.items() if name != "kind"}
        return cls(**{**given, "label_names": tuple(given["label_names"])})


class TextSource(Source):
    """Tokens of texts, {"ids", "mask"}, as wide as a batch of them needs.

    Args:
      tokens: of N texts.
      labels: multi-hot [N, C], or `LabelIndices` of [N, L].
      texts: N strings, to be shown; None where they are not at hand.
      names: of the rows, [N]; None numbers them.

    Raises:
      InputError: if the numbers of rows differ, or the labels are not label sets.
    """

    def __init__(
        self,
        tokens: Tokens,
        labels: LabelSets,
        texts: RowArray | None = None,
        names: np.ndarray | None = None,
    ):
        self.tokens, self._labels = tokens, check_labels("labels", labels)
        self._texts, self._names = texts, names
        if len(tokens) != len(self):
            raise InputError(f"there are {len(tokens)} texts, and {len(self)} rows of labels.")

    @property
    def labels(self) -> LabelSets:
        return self._labels

    @property
    def names(self) -> np.ndarray:
        return super().names if self._names is None else self._names

    def contents(self, rows: np.ndarray) -> Any:
        return None if self._texts is None else take_rows(self._texts, np.asarray(rows))

    @functools.cached_property
    def widths(self) -> np.ndarray:
        return self.tokens.widths

    def inputs(self, rows: np.ndarray, width: int | None = None) -> TokenBatch:
        rows = np.asarray(rows)
        return self.tokens.padded(rows, width or int(self.widths[rows].max(initial=1)))

    @property
    def input_spec(self) -> Any:
        """Of the longest text."""
        length = int(self.widths.max(initial=1))
        return {
            "ids": jax.ShapeDtypeStruct((length,), np.int32),
            "mask": jax.ShapeDtypeStruct((length,), np.bool_),
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex hash of all tokens and labels, whatever the texts were."""
        shapes = label_sets.num_rows(self._labels)
        return hashing.fingerprint(hashing.digests(self.tokens.content()), self._labels, shapes)
