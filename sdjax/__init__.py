"""Exact multi-label contrastive losses for JAX: Similarity-Dissimilarity and its family."""

import importlib
from typing import TYPE_CHECKING, Any

from sdjax._src import stop

if stop.is_command():
    stop.silently()  # Before jax is imported, which takes a while.

# isort: split
from sdjax import relations, sharded
from sdjax.labels import LabelIndices
from sdjax.losses import (
    LOSSES,
    all_loss,
    any_loss,
    contrastive_loss,
    dissimilarity_only_loss,
    herocon_loss,
    jaccard_loss,
    label_wise_loss,
    msc_loss,
    mscrg_loss,
    mscwrg_loss,
    mulsupcon_loss,
    prototype_loss,
    rows_from_labels,
    sd_loss,
    similarity_only_loss,
    soft_jaccard_loss,
    supcon_loss,
    symmetric_loss,
)

if TYPE_CHECKING:
    from sdjax.estimator import SDClassifier as SDClassifier

__version__ = "0.1.0"

__all__ = [
    "LOSSES",
    "LabelIndices",
    "all_loss",
    "any_loss",
    "contrastive_loss",
    "dissimilarity_only_loss",
    "herocon_loss",
    "jaccard_loss",
    "label_wise_loss",
    "msc_loss",
    "mscrg_loss",
    "mscwrg_loss",
    "mulsupcon_loss",
    "prototype_loss",
    "rows_from_labels",
    "relations",
    "sd_loss",
    "sharded",
    "similarity_only_loss",
    "soft_jaccard_loss",
    "supcon_loss",
    "symmetric_loss",
]


def __getattr__(name: str) -> Any:
    """The estimator is loaded when it is asked for: it needs all that training does."""
    if name != "SDClassifier":
        raise AttributeError(f"module 'sdjax' has no attribute {name!r}")
    try:
        return importlib.import_module("sdjax.estimator").SDClassifier
    except ModuleNotFoundError as error:
        text = f"SDClassifier needs the package {error.name}: pip install 'sdjax[train]'."
        raise ImportError(text, name=error.name) from error


def __dir__() -> list[str]:
    return sorted([*globals(), "SDClassifier"])
