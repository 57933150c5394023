"""How a block of rows is cut into tiles."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
T = TypeVar("T")

# Larger tiles make better matrix products. Those on the diagonal are computed whole, of which
# only half is of use, and so a block has at least FEWEST_TILES before they grow.
SMALLEST_TILE, LARGEST_TILE, FEWEST_TILES = 512, 1024, 8
# A tile of columns fills the words of a bit table.
MULTIPLE = 32


def tiling(num: int, fewest: int = 1) -> tuple[int, int]:
    """Number and size of the tiles of a block of `num` rows, at least `fewest` where it can."""
    size = min(max(num // FEWEST_TILES, SMALLEST_TILE), LARGEST_TILE)
    count = max(fewest, -(-num // size))
    size = min(num, -(-num // (count * MULTIPLE)) * MULTIPLE)
    return -(-num // size), size


def start(number: Array, size: int, num: int) -> tuple[Array, Array]:
    """Where a tile starts, and which of its rows are in no tile before it, bool [size].

    The last tile starts early enough to be whole.
    """
    nominal = number * jnp.int32(size)
    first = jnp.minimum(nominal, num - size)
    return first, first + jnp.arange(size, dtype=jnp.int32) >= nominal


def rows(x: Array, first: Array, size: int) -> Array:
    """Some rows of an array [N, ...]."""
    if x.dtype.itemsize > 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return lax.dynamic_slice_in_dim(x, first, size)
    # As whole numbers: XLA for CPU would widen all narrow floats before it cuts some.
    whole = lax.bitcast_convert_type(x, jnp.uint16)
    return lax.bitcast_convert_type(lax.dynamic_slice_in_dim(whole, first, size), x.dtype)


def put(x: Array, first: Array, new: Array) -> Array:
    """`x` with the rows from `first` on replaced."""
    return lax.dynamic_update_slice_in_dim(x, new, first, 0)


def loop(count: int | Array, step: Callable[[Array, T], T], carry: T) -> T:
    """Takes `step(k, carry)` for k = 0, 1, ... count − 1."""
    number = count if isinstance(count, jax.Array) else np.int32(count)
    return lax.fori_loop(np.int32(0), number, step, carry)
