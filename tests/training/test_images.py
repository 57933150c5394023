"""Runs on images: a published encoder, from a folder of images to predictions."""

import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from image_tables import COLOURS, write_images, write_table
from published_models import FOLDER

from sdjax.configs.image_folder import get_config
from sdjax.errors import InputError
from sdjax.models import pretrained
from sdjax.predict import predict
from sdjax.training import load, make_setup, score, train
from sdjax.training import run as run_module
from sdjax.training.mesh import make_mesh
from sdjax.training.state import make_model

VIT, RESNET = str(FOLDER / "vit"), str(FOLDER / "resnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for seed, (name, count) in enumerate({"train": 32, "test": 12}.items()):
        write_table(path / f"{name}.csv", *write_images(path / "files", count, seed))
    return path


def config_of(folder, encoder, weights):
    config = get_config()
    config.batch_size, config.supervise.epochs, config.augment.randaugment = 16, 2, 1
    config.data.train, config.data.test = str(folder / "train.csv"), str(folder / "test.csv")
    config.data.labels, config.data.images = ",".join(COLOURS), str(folder / "files")
    config.model.encoder, config.model.weights = encoder, weights
    config.model.projection_dim, config.report.retrieval_rows = 8, 0
    return config


def ready(config):
    return make_setup(config, mesh=make_mesh(devices=jax.devices()[:1]))


def arrays(state):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def assert_those_of(weights, published, *, members=1):
    """That the encoder of a run has the parameters and statistics of a published one."""
    _, *states = nnx.split(pretrained(published).module, nnx.Param, nnx.BatchStat, ...)
    for state, wanted in zip((weights.params, weights.variables), states):
        if not wanted:
            continue
        found, wanted = arrays(state["encoder"]), arrays(wanted)
        assert found.keys() >= wanted.keys()
        for path, value in wanted.items():
            for member in range(members):
                np.testing.assert_array_equal(found[path][member], value)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The shipped config, in small, on a vision transformer."""
    workdir = tmp_path_factory.mktemp("runs") / "vit"
    setup = ready(config_of(folder, "vit", VIT))
    results = score(setup, train(setup, workdir), workdir)
    return setup, workdir, results


def test_a_run_starts_from_the_published_weights_and_their_images(run):
    setup, _, results = run
    data, augment = setup.config.data, setup.config.augment
    assert (data.image_size, data.image_mean) == (12, (0.5, 0.4, 0.3))
    assert setup.dataset.preprocess.std == data.image_std == (0.25, 0.2, 0.3)
    assert (augment.pixel_mean, augment.pixel_std) == (data.image_mean, data.image_std)
    assert_those_of(setup.initial_state().best, VIT)
    assert np.isfinite(results["test"]["mAP"])


def test_predictions_of_files_and_tables(run, folder, tmp_path):
    _, workdir, _ = run
    model = load(workdir)
    names = pd.read_csv(folder / "test.csv")["image"].tolist()
    scores = model.predict_proba([str(folder / "files" / name) for name in names])
    assert predict(workdir, folder / "test.csv", tmp_path / "table.csv", labels=True) == 12
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["id"].tolist() == names
    np.testing.assert_allclose(table.filter(regex="^p_").to_numpy(), scores, atol=1e-5)
    assert predict(workdir, folder / "files", tmp_path / "folder.csv") == 44
    whole = pd.read_csv(tmp_path / "folder.csv").set_index("id").loc[names]
    np.testing.assert_allclose(whole.filter(regex="^p_").to_numpy(), scores, atol=1e-5)
    (tmp_path / "new.csv").write_text(f"file\n{names[2]}\n")
    arguments = (workdir, tmp_path / "new.csv", tmp_path / "one.csv", "file")
    assert predict(*arguments) == 1
    with pytest.raises(FileNotFoundError, match="1 image files are missing"):
        predict(*arguments, images="")


def test_a_run_starts_from_another_on_images(run, folder):
    first, workdir, _ = run
    config = config_of(folder, "vit", "")
    config.model.init_from = str(workdir)
    config.data.image_size = 16
    setup = ready(config)
    assert setup.config.data.image_mean == first.config.data.image_mean
    assert setup.dataset.input_spec.shape == (16, 16, 3)
    started = setup.initial_state().params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, started, load(workdir).weights.params["encoder"])


def resnet(folder, norm):
    config = config_of(folder, "resnet", RESNET)
    config.model.norm, config.model.members = norm, 2
    config.data.image_size, config.checkpoint_every = 16, 2
    config.augment = dataclasses.replace(config.augment, randaugment=0, jitter=0.2)
    return config


def test_batch_statistics_learn_and_a_run_resumes_exactly(folder, tmp_path, monkeypatch):
    setup = ready(resnet(folder, ""))
    assert_those_of(setup.initial_state().best, RESNET, members=2)
    before = setup.initial_state().aux["variables"]
    whole = jax.device_get(train(setup))
    after = whole.aux["variables"]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
    assert min(jax.tree.leaves(moved["encoder"])) > 0

    class StoppedError(Exception):
        pass

    original = run_module._Running.train_phase

    def stopping(self, *rest):
        save = self.checkpoints.save

        def saved(*what):
            save(*what)
            self.checkpoints.wait()
            raise StoppedError

        self.checkpoints.save = saved
        return original(self, *rest)

    monkeypatch.setattr(run_module._Running, "train_phase", stopping)
    with pytest.raises(StoppedError):
        train(setup, tmp_path / "parts")
    monkeypatch.undo()
    resumed = jax.device_get(train(setup, tmp_path / "parts"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_statistics_may_be_frozen(folder):
    setup = ready(resnet(folder, "frozen"))
    assert make_model(setup.config, setup.spec).encoder.frozen
    assert_those_of(setup.initial_state().best, RESNET, members=2)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"model.weights": ""}, "'vit' needs model.weights: a folder with config.json"),
        ({"model.norm": "batch"}, "Unknown model.norm of a vit 'batch'"),
        ({"model.encoder": "convnet"}, "'convnet' cannot load weights.* bert, vit, resnet"),
        ({"model.encoder": "resnet"}, "model_type of .*vit 'vit'.*Known: resnet"),
        ({"model.encoder": "bert"}, "model_type of .*vit 'vit'.*Known: bert"),
        ({"model.encoder": "resnet", "model.weights": RESNET, "model.norm": "group"}, "'group'"),
        ({"model.encoder": "resnet", "model.weights": RESNET, "model.pooling": "cls"}, "'cls'"),
        ({"data.image_mean": (0.5,), "data.image_std": (0.5,)}, "images of 3 channels.* have 1"),
        ({"data.train": "no.csv"}, "no.csv: no such file"),
    ],
)
def test_configs_that_cannot_be(folder, changes, text):
    config = config_of(folder, "vit", VIT)
    for name, value in changes.items():
        part, field = name.split(".")
        setattr(getattr(config, part), field, value)
    with pytest.raises((InputError, FileNotFoundError), match=text):
        ready(config)
