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
}
# These take prototypes [C, D], learned with the model.
PROTOTYPE_LOSSES = ("prototype", "msc", "mscwrg", "mscrg")

__all__ = [
    "LOSSES",
    "PROTOTYPE_LOSSES",
    "all_loss",
    "any_loss",
    "contrastive_loss",
    "dissimilarity_only_loss",
    "jaccard_loss",
    "msc_loss",
    "mscrg_loss",
    "mscwrg_loss",
    "mulsupcon_loss",
    "prototype_loss",
    "sd_loss",
    "similarity_only_loss",
    "soft_jaccard_loss",
    "supcon_loss",
    "symmetric_loss",
]
