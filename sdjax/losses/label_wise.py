"""Losses that contrast each label by itself."""

# help() then shows `ArrayLike` and not all that it stands for.
from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdjax import labels as labels_lib
from sdjax._src import herocon
from sdjax._src.collectives import AxisName
from sdjax._src.evaluate import Implementation, Reduction, check_choices, evaluate
from sdjax._src.pair_weight import PairWeight, uniform
from sdjax._src.problem import Method, WithoutPositives
from sdjax._src.validation import make_problem
from sdjax.labels import LabelIndices, Labels, check_labels

Array = jax.Array


def label_wise_loss(
    z: ArrayLike,
    labels: Labels,
    candidates: ArrayLike | None = None,
    candidate_labels: Labels | None = None,
    *,
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
    """SLCL: the mean over labels of SupCon with the classes "has the label" and "lacks it".

      W_ip = 1/C · ( Σ_{l∈S∩T} 1/m⁺_l(i) + Σ_{l∉S∪T} 1/m⁻_l(i) ),  L_i = −Σ_p W_ip log q_ip

    with m^±_l(i) the candidates of anchor i that have or lack label l. A label whose class holds
    no candidate adds 0. It is meant for few labels: with very many, of which each row has few,
    disjoint and overlapping pairs weigh nearly alike.

    Args:
      z: embeddings of the anchors, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      candidates: explicit candidates, float [R, D]; by default the other rows of `z`.
      candidate_labels: their label sets, multi-hot [R, C], or `LabelIndices`.
      ids, candidate_ids: see `contrastive_loss`; they need the dense core here.
      implementation: "auto", "dense", "tiled" or "ring". Under plain jit with a batch
        that is sharded over devices use `sdjax.sharded.label_wise_loss` instead.
      All other options: temperature, normalize, where, candidate_where, without_positives,
        reduction, axis_name, candidates_sharded; see `contrastive_loss`.

    Returns:
      float32 or float64 scalar, or [B] for `reduction="none"`.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Lin et al., An Effective Deployment of Contrastive Learning in Multi-label Text
      Classification, Findings of ACL 2023. The authors' code divides once more by the batch size.
    """
    arguments = locals()
    for option in ("without_positives", "reduction", "implementation"):
        del arguments[option]
    check_choices(without_positives, reduction, implementation)
    problem = make_problem(**arguments, positive_where=None)
    method = Method(PairWeight(uniform), "classes", "out", "agreeing", without_positives)
    return evaluate(problem, method, reduction, implementation)


def herocon_loss(
    z: ArrayLike,
    labels: Labels,
    *,
    temperature: ArrayLike = 1.0,
    normalize: bool = True,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """HeroCon's supervised loss: each label contrasts its rows, weighted by Hamming distance.

      L = Σ_l mean_{i,p∋l} log( (Σ_{n∌l} H_in e^{s_in} + a_ip) / ((M_l + 1) a_ip) )

    with H the number of labels in which two sets differ, a_ip = (1 − H_ip/C) e^{s_ip}, and M_l the
    rows without label l. A row is paired with itself, too, so that a label of one row is
    contrasted as well.

    It is dense: each label has denominators of its own for all pairs, which takes O(B²) memory and
    O(B²·C) time. With `axis_name` each device holds its rows of these arrays.

    Args:
      z: embeddings, float [B, D].
      labels: multi-hot [B, C], or `LabelIndices`.
      temperature: τ > 0, scalar; 1 in the authors' code.
      normalize: divide embeddings by their L2 norm.
      where: bool [B]; False rows are padding.
      axis_name: see `contrastive_loss`.

    Returns:
      float32 or float64 scalar.

    Raises:
      TypeError, ValueError: see `contrastive_loss`.

    References:
      Zheng, Xiong, Zhu, He, Contrastive Learning with Complex Heterogeneity, KDD 2022. As in the
      authors' code; where it has two forms, M_l + 1 and labels that all rows have are those of its
      network for vectors.
    """
    problem = make_problem(
        candidates=None,
        candidate_labels=None,
        candidate_where=None,
        positive_where=None,
        ids=None,
        candidate_ids=None,
        candidates_sharded=None,
        **locals(),
    )
    return herocon.herocon(problem)


class LabelRows(NamedTuple):
    """One row for each label of each example.

    Attributes:
      z: embeddings [N, D].
      class_ids: the label of each row, int32 [N]; -1 for padding.
      where: bool [N], False for padding.
    """

    z: Array
    class_ids: Array
    where: Array


def rows_from_labels(
    embeddings: ArrayLike, labels: Labels, where: ArrayLike | None = None
) -> LabelRows:
    """One row for each label that an example has, from label-wise embeddings.

      rows = rows_from_labels(embeddings, labels)
      loss = supcon_loss(rows.z, rows.class_ids, where=rows.where)

    is MulCon's loss: the positives of a row are those of the same label of other examples.

    Args:
      embeddings: float [B, C, D], of each example for each label.
      labels: multi-hot [B, C], or `LabelIndices` [B, L], which gives fewer rows.
      where: bool [B]; False rows are padding.

    Returns:
      `LabelRows` of N = B·C rows, or B·L for index lists. Those of labels that an example lacks
      are padding.

    Raises:
      TypeError, ValueError: if shapes or dtypes do not match.

    References:
      Dao et al., Contrast Learning Visual Attention for Multi Label Classification (MulCon), 2021.
    """
    embeddings = jnp.asarray(embeddings)
    labels = np.asarray(labels) if isinstance(labels, list | tuple) else labels
    check_labels("labels", labels, where)
    shape = (labels_lib.num_rows(labels), labels_lib.num_classes(labels))
    if embeddings.ndim != 3 or embeddings.shape[:2] != shape:
        raise ValueError(
            f"embeddings must be [rows, labels, features], here ({shape[0]}, {shape[1]}, D), got "
            f"shape {embeddings.shape}."
        )
    keep = jnp.ones(shape[0], bool) if where is None else jnp.asarray(where)
    if keep.dtype != jnp.bool_ or keep.shape != shape[:1]:
        raise ValueError(f"where must be bool {shape[:1]}, got {keep.dtype} {keep.shape}.")
    labels = labels_lib.canonical(labels_lib.keep_rows(labels, keep))
    if isinstance(labels, LabelIndices):
        indices = labels_lib.unique_indices(labels)
        present = indices < shape[1]
        places = jnp.where(present, indices, 0)
        embeddings = jnp.take_along_axis(embeddings, places[:, :, None], axis=1)
    else:
        present = jnp.asarray(labels)
        indices = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None, :], present.shape)
    present = present.reshape(-1)
    z = jnp.where(present[:, None], embeddings.reshape(-1, embeddings.shape[2]), 0)
    return LabelRows(z, jnp.where(present, indices.reshape(-1), -1), present)
