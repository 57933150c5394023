"""Embeddings of unit length, without overflow, and a tile of rows at a time.

In a tile, s_ij = scale_i · scale_j · z_i · z_j with the embeddings as given: no normalised copy of
all rows is made, and the gradient of the normalisation is taken in the gradient's own array.
"""

import jax
import jax.numpy as jnp

from sdjax._src import collectives, tiling

Array = jax.Array


def normalized(z: Array) -> Array:
    """Rows of unit length; a zero row stays zero, with a zero gradient."""
    scaled, largest, norms = _scaled_norms(z)
    return jnp.where(largest == 0, 0, scaled / norms)


def _scaled_norms(z: Array) -> tuple[Array, Array, Array]:
    """Rows divided by their largest entry [N, D], that entry [N, 1], and their norms [N, 1].

    Dividing first keeps the squares from overflowing or vanishing. A zero row has a norm of 1.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(z), axis=1, keepdims=True, initial=0))
    zero = largest == 0
    scaled = z / jnp.where(zero, 1, largest)
    norms = jnp.sqrt(jnp.where(zero, 1, jnp.square(scaled).sum(axis=1, keepdims=True)))
    return scaled, largest, norms


def scales(z: Array, normalize: bool, temperature: Array) -> Array:
    """scale [N] with s_ij = scale_i · scale_j · z_i · z_j; 0 for a zero row of unit length."""
    ones = collectives.varying(jnp.ones(len(z), temperature.dtype), z)
    if not normalize or not len(z):
        return ones / jnp.sqrt(temperature)

    def inverse_norms(number: Array, inverse: Array) -> Array:
        start, _ = tiling.start(number, size, len(z))
        _, largest, norms = _scaled_norms(tiling.rows(z, start, size).astype(ones.dtype))
        zero = largest == 0
        of_tile = jnp.where(zero, 0, 1 / (jnp.where(zero, 1, largest) * norms))[:, 0]
        return tiling.put(inverse, start, of_tile)

    count, size = tiling.tiling(len(z))
    return tiling.loop(count, inverse_norms, ones) / jnp.sqrt(temperature)


def folded(z: Array, scale: Array) -> tuple[Array, Array | None]:
    """z' of the dtype of z, and scale', with scale · z = scale' · z'; None stands for 1."""
    if z.dtype == scale.dtype:
        return z * scale[:, None], None
    # Narrow embeddings are multiplied by powers of two alone, which is exact.
    _, exponent = jnp.frexp(scale)
    power = jnp.where(scale > 0, jnp.ldexp(jnp.ones_like(scale), exponent), 0)
    z = (z.astype(scale.dtype) * power[:, None]).astype(z.dtype)
    return z, jnp.where(scale > 0, scale / jnp.where(scale > 0, power, 1), 0)


def longest(z: Array, scale: Array) -> Array:
    """The largest norm of scale · z."""

    def larger(number: Array, largest: Array) -> Array:
        start, _ = tiling.start(number, size, len(z))
        rows = tiling.rows(z, start, size).astype(scale.dtype)
        rows *= tiling.rows(scale, start, size)[:, None]
        return jnp.maximum(largest, jnp.sqrt(jnp.square(rows).sum(axis=1).max()))

    count, size = tiling.tiling(len(z))
    zero = collectives.varying(jnp.zeros((), scale.dtype), (z, scale))
    return tiling.loop(count, larger, zero)


def gradient_to_z(
    z: Array, scale: Array, of_folded: Array, normalize: bool, temperature: Array
) -> tuple[Array, Array]:
    """Derivatives to z [N, D] and to the temperature, from those to the z' of `folded`."""

    def embedded(z: Array, temperature: Array) -> Array:
        z = z.astype(temperature.dtype)
        return (normalized(z) if normalize else z) / jnp.sqrt(temperature)

    def pull_back(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        of_z, of_temperature = carry
        start, new = tiling.start(number, size, len(z))
        z_tile = tiling.rows(z, start, size)
        of_tile = tiling.rows(of_z, start, size)
        _, scale_tile = folded(z_tile, tiling.rows(scale, start, size))
        # Rows that the previous tile has, too, are done.
        cotangent = jnp.where(new[:, None], of_tile, 0)
        if scale_tile is not None:
            cotangent = cotangent / jnp.where(scale_tile > 0, scale_tile, 1)[:, None]
        _, pull = jax.vjp(embedded, z_tile.astype(of_z.dtype), temperature)
        tile, more = pull(cotangent)
        tile = jnp.where(new[:, None], tile, of_tile)
        return tiling.put(of_z, start, tile), of_temperature + more

    count, size = tiling.tiling(len(z))
    zero = collectives.varying(jnp.zeros_like(temperature), of_folded)
    of_z, of_temperature = tiling.loop(count, pull_back, (of_folded, zero))
    return of_z.astype(z.dtype), of_temperature
