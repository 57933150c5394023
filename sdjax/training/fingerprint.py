"""Checksums of arrays that do not depend on how they lie on devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array


def fingerprint(tree: Any) -> list[int]:
    """One checksum of 32 bits for each array of `tree`.

        Σ_k bits(x_k) · m_k  mod 2³²,   m_k odd, drawn by a hash of the place k

    The sum is exact, so the number of devices, and with it the order, does not matter. A single
    flipped bit b changes it by ±2^b · m_k, which is never 0.

    Args:
      tree: arrays; all processes have to call this alike if they are spread over processes.

    Returns:
      The checksums, in order of the leaves.
    """
    leaves = jax.tree.leaves(tree)
    meshes = [x.sharding.mesh for x in leaves if isinstance(x.sharding, NamedSharding)]
    # Every process is to know the result.
    everywhere = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    sums = jax.jit(lambda leaves: [_checksum(x) for x in leaves], out_shardings=everywhere)(leaves)
    return [int(value) for value in jax.device_get(sums)]


def _checksum(x: Array) -> Array:
    bits = _bits(x)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        place = place * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(
            jnp.uint32, bits.shape, axis
        )
    multipliers = 2 * _mixed(place) + 1
    return jnp.sum(bits * multipliers, dtype=jnp.uint32)


def _bits(x: Array) -> Array:
    """The bits of `x` as uint32; numbers of 64 bits become two."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    return bits


def _mixed(x: Array) -> Array:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of `x`."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)
