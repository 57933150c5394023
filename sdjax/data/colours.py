"""Random changes of the colours of images, in pure JAX."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
# To luminance and two differences of colour; a rotation of those changes the hue alone.
_YIQ = np.array([_LUMINANCE, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])


def jittered(key: Array, x: Array, strength: float, hue: float) -> Array:
    """Brightness, contrast and saturation times numbers around 1, and hues turned, by image.

    Args:
      key: a PRNG key.
      x: [B, H, W, channels] in [0, 1].
      strength: the numbers are in [1 - strength, 1 + strength]; at most 1.
      hue: the largest turn, as a share of the circle; of images of three channels.
    """
    *keys, hue_key = jax.random.split(key, 4)
    shape = (x.shape[0], 1, 1, 1)
    factors = [jax.random.uniform(k, shape, minval=1 - strength, maxval=1 + strength) for k in keys]
    if strength:
        x = brighter(x, factors[0])
        x = blended(jnp.mean(luminance(x), axis=(1, 2, 3), keepdims=True), x, factors[1])
        x = blended(luminance(x), x, factors[2])
    if hue and x.shape[-1] == 3:
        turns = jax.random.uniform(hue_key, (x.shape[0],), minval=-hue, maxval=hue)
        x = hue_turned(x, turns)
    return x


def brighter(x: Array, factor: Array | float) -> Array:
    """factor · x, in [0, 1]."""
    return jnp.clip(factor * x, 0, 1)


def blended(plain: Array, x: Array, factor: Array | float) -> Array:
    """plain + factor · (x - plain), in [0, 1]."""
    return jnp.clip(plain + factor * (x - plain), 0, 1)


def luminance(x: Array) -> Array:
    """How bright [..., 1] the colours x [..., channels] are; the mean unless there are three."""
    if x.shape[-1] != 3:
        return jnp.mean(x, axis=-1, keepdims=True)
    return jnp.sum(x * jnp.asarray(_LUMINANCE, x.dtype), axis=-1, keepdims=True)


def hue_turned(x: Array, turns: Array) -> Array:
    """Images x [B, H, W, 3] whose hues are turned by shares of the circle [B]."""
    angle = 2 * jnp.pi * turns
    cos, sin, zero, one = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle), 1 + 0 * angle
    rows = [[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]]
    rotation = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    there, back = (jnp.asarray(matrix, x.dtype) for matrix in (_YIQ, np.linalg.inv(_YIQ)))
    matrices = jnp.einsum("ij,bjk,kl->bil", back, rotation, there, precision="highest")
    return jnp.clip(jnp.einsum("bij,bhwj->bhwi", matrices, x, precision="highest"), 0, 1)


def greyed(key: Array, x: Array, probability: float) -> Array:
    """Images [B, H, W, channels], some of which lose their colours."""
    chosen = jax.random.bernoulli(key, probability, (x.shape[0], 1, 1, 1))
    return jnp.where(chosen, luminance(x), x)
