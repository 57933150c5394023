"""The limit: the matrix products of a tiled loss and nothing else, 4·B²·D operations.

Over the upper triangle of sdjax's own tiles: one pass makes S = Z_i Z_jᵀ, a second makes it again
and from it both directions of a gradient, S Z_j and Sᵀ Z_i. A loss with exponentials and labels
between them cannot be faster by the same tiles. Tiles on the diagonal are made in full, which adds
half to that count where there are two by two tiles, and little where there are many.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from peers.step import Step, jax_step
from sdjax._src import tiling


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _add(total: jax.Array, start: jax.Array, update: jax.Array) -> jax.Array:
    old = lax.dynamic_slice_in_dim(total, start, len(update))
    return lax.dynamic_update_slice_in_dim(total, old + update, start, 0)


def products(z: jax.Array, tile: int) -> tuple[jax.Array, jax.Array]:
    num_tiles = len(z) // tile

    def rows(i: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(z, i * tile, tile)

    def forward(j: jax.Array, total: jax.Array) -> jax.Array:
        def pair(i: jax.Array, total: jax.Array) -> jax.Array:
            # Behind the barrier, the compiler cannot see that one number is read.
            s = lax.optimization_barrier(_dot(rows(i), rows(j), (1, 1)))
            return total + s[0, 0]

        return lax.fori_loop(0, j + 1, pair, total)

    def backward(j: jax.Array, gradient: jax.Array) -> jax.Array:
        def pair(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            gradient, of_j = carry
            s = lax.optimization_barrier(_dot(rows(i), rows(j), (1, 1)).astype(z.dtype))
            gradient = _add(gradient, i * tile, _dot(s, rows(j), (1, 0)))
            return gradient, of_j + _dot(s, rows(i), (0, 0))

        zeros = jnp.zeros((tile, z.shape[1]), jnp.float32)
        gradient, of_j = lax.fori_loop(0, j + 1, pair, (gradient, zeros))
        return _add(gradient, j * tile, of_j)

    total = lax.fori_loop(0, num_tiles, forward, jnp.float32(0))
    gradient = lax.fori_loop(0, num_tiles, backward, jnp.zeros(z.shape, jnp.float32))
    return total, gradient.astype(z.dtype)


def prepare(
    z: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    temperature: float,
    *,
    dtype: str = "float32",
) -> Step:
    del labels, num_classes, temperature
    _, tile = tiling.tiling(len(z))
    z = z[: len(z) // tile * tile]
    return jax_step(jax.jit(functools.partial(products, tile=tile)), jnp.asarray(z, dtype))
