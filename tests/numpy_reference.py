"""The losses written straight from their equations: float64, loops, Python sets, NumPy alone.

Slow and plain on purpose, and independent: nothing here imports `sdjax` or `jax`. Label sets are
Python sets, so no matrix product of multi-hot rows can be wrong in the same way twice.

    out:  L_i = -(1/d_i) sum_p w_ip log q_ip
    in:   L_i = -log( (sum_p w_ip e^{s_ip}) / (sum_a e^{s_ia}) / d_i )
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LabelSet = frozenset[int]
PairWeight = Callable[[LabelSet, LabelSet], float]


def label_sets(multi_hot: np.ndarray) -> list[LabelSet]:
    """Returns one set of label numbers per row of a multi-hot matrix."""
    return [frozenset(c for c, present in enumerate(row) if present) for row in multi_hot]


def class_sets(class_ids: Sequence[int]) -> list[LabelSet]:
    """Returns one-element sets for single-label data; a negative class is no class."""
    return [frozenset([int(c)] if c >= 0 else []) for c in class_ids]


def relation(anchor: LabelSet, candidate: LabelSet) -> int:
    """Returns the number, 1..5, of the relation of the candidate's set to the anchor's."""
    if not anchor & candidate:
        return 1
    if anchor == candidate:
        return 2
    if candidate < anchor:
        return 4
    if anchor < candidate:
        return 5
    return 3


def similarity_dissimilarity(anchor: LabelSet, candidate: LabelSet) -> float:
    return similarity_only(anchor, candidate) / (1 + len(candidate - anchor))


def similarity_only(anchor: LabelSet, candidate: LabelSet) -> float:
    return len(anchor & candidate) / len(anchor) if anchor else 0.0


def dissimilarity_only(anchor: LabelSet, candidate: LabelSet) -> float:
    return 1 / (1 + len(candidate - anchor)) if anchor & candidate else 0.0


def share_any(anchor: LabelSet, candidate: LabelSet) -> float:
    return 1.0 if anchor & candidate else 0.0


def share_all(anchor: LabelSet, candidate: LabelSet) -> float:
    return 1.0 if anchor and anchor == candidate else 0.0


def soft_jaccard(anchor: LabelSet, candidate: LabelSet) -> float:
    union = anchor | candidate
    return len(anchor & candidate) / len(union) if union else 0.0


def jaccard(anchor: LabelSet, candidate: LabelSet, threshold: float = 0.5) -> float:
    value = soft_jaccard(anchor, candidate)
    return value if value >= threshold else 0.0


def symmetric(anchor: LabelSet, candidate: LabelSet) -> float:
    return soft_jaccard(anchor, candidate) / (1 + len(anchor ^ candidate))


WEIGHTS: dict[str, PairWeight] = {
    "sd": similarity_dissimilarity,
    "similarity_only": similarity_only,
    "dissimilarity_only": dissimilarity_only,
    "any": share_any,
    "all": share_all,
    "jaccard": jaccard,
    "soft_jaccard": soft_jaccard,
    "symmetric": symmetric,
}

# loss -> (weight, normalizer), the family of METHOD.md. SupCon is "any" on one-element sets.
LOSSES: dict[str, tuple[str, str]] = {
    "sd": ("sd", "positives"),
    "mulsupcon": ("mulsupcon", "batch_labels"),
    "any": ("any", "positives"),
    "all": ("all", "positives"),
    "jaccard": ("jaccard", "positives"),
    "soft_jaccard": ("soft_jaccard", "weights"),
    "similarity_only": ("similarity_only", "positives"),
    "dissimilarity_only": ("dissimilarity_only", "positives"),
    "symmetric": ("symmetric", "positives"),
    "supcon": ("any", "positives"),
}
NORMALIZERS = ("positives", "weights", "labels", "batch_labels")


@dataclass
class Result:
    """Value and gradients of one call, all float64.

    Attributes:
      rows: [B] loss per anchor, 0 where there is none.
      mean: the reduced loss.
      share: [B] derivative of `mean` with respect to each entry of `rows`.
      pull: [B, R] derivative of `rows[i]` with respect to the similarity s_ij.
      positives: how many positives each anchor has.
    """

    rows: np.ndarray
    mean: float
    share: np.ndarray
    pull: np.ndarray
    positives: np.ndarray
    similarity: np.ndarray
    _anchors: np.ndarray
    _candidates: np.ndarray | None
    _temperature: float
    _normalize: bool

    def gradient(self, cotangent: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns d/dz and d/dcandidates of `mean`, or of sum(cotangent * rows) when given."""
        g = self.share if cotangent is None else np.asarray(cotangent, np.float64)
        explicit = self._candidates is not None
        other = self._candidates if explicit else self._anchors
        unit_a = [_unit(row, self._normalize) for row in self._anchors]
        unit_c = [_unit(row, self._normalize) for row in other]
        into_anchor = np.zeros(self._anchors.shape)
        into_candidate = np.zeros(other.shape)
        for i in range(len(unit_a)):
            for j in range(len(unit_c)):
                slope = g[i] * self.pull[i, j]
                if slope == 0.0:
                    continue  # also keeps the contents of padding rows out
                into_anchor[i] += slope * unit_c[j] / self._temperature
                into_candidate[j] += slope * unit_a[i] / self._temperature
        if not explicit:
            into_anchor = into_anchor + into_candidate
        grad_z = _through_unit(self._anchors, into_anchor, self._normalize)
        if not explicit:
            return grad_z, None
        return grad_z, _through_unit(other, into_candidate, self._normalize)

    def temperature_gradient(self) -> float:
        """Returns d mean / d temperature."""
        total = 0.0
        for i in range(self.pull.shape[0]):
            for j in range(self.pull.shape[1]):
                if self.pull[i, j] != 0.0:
                    slope = self.share[i] * self.pull[i, j]
                    total -= slope * self.similarity[i, j] / self._temperature
        return total


