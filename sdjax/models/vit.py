"""Vision transformers as published: ViT, DINOv2 (also with registers), CLIP's images, and timm's.

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale,
  2020 (https://arxiv.org/abs/2010.11929). Oquab et al., DINOv2: Learning Robust Visual Features
  without Supervision, 2023 (https://arxiv.org/abs/2304.07193). Radford et al., Learning
  Transferable Visual Models From Natural Language Supervision, 2021
  (https://arxiv.org/abs/2103.00020).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sdjax.checks import one_of
from sdjax.config import TOKEN_POOLINGS
from sdjax.errors import InputError
from sdjax.models.activations import ACTIVATIONS
from sdjax.models.encoders import TokenStates
from sdjax.models.vit_weights import MODEL_TYPES, ViTSizes, is_such, load, read_sizes

__all__ = ["MODEL_TYPES", "ViT", "ViTSizes", "is_such", "load", "read_sizes"]

Array = jax.Array


class ViT(nnx.Module):
    """Encoder of images: patches as tokens, then layers of attention and MLP, each after its norm.

    It is called with float images [B, height, width, channels], standardised as the published
    model wants them. Images of another size than the published one have their positions
    interpolated; what is left of them after the last whole patch is cut off.

    Args:
      sizes: of the network.
      pooling: "cls", the state of the class token, "mean" of those of the patches, or "label_wise",
        which leaves all of them to the classifier, as `TokenStates`.
      dropout: rate on embeddings, attention and the output of each block.
      dtype: of the computation; parameters are float32.
      remat: compute the layers' activations anew in the backward pass.
      rngs: of the initial parameters.
    """

    def __init__(
        self,
        sizes: ViTSizes,
        *,
        pooling: str = "cls",
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.sizes, self.remat = sizes, remat
        self.pooling = one_of("pooling", pooling, TOKEN_POOLINGS)
        self.embeddings = Embeddings(sizes, dropout, dtype, rngs)
        self.layers = nnx.List(
            [Layer(sizes, dropout, dtype, rngs) for _ in range(sizes.num_hidden_layers)]
        )
        self.norm = _norm(sizes, dtype, rngs)
        self.out_features = sizes.hidden_size

    def __call__(
        self, x: Array, *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> Array | TokenStates:
        """Representations [B, H] of the images x; with label-wise pooling, `TokenStates`."""
        return self.pool(self.hidden_states(x, rngs=rngs)[-1])

    def hidden_states(self, x: Array, *, rngs: nnx.Rngs | None = None) -> tuple[Array, ...]:
        """What the embeddings and each layer give, [B, T, H] each; the last norm is not in it.

        Tokens are that of the class, the registers, and the patches, row by row.

        Raises:
          InputError: if an image is smaller than a patch, or its channels are not the model's.
        """
        states = [self.embeddings(x, rngs)]
        apply = nnx.remat(Layer.__call__) if self.remat else Layer.__call__
        for layer in self.layers:
            states.append(apply(layer, states[-1], rngs))
        return tuple(states)

    def pool(self, states: Array) -> Array | TokenStates:
        """One vector [B, H] of the states [B, T, H] of an image's tokens, normalised."""
        if self.pooling == "label_wise":
            return TokenStates(self.norm(states), jnp.ones(states.shape[:2], bool))
        if self.pooling == "cls":
            return self.norm(states[:, 0])
        patches = self.norm(states[:, 1 + self.sizes.num_register_tokens :])
        return jnp.mean(patches.astype(jnp.float32), axis=1).astype(states.dtype)


