"""Runs in few-example mode: their batches, epochs, and what they leave alone."""

import dataclasses

import jax
import numpy as np

from sdjax.config import Config, DataConfig, PhaseConfig, sized, unused
from sdjax.configs import own_data
from sdjax.report import markdown
from sdjax.training import make_setup, score
from sdjax.training import run as run_module
from sdjax.training.mesh import make_mesh
from sdjax.training.recipes import with_enough_epochs
from sdjax.training.selection import select


def test_batches_and_epochs_suit_few_rows():
    config = Config(batch_size=120)
    config.supervise = PhaseConfig(epochs=10, min_steps=200)
    config.pretrain = PhaseConfig(epochs=10, stop_after=4)
    vector = jax.ShapeDtypeStruct((5,), np.float32)
    assert sized(config, 80, vector, 1).batch_size == 120  # which is refused
    assert with_enough_epochs(config, 3).supervise.epochs == 10
    config.data.examples_per_label = 8
    assert sized(config, 80, vector, 1).batch_size == 32
    assert sized(config, 500, vector, 1).batch_size == 120
    config.evaluate_every = 2
    longer = with_enough_epochs(config, 3)
    assert (longer.supervise.epochs, longer.pretrain.epochs) == (67, 10)
    assert longer.evaluate_every == 13
    assert with_enough_epochs(longer, 3) == longer
    assert with_enough_epochs(config, 20).supervise.epochs == 10


def test_floors_of_other_runs_are_named_as_unused():
    config = Config(recipe="finetune")
    config.supervise.min_steps = 50
    assert unused(config) == ["supervise.min_steps"]
    config.data.examples_per_label = 4
    assert unused(config) == []


def test_own_data_with_few_examples(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    y = (random.random((120, 4)) < 0.4).astype(int)
    np.savez(tmp_path / "all.npz", x=random.normal(size=(120, 5)), y=y)
    config = own_data.get_config()
    config.data = DataConfig(
        name="files",
        train=str(tmp_path / "all.npz"),
        validation="",
        test="",
        examples_per_label=4,
    )
    config.candidates = ("model.width=8 supervise.epochs=5",)
    setup = select(make_setup(config, mesh=make_mesh(devices=jax.devices()[:1])), tmp_path / "run")
    few = setup.dataset.few
    assert few is not None and few.kept == len(setup.dataset.train) <= 16
    # Validation is no training data here.
    assert not setup.config.refit and setup.refit is None
    assert setup.phases[-1].num_steps == 200  # of one batch an epoch
    fitted = []
    monkeypatch.setattr(
        run_module,
        "with_baselines",
        lambda results, _, data, rows, __: fitted.append(rows) or results,
    )
    monkeypatch.setattr(run_module, "write_report", lambda *args: None)
    results = score(setup, setup.initial_state(), tmp_path / "run")
    assert results is not None and results["few_examples"] == dataclasses.asdict(few)
    assert fitted == [(setup.dataset.train,)]
    results["baselines"] = {"extra_trees": {"mAP": 0.5}}
    assert "fitted on the rows of train." in markdown.baselines_text(results)