def _unit(row: np.ndarray, normalize: bool) -> np.ndarray:
    if not normalize:
        return row
    length = math.sqrt(sum(float(x) * float(x) for x in row))
    return row / length if length > 0 else np.zeros_like(row)


def _through_unit(rows: np.ndarray, into_unit: np.ndarray, normalize: bool) -> np.ndarray:
    """Carries a gradient with respect to z/|z| back to z; a zero row keeps a zero gradient."""
    if not normalize:
        return into_unit
    out = np.zeros_like(into_unit)
    for i, (row, grad) in enumerate(zip(rows, into_unit, strict=True)):
        if not np.any(grad):
            continue
        length = math.sqrt(sum(float(x) * float(x) for x in row))
        if length > 0:
            unit = row / length
            out[i] = (grad - unit * float(np.dot(unit, grad))) / length
    return out


def _mulsupcon_weight(anchor: LabelSet, admitted: list[LabelSet]) -> PairWeight:
    """Returns sum_{l in S and T} 1/m_l, with m_l counted over this anchor's admitted candidates."""
    carriers = {label: sum(label in other for other in admitted) for label in anchor}
    return lambda s, t: sum(1 / carriers[label] for label in s & t)


def _row(
    similarity: dict[int, float], weights: dict[int, float], divisor: float, form: str
) -> tuple[float, dict[int, float]]:
    """Returns L_i and its derivative with respect to each similarity of the row."""
    top = max(similarity.values())
    lse = top + math.log(sum(math.exp(s - top) for s in similarity.values()))
    log_q = {j: s - lse for j, s in similarity.items()}
    q = {j: math.exp(value) for j, value in log_q.items()}
    if form == "out":
        value = -sum(w * log_q[p] for p, w in weights.items()) / divisor
        rho = sum(w / divisor for w in weights.values())
        return value, {j: rho * q[j] - weights.get(j, 0.0) / divisor for j in q}
    best = max(log_q[p] for p in weights)
    inner = sum(w * math.exp(log_q[p] - best) for p, w in weights.items())
    value = -(best + math.log(inner) - math.log(divisor))
    part = {p: w * math.exp(log_q[p] - best) / inner for p, w in weights.items()}
    return value, {j: q[j] - part.get(j, 0.0) for j in q}


def _divisor(normalizer: str, weights: dict[int, float], anchor: LabelSet) -> float:
    if normalizer == "positives":
        return float(len(weights))
    if normalizer == "weights":
        return float(sum(weights.values()))
    if normalizer in ("labels", "batch_labels"):
        return float(len(anchor))
    raise ValueError(normalizer)


