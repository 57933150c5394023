"""sdjax itself."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from peers.case import ALPHA, BETA, make_prototypes, multi_hot
from peers.step import Step, Unavailable, jax_step
from sdjax.labels import Labels
from sdjax.losses import PROTOTYPE_LOSSES


@functools.cache
def _value_and_gradient(loss: str, implementation: str) -> Any:
    """Gradients are of z and, where there are some, of the prototypes; the first is returned."""
    options: dict[str, Any] = {"implementation": implementation}
    if loss in ("msc", "mscwrg", "mscrg"):
        options["alpha"] = ALPHA
    if loss == "msc":
        options["beta"] = BETA
    if loss == "herocon":
        del options["implementation"]

    def value(
        z: jax.Array, prototypes: jax.Array | None, labels: Labels, temperature: jax.Array
    ) -> jax.Array:
        given = () if prototypes is None else (prototypes,)
        return sdjax.LOSSES[loss](z, labels, *given, temperature=temperature, **options)

    def run(z: jax.Array, prototypes: jax.Array | None, *rest: Any) -> Any:
        both = jax.value_and_grad(value, 0 if prototypes is None else (0, 1))
        loss, gradients = both(z, prototypes, *rest)
        return (loss, gradients) if prototypes is None else (loss, *gradients)

    return jax.jit(run)


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    loss: str = "sd",
    implementation: str = "auto",
    dtype: str = "float32",
    dense_labels: bool = False,
) -> Step:
    """Args other than the batch: `dense_labels` gives multi-hot labels in place of indices."""
    sets = sdjax.LabelIndices(jnp.asarray(labels), num_classes)
    if dense_labels:
        sets = jnp.asarray(multi_hot(labels, num_classes))
    function, prototypes = _value_and_gradient(loss, implementation), None
    if loss in PROTOTYPE_LOSSES:
        prototypes = jnp.asarray(make_prototypes(num_classes, z.shape[1]))
    try:
        given = (jnp.asarray(z, dtype), prototypes, sets, jnp.float32(temperature))
        step = jax_step(function, *given)
    except ValueError as error:
        if "implementation" in str(error):
            raise Unavailable(str(error)) from error
        raise
    if prototypes is None:
        return step
    return dataclasses.replace(step, run=lambda: step.run()[:2])
