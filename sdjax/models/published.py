"""`pretrained`: a published encoder of texts or images, ready to use."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sdjax import hub
from sdjax.checks import one_of
from sdjax.config import POOLINGS
from sdjax.data.tokens import TokenBatch, Tokenizer, Tokens
from sdjax.errors import InputError
from sdjax.models import bert, published_images, resnet, vit, weights
from sdjax.models.published_images import PretrainedImages

_BATCH = 64


def pretrained(
    origin: str, pooling: str = "", *, dtype: DTypeLike = "float32", remat: bool = False
) -> "Pretrained | PretrainedImages":
    """A published encoder, with its weights and what makes its inputs of texts or images.

        embeddings = pretrained("path/to/all-MiniLM-L6-v2").encode(["One text.", "Another."])
        embeddings = pretrained("path/to/dinov2-small").encode(["one.jpg", "another.jpg"])

    Args:
      origin: a folder with config.json, model.safetensors and, for texts, tokenizer.json, or an id
        of the Hugging Face hub, OWNER/NAME or OWNER/NAME@REVISION, whose files are fetched once. Of
        the families of BERT and RoBERTa; ViT, DINOv2 and CLIP's encoder of images, also as timm
        has them; ResNet, of transformers, torchvision or timm.
      pooling: "mean" of the tokens or patches, or "cls", the first token; "" is "mean" for texts,
        "cls" for vision transformers.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
      remat: compute activations anew in the backward pass, for those who train the module.

    Returns:
      A `Pretrained` for texts, or `PretrainedImages`; its `module` is a plain NNX module, for a
      model of one's own.

    Raises:
      InputError: if files are missing, or are not of such a model; a pickle is never loaded.
    """
    one_of("pooling", pooling, ("", *POOLINGS))
    config = hub.read_config_if_any(origin)
    known = (*bert.MODEL_TYPES, *vit.MODEL_TYPES, *resnet.MODEL_TYPES)
    if "model_type" in config:
        one_of(f"model_type of {origin}", config["model_type"] or "", known)
    shapes = {} if "model_type" in config else weights.shapes(origin)
    for family in (vit, resnet):
        if family.is_such(config, shapes):
            return published_images.load(family, origin, pooling, dtype, remat)
    sizes = bert.read_sizes(origin)
    tokenizer = Tokenizer.of_model(origin)
    pooling = pooling or "mean"
    module = bert.Bert(sizes, pooling=pooling, dtype=dtype, remat=remat, rngs=nnx.Rngs(0))
    bert.load(module, origin)
    return Pretrained(module, tokenizer)


class Pretrained:
    """An encoder of texts.

    Attributes:
      module: from tokens to representations; see `sdjax.models.bert.Bert`.
      tokenizer: from texts to tokens.
    """

    def __init__(self, module: bert.Bert, tokenizer: Tokenizer):
        self.module, self.tokenizer = module, tokenizer

    def tokens(self, texts: Sequence[str], max_length: int = 0) -> Tokens:
        """The tokens of `texts`; `padded(rows, width)` of them is what `module` takes.

        Args:
          texts: N strings.
          max_length: most tokens of a text, the rest of which is left out; 0 is as many as the
            model has positions for.

        Raises:
          InputError: if there are other things than strings, or `max_length` is out of range.
        """
        most = self.module.sizes.max_length
        if not 0 <= max_length <= most:
            raise InputError(f"max_length must be at most the model's {most}, got {max_length}.")
        return self.tokenizer(texts, max_length or most)

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_length: int = 0,
        normalize: bool = False,
        batch_size: int = _BATCH,
    ) -> np.ndarray:
        """Representations of `texts`, float32 [N, H], in their order.

        Texts of like lengths are encoded together, padded to one of a few widths, each of which
        is compiled once.

        Args:
          texts: N strings.
          max_length: see `tokens`.
          normalize: to length 1.
          batch_size: texts that are encoded together.

        Raises:
          InputError: see `tokens`.
        """
        if batch_size < 1:
            raise InputError(f"batch_size must be 1 or more, got {batch_size}.")
        tokens = self.tokens(texts, max_length)
        result = np.zeros((len(tokens), self.module.out_features), np.float32)
        graph, state = nnx.split(self.module)
        # Few texts are few rows, of as few sizes as can be.
        size = min(batch_size, 1 << max(len(tokens) - 1, 0).bit_length())
        for rows, batch in tokens.by_length(size):
            missing = size - len(rows)
            batch = {name: np.pad(x, ((0, missing), (0, 0))) for name, x in batch.items()}
            result[rows] = np.asarray(_forward(graph, state, batch), np.float32)[: len(rows)]
        if normalize:
            result /= np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)
        return result


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, state: Any, batch: TokenBatch) -> jax.Array:
    return nnx.merge(graph, state)(batch)