def contrastive(
    z: np.ndarray,
    labels: Sequence[LabelSet],
    candidates: np.ndarray | None = None,
    candidate_labels: Sequence[LabelSet] | None = None,
    *,
    weight: str | PairWeight = "sd",
    normalizer: str = "positives",
    temperature: float = 0.07,
    normalize: bool = True,
    where: Sequence[bool] | None = None,
    candidate_where: Sequence[bool] | None = None,
    positive_where: np.ndarray | None = None,
    ids: Sequence[int] | None = None,
    candidate_ids: Sequence[int] | None = None,
    form: str = "out",
) -> Result:
    """Evaluates one loss; `weight` is a name of `WEIGHTS`, "mulsupcon", or f(anchor, candidate).

    A candidate with the id of its anchor is left out, unless that is negative. A pair outside
    `positive_where` [B, R] is a candidate, which counts for mulsupcon's m_l, but no positive.
    """
    z = np.asarray(z, np.float64)
    explicit = candidates is not None
    other = np.asarray(candidates, np.float64) if explicit else z
    other_labels = candidate_labels if explicit else labels
    anchors_valid = [True] * len(z) if where is None else [bool(v) for v in where]
    admitted = [True] * len(other) if explicit else list(anchors_valid)
    if candidate_where is not None:
        admitted = [a and bool(v) for a, v in zip(admitted, candidate_where, strict=True)]

    other_ids = candidate_ids if explicit else ids

    def is_copy(i: int, j: int) -> bool:
        return ids is not None and int(ids[i]) >= 0 and int(ids[i]) == int(other_ids[j])

    rows, positives = np.zeros(len(z)), np.zeros(len(z), int)
    pull, similarities = np.zeros((len(z), len(other))), np.zeros((len(z), len(other)))
    for i in range(len(z)):
        if not anchors_valid[i]:
            continue
        pool = [j for j in range(len(other)) if admitted[j] and (explicit or j != i)]
        pool = [j for j in pool if not is_copy(i, j)]
        if weight == "mulsupcon":
            pair_weight = _mulsupcon_weight(labels[i], [other_labels[j] for j in pool])
        else:
            pair_weight = WEIGHTS[weight] if isinstance(weight, str) else weight
        allowed = [j for j in pool if positive_where is None or positive_where[i][j]]
        weights = {j: pair_weight(labels[i], other_labels[j]) for j in allowed}
        weights = {j: w for j, w in weights.items() if w > 0}  # NaN is not > 0
        positives[i] = len(weights)
        if not weights:
            continue
        anchor = _unit(z[i], normalize)
        similarity = {
            j: sum(float(a) * float(b) for a, b in zip(anchor, _unit(other[j], normalize)))
            / temperature
            for j in pool
        }
        divisor = _divisor(normalizer, weights, labels[i])
        rows[i], slopes = _row(similarity, weights, divisor, form)
        for j, slope in slopes.items():
            pull[i, j], similarities[i, j] = slope, similarity[j]

    if normalizer == "batch_labels":
        amount = np.array([float(len(s)) * v for s, v in zip(labels, anchors_valid)])
    else:
        amount = (positives > 0).astype(np.float64)
    total = float(amount.sum())
    share = amount / total if total > 0 else np.zeros(len(z))
    mean = float(sum(a * value for a, value in zip(share, rows)))
    return Result(
        rows=rows,
        mean=mean,
        share=share,
        pull=pull,
        positives=positives,
        similarity=similarities,
        _anchors=z,
        _candidates=other if explicit else None,
        _temperature=temperature,
        _normalize=normalize,
    )


def loss(name: str, z: np.ndarray, labels: Sequence[LabelSet], *args, **kwargs) -> Result:
    """Evaluates a member of the family by name; "supcon" takes the sets of `class_sets`."""
    weight, normalizer = LOSSES[name]
    threshold = kwargs.pop("threshold", None)
    if threshold is not None:
        return contrastive(
            z,
            labels,
            *args,
            weight=lambda s, t: jaccard(s, t, threshold),
            normalizer=normalizer,
            **kwargs,
        )
    kwargs.setdefault("normalizer", normalizer)
    return contrastive(z, labels, *args, weight=weight, **kwargs)
