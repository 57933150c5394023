"""Losses with prototypes: one learned row for each label, beside the rows of the batch.

The prototypes [C, D] are an argument that gets a gradient; who trains keeps them among the
parameters. Row l stands for the label set {l}.
"""

# help() then shows `ArrayLike` and not all that it stands for.
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdjax._src import prototypes as prototypes_lib
from sdjax._src.collectives import AxisName
from sdjax._src.evaluate import Implementation, Reduction, check_choices, evaluate
from sdjax._src.pair_math import Form
from sdjax._src.pair_weight import PairWeight, uniform
from sdjax._src.problem import Method, WithoutPositives
from sdjax._src.validation import check_number, make_problem
from sdjax.labels import Labels, is_known, num_classes
from sdjax.losses.contrastive import contrastive_loss
from sdjax.relations import Overlap, Weight

Array = jax.Array


def prototype_loss(
    z: ArrayLike,
    labels: Labels,
    prototypes: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    form: Form = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """Prototypes alone: each row is drawn to those of its labels, and pushed from the others.

      L_i = −1/|S| · Σ_{l∈S} log( e^{s_il} / Σ_k e^{s_ik} ),  s_il = z_i·c_l / τ

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      prototypes: c, float [C, D]; inside shard_map or pmap, all of them on every device.
      without_positives: "skip" leaves rows without labels out; "push" pushes them from all
        prototypes.
      implementation: "auto", "dense", "tiled" or "ring", which is "tiled" here. Under plain jit
        with a batch that is sharded over devices use `sdjax.sharded.prototype_loss` instead.
      All other options: temperature, normalize, where, form, reduction, axis_name; see
        `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      The prototype term of Audibert et al., Multi-Label Contrastive Learning: A Comprehensive
      Study, 2024, and of Bai, Kong, Gomes, Gaussian Mixture Variational Autoencoder with
      Contrastive Learning for Multi-Label Classification (C-GMVAE), ICML 2022. The authors' mean
      also counts rows without labels, at 0; here they are left out of it.
    """
    arguments = locals()
    labels, prototypes = _checked(arguments)
    numbers = jnp.arange(num_classes(labels), dtype=jnp.int32)
    arguments["candidates"] = prototypes
    arguments["candidate_labels"] = prototypes_lib.labels_of(labels, numbers)
    del arguments["prototypes"]
    sharded = None if axis_name is None else False
    return contrastive_loss(**arguments, candidates_sharded=sharded, weight="any")


def msc_loss(
    z: ArrayLike,
    labels: Labels,
    prototypes: ArrayLike,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 0.1,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """MSC loss: prototypes join the candidates, and the positives of a label share a weight of 1.

      f_ib = α / |S∪T_b|,  N_l(i) = 1 + Σ_{b∋l} f_ib
      W_ib = f_ib · 1/|S| · Σ_{l∈S∩T_b} 1/N_l(i),  W_il = 1 / (|S| N_l(i))
      L_i = log( β Σ_b e^{s_ib} + Σ_l e^{s_il} ) − Σ_b W_ib s_ib − Σ_{l∈S} W_il s_il

    for the other rows b, or the explicit candidates, and the prototypes l. The weights of an
    anchor sum to 1, and none that has a label lacks a positive.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`, which is leaner where C is large: multi-hot
        labels of over 128 columns take a float for each.
      prototypes: c, float [C, D]; inside shard_map or pmap, all of them on every device.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`. The
        prototypes join them.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      alpha: weight of the rows beside the prototypes, scalar, at least 0.
      beta: of the rows in the denominator, scalar above 0.
      without_positives: "skip" leaves rows without labels out; "push" pushes them from all
        candidates.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch that is
        sharded over devices use `sdjax.sharded.msc_loss` instead.
      All other options: temperature, normalize, where, candidate_where, ids, candidate_ids,
        reduction, axis_name, candidates_sharded; see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Audibert, Gauffre, Amini, Exploring Contrastive Learning for Long-Tailed Multi-Label Text
      Classification, 2024. The authors' text configuration has τ = .1 and batches of 256; their
      mean also counts rows without labels, at 0, which here are left out of it.
    """
    arguments = locals()
    check_number("alpha", arguments.pop("alpha"), least=0)
    check_number("beta", arguments.pop("beta"), above=0)
    weight = PairWeight(_of_union, (jax.lax.stop_gradient(jnp.asarray(alpha)),))
    return _evaluate(arguments, weight, as_anchors=False, beta=beta)


def mscwrg_loss(
    z: ArrayLike,
    labels: Labels,
    prototypes: ArrayLike,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    alpha: ArrayLike,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """MSC loss without regularised gradient: prototypes are candidates and anchors.

      f_ib = (|S∩T_b| / |T_b|)^α, or 1[T_b ⊆ S] for α < 0,  N_l(i) = Σ_{b∋l} f_ib
      W_ib = f_ib · 1/|S| · Σ_{l∈S∩T_b} 1/N_l(i),  L_i = −Σ_b W_ib log q_ib

    where b goes over the other rows, or the explicit candidates, and the prototypes, of label sets
    {l}; the anchors are the rows of `z` and the prototypes. The weights of an anchor sum to 1.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`, which is leaner where C is large: multi-hot
        labels of over 128 columns take a float for each.
      prototypes: c, float [C, D]; inside shard_map or pmap, all of them on every device.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`. The
        prototypes join them.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      alpha: how much labels that the candidate has and the anchor lacks count, scalar. 0 is not at
        all; below 0 a candidate with such a label is no positive.
      without_positives: "skip" leaves anchors without a positive out, such as prototypes of labels
        that no row has; "push" pushes them from all candidates.
      reduction: "mean" and "sum" are over rows and prototypes as anchors; "none" gives those of
        the rows.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch that is
        sharded over devices use `sdjax.sharded.mscwrg_loss` instead.
      All other options: temperature, normalize, where, candidate_where, ids, candidate_ids,
        axis_name, candidates_sharded; see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Audibert et al., Multi-Label Contrastive Learning: A Comprehensive Study, 2024. The same as
      in the authors' code, which adds 1e-8 to each N_l(i).
    """
    arguments = locals()
    check_number("alpha", arguments.pop("alpha"))
    return _evaluate(arguments, _of_coverage(alpha), as_anchors=True)


def mscrg_loss(
    z: ArrayLike,
    labels: Labels,
    prototypes: ArrayLike,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
    alpha: ArrayLike,
    temperature: ArrayLike = 0.07,
    normalize: bool = True,
    where: ArrayLike | None = None,
    candidate_where: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    candidate_ids: ArrayLike | None = None,
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    axis_name: AxisName | None = None,
    candidates_sharded: bool | None = None,
    implementation: Implementation = "auto",
) -> Array:
    """MSC loss with regularised gradient: `mscwrg_loss` that pushes no positive away.

      ∂L_i/∂s_ib = min(q_ib − W_ib, 0) for positives, q_ib for the others

    The value is that of `mscwrg_loss`; the gradient is not its derivative.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`, which is leaner where C is large: multi-hot
        labels of over 128 columns take a float for each.
      prototypes: c, float [C, D]; inside shard_map or pmap, all of them on every device.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`. The
        prototypes join them.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      alpha: see `mscwrg_loss`.
      without_positives: see `mscwrg_loss`.
      reduction: see `mscwrg_loss`.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch that is
        sharded over devices use `sdjax.sharded.mscrg_loss` instead.
      All other options: temperature, normalize, where, candidate_where, ids, candidate_ids,
        axis_name, candidates_sharded; see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Audibert et al., Multi-Label Contrastive Learning: A Comprehensive Study, 2024. The gradient
      is that of the authors' code; its value has a term more, −Σ_b max(q_ib − W_ib, 0) s_ib over
      positives with the first factor held fixed, which tells nothing of the fit.
    """
    arguments = locals()
    check_number("alpha", arguments.pop("alpha"))
    return _evaluate(arguments, _of_coverage(alpha), as_anchors=True, clipped=True)


def _evaluate(
    arguments: dict[str, Any],
    weight: PairWeight,
    *,
    as_anchors: bool,
    beta: ArrayLike | None = None,
    clipped: bool = False,
) -> Array:
    """The loss of `arguments`, in which the positives of each label share a weight of 1/|S|."""
    without_positives = arguments.pop("without_positives")
    reduction, implementation = arguments.pop("reduction"), arguments.pop("implementation")
    check_choices(without_positives, reduction, implementation)
    arguments["labels"], prototypes = _checked(arguments)
    del arguments["prototypes"]
    problem = make_problem(**arguments, positive_where=None)
    problem = prototypes_lib.joined(problem, prototypes, as_anchors=as_anchors, beta=beta)
    method = Method(weight, "labels", "out", "balanced", without_positives, clipped)
    return evaluate(problem, method, reduction, implementation)


def _checked(arguments: dict[str, Any]) -> tuple[Labels, Array]:
    """Labels and prototypes that fit."""
    labels = arguments["labels"]
    labels = np.asarray(labels) if isinstance(labels, list | tuple) else labels
    return labels, prototypes_lib.check(arguments["prototypes"], arguments["z"], labels)


def _of_union(o: Overlap, alpha: Array) -> Array:
    union = o.anchor_size + o.candidate_size - o.shared
    return alpha.astype(union.dtype) / jnp.maximum(union, 1)


def _of_coverage(alpha: ArrayLike) -> PairWeight:
    """(|S∩T| / |T|)^α, or 1[T ⊆ S] for α < 0; powers that are known take no time."""
    if is_known(alpha):
        known: dict[float, Weight] = {0.0: uniform, 1.0: _coverage}
        number = float(np.asarray(alpha))
        program = _is_subset if number < 0 else known.get(number)
        if program is not None:
            return PairWeight(program)
    return PairWeight(_power_of_coverage, (jax.lax.stop_gradient(jnp.asarray(alpha)),))


def _coverage(o: Overlap) -> Array:
    return o.shared / jnp.maximum(o.candidate_size, 1)


def _is_subset(o: Overlap) -> Array:
    return (o.shared == o.candidate_size).astype(o.shared.dtype)


def _power_of_coverage(o: Overlap, alpha: Array) -> Array:
    alpha = alpha.astype(o.shared.dtype)
    power = jnp.power(_coverage(o), jnp.maximum(alpha, jnp.zeros_like(alpha)))
    return jnp.where(alpha < 0, _is_subset(o), power)
