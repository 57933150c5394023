"""What is contrasted with what, by which member of the family, and the sums that its loss needs."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sdjax._src.collectives import Axes
from sdjax._src.pair_math import LARGEST_BOUNDED, Form
from sdjax._src.pair_weight import PairWeight
from sdjax.labels import Labels, is_known

Array = jax.Array
Normalizer = Literal["positives", "weights", "labels", "batch_labels"]


class Inputs(NamedTuple):
    """N anchors or candidates on this device, checked.

    Attributes:
      z: embeddings [N, D].
      labels: their label sets, multi-hot bool [N, C] or `LabelIndices`.
      where: bool [N], False for padding, which has zero embeddings and empty label sets.
      ids: int [N] or None; a candidate with the id of its anchor is left out.
    """

    z: Array
    labels: Labels
    where: Array
    ids: Array | None = None


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
    """

    anchors: Inputs
    candidates: Inputs | None
    candidate_where: Array | None
    positive_where: Array | None
    temperature: ArrayLike
    normalize: bool = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    candidate_axes: Axes = dataclasses.field(metadata={"static": True})

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
        """Whether all |s| are at most `LARGEST_BOUNDED`; None where that is not known yet."""
        if not self.normalize or not is_known(self.temperature):
            return None
        return 1 / float(np.asarray(self.temperature)) <= LARGEST_BOUNDED


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Method:
    """A loss of the family, a pytree.

    Attributes:
      weight: of a pair from its overlap, finite and at least 0.
      normalizer: what divides an anchor's sum over its positives.
      form: "out" or "in".
      balance_labels: a shared label counts 1 / (candidates of the anchor that carry it).
    """

    weight: PairWeight
    normalizer: Normalizer = dataclasses.field(metadata={"static": True})
    form: Form = dataclasses.field(metadata={"static": True})
    balance_labels: bool = dataclasses.field(default=False, metadata={"static": True})


class Sums(NamedTuple):
    """Sums over the candidates of each anchor, all [A]. The first two carry the gradient.

    Attributes:
      logsumexp: log Σ_a e^{s_ia}; 0 without candidates.
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
