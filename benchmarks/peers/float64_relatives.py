"""As `float64`, for losses whose weights are no function of a pair's overlap: all pairs at once."""

import numpy as np

from peers.case import ALPHA, BETA, make_prototypes


def value_and_gradient(
    z: np.ndarray, sets: np.ndarray, temperature: float, name: str
) -> tuple[float, np.ndarray]:
    """Value, and gradient [B, D] to the embeddings before normalisation.

    Args:
      z: float64 [B, D].
      sets: multi-hot float64 [B, C].
      temperature: of the similarities.
      name: of the loss.
    """
    num = len(z)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    norm = np.where(norm > 0, norm, 1)
    prototypes = make_prototypes(sets.shape[1], z.shape[1]).astype(np.float64)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    u, labels = z / norm, sets
    if name not in ("label_wise", "herocon"):
        u, labels = np.concatenate([u, prototypes]), np.concatenate([sets, np.eye(sets.shape[1])])
    s = u @ u.T / temperature
    of = _herocon if name == "herocon" else _contrast
    value, of_s = of(s, labels, name, num)
    gradient = (of_s + of_s.T)[:num] @ u / temperature
    u = u[:num]
    return value, (gradient - u * (u * gradient).sum(axis=1, keepdims=True)) / norm


def _contrast(s: np.ndarray, labels: np.ndarray, name: str, num: int) -> tuple[float, np.ndarray]:
    """Value and derivative by s of the losses with weights."""
    rows = np.arange(len(s))
    where = (rows[:, None] != rows) & (rows[:, None] < (len(s) if name[:4] == "mscw" else num))
    if name == "mscrg":
        where = rows[:, None] != rows
    if name == "prototype":
        where &= rows[None, :] >= num
    bias = np.where((rows < num) & (name == "msc"), np.log(BETA), 0.0)
    weight = _weights(labels, where, name, num)
    x = np.where(where, s + bias, -np.inf)
    largest = np.where(where.any(axis=1), x.max(axis=1, initial=-np.inf), 0)[:, None]
    e = np.exp(x - largest)
    total = np.where(where.any(axis=1), e.sum(axis=1), 1)[:, None]
    rho = weight.sum(axis=1, keepdims=True)
    loss = rho * (np.log(total) + largest) - (weight * s).sum(axis=1, keepdims=True)
    slope = rho * e / total - weight
    if name == "mscrg":
        slope = np.where(weight > 0, np.minimum(slope, 0), slope)
    counted = (weight > 0).any(axis=1, keepdims=True)
    number = max(counted.sum(), 1)
    return float((loss * counted).sum() / number), slope * counted / number


def _weights(labels: np.ndarray, where: np.ndarray, name: str, num: int) -> np.ndarray:
    size = labels.sum(axis=1)
    shared = labels @ labels.T
    if name == "label_wise":
        return (_shares(where, labels) + _shares(where, 1 - labels)) * where / labels.shape[1]
    factor = np.ones_like(shared)
    if name == "msc":
        factor = ALPHA / np.maximum(size[:, None] + size - shared, 1)
        factor[:, num:] = 1
    elif name in ("mscwrg", "mscrg"):
        factor = (shared / np.maximum(size, 1)) ** ALPHA
    factor = factor * where
    return factor * _shares(factor, labels) / np.maximum(size, 1)[:, None]


def _shares(factor: np.ndarray, labels: np.ndarray) -> np.ndarray:
    carriers = factor @ labels
    return np.divide(labels, carriers, out=np.zeros_like(carriers), where=carriers > 0) @ labels.T


def _herocon(s: np.ndarray, labels: np.ndarray, name: str, num: int) -> tuple[float, np.ndarray]:
    """Value and derivative by s, a label after the other; logarithms, so that nothing overflows."""
    del name, num
    size = labels.sum(axis=1)
    distance = size[:, None] + size - 2 * labels @ labels.T
    value, of_s = 0.0, np.zeros_like(s)
    for column in labels.T > 0:
        having, lacking = np.flatnonzero(column), np.flatnonzero(~column)
        if not len(having):
            continue
        share = 1 / len(having) ** 2
        log_near = s[np.ix_(having, having)]
        log_near = log_near + np.log(1 - distance[np.ix_(having, having)] / labels.shape[1])
        log_away = s[np.ix_(having, lacking)] + np.log(distance[np.ix_(having, lacking)])
        log_sum = np.logaddexp.reduce(log_away, axis=1, initial=-np.inf)[:, None]
        log_all = np.logaddexp(log_sum, log_near)
        value += share * (log_all - log_near - np.log(len(lacking) + 1)).sum()
        of_s[np.ix_(having, having)] += share * (np.exp(log_near - log_all) - 1)
        inverse = np.logaddexp.reduce(-log_all, axis=1)[:, None]
        of_s[np.ix_(having, lacking)] += share * np.exp(log_away + inverse)
    return value, of_s
