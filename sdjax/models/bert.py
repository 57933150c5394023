"""BERT, RoBERTa and what is built alike (MiniLM, PubMedBERT, XLM-RoBERTa, CamemBERT, ...).

References:
  Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding,
  2018 (https://arxiv.org/abs/1810.04805). Liu et al., RoBERTa: A Robustly Optimized BERT
  Pretraining Approach, 2019 (https://arxiv.org/abs/1907.11692).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from sdjax import hub
from sdjax.checks import one_of
from sdjax.config import TOKEN_POOLINGS
from sdjax.errors import InputError
from sdjax.models import segments, weights
from sdjax.models.activations import ACTIVATIONS
from sdjax.models.encoders import TokenStates

Array = jax.Array

# Positions of RoBERTa count from the number of its padding token + 1.
_OFFSET_POSITIONS = {"bert": False, "roberta": True, "xlm-roberta": True, "camembert": True}
MODEL_TYPES = tuple(_OFFSET_POSITIONS)
_PREFIXES = ("bert.", "roberta.", "model.", "model.bert.", "model.roberta.")
# Names of the first releases, as some published files still have them.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Buffers, and heads: of masked and next words, of the [CLS] token, of a classifier.
_HARMLESS = (
    r"embeddings\.(position_ids|token_type_ids)",
    r"(.*\.)?pooler\..*",
    r"cls\..*",
    r"lm_head\..*",
    r"classifier\..*",
)
_EMBEDDINGS = {
    "word": "word_embeddings",
    "position": "position_embeddings",
    "type": "token_type_embeddings",
    "norm": "LayerNorm",
}
_PARTS = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "up": ("intermediate.dense",),
    "down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}


@dataclass(frozen=True)
class BertSizes:
    """The fields of a published config.json that the network depends on, by their names there."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0

    @classmethod
    def of(cls, origin: str, config: Mapping[str, Any]) -> "BertSizes":
        """Of the content of a config.json.

        Raises:
          InputError: naming the field, if one is absent or its value is not supported.
        """
        one_of(f"model_type of {origin}", config.get("model_type", ""), _OFFSET_POSITIONS)
        sizes = cls(**hub.fields_of(cls, origin, config))
        one_of(f"hidden_act of {origin}", sizes.hidden_act, ACTIVATIONS)
        positions = config.get("position_embedding_type") or "absolute"
        one_of(f"position_embedding_type of {origin}", positions, ("absolute",))
        if sizes.hidden_size % sizes.num_attention_heads:
            raise InputError(
                f"{origin}: hidden_size {sizes.hidden_size} is no multiple of num_attention_heads "
                f"{sizes.num_attention_heads}."
            )
        return sizes

    @property
    def first_position(self) -> int:
        return self.pad_token_id + 1 if _OFFSET_POSITIONS[self.model_type] else 0

    @property
    def max_length(self) -> int:
        """Most tokens of a text."""
        return self.max_position_embeddings - self.first_position


