"""optax's NT-Xent: single-label, each positive alone against the negatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from peers.step import Step, Unavailable, jax_step

try:
    import optax
except ImportError as error:
    raise Unavailable(str(error)) from error

value_and_gradient: Any = jax.jit(jax.value_and_grad(optax.losses.ntxent))


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    dtype: str = "float32",
) -> Step:
    del num_classes
    ids, tau = jnp.asarray(labels[:, 0]), jnp.asarray(temperature, dtype)
    return jax_step(value_and_gradient, jnp.asarray(z, dtype), ids, tau)
