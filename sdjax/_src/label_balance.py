"""What the labels of a pair count in weights that balance the candidates of each label.

Where the weight f of a pair is 1, one number a label and one or two an anchor say all of it. Else
each label of each anchor has a number of its own, from a sweep over the labels of all pairs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sdjax import labels as labels_lib
from sdjax._src import collectives
from sdjax._src.problem import Inputs, Method, Problem
from sdjax._src.tile import Shares

Array = jax.Array


class Balance(NamedTuple):
    """Values of the labels [C] each, and the shares of both sides; see `tile.Shares`."""

    values: tuple[Array, ...]
    anchors: Shares
    candidates: Shares


def needs_table(problem: Problem, method: Method) -> bool:
    """Whether labels count more than factors can say: f, or what an anchor's id leaves out."""
    return method.labels == "balanced" and not (method.uniform and problem.anchors.ids is None)


def of_factors(problem: Problem, method: Method) -> Balance:
    """The balance of labels where f is 1.

    With m of an anchor's candidates that carry a label, each counts 1/m. An anchor that is a
    candidate itself is none of its own: it has a share of its own.
    """
    candidates, dtype = problem.contrasted, problem.dtype
    having = labels_lib.counts(candidates.labels, candidates.where, dtype)
    having = collectives.global_sum(having, problem.candidate_axes)
    everyone = candidates.where.sum(dtype=dtype)
    lacking = collectives.global_sum(everyone, problem.candidate_axes) - having

    ones = jnp.ones(len(problem.anchors.z), dtype)
    if problem.candidates is not None:
        shares, itself = (ones,), (0,)
    elif problem.candidate_where is None:
        shares, itself = (ones,), (1,)
    else:
        own = candidates.where.astype(dtype)
        shares, itself = (1 - own, own), (0, 1)
    values = tuple(_inverse(having - k) for k in itself)
    if method.labels == "balanced":
        return Balance(values, Shares(shares), Shares(()))
    # Σ_{l∉S∪T} v_l = Σ_l v_l − Σ_{l∈S} v_l − Σ_{l∈T} v_l + Σ_{l∈S∩T} v_l
    others = tuple(_inverse(lacking - k) for k in itself)
    of_anchors = (_sums(problem.anchors, v) for v in others)
    constant = sum(s * (v.sum() - x) for s, v, x in zip(shares, others, of_anchors, strict=True))
    offset = tuple(_sums(candidates, v) for v in others)
    return Balance(
        tuple(v + w for v, w in zip(values, others, strict=True)),
        Shares(shares, offset if problem.candidates is None else (), jnp.asarray(constant)),
        Shares((), offset),
    )


def _inverse(m: Array) -> Array:
    return jnp.where(m > 0, 1 / jnp.maximum(m, 1), 0)


def _sums(rows: Inputs, values: Array) -> Array:
    """Σ_{l∈S} values[l] of each row, [N]."""
    if isinstance(rows.labels, labels_lib.LabelIndices):
        indices = labels_lib.unique_indices(rows.labels)
        return values.at[indices].get(mode="fill", fill_value=0).sum(axis=1)
    return jnp.where(jnp.asarray(rows.labels), values[None, :], 0).sum(axis=1)
