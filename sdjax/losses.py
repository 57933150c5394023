"""The public losses: one core, many weights."""

import functools
from collections.abc import Callable
from typing import Literal, TypedDict, Unpack, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from sdjax import collectives, relations
from sdjax.checks import one_of
from sdjax.collectives import AxisName
from sdjax.dense import dense
from sdjax.inputs import (
    accumulation_dtype,
    check_mask,
    check_not_sharded,
    check_same_space,
    check_temperature,
    class_labels,
    prepare,
)
from sdjax.labels import Labels
from sdjax.pairs import Form, Implementation, Method, Normalizer, Pairs, Statistics, rows, sound
from sdjax.relations import Overlap, Weight
from sdjax.tiled import ring, tiled

Array = jax.Array
Reduction = Literal["mean", "none"]

# Up to this many pairs on a device the dense core is as fast, and compiles sooner.
AUTO_DENSE_PAIRS = 512 * 512
# Above this, gathered candidates take more memory than the ring takes time.
AUTO_GATHERED_BYTES = 2**28


def auto(pairs: Pairs, method: Method) -> Statistics:
    """`dense` for few pairs; else `tiled`, or `ring` where many candidates would be gathered."""
    anchors, candidates = pairs.anchors.z, pairs.candidates.z
    everyone = len(candidates) * collectives.axis_size(pairs.axis_name)
    if len(anchors) * everyone <= AUTO_DENSE_PAIRS:
        return dense(pairs, method)
    if (
        pairs.axis_name
        and everyone * candidates.shape[1] * candidates.dtype.itemsize > AUTO_GATHERED_BYTES
    ):
        return ring(pairs, method)
    return tiled(pairs, method)


def pallas(pairs: Pairs, method: Method) -> Statistics:
    """`tiled` by TPU kernels."""
    # Not before it is asked for: kernels take long to import.
    from sdjax.kernels.core import pallas

    return pallas(pairs, method)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "auto": auto,
    "dense": dense,
    "tiled": tiled,
    "ring": ring,
    "pallas": pallas,
}


class Options(TypedDict, total=False):
    """The keyword arguments that every loss takes; see `contrastive_loss`."""

    temperature: ArrayLike
    normalize: bool
    where: ArrayLike | None
    candidate_where: ArrayLike | None
    form: Form
    reduction: Reduction
    axis_name: AxisName | None
    implementation: str


