"""Exact multi-label contrastive losses for JAX: Similarity-Dissimilarity and its family."""

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