class Bert(nnx.Module):
    """Encoder of tokens: embeddings, then layers of attention and MLP, each with its norm after it.

    It is called with {"ids", "mask"} and, for texts of two parts, "types": integers [B, T], of
    which `mask` is 0 or False at padding.

    Args:
      sizes: of the network.
      pooling: "mean" of the tokens that are not padding, or "cls", the first; or "label_wise", all
        of them as `TokenStates`.
      segment_length: longer texts pass in segments of so many tokens, each by itself; 0: in one.
      segment_overlap: tokens that a segment shares with the next; see `sdjax.models.segments`.
      dropout: rate on embeddings, attention and the output of each block; None takes those of
        `sizes`.
      dtype: of the computation; parameters are float32.
      remat: compute the layers' activations anew in the backward pass.
      rngs: of the initial parameters.

    Raises:
      InputError: if there are fewer positions than tokens of a segment.
    """

    def __init__(
        self,
        sizes: BertSizes,
        *,
        pooling: str = "mean",
        segment_length: int = 0,
        segment_overlap: int = 0,
        dropout: float | None = None,
        dtype: DTypeLike = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.sizes, self.remat = sizes, remat
        self.pooling = one_of("pooling", pooling, TOKEN_POOLINGS)
        if segment_length > sizes.max_length:
            raise InputError(
                f"segment_length must be at most the model's {sizes.max_length}, got "
                f"{segment_length}."
            )
        self.segment_length, self.segment_overlap = segment_length, segment_overlap
        hidden, attention = sizes.hidden_dropout_prob, sizes.attention_probs_dropout_prob
        if dropout is not None:
            hidden = attention = dropout
        self.embeddings = Embeddings(sizes, hidden, dtype, rngs)
        self.layers = nnx.List(
            [Layer(sizes, hidden, attention, dtype, rngs) for _ in range(sizes.num_hidden_layers)]
        )
        self.out_features = sizes.hidden_size

    def __call__(
        self, x: Mapping[str, Array], *, rngs: nnx.Rngs | None = None, where: Array | None = None
    ) -> Array | TokenStates:
        """Representations [B, H] of the tokens x; with label-wise pooling, `TokenStates`."""
        return self.pool(self.token_states(x, rngs=rngs), x["mask"])

    def token_states(self, x: Mapping[str, Array], *, rngs: nnx.Rngs | None = None) -> Array:
        """What the last layer gives, [B, T, H]; of long texts, by segments.

        Raises:
          InputError: if there are more tokens than positions, and no segments.
        """
        rows, width = x["ids"].shape
        # A width that is not known yet, as in an export, may need segments.
        short = not is_symbolic_dim(x["ids"].shape[1]) and width <= self.segment_length
        if not self.segment_length or short:
            return self.hidden_states(x, rngs=rngs)[-1]
        sizes = (self.segment_length, self.segment_overlap)
        parts = {name: segments.split(each, *sizes) for name, each in x.items()}
        states = self.hidden_states(parts, rngs=rngs)[-1]
        return segments.join(states, rows, width, self.segment_overlap)

    def hidden_states(
        self, x: Mapping[str, Array], *, rngs: nnx.Rngs | None = None
    ) -> tuple[Array, ...]:
        """What the embeddings and each layer give, [B, T, H] each.

        Raises:
          InputError: if there are more tokens than positions.
        """
        ids, mask = x["ids"], x["mask"].astype(bool)
        if ids.shape[1] > self.sizes.max_length:
            raise InputError(
                f"texts of {ids.shape[1]} tokens: the model has positions for "
                f"{self.sizes.max_length}."
            )
        states = [self.embeddings(ids, mask, x.get("types"), rngs)]
        apply = nnx.remat(Layer.__call__) if self.remat else Layer.__call__
        for layer in self.layers:
            states.append(apply(layer, states[-1], mask, rngs))
        return tuple(states)

    def pool(self, states: Array, mask: Array) -> Array | TokenStates:
        """What stands for a text, of the states [B, T, H] of its tokens."""
        if self.pooling == "cls":
            return states[:, 0]
        tokens = TokenStates(states, mask.astype(bool))
        return tokens if self.pooling == "label_wise" else tokens.mean()


class Embeddings(nnx.Module):
    """Sum of the embeddings of token, position and type, normalised."""

    def __init__(self, sizes: BertSizes, dropout: float, dtype: DTypeLike, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Embed:
            initial = nnx.initializers.normal(0.02)
            width = sizes.hidden_size
            return nnx.Embed(rows, width, dtype=dtype, embedding_init=initial, rngs=rngs)

        self.first_position = sizes.first_position
        self.word = table(sizes.vocab_size)
        self.position = table(sizes.max_position_embeddings)
        self.type = table(sizes.type_vocab_size)
        self.norm = _norm(sizes, dtype, rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self, ids: Array, mask: Array, types: Array | None, rngs: nnx.Rngs | None
    ) -> Array:
        if self.first_position:  # those of padding, the one before, do not count
            places = self.first_position - 1 + jnp.cumsum(mask, axis=1) * mask
            positions = self.position(places)
        else:
            positions = self.position.embedding[: ids.shape[1]][None]
        kinds = self.type(jnp.zeros((1, 1), int) if types is None else types)
        x = self.norm(self.word(ids) + positions + kinds)
        return self.dropout(x, deterministic=rngs is None, rngs=rngs)


class Layer(nnx.Module):
    """Attention over all tokens that are not padding, then an MLP of each token by itself."""

    def __init__(
        self,
        sizes: BertSizes,
        dropout: float,
        attention_dropout: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def linear(before: int, after: int) -> nnx.Linear:
            initial = nnx.initializers.normal(0.02)
            return nnx.Linear(before, after, dtype=dtype, kernel_init=initial, rngs=rngs)

        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.heads, self.act = sizes.num_attention_heads, sizes.hidden_act
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width)
        self.attention_norm = _norm(sizes, dtype, rngs)
        self.up = linear(width, inner)
        self.down = linear(inner, width)
        self.mlp_norm = _norm(sizes, dtype, rngs)
        self.attention_dropout = nnx.Dropout(attention_dropout)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Array, mask: Array, rngs: nnx.Rngs | None) -> Array:
        def dropped(y: Array) -> Array:
            return self.dropout(y, deterministic=rngs is None, rngs=rngs)

        # Rows of tokens: gradients of kernels are then one plain product, a fifth off a step.
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        x = self.attention_norm(x + dropped(self.out(self.attend(x, mask, rngs))))
        inner = ACTIVATIONS[self.act](self.up(x))
        return self.mlp_norm(x + dropped(self.down(inner))).reshape(shape)

    def attend(self, x: Array, mask: Array, rngs: nnx.Rngs | None) -> Array:
        """softmax(q kᵀ / √d) v of every head, side by side, [B·T, H], of x [B·T, H]."""
        each = x.shape[-1] // self.heads
        qkv = self.qkv(x).reshape(*mask.shape, 3, self.heads, each)
        q, k, v = (qkv[:, :, part] for part in range(3))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * each**-0.5, k).astype(jnp.float32)
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        shares = self.attention_dropout(shares, deterministic=rngs is None, rngs=rngs)
        return jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape)


