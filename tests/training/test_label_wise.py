"""Runs whose labels attend to the tokens of long texts."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_models import FOLDER

from sdjax import LabelIndices, supcon_loss
from sdjax.config import Config, SupervisedConfig
from sdjax.data import ArraySource, Dataset, TextSource
from sdjax.data.tokens import Tokens
from sdjax.errors import InputError
from sdjax.models import LabelAttention, TokenStates, registry
from sdjax.training import load, make_setup, score, train
from sdjax.training import objective as objective_lib
from sdjax.training.evaluate import make_forward, run_model
from sdjax.training.mesh import make_mesh

CLASSES = 6


def config_of(**model):
    config = Config(recipe="joint", batch_size=16)
    config.model.encoder, config.model.projection_dim = "bert", 8
    config.model.weights, config.model.pooling = str(FOLDER / "bert"), "label_wise"
    config.model.segment_length, config.model.segment_overlap = 12, 4
    config.model.dropout = 0.0
    for name, value in model.items():
        setattr(config.model, name, value)
    config.supervise.epochs, config.supervise.learning_rate = 4, 1e-2
    return config


def dataset(count=64):
    """Texts of 20 tokens, more than a segment has: some name labels, the rest say nothing."""
    random = np.random.default_rng(0)
    indices = np.full((count, 2), -1, np.int32)
    texts = []
    for row in range(count):
        chosen = random.permutation(CLASSES)[: row % 3]
        text = random.integers(30, 34, 20)
        named = np.repeat(10 + chosen, 3)
        text[random.permutation(20)[: len(named)]] = named
        indices[row, : len(chosen)] = np.sort(chosen)
        texts.append(text)
    split = TextSource(Tokens.of(texts, 64), LabelIndices(indices, CLASSES))
    return Dataset("notes", split, split, split, tuple("abcdef"), kind="text")


def setup_of(config):
    return make_setup(config, dataset=dataset(), mesh=make_mesh(devices=jax.devices()[:1]))


def test_a_run_finds_what_a_few_tokens_say(tmp_path):
    """By lists of labels, in chunks of labels, by segments, beside a contrastive loss."""
    config = config_of(label_chunk=4, attention_width=8)
    config.supervise.epochs = 16
    setup = setup_of(config)
    state = train(setup, tmp_path / "run")
    results = score(setup, state)
    assert results is not None and results["test"]["mAP"] > 0.7
    test = setup.dataset.test
    found = load(tmp_path / "run").run(test.tokens)
    outputs = run_model(make_forward(setup.graph, setup.mesh), state.best, test, 16, setup.mesh)
    for a, b in zip(found, outputs):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_lists_and_blocks_of_labels_give_the_loss_of_all(monkeypatch):
    attention = LabelAttention(4, CLASSES, width=4, chunk=2, rngs=nnx.Rngs(0))
    model: Any = SimpleNamespace(
        label_weights=None, classify=attention, classify_block=attention.block
    )
    tokens = TokenStates(jax.random.normal(jax.random.key(0), (9, 5, 4)), jnp.ones((9, 5), bool))
    hot = (np.random.default_rng(0).random((9, CLASSES)) < 0.3).astype(np.uint8)
    lists = LabelIndices(np.where(hot, np.arange(CLASSES), -1).astype(np.int32), CLASSES)
    monkeypatch.setattr(objective_lib, "LOGITS_AT_ONCE", 0)
    values = []
    for labels, block in ((hot, 4096), (lists, 4096), (lists, 4)):
        monkeypatch.setattr(objective_lib, "LABEL_BLOCK", block)
        loss = jax.jit(lambda x, y: objective_lib.classifier_loss(model, x, y, SupervisedConfig()))
        values.append(loss(tokens, labels))
    for value in values[1:]:
        np.testing.assert_allclose(value, values[0], rtol=1e-5)


class Reader(nnx.Module):
    """A linear layer of each token."""

    pooling = "label_wise"

    def __init__(self, rngs):
        self.linear, self.out_features = nnx.Linear(3, 4, rngs=rngs), 4

    def __call__(self, x, *, rngs=None, where=None):
        return TokenStates(self.linear(x), jnp.ones(x.shape[:2], bool))


@pytest.mark.parametrize("kind", ["multi-hot", "indices"])
def test_labels_of_examples_are_contrasted(kind, monkeypatch):
    """Rows are (example, label), of two views: SupCon of them, padding left out."""
    monkeypatch.setitem(registry.ENCODERS, "reader", registry.Encoder(_reader, "", lambda _: True))
    config = Config(recipe="joint", batch_size=6, contrastive_weight=1.0)
    config.loss.name, config.loss.rows, config.loss.temperature = "supcon", "labels", 0.5
    config.model.encoder, config.model.pooling = "reader", "label_wise"
    config.model.projection_dim = 5
    random = np.random.default_rng(0)
    hot = (random.random((6, CLASSES)) < 0.4).astype(np.uint8)
    labels = hot
    if kind == "indices":
        lists = np.sort(np.where(hot, np.arange(CLASSES), -1), axis=1)[:, ::-1]
        labels = LabelIndices(lists[:, : hot.sum(axis=1).max()].astype(np.int32), CLASSES)
    x = random.normal(size=(6, 5, 3)).astype(np.float32)
    split = ArraySource(x, labels)
    dataset = Dataset("toy", split, split, split, tuple("abcdef"))
    setup = make_setup(config, dataset=dataset, mesh=make_mesh(devices=jax.devices()[:1]))
    state = setup.initial_state()
    weights = jax.tree.map(lambda x: x[0], state.best)
    where = np.arange(6) < 5
    batch = {"x": x, "labels": labels, "where": where}
    objective = objective_lib.Objective(setup.program, setup.phases[0], setup.graph, setup.mesh)
    aux = jax.tree.map(lambda x: x[0], state.aux)
    loss = jax.jit(lambda params: objective(params, aux, batch, jax.random.key(0), True))
    metrics = loss(weights.params)[1][1]
    model = nnx.merge(setup.graph, *weights)
    vectors = model.projection(model.classifier.embeddings(model.encode(x)))
    places = [(row, label) for row, label in np.argwhere(hot) if where[row]] * 2
    z = jnp.stack([vectors[place] for place in places])
    expected = supcon_loss(z, jnp.array([label for _, label in places]), temperature=0.5)
    np.testing.assert_allclose(metrics["contrastive"], expected, rtol=1e-5)


def _reader(config, spec, rngs):
    return Reader(rngs)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"encoder": "mlp", "weights": ""}, "does not fit inputs"),
        ({"segment_length": 30}, "segment_length must be at most the model's 20, got 30"),
        ({"segment_overlap": 12}, "segment_overlap must be below model.segment_length, 12, got 12"),
        ({"pooling": "labelwise"}, "Unknown model.pooling 'labelwise'. Did you mean 'label_wise'"),
    ],
)
def test_configs_that_cannot_be(changes, text):
    with pytest.raises(InputError, match=text):
        setup_of(config_of(**changes))
