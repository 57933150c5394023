"""`pretrained`: texts in, representations out."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from imports import assert_not_loaded
from published_models import FOLDER, NAMES, copy

from sdjax.data.tokens import WIDTHS, Tokenizer, Tokens
from sdjax.errors import InputError
from sdjax.models import pretrained, published

TEXTS = ["A cat sat.", "the dog ran on the big red mat, and it was good!", "", "Night", "a b c d e"]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return pretrained(str(FOLDER / request.param))


def one_by_one(model, texts, max_length=0):
    """Each text by itself, with as much padding as there can be."""
    tokens = model.tokens(texts, max_length)
    graph, state = nnx.split(model.module)
    rows = [tokens.padded(np.array([row]), 20) for row in range(len(tokens))]
    return np.concatenate([published._forward(graph, state, x) for x in rows])


def test_texts_come_back_in_their_order(model):
    texts = [text for text in TEXTS for _ in range(3)][::-1]
    found = model.encode(texts, batch_size=4)
    assert found.shape == (15, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(model, texts), atol=1e-5)
    np.testing.assert_allclose(model.encode(texts), found, atol=1e-5)
    unit = model.encode(texts, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        unit, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-5
    )


def test_no_text_and_one_text(model):
    assert model.encode([]).shape == (0, 16)
    np.testing.assert_allclose(model.encode(TEXTS[:1]), one_by_one(model, TEXTS[:1]), atol=1e-5)


def test_presets_of_the_tokenizer_do_not_hold(model):
    """The file of `bert` truncates and pads to 6."""
    lengths = model.tokens(TEXTS).lengths
    assert lengths.max() > 6 and lengths.min() < 6
    assert lengths[2] == 2  # the marks of start and end


def test_long_texts_are_cut_to_the_models_positions(model):
    long = "cat " * 50
    assert model.tokens([long]).lengths[0] == 20
    assert np.isfinite(model.encode([long, "a"])).all()
    assert model.tokens([long, "a"]).num_cut == 1
    cut = model.tokens([long], max_length=5)
    assert cut.lengths[0] == 5
    whole = model.tokens([long])
    assert np.array_equal(cut.ids[:4], whole.ids[:4]) and cut.ids[-1] == whole.ids[-1]
    np.testing.assert_allclose(
        model.encode([long], max_length=5), one_by_one(model, [long], 5), atol=1e-5
    )


def test_first_token():
    model = pretrained(str(FOLDER / "bert"), pooling="cls")
    tokens = model.tokens(TEXTS[:1])
    x = jax.tree.map(jnp.asarray, tokens.padded(np.array([0]), 8))
    expected = nnx.jit(lambda module: module.hidden_states(x)[-1][:, 0])(model.module)
    np.testing.assert_allclose(model.encode(TEXTS[:1]), expected, atol=1e-5)
    with pytest.raises(InputError, match="Unknown pooling 'max'"):
        pretrained(str(FOLDER / "bert"), pooling="max")


def test_few_programs_are_compiled(monkeypatch):
    model = pretrained(str(FOLDER / "bert"))
    shapes = set()
    forward = published._forward

    def counted(graph, state, batch):
        shapes.add(batch["ids"].shape)
        return forward(graph, state, batch)

    monkeypatch.setattr(published, "_forward", counted)
    model.encode(["cat " * k for k in range(1, 19)] * 5, batch_size=8)
    # The model has 20 positions.
    assert shapes == {(8, width) for width in WIDTHS if width <= 20}


def test_the_module_is_trained_as_any_other():
    model = pretrained(str(FOLDER / "bert"))
    before = model.encode(TEXTS)
    tokens = model.tokens(TEXTS)
    x = jax.tree.map(jnp.asarray, tokens.padded(np.arange(5), 20))

    class Mine(nnx.Module):
        def __init__(self):
            self.encoder = model.module
            self.head = nnx.Linear(16, 1, rngs=nnx.Rngs(0))

    mine = Mine()
    optimizer = nnx.Optimizer(mine, optax.sgd(0.003), wrt=nnx.Param)

    @nnx.jit
    def step(mine, optimizer):
        def loss(mine):
            return jnp.mean((mine.head(mine.encoder(x)) - 3) ** 2)

        value, gradients = nnx.value_and_grad(loss)(mine)
        optimizer.update(mine, gradients)
        return value

    losses = [float(step(mine, optimizer)) for _ in range(5)]
    assert losses[-1] < 0.8 * losses[0]
    after = model.encode(TEXTS)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, one_by_one(model, TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda model: model.encode("one text"), "a list of strings, got one string"),
        (lambda model: model.encode(["a", None]), "must be strings, got NoneType at 1"),
        (lambda model: model.encode(["a"], max_length=21), "at most the model's 20, got 21"),
        (lambda model: model.encode(["a"], max_length=-1), "at most the model's 20, got -1"),
        (lambda model: model.encode(["a"], max_length=2), "must be above 2"),
        (lambda model: model.encode(["a"], batch_size=0), "batch_size must be 1 or more"),
    ],
)
def test_what_cannot_be_encoded(call, text):
    with pytest.raises(InputError, match=text):
        call(pretrained(str(FOLDER / "bert")))


def test_files_that_are_missing_or_broken(tmp_path, monkeypatch):
    origin = copy("bert", tmp_path / "model", drop=["tokenizer.json"])
    with pytest.raises(InputError, match=r"there is no tokenizer\.json in"):
        pretrained(origin)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json"):
        pretrained(origin)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"need the package tokenizers: pip install 'sdjax"):
        pretrained(str(FOLDER / "bert"))


def test_widths():
    tokens = Tokens.of([[1] * n for n in (3, 8, 9, 512, 513, 1200)], max_length=1300)
    assert tokens.widths.tolist() == [8, 8, 12, 512, 1024, 1300]
    assert Tokens.of([[1] * 500], max_length=500).widths.tolist() == [500]
    assert [x["ids"].shape for _, x in tokens.by_length(4)] == [(4, 512), (2, 1300)]
    assert [x["ids"].shape[0] for _, x in tokens.by_length(6)] == [6]
    batch = tokens.padded(np.array([1, 0]), 10)
    assert batch["ids"].dtype == np.int32 and batch["mask"].dtype == bool
    assert batch["ids"].tolist() == [[1] * 8 + [0] * 2, [1] * 3 + [0] * 7]
    assert np.array_equal(batch["mask"], batch["ids"] == 1)


def test_many_texts_are_tokenised_in_parts(monkeypatch):
    tokenizer = Tokenizer.of_model(str(FOLDER / "bert"))
    whole = tokenizer(TEXTS * 3, 20)
    monkeypatch.setattr("sdjax.data.tokens._TOKENISED_AT_ONCE", 4)
    parts = tokenizer(TEXTS * 3, 20)
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.starts, parts.starts)


def test_the_packages_of_texts_are_imported_when_they_are_needed():
    for name in ("sdjax.models", "sdjax.data"):
        assert_not_loaded(name, ("tokenizers", "safetensors", "huggingface_hub", "torch"))
