"""The targets of a scikit-learn user: classes or label sets in any of their forms, and back."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import sparse

from sdjax import label_sets
from sdjax.data.examples import check_binary, from_csr, from_lists, listing
from sdjax.data.rows import SparseRows
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices

_LABELS = (str, int, np.integer)


@dataclasses.dataclass(frozen=True)
class Targets:
    """What `y` was given as, so that predictions can be given alike.

    Attributes:
      form: "classes", one of each row, [N]; "array", multi-hot [N, C]; "sparse", one of scipy's
        matrices [N, C]; or "sets", N lists of labels.
      classes: the C classes or labels; of multi-hot arrays their numbers.
      dtype: of `y`.
    """

    form: str
    classes: np.ndarray
    dtype: Any = object

    @classmethod
    def of(cls, y: Any) -> "Targets":
        """Those of `y`, in which all classes occur unless it is multi-hot.

        Raises:
          InputError: if `y` is of none of the forms.
        """
        if sparse.issparse(y):
            return cls("sparse", np.arange(y.shape[1]), y.dtype)
        if (sets := _as_sets(y)) is not None:
            found = {label for each in sets for label in each}
            if not found:
                raise InputError("y holds no label: each of its label sets is empty.")
            try:
                return cls("sets", np.array(sorted(found)))
            except TypeError:
                raise InputError(
                    "y holds labels that are names and others that are numbers: "
                    f"{listing(sorted(map(str, found)))}."
                ) from None
        array = np.asarray(y)
        if array.ndim == 1:
            return cls("classes", np.unique(array), array.dtype)
        if array.ndim != 2:
            raise InputError(f"y must be [N], or multi-hot [N, C], got shape {array.shape}.")
        return cls("array", np.arange(array.shape[1]), array.dtype)

    def encode(self, y: Any) -> LabelSets:
        """Label sets over the classes: multi-hot uint8 [N, C], or `LabelIndices` of very many.

        Raises:
          InputError: if `y` is of another form, or holds other classes.
        """
        if self.form == "array":
            labels = check_binary("y", np.asarray(y))
        elif self.form == "sparse":
            labels = from_csr("y", SparseRows(y))
        else:
            rows = _as_sets(y) if self.form == "sets" else [(each,) for each in np.asarray(y)]
            if rows is None:
                raise InputError("y must be a list of label sets, as it was in fit.")
            places = {label: place for place, label in enumerate(self.classes.tolist())}
            unknown = {label for each in rows for label in each if label not in places}
            if unknown:
                names = listing(sorted(map(str, unknown)))
                raise InputError(f"y holds labels that fit has not seen: {names}.")
            labels = from_lists([[places[each] for each in row] for row in rows], len(places))
        if (found := label_sets.num_classes(labels)) != len(self.classes):
            raise InputError(f"y has {found} labels, and had {len(self.classes)} in fit.")
        return labels

    def decode(self, decided: np.ndarray) -> Any:
        """Decisions, bool [N, C], in the form of `y`, which is not "classes"."""
        if self.form == "array":
            return decided.astype(self.dtype)
        if self.form == "sparse":
            return sparse.csr_matrix(decided, dtype=self.dtype)
        result = np.empty(len(decided), object)
        result[:] = [tuple(self.classes[row].tolist()) for row in decided]
        return result


def as_matrix(labels: LabelSets) -> Any:
    """Label sets as scikit-learn's metrics take them: multi-hot, sparse where labels are many."""
    return label_sets.to_csr(labels).astype(int) if isinstance(labels, LabelIndices) else labels


def are_label_sets(y: Any) -> bool:
    """Whether `y` is a list of label sets, rather than an array or something like one.

    Raises:
      InputError: if it is, and one of them holds what is no label.
    """
    return _as_sets(y) is not None


def _as_sets(y: Any) -> list[tuple[Any, ...]] | None:
    """The rows of a list of label sets; None where `y` is something else.

    Lists of one length that hold 0 and 1 alone are rows of a multi-hot array, unless the length is
    1; sets are always label sets.
    """
    if hasattr(y, "columns") or not isinstance(y, Iterable):
        return None
    if isinstance(y, np.ndarray) and (y.dtype != object or y.ndim != 1):
        return None
    rows = list(y)
    kinds = (set, frozenset, list, tuple, np.ndarray)
    if not rows or not all(isinstance(row, kinds) for row in rows):
        return None
    if not any(isinstance(row, set | frozenset) for row in rows):
        lengths = {len(row) for row in rows}
        if len(lengths) == 1 and lengths != {1}:
            values = {value for row in rows for value in row if np.isscalar(value)}
            if not values - {0, 1}:
                return None
    for number, row in enumerate(rows):
        wrong = [label for label in row if not isinstance(label, _LABELS)]
        if wrong:
            raise InputError(
                f"Unknown label type: y must hold label sets of names or whole numbers, got "
                f"{wrong[0]!r} in row {number} (the first row is 0)."
            )
    return [tuple(row) for row in rows]
