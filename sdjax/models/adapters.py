"""Low-rank adaptation (LoRA): an encoder that learns by small changes of its matrices.

References:
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021
  (https://arxiv.org/abs/2106.09685).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.errors import InputError


class Adapters(nnx.Module):
    """The changes A·B of the matrices W [in, out] in the layers of a transformer.

    They are added once a step, W + A·B, so that the encoder itself is computed as ever. A [in, R]
    is drawn with variance 1 / in, and B [R, out] is 0 at first.

    Args:
      encoder: with matrices in `encoder.layers`.
      rank: R, above 0.
      rngs: of A.

    Raises:
      InputError: if the encoder has no such matrices, or R is not below their sides.
    """

    def __init__(self, encoder: nnx.Module, rank: int, *, rngs: nnx.Rngs):
        shapes = {name: leaf.shape for name, leaf in _matrices(nnx.state(encoder, nnx.Param))}
        if not shapes:
            raise InputError("model.lora_rank must be 0 for an encoder without layers of matrices.")
        least = min(min(shape) for shape in shapes.values())
        if rank >= least:
            raise InputError(f"model.lora_rank must be below {least}, got {rank}.")
        draw = nnx.initializers.lecun_normal()
        self.a = nnx.Dict(
            {name: nnx.Param(draw(rngs.params(), (n, rank))) for name, (n, _) in shapes.items()}
        )
        self.b = nnx.Dict(
            {name: nnx.Param(jnp.zeros((rank, n))) for name, (_, n) in shapes.items()}
        )

    def adapted(self, encoder: Any) -> Any:
        """`encoder` with W + A·B in place of each W, which gets no gradient."""
        graph, params, rest = nnx.split(encoder, nnx.Param, ...)
        params = jax.lax.stop_gradient(params)
        for name, leaf in _matrices(params):
            leaf[...] += self.a[name][...] @ self.b[name][...]
        return nnx.merge(graph, params, rest)


def _matrices(params: nnx.State) -> list[tuple[str, Any]]:
    """(name, parameter) of each matrix in the layers."""
    return [
        ("_".join(str(key) for key in path[:-1]), leaf)
        for path, leaf in nnx.to_flat_state(params)
        if path[0] == "layers" and path[-1] == "kernel" and leaf.ndim == 2
    ]