class Embeddings(nnx.Module):
    """A linear map of each patch, with its position; before them the class token and registers."""

    def __init__(self, sizes: ViTSizes, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        def table(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * rngs.params.normal((*shape, sizes.hidden_size)))

        self.sizes, self.dtype = sizes, dtype
        # A product of rows is what the convolution of the papers is, and no slower anywhere.
        self.patch = _linear(sizes.patch_features, sizes.hidden_size, sizes.patch_bias, dtype, rngs)
        self.class_token = table()
        self.registers = table(sizes.num_register_tokens) if sizes.num_register_tokens else None
        self.positions = table(sizes.num_positions)
        self.pre_norm = _norm(sizes, dtype, rngs) if sizes.pre_norm else None
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Array, rngs: nnx.Rngs | None) -> Array:
        sizes, each = self.sizes, self.sizes.patch_size
        batch, height, width, channels = x.shape
        rows, columns = height // each, width // each
        if channels != sizes.num_channels or not rows or not columns:
            raise InputError(
                f"images of {height}x{width}x{channels}: the model takes {sizes.num_channels} "
                f"channels, and patches of {each}x{each}."
            )
        x = x[:, : rows * each, : columns * each].reshape(
            batch, rows, each, columns, each, channels
        )
        x = self.patch(x.swapaxes(2, 3).reshape(batch, rows * columns, -1))
        positions, first = self.positions[...], self.class_token[...]
        if sizes.class_position:
            first, positions = first + positions[0], positions[1:]
        x = x + self.interpolated(positions, rows, columns).astype(x.dtype)
        firsts = [first[None]]
        if self.registers is not None:
            firsts.append(self.registers[...])
        shape = (batch, 1 + sizes.num_register_tokens, sizes.hidden_size)
        firsts = jnp.broadcast_to(jnp.concatenate(firsts).astype(x.dtype), shape)
        x = jnp.concatenate([firsts, x], axis=1)
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return x if self.pre_norm is None else self.pre_norm(x)

    def interpolated(self, positions: Array, rows: int, columns: int) -> Array:
        """The positions [rows · columns, H] of so many patches, by cubic interpolation."""
        side = self.sizes.grid
        if (rows, columns) == (side, side):
            return positions
        down, along = (
            jnp.asarray(cubic_matrix(side, new, self.sizes.antialias)) for new in (rows, columns)
        )
        square = positions.reshape(side, side, -1)
        found = jnp.einsum("yi,xj,ijh->yxh", down, along, square, precision="highest")
        return found.reshape(rows * columns, -1)


class Layer(nnx.Module):
    """Attention over all tokens, then an MLP of each by itself, both added to what came in."""

    def __init__(self, sizes: ViTSizes, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        def scale() -> nnx.Param | None:
            return nnx.Param(jnp.ones(sizes.hidden_size)) if sizes.layer_scale else None

        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.heads, self.act = sizes.num_attention_heads, sizes.hidden_act
        self.norm1 = _norm(sizes, dtype, rngs)
        self.qkv = _linear(width, 3 * width, sizes.qkv_bias, dtype, rngs)
        self.out = _linear(width, width, True, dtype, rngs)
        self.scale1 = scale()
        self.norm2 = _norm(sizes, dtype, rngs)
        self.up = _linear(width, inner, True, dtype, rngs)
        self.down = _linear(inner, width, True, dtype, rngs)
        self.scale2 = scale()
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Array, rngs: nnx.Rngs | None) -> Array:
        def added(x: Array, y: Array, scale: nnx.Param | None) -> Array:
            if scale is not None:
                y = y * scale[...].astype(y.dtype)
            return x + self.dropout(y, deterministic=rngs is None, rngs=rngs)

        # Rows of tokens: gradients of kernels are then one plain product.
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        x = added(x, self.out(self.attend(self.norm1(x), shape, rngs)), self.scale1)
        inner = ACTIVATIONS[self.act](self.up(self.norm2(x)))
        return added(x, self.down(inner), self.scale2).reshape(shape)

    def attend(self, x: Array, shape: tuple[int, ...], rngs: nnx.Rngs | None) -> Array:
        """softmax(q kᵀ / √d) v of every head, side by side, [B·T, H], of x [B·T, H]."""
        batch, tokens, width = shape
        each = width // self.heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, each)
        q, k, v = (qkv[:, :, part] for part in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * each**-0.5, k).astype(jnp.float32)
        shares = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        shares = self.dropout(shares, deterministic=rngs is None, rngs=rngs)
        return jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape)


def _linear(before: int, after: int, bias: bool, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    initial = nnx.initializers.normal(0.02)
    options: dict[str, Any] = {"use_bias": bias, "dtype": dtype, "kernel_init": initial}
    return nnx.Linear(before, after, rngs=rngs, **options)


def _norm(sizes: ViTSizes, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    options: dict[str, Any] = {"epsilon": sizes.layer_norm_eps, "dtype": dtype, "rngs": rngs}
    return nnx.LayerNorm(sizes.hidden_size, use_fast_variance=False, **options)


def cubic_matrix(old: int, new: int, antialias: bool) -> np.ndarray:
    """The matrix float32 [new, old] of cubic interpolation along one side, as PyTorch has it.

    Without `antialias` the kernel has a = -3/4, and what lies outside is the edge's value. With it,
    a = -1/2, the kernel is stretched where there are fewer new values than old ones, and what lies
    outside is left out.

    References:
      Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981.
    """
    a, stretch = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * (old / new) - 0.5
    reach = int(np.ceil(2 * stretch))
    places = np.floor(centres).astype(int) + np.arange(1 - reach, 1 + reach)
    x = np.abs(places - centres) / stretch
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    if antialias:
        weights *= (places >= 0) & (places < old)
        weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], places.clip(0, old - 1)), weights)
    return matrix.astype(np.float32)
