"""RandAugment, in pure JAX: random operations of a common magnitude.

References:
  Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2019
  (https://arxiv.org/abs/1909.13719). Operations and their ranges are those of torchvision.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from sdjax.data.colours import blended, brighter, luminance

Array = jax.Array

MOST = 30  # the largest magnitude
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = ("identity", *GEOMETRIC, "brightness", "saturation", "contrast", "sharpness")
OPERATIONS += ("posterize", "solarize", "autocontrast", "equalize")
_SHEAR, _TRANSLATE, _ROTATE, _FACTOR = 0.3, 150 / 331, math.radians(30), 0.9
_BITS = 4  # that posterize takes away, of 8
_LEVELS = 256


def rand_augment(key: Array, x: Array, number: int, magnitude: float, fill: Array) -> Array:
    """Images to each of which `number` operations are applied, drawn anew for each.

    Args:
      key: a PRNG key.
      x: [B, H, W, channels] in [0, 1].
      number: of operations, one after the other.
      magnitude: of all of them, from 0 to 30; whether they go up or down is drawn.
      fill: colour [channels] of what moves in.
    """
    for each in range(number):
        which, sign = jax.random.split(jax.random.fold_in(key, each))
        operations = jax.random.randint(which, (x.shape[0],), 0, len(OPERATIONS))
        signs = jax.random.rademacher(sign, (x.shape[0],), x.dtype)
        apply = functools.partial(operation, strength=magnitude / MOST, fill=fill)
        x = jax.vmap(apply)(x, operations, signs)
    return x


def operation(x: Array, number: Array, sign: Array, *, strength: float, fill: Array) -> Array:
    """The operation `OPERATIONS[number]` of one image [H, W, channels].

    Args:
      x: in [0, 1].
      number: a traced integer.
      sign: 1 or -1.
      strength: of the largest, in [0, 1].
      fill: colour [channels] of what moves in.
    """
    height, width, _ = x.shape
    factor = 1 + sign * _FACTOR * strength
    levels = 2.0 ** (8 - round(_BITS * strength))
    branches = {
        "identity": lambda x: x,
        "brightness": lambda x: brighter(x, factor),
        "saturation": lambda x: blended(luminance(x), x, factor),
        "contrast": lambda x: blended(jnp.mean(luminance(x)), x, factor),
        "sharpness": lambda x: blended(_smoothed(x), x, factor),
        "posterize": lambda x: jnp.floor(jnp.minimum(x, 1 - 1 / _LEVELS) * levels) / levels,
        "solarize": lambda x: jnp.where(x >= 1 - strength, 1 - x, x),
        "autocontrast": _autocontrasted,
        "equalize": _equalized,
    }
    others = [name for name in OPERATIONS if name not in GEOMETRIC]
    # One resampling serves all that move pixels, and one choice all that do not.
    matrices = jnp.asarray(_matrices(height, width, strength), x.dtype)
    moved = _warped(x - fill, matrices[(sign < 0).astype(int), number]) + fill
    places = jnp.asarray([others.index(o) if o in others else 0 for o in OPERATIONS])
    changed = jax.lax.switch(places[number], [branches[name] for name in others], x)
    is_geometric = jnp.asarray([name in GEOMETRIC for name in OPERATIONS])[number]
    return jnp.where(is_geometric, jnp.clip(moved, 0, 1), changed)


def _matrices(height: int, width: int, strength: float) -> np.ndarray:
    """Affine maps [2, operations, 2, 3] from (y, x, 1) of the result to the image, by sign."""
    found = np.zeros((2, len(OPERATIONS), 2, 3))
    found[..., :2] = np.eye(2)
    for row, sign in enumerate((strength, -strength)):
        by_name = dict(zip(OPERATIONS, found[row], strict=True))
        by_name["shear_x"][1, 0] = _SHEAR * sign
        by_name["shear_y"][0, 1] = _SHEAR * sign
        by_name["translate_x"][1, 2] = _TRANSLATE * width * sign
        by_name["translate_y"][0, 2] = _TRANSLATE * height * sign
        cos, sin = math.cos(_ROTATE * sign), math.sin(_ROTATE * sign)
        by_name["rotate"][:, :2] = [[cos, -sin], [sin, cos]]
    return found


def _warped(x: Array, matrix: Array) -> Array:
    """The image at the places that `matrix` [2, 3] maps to, seen from the middle; 0 outside."""
    height, width, _ = x.shape
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2], x.dtype)[:, None, None]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
    seen = jnp.einsum("ij,jyx->iyx", matrix[:, :2], grid - middle, precision="highest")
    places = seen + middle + matrix[:, 2][:, None, None]
    return jax.vmap(lambda plane: map_coordinates(plane, list(places), 1), -1, -1)(x)


def _smoothed(x: Array) -> Array:
    """Each pixel with its neighbours, five parts of thirteen itself."""
    height, width, _ = x.shape
    edged = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    parts = [edged[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return (sum(parts) + 4 * x) / 13


def _autocontrasted(x: Array) -> Array:
    """Each channel stretched to [0, 1]; constant ones stay."""
    least, most = (each(x, axis=(0, 1), keepdims=True) for each in (jnp.min, jnp.max))
    span = most - least
    return jnp.where(span > 0, (x - least) / jnp.where(span > 0, span, 1), x)


def _equalized(x: Array) -> Array:
    """Each channel with all levels alike in number, as far as can be; constant ones stay."""

    def of_channel(plane: Array) -> Array:
        levels = jnp.round(plane * (_LEVELS - 1)).astype(jnp.int32)
        counts = jnp.zeros(_LEVELS, jnp.int32).at[levels].add(1)
        below = jnp.cumsum(counts) - counts
        span = plane.size - counts[jnp.max(levels)]
        table = below / jnp.maximum(span, 1)
        return jnp.where(span > 0, table[levels], plane).astype(plane.dtype)

    return jax.vmap(of_channel, -1, -1)(x)
