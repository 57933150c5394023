"""From a problem to its loss: a core finds the sums of each anchor, and here they are reduced."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer

from sdjax import labels as labels_lib
from sdjax._src import collectives
from sdjax._src.dense import dense
from sdjax._src.problem import Method, Problem, Sums, WithoutPositives
from sdjax._src.tiled import ring, tiled
from sdjax.checks import one_of

Array = jax.Array
Reduction = Literal["mean", "sum", "none"]
Implementation = Literal["auto", "dense", "tiled", "ring"]
Core = Callable[[Problem, Method], Sums]

# Up to this many pairs on a device the dense core is as fast, and compiles sooner.
AUTO_DENSE_PAIRS = 512 * 512
# Above this, gathered candidates take more memory than the ring takes time.
AUTO_GATHERED_BYTES = 2**28


CORES: dict[str, Core] = {"dense": dense, "tiled": tiled, "ring": ring}
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)


def check_choices(without_positives: str, reduction: str, implementation: str) -> None:
    """Raises ValueError, with the nearest name, where an option that all losses have is unknown."""
    one_of("without_positives", without_positives, get_args(WithoutPositives))
    one_of("reduction", reduction, get_args(Reduction))
    one_of("implementation", implementation, IMPLEMENTATIONS)


def evaluate(problem: Problem, method: Method, reduction: Reduction, implementation: str) -> Array:
    """The loss, a scalar or, for `reduction="none"`, [A]."""
    if implementation == "auto":
        implementation = choose_core(problem, method)
    if implementation != "dense":
        _check_tiled(problem, method, implementation)
    loss, share = loss_of_anchors(CORES[implementation](problem, method), problem, method)
    if reduction == "none":
        return loss[: len(loss) - problem.num_prototypes]
    if reduction == "sum":
        return collectives.global_sum(loss.sum(), problem.axes)
    total = collectives.global_sum((loss * share).sum(), problem.axes)
    return total / jnp.maximum(collectives.global_sum(share.sum(), problem.axes), 1)


def choose_core(problem: Problem, method: Method) -> str:
    """`dense` for few pairs; else `tiled`, or `ring` where many candidates would be gathered."""
    candidates, axes = problem.contrasted.z, problem.candidate_axes
    num_candidates = len(candidates) * collectives.axis_size(axes)
    few = len(problem.anchors.z) * num_candidates <= AUTO_DENSE_PAIRS
    if few or _only_dense(problem, method):
        return "dense"
    num_bytes = num_candidates * candidates.shape[1] * candidates.dtype.itemsize
    return "ring" if axes and num_bytes > AUTO_GATHERED_BYTES else "tiled"


def _only_dense(problem: Problem, method: Method) -> str | None:
    """The argument that only the dense core takes, if there is one."""
    if problem.positive_where is not None:
        return "positive_where"
    return "ids of label_wise" if problem.anchors.ids is not None and _agrees(method) else None


def _agrees(method: Method) -> bool:
    return method.labels == "agreeing"


def _check_tiled(problem: Problem, method: Method, implementation: str) -> None:
    if argument := _only_dense(problem, method):
        raise ValueError(
            f"{argument} needs implementation='dense' or 'auto', got {implementation!r}."
        )
    devices = max(map(_num_devices, jax.tree.leaves(problem)))
    if devices > 1 and not problem.axes:
        warnings.warn(
            f"The batch is sharded over {devices} devices: the tiled core would exchange rows in "
            "every tile. Use the loss of the same name in sdjax.sharded.",
            stacklevel=5,
        )


def _num_devices(x: Any) -> int:
    """Devices among which an array that is known here is split."""
    known = isinstance(x, jax.Array) and not isinstance(x, Tracer)
    return 1 if not known or x.is_fully_replicated else len(x.sharding.device_set)


def loss_of_anchors(sums: Sums, problem: Problem, method: Method) -> tuple[Array, Array]:
    """The loss of each anchor [A], and its share [A] in the mean over anchors.

      out: L_i = (logsumexp_i · Σ_p w_ip − Σ_p w_ip s_ip) / d_i
      in:  L_i = logsumexp_i − log( Σ_p w_ip e^{s_ip} ) + log d_i

    with d_i the normalizer. An anchor without a positive, or with d_i = 0, has L_i = 0, or
    logsumexp_i where it is pushed.
    """
    chex.assert_shape(sums, (len(problem.anchors.z),))
    where = problem.anchors.where
    size = labels_lib.sizes(problem.anchors.labels, problem.dtype)
    divisors = {
        "positives": sums.positives,
        "weights": sums.weight,
        "labels": size,
        "batch_labels": size,
        "classes": jnp.full_like(size, labels_lib.num_classes(problem.anchors.labels)),
    }
    divisor = divisors[method.normalizer]
    # A user's weight may make positives of an empty label set.
    has_loss = where & (sums.positives > 0) & (divisor > 0)
    divisor = jnp.where(has_loss, divisor, 1)
    if method.form == "out":
        loss = (sums.weight * sums.logsumexp - sums.attraction) / divisor
    else:
        loss = sums.logsumexp - sums.attraction + jnp.log(divisor)
    batch_labels = method.normalizer == "batch_labels"
    share = size if batch_labels else has_loss.astype(loss.dtype)
    without = jnp.zeros_like(loss)
    if method.without_positives == "push":
        without, share = sums.logsumexp, jnp.maximum(share, 1)
    return jnp.where(has_loss, loss, jnp.where(where, without, 0)), jnp.where(where, share, 0)
