"""The public losses: one core, many weights."""

from collections.abc import Callable

import jax

from sdjax.losses.contrastive import contrastive_loss
from sdjax.losses.family import (
    all_loss,
    any_loss,
    dissimilarity_only_loss,
    jaccard_loss,
    mulsupcon_loss,
    sd_loss,
    similarity_only_loss,
    soft_jaccard_loss,
    supcon_loss,
    symmetric_loss,
)
from sdjax.losses.label_wise import LabelRows, herocon_loss, label_wise_loss, rows_from_labels
from sdjax.losses.with_prototypes import msc_loss, mscrg_loss, mscwrg_loss, prototype_loss

LOSSES: dict[str, Callable[..., jax.Array]] = {
    "sd": sd_loss,
    "mulsupcon": mulsupcon_loss,
    "any": any_loss,
    "all": all_loss,
    "jaccard": jaccard_loss,
    "soft_jaccard": soft_jaccard_loss,
    "similarity_only": similarity_only_loss,
    "dissimilarity_only": dissimilarity_only_loss,
    "symmetric": symmetric_loss,
    "supcon": supcon_loss,
    "prototype": prototype_loss,
    "msc": msc_loss,
    "mscwrg": mscwrg_loss,
    "mscrg": mscrg_loss,
    "label_wise": label_wise_loss,
    "herocon": herocon_loss,
}
# These take prototypes [C, D], learned with the model.
PROTOTYPE_LOSSES = ("prototype", "msc", "mscwrg", "mscrg")

__all__ = [
    "LOSSES",
    "LabelRows",
    "PROTOTYPE_LOSSES",
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
    "sd_loss",
    "similarity_only_loss",
    "soft_jaccard_loss",
    "supcon_loss",
    "symmetric_loss",
]
