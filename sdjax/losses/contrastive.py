"""The loss of any weight, which the members of the family are cases of."""

# help() then shows `ArrayLike` and not all that it stands for.
from __future__ import annotations

from typing import get_args

import jax
from jax.typing import ArrayLike

from sdjax import relations
from sdjax._src.collectives import AxisName
from sdjax._src.evaluate import Implementation, Reduction, check_choices, evaluate
from sdjax._src.pair_math import Form
from sdjax._src.pair_weight import PairWeight, as_pair_weight, uniform
from sdjax._src.problem import Method, Normalizer, Problem, WithoutPositives
from sdjax._src.validation import make_problem
from sdjax.checks import one_of
from sdjax.labels import Labels
from sdjax.relations import Weight

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
    without_positives: WithoutPositives = "skip",
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
      weight: the name of a loss whose weight is taken, of `sdjax.relations.WEIGHTS`, "mulsupcon" or
        "supcon"; or a function from the
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
      without_positives: "skip" leaves anchors without a positive out of the loss; "push" gives
        each L_i = log Σ_a e^{s_ia}, which pushes it from all its candidates (PEMSCL), and counts it
        in the mean.
      reduction: "mean" gives a scalar; "sum" the sum of L_i over all anchors; "none" gives [B],
        with 0 for anchors without a positive that are left out.
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
      Guo, Kok, Bing, Towards Integration of Discriminability and Robustness for Document-Level
      Relation Extraction, EACL 2023 ("push").
    """
    one_of("normalizer", normalizer, get_args(Normalizer))
    one_of("form", form, get_args(Form))
    check_choices(without_positives, reduction, implementation)
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
    labels_are = "balanced" if isinstance(weight, str) and weight == "mulsupcon" else "counted"
    pair_weight = _pair_weight(weight, problem)
    method = Method(pair_weight, normalizer, form, labels_are, without_positives)
    return evaluate(problem, method, reduction, implementation)


def _pair_weight(weight: str | Weight, problem: Problem) -> PairWeight:
    if isinstance(weight, str):
        named = {**relations.WEIGHTS, "supcon": relations.share_any, "mulsupcon": uniform}
        return PairWeight(named[one_of("weight", weight, named)])
    if not callable(weight):
        raise TypeError(f"weight must be a name or a function of an Overlap, got {weight!r}.")
    return as_pair_weight(weight, problem.dtype, (problem.anchors, problem.contrasted))
