"""From label sets to relations and weights.

For an anchor with label set S and a candidate with label set T, everything here is a function of
three numbers: |S∩T| (`shared`), |S| (`anchor_size`) and |T| (`candidate_size`).

References:
  Huang, Long, Luo, Similarity-Dissimilarity Loss for Multi-label Supervised Contrastive Learning,
  2024 (https://arxiv.org/abs/2410.13439).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from sdjax import labels as labels_lib
from sdjax._src import label_overlap
from sdjax.labels import LabelIndices, Labels

Array = jax.Array
EmptySets = Literal["disjoint", "identical"]


class Overlap(NamedTuple):
    """The three numbers that relate A anchors to R candidates.

    Attributes:
      shared: |S∩T|, float [A, R].
      anchor_size: |S|, float [A, 1].
      candidate_size: |T|, float [1, R].
    """

    shared: Array
    anchor_size: Array
    candidate_size: Array


Weight = Callable[[Overlap], Array]


def overlap(anchors: Labels, candidates: Labels, dtype: jnp.dtype = jnp.float32) -> Overlap:
    """Overlap of each anchor's label set with each candidate's.

    Args:
      anchors: multi-hot bool, int or float [A, C], or `LabelIndices` [A, L].
      candidates: multi-hot [R, C], or `LabelIndices` [R, L].
      dtype: floating dtype of the result.

    Returns:
      `Overlap` of shared [A, R], anchor_size [A, 1] and candidate_size [1, R].

    Raises:
      TypeError, ValueError: if these are not label sets over the same labels.
    """
    labels_lib.check_labels("anchors", anchors)
    labels_lib.check_labels("candidates", candidates)
    check_same_classes("anchors", anchors, "candidates", candidates)
    return unchecked_overlap(anchors, candidates, dtype)


def unchecked_overlap(anchors: Labels, candidates: Labels, dtype: jnp.dtype) -> Overlap:
    """`overlap` of label sets that were checked before."""
    if isinstance(anchors, LabelIndices) or isinstance(candidates, LabelIndices):
        rows, columns = label_overlap.prepare(anchors, candidates)
        shared = rows.shared(columns.as_columns(), dtype)
    else:
        one, other = (labels_lib.multi_hot(x, dtype) for x in (anchors, candidates))
        shared = jnp.matmul(one, other.T, precision=lax.Precision.HIGHEST)
    anchor_size, candidate_size = (labels_lib.sizes(x, dtype) for x in (anchors, candidates))
    return Overlap(shared, anchor_size[:, None], candidate_size[None, :])


def check_same_classes(name: str, labels: Labels, other_name: str, other: Labels) -> None:
    """Raises ValueError if the two are over different numbers of labels."""
    num, other_num = labels_lib.num_classes(labels), labels_lib.num_classes(other)
    if num != other_num:
        raise ValueError(
            f"{name} and {other_name} must have the same number of labels, "
            f"got {num} and {other_num}."
        )


def relation(anchors: Labels, candidates: Labels) -> Array:
    """The relation of each anchor's label set S to each candidate's T.

      1  disjoint     |S∩T| = 0 (an empty set is disjoint from every set)
      2  identical    S = T
      3  overlapping  neither contains the other
      4  subset       T is a strict subset of S
      5  superset     T is a strict superset of S

    Args:
      anchors: multi-hot [A, C], or `LabelIndices` [A, L].
      candidates: multi-hot [R, C], or `LabelIndices` [R, L].

    Returns:
      int32 [A, R] in 1..5.
    """
    shared, anchor_size, candidate_size = overlap(anchors, candidates)
    holds_anchor, holds_candidate = shared == anchor_size, shared == candidate_size
    conditions = [shared == 0, holds_anchor & holds_candidate, holds_candidate, holds_anchor]
    codes = [jnp.full_like(shared, code, dtype=jnp.int32) for code in (1, 2, 4, 5)]
    return jnp.select(conditions, codes, jnp.full_like(codes[0], 3))


def similarity_dissimilarity(o: Overlap) -> Array:
    """The weight of the Similarity-Dissimilarity loss: |S∩T| / |S| · 1 / (1 + |T\\S|)."""
    # One division: K^d is at most 1, and K^s is 0 without a shared label.
    return o.shared / (jnp.maximum(o.anchor_size, 1) * (1 + o.candidate_size - o.shared))


def similarity_only(o: Overlap) -> Array:
    """K^s = |S∩T| / |S|, the share of the anchor's labels that the candidate has."""
    return o.shared / jnp.maximum(o.anchor_size, 1)


def dissimilarity_only(o: Overlap) -> Array:
    """K^d = 1 / (1 + |T\\S|) where S and T share a label, else 0."""
    return share_any(o) / (1 + o.candidate_size - o.shared)


def symmetric(o: Overlap) -> Array:
    """Jaccard · 1 / (1 + |SΔT|), the same from S to T as from T to S."""
    return soft_jaccard(o) / (1 + o.anchor_size + o.candidate_size - 2 * o.shared)


def soft_jaccard(o: Overlap) -> Array:
    """|S∩T| / |S∪T|."""
    return o.shared / jnp.maximum(o.anchor_size + o.candidate_size - o.shared, 1)


def jaccard(
    o: Overlap,
    threshold: ArrayLike = 0.5,
    *,
    weighted: bool = True,
    empty_sets: EmptySets = "disjoint",
) -> Array:
    """|S∩T| / |S∪T| where that is at least `threshold`, else 0.

    Args:
      o: the overlap.
      threshold: in (0, 1].
      weighted: False gives 1 in place of the overlap.
      empty_sets: two sets without labels are "disjoint" or "identical", of overlap 1.
    """
    weight = soft_jaccard(o)
    if empty_sets == "identical":
        weight = jnp.where(o.anchor_size + o.candidate_size == 0, 1, weight)
    at_least = weight >= jnp.asarray(threshold, weight.dtype)
    return jnp.where(at_least, weight, 0) if weighted else at_least.astype(weight.dtype)


def share_any(o: Overlap) -> Array:
    """1 where S and T share a label, else 0."""
    return (o.shared > 0).astype(o.shared.dtype)


def share_all(o: Overlap) -> Array:
    """1 where S and T are identical and not empty, else 0."""
    identical = (o.shared == o.anchor_size) & (o.shared == o.candidate_size) & (o.shared > 0)
    return identical.astype(o.shared.dtype)


# By the names of the losses. SupCon's is that of "any"; MulSupCon's needs more than an Overlap.
WEIGHTS: dict[str, Weight] = {
    "sd": similarity_dissimilarity,
    "similarity_only": similarity_only,
    "dissimilarity_only": dissimilarity_only,
    "symmetric": symmetric,
    "any": share_any,
    "all": share_all,
    "jaccard": jaccard,
    "soft_jaccard": soft_jaccard,
}
