"""The Similarity-Dissimilarity loss as one would write it in plain jax.numpy.

Huang, Long, Luo, 2024 (https://arxiv.org/abs/2410.13439).
"""

import jax
import jax.numpy as jnp
import numpy as np

from peers.case import multi_hot
from peers.step import Step, jax_step


@jax.jit
@jax.value_and_grad
def value_and_gradient(z: jax.Array, labels: jax.Array, temperature: jax.Array) -> jax.Array:
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    others = ~jnp.eye(len(z), dtype=bool)
    shared = labels @ labels.T
    size = labels.sum(axis=1)
    weight = shared / jnp.maximum(size[:, None], 1) / (1 + size[None, :] - shared)
    weight = jnp.where(others, weight, 0)
    positives = (weight > 0).sum(axis=1)
    s = z @ z.T / temperature
    log_q = s - jax.nn.logsumexp(s, axis=1, keepdims=True, where=others)
    loss = -(weight * log_q).sum(axis=1) / jnp.maximum(positives, 1)
    return loss.sum() / jnp.maximum((positives > 0).sum(), 1)


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    dtype: str = "float32",
) -> Step:
    sets = jnp.asarray(multi_hot(labels, num_classes), dtype)
    return jax_step(
        value_and_gradient, jnp.asarray(z, dtype), sets, jnp.asarray(temperature, dtype)
    )
