"""The losses of the family: `contrastive_loss` with the weight and the normalizer of each.

Each hands all of its arguments (`**locals()`) on to it.
"""

# help() then shows `ArrayLike` and not all that it stands for.
from __future__ import annotations

import functools
from typing import get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdjax import relations
from sdjax._src.collectives import AxisName
from sdjax._src.evaluate import Implementation, Reduction
from sdjax._src.pair_math import Form
from sdjax._src.pair_weight import PairWeight
from sdjax._src.problem import Normalizer, WithoutPositives
from sdjax._src.validation import check_threshold, class_labels
from sdjax.checks import one_of
from sdjax.labels import Labels
from sdjax.losses.contrastive import contrastive_loss
from sdjax.relations import EmptySets, Weight

Array = jax.Array


def sd_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Similarity-Dissimilarity loss.

      w = |S∩T| / |S| · 1 / (1 + |T\\S|),   L_i = −1/|P(i)| · Σ_{p∈P(i)} w_ip · log q_ip

    for an anchor with label set S and a candidate with label set T. The paper's text leaves open
    where the weight stands; here it multiplies the logarithm, since inside the logarithm of each
    positive it would leave the gradient of `any_loss`.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.sd_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Huang, Long, Luo, Similarity-Dissimilarity Loss for Multi-label Supervised Contrastive
      Learning, 2024 (https://arxiv.org/abs/2410.13439).

    Example:
      >>> import jax.numpy as jnp
      >>> import sdjax
      >>> z = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
      >>> labels = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
      >>> print(sdjax.sd_loss(z, labels, temperature=0.5, reduction="none").round(4))
      [0.092  0.2565 0.    ]
    """
    return contrastive_loss(**locals(), weight="sd")


def mulsupcon_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    normalizer: Normalizer = "batch_labels",
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """MulSupCon loss: each label of the anchor has its own positives.

      w = Σ_{l∈S∩T} 1/m_l(i),  m_l(i) = candidates of anchor i that carry label l
      L = 1/Σ_i|S_i| · Σ_i Σ_p w_ip · (−log q_ip)

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      normalizer: "batch_labels" divides by Σ_i|S_i| as above; "labels" divides each anchor by
        |S_i|, then takes the mean over the anchors that have a positive.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.mulsupcon_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Zhang, Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024.
    """
    return contrastive_loss(**locals(), weight="mulsupcon")


def any_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """SupCon loss whose positives share any label: w = 1[|S∩T| > 0].

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.any_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.
    """
    return contrastive_loss(**locals(), weight="any")


def all_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """SupCon loss whose positives share all labels: w = 1[S = T].

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.all_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.
    """
    return contrastive_loss(**locals(), weight="all")


def jaccard_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    threshold: ArrayLike = 0.5,
    weighted: bool = True,
    empty_sets: EmptySets = "disjoint",
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """MultiSupCon loss: positives overlap by at least `threshold`, weighted by their overlap.

      w = |S∩T| / |S∪T| where that is at least the threshold

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      threshold: least Jaccard overlap of a positive, scalar in (0, 1]. The authors' code has .3 by
        default, and .2 for CelebA; .5 is that of pytorch-metric-learning.
      weighted: False gives each positive the weight 1.
      empty_sets: two sets without labels are "disjoint", as in all other losses here, or
        "identical", of overlap 1, as in some published code.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.jaccard_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      MultiSupCon, NeurIPS Workshop on Self-Supervised Learning, 2022.
    """
    arguments = locals()
    check_threshold(arguments.pop("threshold"))
    one_of("empty_sets", arguments.pop("empty_sets"), get_args(EmptySets))
    if not isinstance(arguments.pop("weighted"), bool):
        raise TypeError(f"weighted must be True or False, got {weighted!r}.")
    # Captured as an array, so that another threshold finds the same compiled program.
    captured = (jax.lax.stop_gradient(jnp.asarray(threshold)),)
    return contrastive_loss(
        **arguments, weight=PairWeight(_jaccard(weighted, empty_sets), captured)
    )


@functools.cache
def _jaccard(weighted: bool, empty_sets: EmptySets) -> Weight:
    """One function for equal options, so that they share a compiled program."""
    return functools.partial(relations.jaccard, weighted=weighted, empty_sets=empty_sets)


def soft_jaccard_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Every overlapping pair by its Jaccard overlap, the weights of an anchor summing to 1.

      w = |S∩T| / |S∪T|,  divided by Σ_p w_ip

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.soft_jaccard_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Audibert et al., 2024, base form.
    """
    return contrastive_loss(**locals(), weight="soft_jaccard", normalizer="weights")


def similarity_only_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Ablation of `sd_loss`: w = K^s = |S∩T| / |S|.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.similarity_only_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.
    """
    return contrastive_loss(**locals(), weight="similarity_only")


def dissimilarity_only_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Ablation of `sd_loss`: w = K^d = 1 / (1 + |T\\S|) where S and T share a label.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.dissimilarity_only_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.
    """
    return contrastive_loss(**locals(), weight="dissimilarity_only")


def symmetric_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Symmetric variant of `sd_loss`: w = |S∩T| / |S∪T| · 1 / (1 + |SΔT|).

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.symmetric_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.
    """
    return contrastive_loss(**locals(), weight="symmetric")


def supcon_loss(
    z: ArrayLike,
    class_ids: ArrayLike,
    candidates: ArrayLike | None = None,
    candidate_class_ids: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Single-label supervised contrastive loss (SupCon): w = 1[same class].

    Args:
      z: embeddings of the anchors, float [B, D].
      class_ids: int [B], at least 0; -1 marks a row without a class, which has no positives.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_class_ids: their classes, int [R].
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.supcon_loss` instead.
      All other options: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020 (https://arxiv.org/abs/2004.11362).
    """
    arguments = locals()
    arguments["labels"] = class_labels("class_ids", arguments.pop("class_ids"), "z", z)
    ids = arguments.pop("candidate_class_ids")
    if ids is not None:
        name = "candidate_class_ids"
        arguments["candidate_labels"] = class_labels(name, ids, "candidates", candidates)
    elif candidates is not None:
        raise ValueError("candidates need candidate_class_ids, got none.")
    return contrastive_loss(**arguments, weight="supcon")
