"""A clear error where the tiled core is differentiated in forward mode."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

_MESSAGE = "the tiled core has no forward-mode derivative: use implementation='dense' for it."

# Tangents go through this. Reverse mode transposes it away; forward mode has to run it.
_tangent = core.Primitive("sdjax_reverse_mode_only")


def _refuse(*args: Any, **params: Any):
    raise NotImplementedError(_MESSAGE)


_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda x: x)
mlir.register_lowering(_tangent, _refuse)
ad.deflinear(_tangent, lambda cotangent: [cotangent])
batching.defvectorized(_tangent)


@jax.custom_jvp
def reverse_mode_only(x: jax.Array) -> jax.Array:
    """`x`; a derivative in forward mode raises NotImplementedError."""
    return x


@reverse_mode_only.defjvp
def _jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return primals[0], _tangent.bind(tangents[0])


@contextlib.contextmanager
def clear_error() -> Iterator[None]:
    """Replaces JAX's error, which comes first where tangents are batched."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise NotImplementedError(_MESSAGE) from error
