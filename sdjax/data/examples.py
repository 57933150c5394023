"""The labelled examples of one split as they were read, before preprocessing."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sdjax.data.images import EncodedImages
from sdjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs, and their labels where they are known.

    Attributes:
      origin: the file or split, for error messages.
      inputs: float [N, F]; or images, uint8 or float [N, H, W, channels].
      labels: uint8 [N, C], or None for new rows to predict.
      label_names: C names; empty where `labels` is None.
      feature_names: F names, or empty where the source has none.
      ids: N names of rows, or None.
    """

    origin: str
    inputs: np.ndarray | EncodedImages
    labels: np.ndarray | None
    label_names: tuple[str, ...] = ()
    feature_names: tuple[str, ...] = ()
    ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def modality(self) -> str:
        """`vector` or `image`."""
        return "vector" if len(self.inputs.shape) == 2 else "image"

    def take(self, rows: np.ndarray) -> "Examples":
        """The examples at `rows`."""
        inputs = self.inputs
        return dataclasses.replace(
            self,
            inputs=inputs.take(rows) if isinstance(inputs, EncodedImages) else inputs[rows],
            labels=None if self.labels is None else self.labels[rows],
            ids=None if self.ids is None else tuple(self.ids[row] for row in rows),
        )


def listing(names: Sequence[str], limit: int = 12) -> str:
    """`names` in one line, the middle left out where they are many."""
    shown = [repr(str(name)) for name in names]
    if len(shown) > limit:
        shown = [*shown[: limit // 2], f"... ({len(shown) - limit} more)", *shown[-limit // 2 :]]
    return ", ".join(shown) or "none"


def check_finite(origin: str, inputs: np.ndarray, feature_names: Sequence[str]) -> None:
    """Raises ValueError, naming the place, where a feature is missing or not finite."""
    finite = np.isfinite(inputs)
    if finite.all():
        return
    row, *place = (int(index) for index in np.argwhere(~finite)[0])
    value = inputs[(row, *place)]
    column = f"feature {feature_names[place[0]]!r}" if feature_names else f"input {tuple(place)}"
    raise InputError(
        f"{origin}: {column} is {value} in row {row} (the first row is 0); "
        f"{int((~finite).sum())} inputs in all are missing or not finite. "
        "Fill them in, or leave the column out with data.ignore."
    )


def check_binary(origin: str, labels: np.ndarray, label_names: Sequence[str]) -> np.ndarray:
    """`labels` [N, C] as uint8.

    Raises:
      ValueError: naming the place, where a label is neither 0 nor 1.
    """
    try:
        values = labels.astype(np.float64)
    except (TypeError, ValueError):
        values = np.array([[_number(value) for value in row] for row in labels.astype(object)])
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{origin}: labels must be 0 or 1; label {label_names[column]!r} is "
            f"{labels[row, column]!s} in row {row} (the first row is 0)."
        )
    return values.astype(np.uint8)


def _number(value: object) -> float:
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return np.nan
