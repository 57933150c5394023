"""The SupConLoss of pytorch-metric-learning, from PyPI.

`positives="class"` feeds class ids, as it is meant. It has no label sets; closest to them is
`positives="overlap"`, its documented `indices_tuple`: the pairs that share a label as positives and
the others as negatives, made from multi-hot labels within the call.
"""

import numpy as np

from peers.case import multi_hot
from peers.step import Step, Unavailable, torch_device, torch_step

try:
    import torch
    from pytorch_metric_learning.losses import SupConLoss
except ImportError as error:
    raise Unavailable(str(error)) from error


def overlap_pairs(labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(anchor, positive, anchor, negative) indices from multi-hot labels [B, C]."""
    share = labels @ labels.T > 0
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return *torch.where(share & others), *torch.where(~share & others)


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    positives: str = "class",
    dtype: str = "float32",
) -> Step:
    criterion = SupConLoss(temperature=temperature)
    if positives == "class":
        ids = torch.from_numpy(labels[:, 0]).to(torch_device())
        return torch_step(lambda z: criterion(z, ids), z, dtype)
    sets = torch.from_numpy(multi_hot(labels, num_classes)).to(torch_device())
    return torch_step(lambda z: criterion(z, indices_tuple=overlap_pairs(sets)), z, dtype)
