"""Runs on texts: a published encoder, from a file of texts to predictions."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from published_models import FOLDER, copy

from sdjax.config import Config, replaced
from sdjax.configs.text import get_config
from sdjax.errors import InputError
from sdjax.models import bert, pretrained
from sdjax.predict import predict
from sdjax.training import load, make_setup, microbatches, objective, score, train
from sdjax.training import run as run_module
from sdjax.training.evaluate import make_forward, run_model
from sdjax.training.logbook import read_records
from sdjax.training.mesh import make_mesh
from sdjax.training.microbatches import in_microbatches, num_microbatches
from sdjax.training.selection import select
from sdjax.training.step import make_train_step
from sdjax.training.workdir import read_selection

MODEL = str(FOLDER / "bert")
WORDS = ["cat", "dog", "hat"]


def write_texts(path, count, seed, repeats=(1, 3)):
    """Texts that name what they are labelled with, of 2 to 14 tokens: of two widths."""
    random = np.random.default_rng(seed)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "text", *WORDS])
        for row in range(count):
            labels = random.random(3) < 0.5
            words = [word for word, there in zip(WORDS, labels) if there]
            words += ["the", "big", "red"] * random.choice(repeats)
            rows.writerow([row, " ".join(random.permutation(words)), *labels.astype(int)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    for seed, (name, count) in enumerate({"train": 90, "validation": 30, "test": 41}.items()):
        write_texts(path / f"{name}.csv", count, seed)
    return path


@pytest.fixture
def config(folder):
    config = Config(recipe="joint", batch_size=16)
    config.data.name, config.data.text = "files", "text"
    for split in ("train", "validation", "test"):
        setattr(config.data, split, str(folder / f"{split}.csv"))
    config.data.labels = ",".join(WORDS)
    config.model.weights, config.model.projection_dim = MODEL, 8
    config.supervise.epochs, config.supervise.learning_rate = 2, 3e-3
    config.model.dropout = 0.0
    config.log_every = config.evaluate_every = 1
    config.checkpoint_every = 100
    return config


@pytest.fixture
def one_width(config):
    """Texts are cut to one width, so that one step is compiled."""
    config.data.max_length = 8


def ready(config, devices=1):
    return make_setup(config, mesh=make_mesh(devices=jax.devices()[:devices]))


def state_of(config, workdir=None, devices=1):
    return jax.device_get(train(ready(config, devices), workdir))


def test_a_run_starts_from_the_published_weights(config):
    config.model.members, config.model.prior_bias = 2, True
    setup = ready(config)
    assert setup.config.model.encoder == "bert" and setup.config.data.max_length == 20
    params = setup.initial_state().params
    share = np.asarray(setup.dataset.train.labels).mean(axis=0)
    bias = np.asarray(params["classifier"]["bias"][...])
    np.testing.assert_allclose(bias, [np.log(share / (1 - share))] * 2, rtol=0.05)
    params = params["encoder"]
    found = arrays(params)
    expected = arrays(nnx.state(pretrained(MODEL).module, nnx.Param))
    assert found.keys() == expected.keys()
    for path, value in found.items():
        assert len(value) == 2
        for member in value:
            np.testing.assert_array_equal(member, expected[path])


def arrays(state):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def test_texts_in_and_predictions_out(config, folder, tmp_path):
    config.recipe, config.supervise.epochs = "bce", 12
    config.supervise.learning_rate = 1e-2
    setup = ready(config)
    state = train(setup, tmp_path / "run")
    results = score(setup, state, tmp_path / "run")
    assert results["test"]["mAP"] > 0.9
    model = load(tmp_path / "run")
    table = pd.read_csv(folder / "test.csv")
    scores = model.predict_proba(table["text"].tolist())
    outputs = run_model(
        make_forward(setup.graph, setup.mesh), state.best, setup.dataset.test, 16, setup.mesh
    )
    np.testing.assert_allclose(scores, outputs.scores, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(table), scores, atol=1e-6)
    decided = model.predict(table)
    assert np.array_equal(decided, scores >= model.thresholds)
    assert (decided == table[WORDS].to_numpy()).mean() > 0.7
    assert predict(tmp_path / "run", folder / "test.csv", tmp_path / "out.csv", labels=True) == 41
    written = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(written.filter(regex="^p_").to_numpy(), scores, atol=1e-5)
    assert written["id"].tolist() == table["id"].tolist()
    assert model.predict_proba([]).shape == (0, 3)
    with pytest.raises(InputError, match="a list of strings, got one string"):
        model.predict("one text")


def test_a_model_needs_no_other_file_once_it_is_trained(config, folder, tmp_path, one_width):
    origin = copy("bert", tmp_path / "model")
    config.model.weights = origin
    state_of(config, tmp_path / "run")
    expected = load(tmp_path / "run").embed(["the cat"])
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(load(tmp_path / "run").embed(["the cat"]), expected)


def test_a_run_resumes_exactly(config, tmp_path, monkeypatch):
    config.checkpoint_every = 4
    whole = state_of(config, tmp_path / "whole")
    records = read_records(tmp_path / "whole" / "metrics.jsonl")
    # The folder of a run that ended after 4 of its 12 steps.
    position = run_module._Running.train_phase

    class StoppedError(Exception):
        pass

    def stopping(self, phase, step, state):
        save = self.checkpoints.save

        def saved(number, *rest):
            save(number, *rest)
            self.checkpoints.wait()
            raise StoppedError

        self.checkpoints.save = saved
        return position(self, phase, step, state)

    monkeypatch.setattr(run_module._Running, "train_phase", stopping)
    with pytest.raises(StoppedError):
        train(ready(config), tmp_path / "parts")
    monkeypatch.undo()
    resumed = state_of(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    again = read_records(tmp_path / "parts" / "metrics.jsonl")
    assert [r["loss"] for r in again] == [r["loss"] for r in records]


def test_devices_share_a_batch(config, one_width):
    # Adam would blow up rounding: the gradients of the keys' biases are 0 but for that.
    config.supervise.optimizer, config.supervise.learning_rate = "sgd", 0.01
    config.recipe, config.supervise.epochs = "bce", 1
    one, two = (state_of(config, devices=count) for count in (1, 2))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("rows", "width", "changes", "wanted"),
    [
        (128, 128, {}, 1),
        (128, 192, {}, 4),
        (128, 384, {}, 16),
        (100, 256, {}, 4),
        (7, 512, {}, 1),
        (11, 1024, {}, 11),
        (128, 384, {"microbatches": 1}, 1),
        (128, 64, {"microbatches": 2}, 2),
        (64, 3072, {"model.segment_length": 128}, 16),
    ],
)
def test_long_texts_pass_in_parts(rows, width, changes, wanted):
    tokens = {"ids": np.zeros((rows, width), np.int32), "mask": np.ones((rows, width), bool)}
    config = replaced(Config(), changes)
    assert num_microbatches(config, tokens, make_mesh(devices=jax.devices()[:1])) == wanted
    if "microbatches" not in changes:
        assert num_microbatches(config, np.zeros((rows, width)), make_mesh()) == 1


def test_parts_of_long_texts_leave_the_step_as_it_is(config, one_width, monkeypatch):
    config.model.projection_dim = 4  # of no other test: the step is compiled anew
    config.supervise.optimizer, config.supervise.learning_rate = "sgd", 0.01
    config.supervise.epochs = 1
    config.microbatches, parts = 1, []
    whole = state_of(config)
    monkeypatch.setattr(microbatches, "MOST_SCORES", 8 * 8 * 8)
    monkeypatch.setattr(
        objective,
        "in_microbatches",
        lambda function, count, mesh: parts.append(count) or in_microbatches(function, count, mesh),
    )
    config.microbatches = 0
    in_parts = state_of(config)
    assert set(parts) == {2, 4}  # one view, and two, of 16 texts of 8 tokens
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(in_parts.params)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_step_is_compiled_for_each_width(config):
    setup = ready(config)
    widths = set(setup.dataset.train.widths.tolist())
    assert len(widths) > 1
    train(setup)
    step = make_train_step(setup.program, setup.phases[0], setup.graph, setup.mesh)
    assert 1 < step._cache_size() <= len(widths)


def test_one_view_without_a_contrastive_loss(config, monkeypatch):
    """Without words left out, binary cross-entropy alone sees each text once."""
    rows = []
    call = bert.Bert.__call__

    def counted(self, x, **options):
        rows.append(x["ids"].shape[0])
        return call(self, x, **options)

    monkeypatch.setattr(bert.Bert, "__call__", counted)
    config.batch_size = 12
    for recipe, drop, size in (("bce", 0.0, 12), ("bce", 0.1, 24), ("joint", 0.0, 24)):
        rows.clear()
        config.augment.token_drop = drop
        ready(dataclasses.replace(config, recipe=recipe))
        assert rows[0] in (12, 24) and max(rows) == size


def test_a_run_starts_from_another_on_texts(config, tmp_path, one_width):
    state_of(config, tmp_path / "first")
    config.model.weights, config.model.init_from = "", str(tmp_path / "first")
    setup = ready(config)
    assert setup.config.data.tokenizer == MODEL
    first = load(tmp_path / "first").weights.params["encoder"]
    started = setup.initial_state().params["encoder"]
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(started)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"model.weights": ""}, "'bert' needs model.weights: a folder with config.json"),
        ({"data.max_length": 21}, "data.max_length must be at most the model's 20, got 21"),
        ({"model.encoder": "mlp"}, "encoder 'mlp' does not fit inputs.*takes vectors"),
        ({"model.pooling": "max"}, "Unknown model.pooling 'max'"),
        ({"model.architecture": "{"}, "model.architecture is not JSON"),
        ({"model.architecture": "{}"}, "model_type of model.architecture"),
        ({"model.weights": "no/such/folder"}, "no such file or folder"),
        ({"model.lora_rank": 64}, "model.lora_rank must be below [0-9]+, got 64"),
        ({"data.text": ""}, "feature 'text' is not a number.*name it in data.text"),
    ],
)
def test_configs_that_cannot_be(config, changes, text):
    for name, value in changes.items():
        part, field = name.split(".")
        setattr(getattr(config, part), field, value)
    with pytest.raises(InputError, match=text):
        ready(config)


def test_layers_have_learning_rates_of_their_own(config, one_width):
    config.supervise.learning_rates = "encoder=0.5,encoder.embeddings=0,encoder.layers.0=0"
    config.recipe, config.supervise.epochs = "bce", 1
    setup = ready(config)
    before, after = (jax.device_get(s.params) for s in (setup.initial_state(), train(setup)))
    same = {
        "embeddings": before["encoder"]["embeddings"],
        "0": before["encoder"]["layers"][0],
    }
    ends = {"embeddings": after["encoder"]["embeddings"], "0": after["encoder"]["layers"][0]}
    jax.tree.map(np.testing.assert_array_equal, same, ends)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        before["encoder"]["layers"][1],
        after["encoder"]["layers"][1],
    )
    assert min(jax.tree.leaves(moved)) > 0


def test_low_rank_adapters_learn_in_place_of_the_encoder(config, tmp_path, one_width):
    config.model.lora_rank, config.supervise.epochs = 2, 1
    setup = ready(config)
    before, state = jax.device_get(setup.initial_state().params), train(setup, tmp_path / "run")
    after = jax.device_get(state.params)
    jax.tree.map(np.testing.assert_array_equal, before["encoder"], after["encoder"])
    assert sorted(after["adapters"]["b"]) == sorted(
        f"layers_{layer}_{part}" for layer in (0, 1) for part in ("down", "out", "qkv", "up")
    )
    assert min(float(np.abs(x).max()) for x in jax.tree.leaves(after["adapters"])) > 0
    # At first they change nothing; what is embedded is that of the matrices W + A·B.
    texts, model = ["the cat", "a big dog"], load(tmp_path / "run")
    bare = pretrained(MODEL)
    inner = nnx.state(bare.module, nnx.Param)
    for layer in (0, 1):
        for part in ("down", "out", "qkv", "up"):
            a, b = (after["adapters"][x][f"layers_{layer}_{part}"][...][0] for x in "ab")
            inner["layers"][layer][part]["kernel"][...] += a @ b
    nnx.update(bare.module, inner)
    np.testing.assert_allclose(model.embed(texts), bare.encode(texts), atol=1e-5)
    # Another run takes them over, and none leaves them out.
    config.model.weights, config.model.init_from = "", str(tmp_path / "run")
    started = ready(config).initial_state().params
    jax.tree.map(np.testing.assert_array_equal, started["adapters"], after["adapters"])
    config.model.lora_rank = 0
    with pytest.raises(InputError, match="adapters.a.layers_0_down: .* there, absent here"):
        ready(config)


def test_a_refit_and_candidates(config, tmp_path, one_width):
    config.supervise.epochs = 1
    config.recipe = "bce"
    config.candidates = ("text: seed=1", "text: seed=2", "dense: model.width=8")
    config.refit, config.checkpoint_every = True, 1000
    setup = select(ready(config), tmp_path / "run")
    assert len(setup.dataset.train) == 120
    results = score(setup, train(setup, tmp_path / "run"), tmp_path / "run")
    assert np.isfinite(results["test"]["mAP"])
    assert len(read_selection(tmp_path / "run")["candidates"]) == 2


def test_the_config_that_is_shipped(tmp_path):
    write_texts(tmp_path / "train.csv", 90, 0, repeats=[3])  # of one width
    config = get_config()
    config.data.train, config.data.labels = str(tmp_path / "train.csv"), ",".join(WORDS)
    config.model.weights = MODEL
    config.supervise.epochs = 1
    setup = ready(config)
    results = score(setup, train(setup, tmp_path / "run"), tmp_path / "run")
    assert np.isfinite(results["test"]["mAP"])
    saved = json.loads((tmp_path / "run" / "preprocess.json").read_text())
    assert (saved["kind"], saved["max_length"]) == ("text", 20)
    embedded = load(tmp_path / "run").embed(["the cat", "a dog"])
    assert embedded.shape == pretrained(MODEL).encode(["the cat", "a dog"]).shape
