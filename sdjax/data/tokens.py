"""Tokens of texts: tokenised once, kept without padding, padded to one of a few widths."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sdjax import hub
from sdjax.errors import InputError

# Of batches. A program is compiled for each, and padding is what lies between two.
WIDTHS = (8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_TOKENISED_AT_ONCE = 10_000  # texts: their encodings take ten times the memory of their ids

NO_LIMIT = 1 << 30  # of a text's tokens

TokenBatch = dict[str, np.ndarray]


def are_tokens(x: Any) -> bool:
    """Whether x, a batch or what describes one, is {"ids", "mask"} and what else tokens have."""
    return isinstance(x, Mapping) and {"ids", "mask"} <= x.keys()


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of N texts, one text after the other.

    Attributes:
      ids: int32, of all texts.
      starts: int64 [N + 1], where each text begins, and the end.
      max_length: most tokens of a text that its model takes.
      num_cut: texts that were longer, and were cut.
    """

    ids: np.ndarray
    starts: np.ndarray
    max_length: int
    num_cut: int = 0

    @classmethod
    def of(
        cls, lists: Sequence[Sequence[int] | np.ndarray], max_length: int, num_cut: int = 0
    ) -> "Tokens":
        """Of the ids of each text."""
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(itertools.chain.from_iterable(lists), np.int32, int(lengths.sum()))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(ids, starts, max_length, num_cut)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int64 [N]."""
        return np.diff(self.starts)

    @property
    def widths(self) -> np.ndarray:
        """What each text is padded to, int64 [N]: of `WIDTHS` the least that holds it.

        Beyond the last, its multiples; none is above `max_length`.
        """
        known = np.array([*WIDTHS, 0])[np.searchsorted(WIDTHS, self.lengths)]
        multiples = -(-self.lengths // WIDTHS[-1]) * WIDTHS[-1]
        return np.minimum(np.where(known, known, multiples), self.max_length)

    def content(self) -> Iterator[bytes]:
        """The bytes that a text consists of, text by text: equal for equal tokens."""
        for start, stop in itertools.pairwise(self.starts.tolist()):
            yield self.ids[start:stop].tobytes()

    def padded(self, rows: np.ndarray, width: int) -> TokenBatch:
        """{"ids" int32, "mask" bool}, [B, width], of the texts at `rows`, with 0 at their ends."""
        lengths = self.lengths[rows]
        mask = np.arange(width) < lengths[:, None]
        places = self.starts[rows][:, None] + np.arange(width)
        return {"ids": np.where(mask, self.ids[np.where(mask, places, 0)], 0), "mask": mask}

    def by_length(self, batch_size: int) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        """Batches of texts of like lengths, as (rows, tokens); those of the last are fewer.

        Without texts, one batch without rows.
        """
        order, widths = np.argsort(self.lengths, kind="stable"), self.widths
        for start in range(0, max(len(order), 1), batch_size):
            rows = order[start : start + batch_size]
            yield rows, self.padded(rows, int(widths[rows].max(initial=1)))


class Tokenizer:
    """A published tokenizer, without the truncation and the padding that its file may preset.

    Args:
      content: of its file, tokenizer.json.
      origin: for error messages.

    Raises:
      InputError: if the content is not of that form, or the package `tokenizers` is not there.
    """

    def __init__(self, content: str, origin: str = "tokenizer"):
        try:
            from tokenizers import Tokenizer as Published
        except ImportError as error:
            raise InputError(
                "Texts need the package tokenizers: pip install 'sdjax[text]'."
            ) from error
        try:
            self._tokenizer = Published.from_str(content)
        except Exception as error:  # the library raises no narrower class
            raise InputError(f"{origin}: not a tokenizer.json: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.content = content

    @classmethod
    def of_model(cls, origin: str) -> "Tokenizer":
        """That of the published model at `origin`; see `sdjax.hub.local`."""
        path = hub.companion(origin, hub.TOKENIZER)
        return cls(path.read_text(encoding="utf-8"), str(path))

    def __call__(self, texts: Sequence[str], max_length: int) -> Tokens:
        """The tokens of `texts`, with the marks of start and end; at most `max_length` of each.

        Raises:
          InputError: if `texts` are no sequence of strings, or `max_length` leaves no room.
        """
        check_texts(texts)
        texts = list(texts)
        marks = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length <= marks:
            raise InputError(
                f"max_length must be above {marks}, the marks of start and end; got {max_length}."
            )
        self._tokenizer.enable_truncation(max_length)
        lists: list[np.ndarray] = []
        num_cut = 0
        for start in range(0, len(texts), _TOKENISED_AT_ONCE):
            part = texts[start : start + _TOKENISED_AT_ONCE]
            encoded = self._tokenizer.encode_batch_fast(part)
            lists += [np.asarray(each.ids, np.int32) for each in encoded]
            num_cut += sum(bool(each.overflowing) for each in encoded)
        return Tokens.of(lists, max_length, num_cut)


def with_padding(content: str, max_length: int) -> str:
    """A tokenizer.json that cuts texts at `max_length`, and pads as `Tokens.padded` does."""
    fields = json.loads(content)
    fields["truncation"] = {
        "direction": "Right",
        "max_length": max_length,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    fields["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    return json.dumps(fields, ensure_ascii=False)


def check_texts(texts: Sequence[str]) -> None:
    """Raises InputError, naming the place, unless `texts` is a sequence of strings."""
    if isinstance(texts, str | bytes):
        raise InputError("texts must be a list of strings, got one string: put it into a list.")
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts must be strings, got {type(text).__name__} at {row}.")