def contrastive_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    weight: str | Weight = "similarity_dissimilarity",
    normalizer: Normalizer = "positives",
    **options: Unpack[Options],
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
      candidates: embeddings to contrast with, float [R, D]; by default `z` itself, where no row
        is its own candidate.
      candidate_labels: label sets of the candidates, multi-hot [R, C] or `LabelIndices`.
      weight: a name of `sdjax.relations.WEIGHTS`, or a function from the `Overlap` of one pair,
        three scalars, to its weight. A pair whose weight is not a finite number above 0 is not a
        positive.
      normalizer: d_i. "positives": |P(i)|; "weights": Σ_p w_ip; "labels": the anchor's number of
        labels |S_i|; "batch_labels": the same, and the mean over anchors is weighted by |S_i|,
        so that the loss is divided by Σ_i |S_i|.
      temperature: τ > 0, scalar.
      normalize: divide embeddings by their L2 norm; a zero embedding stays zero.
      where: bool [B]; False rows are padding, neither anchors nor candidates, whatever they hold.
      candidate_where: bool [R]; False rows are no candidates.
      form: "out" (weights outside the logarithm) or "in".
      reduction: "mean" gives a scalar, "none" gives [B], with 0 for anchors without a positive.
      axis_name: mesh axis (or axes) along which the batch is sharded, inside shard_map or pmap.
        Candidates are gathered along it, and the mean is that of the global batch.
      implementation: "dense" holds all pairs at once. "tiled" holds a tile of them, and computes
        each pair of a batch with itself once: less time and far less memory for large batches.
        "ring" is "tiled" for a sharded batch, whose candidates travel around the (first) axis
        instead of being gathered on each device. "auto" takes "dense" up to 512 × 512 pairs on a
        device, and beyond it "tiled", or "ring" where 256 MiB or more would be gathered. Only
        "dense" has second derivatives and forward-mode differentiation. "pallas" is "tiled" by
        kernels for TPU v5 and later.

    Returns:
      Scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError: if embeddings are not floating or labels cannot be label sets.
      ValueError: if shapes do not match, an option is unknown, or (outside jit) a value is out of
        range.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020 (https://arxiv.org/abs/2004.11362).
    """
    own_weight = not isinstance(weight, str)
    if isinstance(weight, str):
        weight = relations.WEIGHTS[one_of("weight", weight, relations.WEIGHTS)]
    elif not callable(weight):
        raise TypeError(f"weight must be a name or a function of an Overlap, got {weight!r}.")
    else:
        weight = sound(weight)
    one_of("normalizer", normalizer, get_args(Normalizer))
    method = Method(weight, normalizer, own_weight=own_weight)
    return _loss(method, z, labels, candidates, candidate_labels, **options)


def sd_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    **options: Unpack[Options],
) -> Array:
    """Similarity-Dissimilarity loss.

      w = |S∩T| / |S| · 1 / (1 + |T\\S|),   L_i = −1/|P(i)| · Σ_{p∈P(i)} w_ip · log q_ip

    for an anchor with label set S and a candidate with label set T. The paper's text leaves open
    where the weight stands; here it multiplies the logarithm, since inside the logarithm of each
    positive it would leave the gradient of `any_loss`.

    Args:
      z: embeddings, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets.
      **options: `temperature=0.07`, `normalize=True`, `where=None`, `candidate_where=None`,
        `form="out"`, `reduction="mean"`, `axis_name=None`, `implementation="auto"`, as in
        `contrastive_loss`.

    Returns:
      Scalar, or [B] for `reduction="none"`.

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
    method = Method(relations.similarity_dissimilarity)
    return _loss(method, z, labels, candidates, candidate_labels, **options)


def mulsupcon_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    normalizer: Normalizer = "batch_labels",
    **options: Unpack[Options],
) -> Array:
    """MulSupCon loss: each label of the anchor has its own positives.

      w = Σ_{l∈S∩T} 1/m_l(i),  m_l(i) = candidates of anchor i that carry label l
      L = 1/Σ_i|S_i| · Σ_i Σ_p w_ip · (−log q_ip)

    Args:
      z, labels, candidates, candidate_labels: see `sd_loss`.
      normalizer: "batch_labels" divides by Σ_i|S_i| as above; "labels" divides each anchor by
        |S_i|, then takes the mean over the anchors that have a positive.
      **options: see `contrastive_loss`.

    Returns:
      Scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Zhang, Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024.
    """
    one_of("normalizer", normalizer, get_args(Normalizer))
    method = Method(_shared, normalizer, balance_labels=True)
    return _loss(method, z, labels, candidates, candidate_labels, **options)


def _shared(o: Overlap) -> Array:
    return o.shared


def jaccard_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    threshold: float = 0.5,
    **options: Unpack[Options],
) -> Array:
    """MultiSupCon loss: positives overlap by at least `threshold`, weighted by their overlap.

      w = |S∩T| / |S∪T| where that is at least the threshold

    Args:
      z, labels, candidates, candidate_labels: see `sd_loss`.
      threshold: least Jaccard overlap of a positive, in (0, 1].
      **options: see `contrastive_loss`.

    Returns:
      Scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      MultiSupCon, NeurIPS Workshop on Self-Supervised Learning, 2022.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}.")
    method = _jaccard(threshold)
    return _loss(method, z, labels, candidates, candidate_labels, **options)


@functools.lru_cache(maxsize=64)
def _jaccard(threshold: float) -> Method:
    # One object for each threshold: compiled programs are found by it.
    return Method(functools.partial(relations.jaccard, threshold=threshold))


def _member(name: str, method: Method, summary: str) -> Callable[..., Array]:
    """A loss of the family that has no parameter of its own."""

    def loss(
        z: ArrayLike,
        labels: Labels,
        candidates: ArrayLike | None = None,
        candidate_labels: Labels | None = None,
        **options: Unpack[Options],
    ) -> Array:
        return _loss(method, z, labels, candidates, candidate_labels, **options)

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = summary + _MEMBER_DOC
    return loss


_MEMBER_DOC = """

    Args:
      z: embeddings, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets.
      **options: see `contrastive_loss`.

    Returns:
      Scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.
