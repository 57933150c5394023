"""sdjax itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sdjax
from peers.case import multi_hot
from peers.step import Step, Unavailable, jax_step
from sdjax.labels import Labels


@functools.cache
def _value_and_gradient(loss: str, implementation: str) -> Any:
    def value(z: jax.Array, labels: Labels, temperature: jax.Array) -> jax.Array:
        function = sdjax.LOSSES[loss]
        return function(z, labels, temperature=temperature, implementation=implementation)

    return jax.jit(jax.value_and_grad(value))


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
    function = _value_and_gradient(loss, implementation)
    try:
        return jax_step(function, jnp.asarray(z, dtype), sets, jnp.float32(temperature))
    except ValueError as error:
        if "implementation" in str(error):
            raise Unavailable(str(error)) from error
        raise
