"""The public losses: one core, many weights.

Each member of the family hands all of its arguments (`**locals()`) on to `contrastive_loss`, with
its weight and normalizer.
"""

# help() then shows `ArrayLike` and not all that it stands for.
from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdjax import relations
from sdjax._src.collectives import AxisName
from sdjax._src.evaluate import Implementation, Reduction, evaluate
from sdjax._src.pair_math import Form
from sdjax._src.pair_weight import PairWeight, as_pair_weight
from sdjax._src.problem import Method, Normalizer, Problem
from sdjax._src.validation import check_threshold, class_labels, make_problem
from sdjax.checks import one_of
from sdjax.labels import Labels
from sdjax.relations import Overlap, Weight

Array = jax.Array


def contrastive_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    weight: str | Weight = "sd",
    normalizer: Normalizer = "positives",
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Multi-label supervised contrastive loss with any weight.

      L_i = −1/d_i · Σ_{p∈P(i)} w_ip · log( e^{s_ip} / Σ_{a∈A(i)} e^{s_ia} ),  s_ip = z_i·z_p / τ

    A(i) are the other rows of the batch, or all the explicit candidates; P(i) are those with a
    weight above 0; the loss is the mean of L_i over the anchors that have a positive, and 0 when
    none has. With `form="in"`, the weighted sum stands inside the logarithm:
    L_i = −log( Σ_p w_ip e^{s_ip} / Σ_a e^{s_ia} / d_i ). No gradient flows through the weights.

    Args:
      z: embeddings of the anchors, float [B, D]. Computation and result are in float32 for
        dtypes of up to 32 bits, else in float64.
      labels: label sets of the anchors: multi-hot bool, int or float [B, C], or `LabelIndices`.
        Outside jit values other than 0 and 1 are an error; under jit any value but 0 is present.
      candidates: embeddings to contrast with, float [R, D]; by default `z` itself, where no row
        is its own candidate.
      candidate_labels: label sets of the candidates, multi-hot [R, C] or `LabelIndices`.
      weight: the name of a loss in `sdjax.LOSSES`, whose weight is taken; or a function from the
        `Overlap` of one pair, three scalars, to its weight. It is traced at each call. A pair
        whose weight is not a finite number above 0 is not a positive.
      normalizer: d_i. "positives": |P(i)|; "weights": Σ_p w_ip; "labels": the anchor's number of
        labels |S_i|; "batch_labels": the same, and the mean over anchors is weighted by |S_i|,
        so that the loss is divided by Σ_i |S_i|.
      temperature: τ > 0, scalar.
      normalize: divide embeddings by their L2 norm; a zero embedding stays zero.
      where: bool [B]; False rows are padding, neither anchors nor candidates, whatever they hold.
      candidate_where: bool [R]; False rows are no candidates.
      positive_where: bool [B, R]; only these pairs may be positives, and the others stay
        candidates. R counts the candidates of all devices. It needs the dense core.
      ids: int [B]; a candidate with the id of its anchor is a copy of it, and no candidate of
        it. Negative: no id.
      candidate_ids: int [R]; goes with `ids` where there are explicit candidates.
      form: "out" (weights outside the logarithm) or "in".
      reduction: "mean" gives a scalar; "sum" the sum of L_i over all anchors; "none" gives [B],
        with 0 for anchors without a positive.
      axis_name: mesh axis (or axes) along which the batch is sharded, inside shard_map or pmap.
        Candidates are gathered along it, and mean and sum are those of the global batch.
      candidates_sharded: whether each device holds its share of the explicit candidates (True),
        or all of them (False). None reads it from their types in shard_map; where these do not
        tell, with `check_vma=False` and in pmap, it must be given.
      implementation: "dense" holds all pairs at once. "tiled" holds a tile of them, and computes
        each pair of a batch with itself once: less time and far less memory for large batches.
        "ring" is "tiled" for a sharded batch, whose candidates travel around the (first) axis
        instead of being gathered on each device. "auto" takes "dense" up to 512 × 512 pairs on a
        device, and beyond it "tiled", or "ring" where 256 MiB or more would be gathered. Only
        "dense" has second derivatives and forward-mode differentiation. Under plain jit with a
        batch that is sharded over devices use `sdjax.sharded.contrastive_loss` instead: the tiled
        core cannot see the sharding, and would exchange rows in every tile.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError: if embeddings are not floating or labels cannot be label sets.
      ValueError: if shapes do not match, an option is unknown, or (outside jit) a value is out of
        range.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020 (https://arxiv.org/abs/2004.11362).
    """
    one_of("normalizer", normalizer, get_args(Normalizer))
    one_of("form", form, get_args(Form))
    one_of("reduction", reduction, get_args(Reduction))
    one_of("implementation", implementation, get_args(Implementation))
    problem = make_problem(
        z,
        labels,
        candidates,
        candidate_labels,
        temperature=temperature,
        normalize=normalize,
        where=where,
        candidate_where=candidate_where,
        positive_where=positive_where,
        ids=ids,
        candidate_ids=candidate_ids,
        axis_name=axis_name,
        candidates_sharded=candidates_sharded,
    )
    # MulSupCon's weight is the number of shared labels, of which each counts 1 / m_l(i).
    balance = isinstance(weight, str) and weight == "mulsupcon"
    method = Method(_pair_weight(weight, problem), normalizer, form, balance)
    return evaluate(problem, method, reduction, implementation)


def _pair_weight(weight: str | Weight, problem: Problem) -> PairWeight:
    if isinstance(weight, str):
        named = {**relations.WEIGHTS, "supcon": relations.share_any, "mulsupcon": _shared}
        return PairWeight(named[one_of("weight", weight, named)])
    if not callable(weight):
        raise TypeError(f"weight must be a name or a function of an Overlap, got {weight!r}.")
    return as_pair_weight(weight, problem.dtype, (problem.anchors, problem.contrasted))


def _shared(o: Overlap) -> Array:
    return o.shared


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
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    positive_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    form: Form = "out",
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
      threshold: least Jaccard overlap of a positive, scalar in (0, 1].
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
    # Captured as an array, so that another threshold finds the same compiled program.
    weight = PairWeight(relations.jaccard, (jax.lax.stop_gradient(jnp.asarray(threshold)),))
    return contrastive_loss(**arguments, weight=weight)


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


LOSSES: dict[str, Callable[..., Array]] = {
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
}