"""

any_loss = _member(
    "any_loss",
    Method(relations.share_any),
    "SupCon loss whose positives share any label: w = 1[|S∩T| > 0].",
)
all_loss = _member(
    "all_loss",
    Method(relations.share_all),
    "SupCon loss whose positives share all labels: w = 1[S = T].",
)
soft_jaccard_loss = _member(
    "soft_jaccard_loss",
    Method(relations.soft_jaccard, "weights"),
    "Every overlapping pair by its Jaccard overlap, each anchor's weights summing to 1:\n"
    "    w = |S∩T| / |S∪T|, divided by Σ_p w (Audibert et al., 2024, base form).",
)
similarity_only_loss = _member(
    "similarity_only_loss",
    Method(relations.similarity_only),
    "Ablation of `sd_loss`: w = K^s = |S∩T| / |S|.",
)
dissimilarity_only_loss = _member(
    "dissimilarity_only_loss",
    Method(relations.dissimilarity_only),
    "Ablation of `sd_loss`: w = K^d = 1 / (1 + |T\\S|) where S and T share a label.",
)
symmetric_loss = _member(
    "symmetric_loss",
    Method(relations.symmetric),
    "Symmetric variant of `sd_loss`: w = |S∩T| / |S∪T| · 1 / (1 + |SΔT|).",
)


def supcon_loss(
    z: ArrayLike,
    class_ids: ArrayLike,
    candidates: ArrayLike | None = None,
    candidate_class_ids: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Array:
    """Single-label supervised contrastive loss (SupCon): w = 1[same class].

    Args:
      z: embeddings, float [B, D].
      class_ids: int [B], at least 0; -1 marks a row without a class, which has no positives.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_class_ids: int [R].
      **options: see `contrastive_loss`.

    Returns:
      Scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Khosla et al., Supervised Contrastive Learning, 2020 (https://arxiv.org/abs/2004.11362).
    """
    labels = class_labels("class_ids", class_ids, "z", z)
    candidate_labels = None
    if candidate_class_ids is not None:
        name = "candidate_class_ids"
        candidate_labels = class_labels(name, candidate_class_ids, "candidates", candidates)
    elif candidates is not None:
        raise ValueError("candidates need candidate_class_ids, got none.")
    return any_loss(z, labels, candidates, candidate_labels, **options)


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


def _loss(
    method: Method,
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None,
    candidate_labels: Labels | None,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    form: Form = "out",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    implementation: str = "auto",
) -> Array:
    """`contrastive_loss` for a resolved method."""
    one_of("form", form, get_args(Form))
    one_of("reduction", reduction, get_args(Reduction))
    one_of("implementation", implementation, IMPLEMENTATIONS)
    check_temperature(temperature)
    check_not_sharded(z)
    anchors = candidates_side = prepare(("z", "labels", "where"), z, labels, where)
    if candidates is not None and candidate_labels is not None:
        names = ("candidates", "candidate_labels", "candidate_where")
        candidates_side = prepare(names, candidates, candidate_labels, candidate_where)
        check_same_space(anchors, candidates_side)
    elif candidates is not None or candidate_labels is not None:
        given = "candidates" if candidates is not None else "candidate_labels"
        raise ValueError(f"candidates and candidate_labels go together, got {given} alone.")
    elif candidate_where is not None:
        mask = check_mask("candidate_where", candidate_where, len(anchors.z))
        candidates_side = anchors._replace(where=anchors.where & mask)
    pairs = Pairs(
        anchors=anchors,
        candidates=candidates_side,
        self_contrast=candidates is None,
        normalize=normalize,
        temperature=temperature,
        dtype=accumulation_dtype(anchors.z, candidates_side.z),
        axis_name=axis_name,
    )
    method = method._replace(form=form)
    loss, weight = rows(IMPLEMENTATIONS[implementation](pairs, method), pairs, method)
    if reduction == "none":
        return loss
    total = collectives.global_sum((loss * weight).sum(), axis_name)
    return total / jnp.maximum(collectives.global_sum(weight.sum(), axis_name), 1)
