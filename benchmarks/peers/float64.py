"""Reference values and gradients of every subject's loss, in float64 NumPy, by chunks of rows.

Written apart from sdjax and from the peers: gradients by hand, logsumexps about the maximum of the
candidates, so that nothing is lost at low temperatures.
"""

import dataclasses
from typing import Literal, get_args

import numpy as np

from peers.case import multi_hot

Relative = Literal["prototype", "msc", "mscwrg", "mscrg", "label_wise", "herocon"]
Weight = Literal["sd", "any", "mulsupcon", "ntxent"] | Relative


@dataclasses.dataclass(frozen=True)
class Loss:
    """Which loss a subject computes.

    Attributes:
      weight: weight of a pair; "ntxent" sets each positive alone against the negatives.
      divisor: what divides the sum over an anchor's positives.
      mean: over anchors with a positive, over all, or over all the batch's labels.
      include_self: the anchor is its own candidate.
    """

    weight: Weight = "sd"
    divisor: Literal["positives", "weights", "none"] = "positives"
    mean: Literal["positive", "all", "labels"] = "positive"
    include_self: bool = False

    def __str__(self) -> str:
        texts = {
            "sd": "SD weight",
            "any": "any shared label",
            "mulsupcon": "MulSupCon",
            "ntxent": "NT-Xent",
        }
        parts = [
            texts.get(self.weight, self.weight),
            "divided by the sum of weights" if self.divisor == "weights" else "",
            "mean over all anchors" if self.mean == "all" else "",
            "anchors their own candidates" if self.include_self else "",
        ]
        return ", ".join(filter(None, parts))


def value_and_gradient(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    loss: Loss,
    chunk: int = 512,
) -> tuple[float, np.ndarray]:
    """Value, and gradient [B, D] with respect to the embeddings before normalisation."""
    z = np.asarray(z, np.float64)
    if loss.weight in get_args(Relative):
        from peers import float64_relatives

        return float64_relatives.value_and_gradient(
            z, multi_hot(labels, num_classes, np.float64), temperature, loss.weight
        )
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    norm = np.where(norm > 0, norm, 1)
    u = z / norm
    sets = multi_hot(labels, num_classes)
    value, count, gradient = 0.0, 0.0, np.zeros_like(u)
    for start in range(0, len(u), chunk):
        rows = np.arange(start, min(start + chunk, len(u)))
        s = u[rows] @ u.T / temperature
        valid = loss.include_self | (rows[:, None] != np.arange(len(u)))
        weight = np.where(valid, _weights(sets, rows, loss), 0)
        part = _ntxent if loss.weight == "ntxent" else _contrast
        part_value, part_count, of_s = part(s, valid, weight, loss)
        value += part_value
        count += sets[rows].sum() if loss.mean == "labels" else part_count
        gradient[rows] += of_s @ u / temperature
        gradient += of_s.T @ u[rows] / temperature
    count = max(count, 1)
    gradient = (gradient - u * (u * gradient).sum(axis=1, keepdims=True)) / norm
    return value / count, gradient / count


def _weights(sets: np.ndarray, rows: np.ndarray, loss: Loss) -> np.ndarray:
    shared = (sets[rows] @ sets.T).astype(np.float64)
    size = sets.sum(axis=1).astype(np.float64)
    if loss.weight == "sd":
        anchor_size = np.maximum(size[rows, None], 1)
        return shared / anchor_size / (1 + size[None, :] - shared)
    if loss.weight == "mulsupcon":
        carriers = sets.sum(axis=0) - (0 if loss.include_self else sets[rows])
        return (sets[rows] / np.maximum(carriers, 1)).astype(np.float64) @ sets.T
    return (shared > 0).astype(np.float64)


def _softmax(s: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over the entries of each row that `where` keeps, and their logsumexp [A, 1]."""
    largest = np.max(s, axis=1, where=where, initial=-np.inf, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    e = np.exp(np.where(where, s - largest, -np.inf))
    total = e.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        return e / np.where(total > 0, total, 1), np.log(total) + largest


def _contrast(
    s: np.ndarray, valid: np.ndarray, weight: np.ndarray, loss: Loss
) -> tuple[float, int, np.ndarray]:
    """Sum over anchors, number of anchors in the mean, and derivative by s."""
    q, lse = _softmax(s, valid)
    number = (weight > 0).sum(axis=1, keepdims=True)
    divisors = {"positives": number, "weights": weight.sum(axis=1, keepdims=True), "none": 1}
    weight = weight / np.where(number > 0, divisors[loss.divisor], 1)
    log_q = s - np.where(np.isfinite(lse), lse, 0)
    total = -(weight * log_q).sum()
    count = len(s) if loss.mean == "all" else int((number > 0).sum())
    return total, count, weight.sum(axis=1, keepdims=True) * q - weight


def _ntxent(
    s: np.ndarray, valid: np.ndarray, weight: np.ndarray, loss: Loss
) -> tuple[float, int, np.ndarray]:
    """As `_contrast`, of Σ over positive pairs of log(1 + Σ_n e^{s_in} / e^{s_ip})."""
    del loss
    positive = weight > 0
    q, lse = _softmax(s, valid & ~positive)
    excess = np.where(positive, lse - s, -np.inf)
    pulled = 1 / (1 + np.exp(-np.maximum(excess, -700)))
    pulled = np.where(np.isfinite(excess), pulled, 0)
    total = np.logaddexp(0, excess).sum()
    return total, int(positive.sum()), pulled.sum(axis=1, keepdims=True) * q - pulled
