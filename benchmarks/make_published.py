"""Writes the folders of tests/models/published/: small random models, by PyTorch's transformers.

    python benchmarks/make_published.py

Made with torch 2.14.1 and transformers 5.24.0. Each folder is as such models are published, and
`expected.npz` holds tokens with the hidden states that transformers computes of them.
"""

from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "published"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "in", "mat", "hat", "big", "red", "it"]
WORDS += ["was", "is", "not", "good", "bad", "day", "night"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz.,!?")


def bert_tokenizer():
    """WordPiece, with the truncation and padding that published files preset."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS[1:]]
    names += [f"##{letter}" for letter in LETTERS[:26]]
    vocabulary = {name: number for number, name in enumerate(names)}
    result = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    result.normalizer = normalizers.BertNormalizer(lowercase=True)
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    result.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    result.decoder = decoders.WordPiece()
    result.enable_truncation(6)
    result.enable_padding(length=6, pad_id=0, pad_token="[PAD]")
    return result, len(vocabulary)


def roberta_tokenizer():
    """Byte-level BPE."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    result = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    result.decoder = decoders.ByteLevel()
    return result, len(vocabulary)


def randomised(model):
    """`model` with every parameter drawn anew, so that none is 0 or 1, and each matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(centre + 0.3 * noise)
    return model.eval()


def write(name, model, base, tokenizer, vocabulary, padding, types):
    folder = FOLDER / name
    randomised(model).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    lengths = np.array([12, 7, 1, 9])
    mask = np.arange(12) < lengths[:, None]
    ids = np.where(mask, rng.integers(5, vocabulary, mask.shape), padding)
    kinds = np.where(mask, rng.integers(0, types, mask.shape), 0)
    with torch.no_grad():
        states = base(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask).long(),
            token_type_ids=torch.tensor(kinds),
            output_hidden_states=True,
        ).hidden_states
    arrays = {"ids": ids.astype(np.int32), "mask": mask, "types": kinds.astype(np.int32)}
    np.savez_compressed(folder / "expected.npz", states=torch.stack(states).numpy(), **arrays)


def main():
    tokenizer, vocabulary = bert_tokenizer()
    config = transformers.BertConfig(
        vocab_size=vocabulary, max_position_embeddings=20, type_vocab_size=2, **SIZES
    )
    model = transformers.BertForPreTraining(config)
    write("bert", model, model.bert, tokenizer, vocabulary, 0, 2)
    tokenizer, vocabulary = roberta_tokenizer()
    config = transformers.RobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=22, type_vocab_size=1, pad_token_id=1,
        layer_norm_eps=1e-5, **SIZES,
    )  # fmt: skip
    model = transformers.RobertaForMaskedLM(config)
    write("roberta", model, model.roberta, tokenizer, vocabulary, 1, 1)


if __name__ == "__main__":
    main()