def _norm(sizes: BertSizes, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    options: dict[str, Any] = {"epsilon": sizes.layer_norm_eps, "dtype": dtype, "rngs": rngs}
    return nnx.LayerNorm(sizes.hidden_size, use_fast_variance=False, **options)


def read_sizes(origin: str) -> BertSizes:
    """The sizes of the published model at `origin`; see `sdjax.hub.local`."""
    return BertSizes.of(origin, hub.read_config(origin))


def load(module: Bert, origin: str) -> None:
    """Puts the weights of the published model at `origin` into `module`.

    Raises:
      InputError: if they cannot be read, or do not fit; see `sdjax.models.weights.read`.
    """
    state = nnx.state(module, nnx.Param)
    leaves = dict(nnx.to_flat_state(state))
    # PyTorch keeps the matrices of linear layers transposed.
    names = {path: _published(path) for path in leaves}
    wanted = {}
    for path, leaf in leaves.items():
        *rest, last = leaf.shape
        shape = (*rest, last // len(names[path]))
        wanted |= dict.fromkeys(names[path], shape[::-1] if path[-1] == "kernel" else shape)
    tensors = weights.read(origin, wanted, prefixes=_PREFIXES, renamed=_RENAMED, harmless=_HARMLESS)
    for path, leaf in leaves.items():
        parts = [tensors.pop(name) for name in names[path]]
        parts = [part.T for part in parts] if path[-1] == "kernel" else parts
        leaf[...] = jnp.asarray(np.concatenate(parts, axis=-1))
    nnx.update(module, state)


def _published(path: tuple[Any, ...]) -> list[str]:
    """The tensors that a parameter is made of, side by side."""
    *rest, part, kind = path
    end = "bias" if kind == "bias" else "weight"
    if rest == ["embeddings"]:
        return [f"embeddings.{_EMBEDDINGS[part]}.{end}"]
    return [f"encoder.layer.{rest[1]}.{name}.{end}" for name in _PARTS[part]]
