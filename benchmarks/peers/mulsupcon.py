"""PyTorch, the expanded form of MulSupCon.

Written from the equations of Zhang & Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024,
in the form that its repository computes: one row of scores for each (anchor, label) that holds, so
[Σ|S_i|, B] scores, masks and logarithms of softmaxes, then the mean over positives of each row and
over rows. Two choices:
- candidates are all rows, the anchor itself included, since there each anchor's own second view is
  a candidate; so every row has a positive;
- masks are gathered columns of the labels, which costs less than its product of one-hot matrices.
"""

import numpy as np

from peers.case import multi_hot
from peers.step import Step, Unavailable, torch_device, torch_step

try:
    import torch
    from torch.nn import functional
except ImportError as error:
    raise Unavailable(str(error)) from error


def mulsupcon(z: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    scores = z @ z.T
    anchor, label = torch.where(labels == 1)
    scores = scores[anchor]
    mask = labels.T.contiguous()[label]
    log_prob = torch.log(functional.softmax(scores / temperature, dim=1))
    rows = -(log_prob * mask).sum(dim=1) / mask.sum(dim=1)
    return (rows / len(rows)).sum()


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    dtype: str = "float32",
) -> Step:
    # Integers, as there: the product with log-probabilities keeps their dtype.
    sets = torch.from_numpy(multi_hot(labels, num_classes, np.int64)).to(torch_device())

    def loss(z: torch.Tensor) -> torch.Tensor:
        return mulsupcon(functional.normalize(z, dim=1), sets, temperature)

    return torch_step(loss, z, dtype)
