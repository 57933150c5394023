"""PyTorch, the masked form of the supervised contrastive loss (its L_out).

Written from the equations of Khosla et al., Supervised Contrastive Learning, 2020
(https://arxiv.org/abs/2004.11362), in the form of the SupContrast repository: logits less their
row's maximum, exponentials times a mask without the diagonal, the mean of log-probabilities over
a mask of positives, times −τ/τ_base, the mean over all anchors. τ_base is τ here, so that values
compare. Embeddings are normalised first, as its network does.

The repository takes any `mask` [B, B]. Ours are made from multi-hot labels within the call:
"any" (1 where two rows share a label) or "sd" (the Similarity-Dissimilarity weight). With the
latter, the mean over positives is Σ w log q / Σ w.
"""

import numpy as np

from peers.case import multi_hot
from peers.step import Step, Unavailable, torch_device, torch_step

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise Unavailable(str(error)) from error


def label_mask(labels: torch.Tensor, weight: str) -> torch.Tensor:
    """Weights [B, B] of pairs from multi-hot labels [B, C]."""
    shared = labels @ labels.T
    if weight == "any":
        return (shared > 0).to(shared.dtype)
    size = labels.sum(dim=1)
    return shared / size[:, None].clamp(min=1) / (1 + size[None, :] - shared)


def supcon(z: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    base_temperature = temperature
    logits = z @ z.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    others = torch.ones_like(mask).fill_diagonal_(0)
    mask = mask * others
    exp_logits = torch.exp(logits) * others
    log_prob = logits - torch.log(exp_logits.sum(dim=1, keepdim=True))
    total = mask.sum(dim=1)
    mean_log_prob = (mask * log_prob).sum(dim=1) / torch.where(total < 1e-6, 1, total)
    return (-(temperature / base_temperature) * mean_log_prob).mean()


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    weight: str = "any",
    dtype: str = "float32",
) -> Step:
    sets = torch.from_numpy(multi_hot(labels, num_classes)).to(torch_device())

    def loss(z: torch.Tensor) -> torch.Tensor:
        return supcon(functional.normalize(z, dim=1), label_mask(sets, weight), temperature)

    return torch_step(loss, z, dtype)
