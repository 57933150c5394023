"""The relatives of the family, written straight from their equations as `numpy_reference` is.

    L_i = rho_i log sum_a e^{s_ia + b_a} - sum_p W_ip s_ip

Rows are lists of (embedding, label set); weights are sums over Python sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy_reference import LabelSet, Result, _unit

NAMES = ("prototype", "msc", "mscwrg", "mscrg")
LABEL_WISE = ("label_wise", "herocon")


def one_hot_sets(number: int) -> list[LabelSet]:
    """The label sets of the prototypes."""
    return [frozenset([label]) for label in range(number)]


def general(
    z: np.ndarray,
    anchors: Sequence[bool],
    other: np.ndarray | None,
    pool: Callable[[int], list[int]],
    weights: Callable[[int, list[int]], dict[int, float]],
    bias: Callable[[int], float] = lambda j: 0.0,
    *,
    temperature: float,
    normalize: bool = True,
    without_positives: str = "skip",
    clipped: bool = False,
) -> Result:
    """The loss of weights W_ip, given the pool of candidates of each anchor; mean over anchors."""
    z = np.asarray(z, np.float64)
    rows_of = z if other is None else np.asarray(other, np.float64)
    rows, positives = np.zeros(len(z)), np.zeros(len(z), int)
    counted = np.zeros(len(z))
    pull, similarities = (np.zeros((len(z), len(rows_of))) for _ in range(2))
    for i in range(len(z)):
        if not anchors[i]:
            continue
        candidates = pool(i)
        w = {j: x for j, x in weights(i, candidates).items() if x > 0}
        positives[i] = len(w)
        counted[i] = bool(w) or without_positives == "push"
        if not candidates or not counted[i]:
            continue
        anchor = _unit(z[i], normalize)
        s = {
            j: sum(float(a) * float(b) for a, b in zip(anchor, _unit(rows_of[j], normalize)))
            / temperature
            for j in candidates
        }
        top = max(s[j] + bias(j) for j in candidates)
        lse = top + math.log(sum(math.exp(s[j] + bias(j) - top) for j in candidates))
        rho = sum(w.values()) if w else 1.0
        rows[i] = rho * lse - sum(x * s[j] for j, x in w.items())
        for j in candidates:
            slope = rho * math.exp(s[j] + bias(j) - lse) - w.get(j, 0.0)
            pull[i, j] = min(slope, 0.0) if clipped and j in w else slope
            similarities[i, j] = s[j]
    total = counted.sum()
    share = counted / total if total else counted
    return Result(
        rows=rows,
        mean=float(np.dot(share, rows)),
        share=share,
        pull=pull,
        positives=positives,
        similarity=similarities,
        _anchors=z,
        _candidates=None if other is None else rows_of,
        _temperature=temperature,
        _normalize=normalize,
    )


def _label_shares(
    sets: LabelSet, pool: list[int], others: Sequence[LabelSet], factor: Callable[[int], float]
) -> dict[int, float]:
    """f_b / |S| * sum_{l in S and T_b} 1/N_l, with N_l the sum of f over candidates that have l."""
    number = {label: sum(factor(b) for b in pool if label in others[b]) for label in sets}
    return {
        b: factor(b)
        / len(sets)
        * sum(1 / number[label] for label in sets & others[b] if number[label] > 0)
        for b in pool
        if sets
    }


def loss(
    name: str,
    z: np.ndarray,
    labels: Sequence[LabelSet],
    prototypes: np.ndarray,
    candidates: np.ndarray | None = None,
    candidate_labels: Sequence[LabelSet] | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 0.1,
    temperature: float = 0.07,
    where: Sequence[bool] | None = None,
    candidate_where: Sequence[bool] | None = None,
    ids: Sequence[int] | None = None,
    candidate_ids: Sequence[int] | None = None,
    **options,
) -> tuple[Result, Callable[..., list[np.ndarray]]]:
    """A loss with prototypes, and its gradients to (z, prototypes[, candidates]).

    The rows of the result are those of z, then those of the prototypes where they are anchors.
    """
    size, number = len(z), len(prototypes)
    where = [True] * size if where is None else [bool(x) for x in where]
    as_anchors = name in ("mscwrg", "mscrg")
    explicit = candidates is not None
    # All rows that there are, of three kinds.
    extra = list(candidates) if explicit else []
    everyone = np.asarray([*z, *prototypes, *extra], np.float64)
    sets = [*labels, *one_hot_sets(number), *(candidate_labels or [])]
    is_prototype = [size <= j < size + number for j in range(len(everyone))]
    anchors = [*where, *[as_anchors] * number, *[False] * len(extra)]
    admitted = [*([False] * size if explicit else where), *[True] * number, *[True] * len(extra)]
    if candidate_where is not None:
        first = size + number if explicit else 0
        for k, x in enumerate(candidate_where):
            admitted[first + k] &= bool(x)
    all_ids = [-1] * len(everyone)
    if ids is not None:
        all_ids[:size] = list(ids)
        all_ids[size + number :] = list(candidate_ids) if explicit else []

    def pool(i: int) -> list[int]:
        if name == "prototype":
            return list(range(size, size + number))
        own = all_ids[i]
        return [
            j
            for j in range(len(everyone))
            if admitted[j] and j != i and not (own >= 0 and own == all_ids[j])
        ]

    def factor(i: int, j: int) -> float:
        s, t = sets[i], sets[j]
        if name == "msc":
            return 1.0 if is_prototype[j] else alpha / len(s | t) if s | t else 0.0
        if alpha < 0:
            return 1.0 if t <= s else 0.0
        return (len(s & t) / len(t)) ** alpha if s & t else 0.0

    def weights(i: int, found: list[int]) -> dict[int, float]:
        if name == "prototype":
            return {size + label: 1 / len(sets[i]) for label in sets[i]}
        return _label_shares(sets[i], found, sets, lambda j: factor(i, j))

    def bias(j: int) -> float:
        return 0.0 if name != "msc" or is_prototype[j] else math.log(beta)

    result = general(
        everyone,
        anchors,
        None,
        pool,
        weights,
        bias,
        temperature=temperature,
        clipped=name == "mscrg",
        **options,
    )

    def gradients(cotangent: np.ndarray | None = None) -> list[np.ndarray]:
        whole = None
        if cotangent is not None:
            whole = np.zeros(len(everyone))
            whole[:size] = cotangent
        of_all, _ = result.gradient(whole)
        parts = [of_all[:size], of_all[size : size + number]]
        return [*parts, of_all[size + number :]] if explicit else parts

    return result, gradients


def label_wise(
    z: np.ndarray,
    labels: Sequence[LabelSet],
    num_classes: int,
    candidates: np.ndarray | None = None,
    candidate_labels: Sequence[LabelSet] | None = None,
    *,
    where: Sequence[bool] | None = None,
    candidate_where: Sequence[bool] | None = None,
    ids: Sequence[int] | None = None,
    **options,
) -> Result:
    """The mean over labels of SupCon with two classes each."""
    explicit = candidates is not None
    sets = candidate_labels if explicit else labels
    size = len(sets)
    where = [True] * len(z) if where is None else [bool(x) for x in where]
    admitted = [True] * size if explicit else list(where)
    if candidate_where is not None:
        admitted = [a and bool(x) for a, x in zip(admitted, candidate_where, strict=True)]

    def pool(i: int) -> list[int]:
        return [
            j
            for j in range(size)
            if admitted[j]
            and (explicit or j != i)
            and not (ids is not None and ids[i] >= 0 and ids[i] == ids[j])
        ]

    def weights(i: int, found: list[int]) -> dict[int, float]:
        total = dict.fromkeys(found, 0.0)
        for label in range(num_classes):
            same = [j for j in found if (label in sets[j]) == (label in labels[i])]
            for j in same:
                total[j] += 1 / len(same) / num_classes
        return total

    return general(z, where, candidates, pool, weights, **options)


def herocon(
    z: np.ndarray, labels: Sequence[LabelSet], num_classes: int, where: Sequence[bool], **options
) -> tuple[float, np.ndarray]:
    """Value, and gradient to z by the slopes of the similarities."""
    temperature = options.get("temperature", 1.0)
    normalize = options.get("normalize", True)
    unit = [_unit(np.asarray(row, np.float64), normalize) for row in z]
    rows = [i for i in range(len(z)) if where[i]]
    slope, total = np.zeros((len(z), len(z))), 0.0

    def s(i: int, j: int) -> float:
        return float(np.dot(unit[i], unit[j])) / temperature

    for label in range(num_classes):
        having = [i for i in rows if label in labels[i]]
        lacking = [i for i in rows if label not in labels[i]]
        for i in having:
            away = {n: len(labels[i] ^ labels[n]) * math.exp(s(i, n)) for n in lacking}
            for p in having:
                near = (1 - len(labels[i] ^ labels[p]) / num_classes) * math.exp(s(i, p))
                whole = sum(away.values()) + near
                share = 1 / len(having) ** 2
                total += share * math.log(whole / (near * (len(lacking) + 1)))
                slope[i, p] += share * (near / whole - 1)
                for n, x in away.items():
                    slope[i, n] += share * x / whole
    one = np.array([1.0] + [0.0] * (len(z) - 1))
    result = Result(
        rows=one,
        mean=total,
        share=np.ones(len(z)),
        pull=slope,
        positives=one,
        similarity=slope,
        _anchors=np.asarray(z, np.float64),
        _candidates=None,
        _temperature=temperature,
        _normalize=normalize,
    )
    return total, result.gradient()[0]
