import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sdjax.errors import InputError
from sdjax.predict import predict
from sdjax.training import Interrupted, load, make_setup, score, train
from sdjax.training import run as run_module
from sdjax.training.evaluate import make_forward, run_model
from sdjax.training.run import opened

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture
def trained(toy_config, tmp_path):
    toy_config.model.members = 2
    toy_config.log_every = toy_config.evaluate_every = toy_config.checkpoint_every = 1000
    setup = make_setup(toy_config)
    state = train(setup, tmp_path / "run")
    forward = make_forward(setup.graph, setup.mesh)
    outputs = run_model(forward, state.best, setup.dataset.test, 16, setup.mesh)
    return tmp_path / "run", outputs


def test_a_loaded_model_gives_what_the_run_gave(trained, toy_files):
    workdir, outputs = trained
    model = load(workdir)
    x = np.load(toy_files / "test.npz")["x"]
    np.testing.assert_allclose(model.predict_proba(x), outputs.scores, atol=1e-6)
    np.testing.assert_allclose(model.embed(x), outputs.embeddings, atol=1e-5)
    assert model.embed(x).shape == (40, 2 * 16)
    many = np.tile(x, (8, 1))
    np.testing.assert_allclose(
        model.predict_proba(many), np.tile(outputs.scores, (8, 1)), atol=1e-6
    )
    assert model.predict_proba(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet", ".jsonl"])
def test_predict_writes_probabilities_and_embeddings(trained, toy_files, tmp_path, suffix):
    workdir, outputs = trained
    path = tmp_path / "out" / f"predictions{suffix}"
    assert predict(workdir, toy_files / "test.npz", path) == 40
    if suffix == ".npz":
        with np.load(path) as file:
            scores, embeddings = file["probabilities"], file["embeddings"]
    elif suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        scores = np.array([list(row["probabilities"].values()) for row in rows])
        embeddings = np.array([row["embedding"] for row in rows])
    else:
        frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
        scores, embeddings = (frame.filter(regex=f"^{letter}_").to_numpy() for letter in "pe")
        assert frame["id"].astype(str).tolist() == [str(row) for row in range(40)]
    np.testing.assert_allclose(scores, outputs.scores, atol=1e-6)
    np.testing.assert_allclose(embeddings, outputs.embeddings, atol=1e-5)


def test_predict_finds_the_inputs_that_training_found(toy_config, toy_files, tmp_path):
    """Of two arrays, the one that `data.input_key` named; a file of another layout can be told."""
    for split in ("train", "validation", "test"):
        arrays = dict(np.load(toy_files / f"{split}.npz"))
        arrays["own"] = arrays.pop("x")
        np.savez(tmp_path / f"{split}.npz", x=np.zeros((len(arrays["own"]), 9)), **arrays)
        setattr(toy_config.data, split, str(tmp_path / f"{split}.npz"))
    toy_config.data.input_key = "own"
    toy_config.supervise.epochs = 1
    train(make_setup(toy_config), tmp_path / "run")
    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    predict(tmp_path / "run", tmp_path / "test.npz", first)
    with pytest.raises(ValueError, match="data.input_key 'own' is not there"):
        predict(tmp_path / "run", toy_files / "test.npz", second)
    predict(tmp_path / "run", toy_files / "test.npz", second, "x")
    with np.load(first) as a, np.load(second) as b:
        np.testing.assert_array_equal(a["probabilities"], b["probabilities"])


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".jsonl"])
def test_decided_labels_by_the_thresholds_of_the_run(toy_config, toy_files, tmp_path, suffix):
    toy_config.supervise.epochs = 1
    setup = make_setup(toy_config)
    state = train(setup, tmp_path / "run")
    x = np.load(toy_files / "test.npz")["x"]
    with pytest.raises(ValueError, match="has not been tested yet, and has no thresholds"):
        load(tmp_path / "run").predict(x)
    score(setup, state, tmp_path / "run")
    model = load(tmp_path / "run")
    thresholds = json.loads((tmp_path / "run" / "results.json").read_text())["thresholds"]
    wanted = model.predict_proba(x) >= np.array([thresholds[name] for name in model.label_names])
    np.testing.assert_array_equal(model.predict(x), wanted)
    np.testing.assert_array_equal(model.predict(x, 0.9), model.predict_proba(x) >= 0.9)
    assert 0 < wanted.mean() < 1
    path = tmp_path / f"out{suffix}"
    predict(tmp_path / "run", toy_files / "test.npz", path, labels=True)
    if suffix == ".npz":
        found = np.load(path)["labels"]
    else:
        names = (
            [json.loads(line)["labels"] for line in path.read_text().splitlines()]
            if suffix == ".jsonl"
            else [each.split(";") for each in pd.read_csv(path)["labels"].fillna("")]
        )
        found = np.array([[name in row for name in model.label_names] for row in names])
    np.testing.assert_array_equal(found, wanted)


def test_predict_names_what_is_wrong(trained, toy_files, tmp_path):
    workdir, _ = trained
    with pytest.raises(ValueError, match=r"Unknown output format '.xlsx'.* Known: .npz"):
        predict(workdir, toy_files / "test.npz", tmp_path / "out.xlsx")
    with pytest.raises(FileNotFoundError, match="is not the workdir of a run: it holds no config"):
        predict(tmp_path / "nowhere", toy_files / "test.npz", tmp_path / "out.npz")
    np.savez(tmp_path / "narrow.npz", x=np.zeros((4, 5), np.float32))
    with pytest.raises(ValueError, match=r"\(5,\).*\(6,\)"):
        predict(workdir, tmp_path / "narrow.npz", tmp_path / "out.npz")


def test_a_run_that_stopped_before_its_classifier_was_trained(
    toy_config, toy_files, tmp_path, monkeypatch
):
    """The encoder can be used; probabilities would be those of chance."""
    toy_config.recipe = "probe"
    finite_means = run_module.finite_means

    def finite_means_and_signal(pending, step, phase):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return finite_means(pending, step, phase)

    monkeypatch.setattr(run_module, "finite_means", finite_means_and_signal)
    with pytest.raises(Interrupted):
        train(make_setup(toy_config), tmp_path / "run")
    model = load(tmp_path / "run")
    x = np.load(toy_files / "test.npz")["x"]
    text = r"stopped in phase 'pretrain', after step 4: its classifier is not trained"
    with pytest.raises(InputError, match=text):
        model.predict_proba(x)
    embeddings = model.embed(x)
    assert embeddings.shape == (40, 16) and np.abs(embeddings).max() > 0
    command = [sys.executable, "-m", "sdjax.predict", f"--workdir={tmp_path / 'run'}"]
    command += [f"--input={toy_files / 'test.npz'}", f"--output={tmp_path / 'out.npz'}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The run stopped in phase 'pretrain', after step 4")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.npz").exists()


def test_a_run_without_a_checkpoint(toy_config, tmp_path):
    with opened(make_setup(toy_config), tmp_path):
        pass
    with pytest.raises(FileNotFoundError, match="has not saved a checkpoint yet"):
        load(tmp_path)
