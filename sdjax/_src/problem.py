"""What is contrasted with what, by which member of the family, and the sums that its loss needs."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdjax._src.collectives import Axes
from sdjax._src.pair_math import LARGEST_BOUNDED, Form
from sdjax._src.pair_weight import PairWeight, uniform
from sdjax.labels import Labels, is_known

Array = jax.Array
Normalizer = Literal["positives", "weights", "labels", "batch_labels"]
WithoutPositives = Literal["skip", "push"]


class Inputs(NamedTuple):
    """N anchors or candidates on this device, checked.

    Attributes:
      z: embeddings [N, D].
      labels: their label sets, multi-hot bool [N, C] or `LabelIndices`.
      where: bool [N], False for padding, which has zero embeddings and empty label sets.
      ids: int [N] or None; a candidate with the id of its anchor is left out, unless it is -1.
      log_bias: [N] or None for 0; as a candidate, what is added to its similarities in the
        log-sum-exp alone.
      prototype: bool [N] or None; a prototype counts fully among the carriers of its label,
        whatever the weight of the pair.
    """

    z: Array
    labels: Labels
    where: Array
    ids: Array | None = None
    log_bias: Array | None = None
    prototype: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """Anchors and candidates, a pytree.

    Attributes:
      anchors: on this device.
      candidates: on this device; None in self-contrast, where each anchor is a candidate of the
        others.
      candidate_where: in self-contrast the anchors that are candidates, bool [N]; None for all.
      positive_where: bool [A, R], pairs that may be positives; R counts the candidates of all
        devices. None for all.
      temperature: τ, a scalar as it was given.
      normalize: divide embeddings by their L2 norm.
      axes: mesh axes along which the anchors are sharded.
      candidate_axes: mesh axes along which the candidates are.
      num_prototypes: so many of the last anchors are prototypes, which are no rows of the result.
      passive_prototypes: whether these are candidates alone.
      bias_bound: the largest |log_bias|; None where it is not known yet.
    """

    anchors: Inputs
    candidates: Inputs | None
    candidate_where: Array | None
    positive_where: Array | None
    temperature: ArrayLike
    normalize: bool = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    candidate_axes: Axes = dataclasses.field(metadata={"static": True})
    num_prototypes: int = dataclasses.field(default=0, metadata={"static": True})
    passive_prototypes: bool = dataclasses.field(default=False, metadata={"static": True})
    bias_bound: float | None = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def contrasted(self) -> Inputs:
        """The candidates; in self-contrast the anchors in their role as candidates."""
        if self.candidates is not None:
            return self.candidates
        if self.candidate_where is None:
            return self.anchors
        return self.anchors._replace(where=self.candidate_where)

    @property
    def dtype(self) -> jnp.dtype:
        """Of similarities and sums."""
        return accumulation_dtype(self.anchors.z, self.contrasted.z)

    @property
    def tau(self) -> Array:
        return jnp.asarray(self.temperature, self.dtype)

    @property
    def bounded(self) -> bool | None:
        """Whether all |s| + |bias| are at most `LARGEST_BOUNDED`; None where not known yet."""
        if not self.normalize or not is_known(self.temperature) or self.bias_bound is None:
            return None
        return 1 / float(np.asarray(self.temperature)) + self.bias_bound <= LARGEST_BOUNDED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Method:
    """A loss of the family, a pytree.

    Attributes:
      weight: of a pair from its overlap, finite and at least 0.
      normalizer: what divides an anchor's sum over its positives.
      form: "out" or "in".
      labels: what the labels of a pair do to its weight f_ip.
        "counted": nothing more than what f makes of their numbers.
        "balanced": f_ip · Σ_{l∈S∩T} 1/N_l(i), N_l(i) = Σ f_ib over the candidates b that carry l:
          the positives of a label share a unit of weight.
        "agreeing": Σ_{l∈S∩T} 1/m⁺_l(i) + Σ_{l∉S∪T} 1/m⁻_l(i), with m^± the candidates that have
          the label or lack it; f is 1.
      without_positives: whether an anchor without a positive is left out or pushed from all.
      clipped: the slope of a positive's similarity is at most 0: no positive is pushed away.
    """

    weight: PairWeight
    normalizer: Normalizer | Literal["classes"] = dataclasses.field(metadata={"static": True})
    form: Form = dataclasses.field(metadata={"static": True})
    labels: Literal["counted", "balanced", "agreeing"] = dataclasses.field(
        default="counted", metadata={"static": True}
    )
    without_positives: WithoutPositives = dataclasses.field(
        default="skip", metadata={"static": True}
    )
    clipped: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def uniform(self) -> bool:
        """Whether f is 1 for all pairs."""
        return self.weight.program is uniform


class Sums(NamedTuple):
    """Sums over the candidates of each anchor, all [A]. The first two carry the gradient.

    Attributes:
      logsumexp: log Σ_a e^{s_ia + bias_a}; 0 without candidates.
      attraction: Σ_p w_ip s_ip for the form "out", log Σ_p w_ip e^{s_ip} for "in"; 0 without
        positives.
      weight: Σ_p w_ip.
      positives: |P(i)|.
    """

    logsumexp: Array
    attraction: Array
    weight: Array
    positives: Array


def accumulation_dtype(*embeddings: ArrayLike) -> jnp.dtype:
    """Of similarities and sums: float64 where an argument is, else float32."""
    wide = any(jnp.result_type(z) == jnp.float64 for z in embeddings)
    return jnp.dtype(jnp.float64 if wide else jnp.float32)
