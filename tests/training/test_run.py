import concurrent.futures
import dataclasses
import errno
import gc
import json
import os
import signal
import sys
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

import sdjax
from sdjax import retrieval
from sdjax.config import Config
from sdjax.data import ArraySource, Dataset
from sdjax.models import ENCODERS, register_encoder
from sdjax.report import baselines
from sdjax.training import (
    Interrupted,
    NonFiniteLossError,
    load,
    make_setup,
    print_results,
    score,
    train,
    with_saved_batch_size,
)
from sdjax.training import checkpoint as checkpoint_module
from sdjax.training import run as run_module
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.evaluate import make_forward, make_losses
from sdjax.training.logbook import Records, read_records
from sdjax.training.mesh import make_mesh
from sdjax.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("two_devices")


def final_params(workdir):
    return jax.tree.leaves(load(workdir).weights.params)


def records_without_rates(workdir):
    records = read_records(workdir / "metrics.jsonl")
    times = ("examples_per_second", "seconds")
    return [{k: v for k, v in r.items() if k not in times} for r in records]


def claim(config, workdir):
    """What a run does before its first step."""
    setup = make_setup(with_saved_batch_size(config, workdir))
    with run_module.opened(setup, workdir):
        return setup


def train_all(config, workdir):
    return train(make_setup(config), workdir)


def run_all(config, workdir):
    setup = make_setup(config)
    return score(setup, train(setup, workdir), workdir)


def results_of(config, workdir):
    """The same without a report, which takes as long as a short run."""
    setup = make_setup(config)
    return score(setup, train(setup, workdir))


@pytest.mark.parametrize("recipe", ["probe", "finetune", "joint", "bce"])
def test_every_recipe_learns(toy_config, tmp_path, recipe):
    toy_config.recipe = recipe
    toy_config.supervise.epochs = 30
    toy_config.supervise.learning_rate = 0.01
    toy_config.log_every = toy_config.evaluate_every = toy_config.checkpoint_every = 1000
    train_all(toy_config, tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    assert records[-1]["split"] == "validation"
    assert records[-1]["mAP"] > 0.9
    expected = {"probe": ["pretrain", "probe"], "finetune": ["pretrain", "finetune"]}
    phases = list(dict.fromkeys(record["phase"] for record in records))
    assert phases == expected.get(recipe, [recipe])


def test_fields_that_the_recipe_has_no_use_for_are_named(toy_config, caplog):
    toy_config.recipe, toy_config.pretrain.epochs = "probe", 3
    make_setup(toy_config)
    assert "no use" not in caplog.text
    toy_config.recipe = "bce"
    make_setup(toy_config)
    assert "Recipe 'bce' has no use for pretrain.epochs" in caplog.text


def test_a_run_leaves_results_and_a_report(toy_config, tmp_path):
    toy_config.model.members = 2
    results = run_all(toy_config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert {"test", "test_tuned", "validation", "thresholds"} <= results.keys()
    assert set(results["thresholds"]) == set(load(tmp_path).label_names)
    assert len(set(results["thresholds"].values())) == 1
    toy_config.thresholds = "per_label"
    assert len(set(results_of(toy_config, tmp_path)["thresholds"].values())) == 3
    assert (tmp_path / "report" / "report.md").exists()
    assert list((tmp_path / "events").glob("events.out.tfevents*"))


def test_the_report_says_how_the_run_was_made(toy_config, tmp_path):
    toy_config.model.members = 2
    setup = make_setup(toy_config)
    score(setup, train(setup, tmp_path), tmp_path, command="python train.py --x='a b'")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "- **Command**: `python train.py --x='a b'`" in text
    python = ".".join(map(str, sys.version_info[:3]))
    assert f"sdjax {sdjax.__version__}, jax {jax.__version__}, Python {python}" in text
    seconds = sum(r.get("seconds", 0) for r in read_records(tmp_path / "metrics.jsonl"))
    assert 0 < seconds < 60
    assert f"**Training took**: {seconds:,.1f} seconds" in text
    count = sum(leaf.size for leaf in jax.tree.leaves(load(tmp_path).weights.params))
    assert f"**Parameters**: {count:,}, of 2 members" in text
    assert "**Devices**: 2 cpu" in text


@pytest.mark.parametrize(
    ("recipe", "weight", "projected"),
    [("joint", 0.1, True), ("finetune", 0.1, True), ("joint", 0.0, False), ("bce", 0.1, False)],
)
def test_projections_are_reported_where_they_are_trained(
    toy_config, tmp_path, recipe, weight, projected
):
    toy_config.recipe, toy_config.contrastive_weight = recipe, weight
    run_all(toy_config, tmp_path)
    assert (tmp_path / "report" / "projection_map.png").exists() == projected


def test_projections_are_what_the_loss_compares(toy_config):
    toy_config.model.members, toy_config.model.dropout = 2, 0.0
    setup = make_setup(toy_config)
    weights = setup.initial_state().best
    x = setup.dataset.test.inputs(np.arange(40))
    scores, h, z = make_forward(setup.graph, setup.mesh, projects=True)(weights, x)
    assert z.shape == (40, 2 * toy_config.model.projection_dim)
    expected = []
    for member in range(2):
        model = nnx.merge(setup.graph, *jax.tree.map(lambda leaf, m=member: leaf[m], weights))
        raw = model.project(model.encode(x))
        expected.append(raw / jnp.linalg.norm(raw, axis=1, keepdims=True))
    np.testing.assert_allclose(z, jnp.concatenate(expected, axis=1), atol=1e-5)
    plain = make_forward(setup.graph, setup.mesh)(weights, x)
    np.testing.assert_array_equal(plain[0], scores)
    np.testing.assert_array_equal(plain[1], h)


def test_records_hold_train_and_validation_numbers(toy_config, tmp_path):
    train_all(toy_config, tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    train = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in train] == list(range(1, 11))
    assert {"loss", "contrastive", "bce", "gradient_norm", "learning_rate"} <= train[0].keys()
    validation = [record for record in records if record["split"] == "validation"]
    assert [record["epoch"] for record in validation] == [1.0, 2.0]
    assert {"loss", "contrastive", "bce", "mAP", "micro_f1"} <= validation[0].keys()


def test_signals_save_and_the_next_run_ends_the_same(toy_config, tmp_path, monkeypatch):
    toy_config.recipe, toy_config.checkpoint_every = "finetune", 4
    toy_config.pretrain.ema_decay = 0.9
    whole = results_of(toy_config, tmp_path / "whole")
    finite_means = run_module.finite_means
    signals = {2: signal.SIGTERM, 9: signal.SIGINT}

    def finite_means_and_signal(pending, step, phase):
        if step in signals:
            os.kill(os.getpid(), signals.pop(step))
        return finite_means(pending, step, phase)

    monkeypatch.setattr(run_module, "finite_means", finite_means_and_signal)
    cut = tmp_path / "cut"
    # Noticed after the next step: amid a phase, and at the end of one.
    for step, number in ((3, signal.SIGTERM), (10, signal.SIGINT)):
        with pytest.raises(Interrupted, match=rf"{number.name} after step {step}; saved") as caught:
            train_all(toy_config, cut)
        assert caught.value.code == 128 + number
        assert (cut / "checkpoints" / str(step)).exists()
    assert results_of(toy_config, cut) == whole
    jax.tree.map(np.testing.assert_array_equal, final_params(tmp_path / "whole"), final_params(cut))
    assert records_without_rates(cut) == records_without_rates(tmp_path / "whole")


def test_a_run_amid_a_phase_with_a_queue_goes_on_on_fewer_devices(
    toy_config, tmp_path, monkeypatch
):
    toy_config.recipe, toy_config.model.members = "finetune", 2
    toy_config.queue.size, toy_config.queue.momentum = 48, 0.8
    toy_config.pretrain.ema_decay, toy_config.loss.learn_temperature = 0.9, True
    toy_config.pretrain.learning_rates = "loss=10"
    setup = make_setup(toy_config, mesh=make_mesh(devices=jax.devices()[:4]))
    train(setup, tmp_path / "whole")
    finite_means, signals = run_module.finite_means, {6}

    def finite_means_and_signal(pending, step, phase):
        if step in signals:
            signals.remove(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return finite_means(pending, step, phase)

    monkeypatch.setattr(run_module, "finite_means", finite_means_and_signal)
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted, match="after step 7; saved"):
        train(setup, cut)
    setup = make_setup(toy_config)
    assert "queue" in setup.abstract_state(setup.position(7)).aux
    state = train(setup, cut)
    assert "queue" not in state.aux  # The second phase has none.
    for whole, found in zip(final_params(tmp_path / "whole"), final_params(cut), strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-4)
    losses = [[r["loss"] for r in records_without_rates(tmp_path / n)] for n in ("whole", "cut")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_signal_in_the_last_save_is_not_lost(toy_config, tmp_path, monkeypatch):
    save = Checkpoints.save

    def signal_and_save(self, step, *given):
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(self, step, *given)

    monkeypatch.setattr(Checkpoints, "save", signal_and_save)
    with pytest.raises(Interrupted, match="SIGTERM after step 10; saved"):
        train_all(toy_config, tmp_path)
    assert (tmp_path / "checkpoints" / "10").exists()
    assert int(train_all(toy_config, tmp_path).step) == 10


def test_a_checkpoint_that_cannot_be_read_now_stops_the_run(toy_config, tmp_path, monkeypatch):
    """It may be sound: nothing is set aside, and nothing trained anew."""
    train_all(toy_config, tmp_path)
    folder = tmp_path / "checkpoints"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    records = (tmp_path / "metrics.jsonl").read_text()

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint_module, "read_alone", fail)
    with pytest.raises(OSError, match=r"The checkpoint of step 10 in .* Run the same command aga"):
        train_all(toy_config, tmp_path)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not (tmp_path / "broken_checkpoints").exists()
    assert (tmp_path / "metrics.jsonl").read_text() == records
    monkeypatch.undo()
    assert int(train_all(toy_config, tmp_path).step) == 10


def test_a_finished_run_only_tests_again(toy_config, tmp_path, capsys):
    first = results_of(toy_config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert results_of(toy_config, tmp_path) == first
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert "The run is finished, after step 10: it is only tested." in capsys.readouterr().err


def test_baselines_stand_beside_the_result(toy_config, tmp_path, monkeypatch, capsys):
    toy_config.report.baselines = True
    results = run_all(toy_config, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    found = results["baselines"]
    for name in ("extra_trees", "logistic_regression"):
        assert found[name]["mAP"] > 0.9
        assert found[name].keys() == results["test"].keys()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| extra trees, test | logistic regression, test |" in text
    assert "Baselines: extra trees and logistic regression, 20 sec" in capsys.readouterr().err
    print_results(results, Console(width=120))
    told = capsys.readouterr().out
    (row,) = (line for line in told.splitlines() if "mAP" in line and "│" in line)
    scores = [results["test"], results["test_tuned"], *found.values()]
    assert [float(cell) for cell in row.split("│")[2:-1]] == [
        round(each["mAP"], 4) for each in scores
    ]
    ahead = [n for n in found if found[n]["mAP"] > results["test"]["mAP"]]
    assert ahead
    assert f"Ahead of this run in mAP: {ahead[0].replace('_', ' ')}, by" in told
    # They are fitted on the rows of train and validation, as the model sees them, and only once.
    compared = []
    compare = baselines.compare

    def noted(x, labels, x_test, *args, **kwargs):
        compared.append((x, labels, x_test, kwargs["known"]))
        return compare(x, labels, x_test, *args, **kwargs)

    monkeypatch.setattr(baselines, "compare", noted)
    assert run_all(toy_config, tmp_path) == results
    ((x, labels, x_test, known),) = compared
    assert known == found
    data = make_setup(toy_config).dataset
    np.testing.assert_array_equal(x[:70], data.train.inputs(np.arange(70)))
    np.testing.assert_array_equal(x[70:], data.validation.inputs(np.arange(24)))
    np.testing.assert_array_equal(x_test, data.test.inputs(np.arange(40)))
    np.testing.assert_array_equal(labels[70:], data.validation.labels)
    assert "Baselines:" not in capsys.readouterr().err
    # Those of other data are no use.
    other = json.loads((tmp_path / "data.json").read_text())
    other["test"]["checksum"] = "another"
    (tmp_path / "data.json").write_text(json.dumps(other))
    score(make_setup(toy_config), make_setup(toy_config).initial_state(), tmp_path)
    assert compared[-1][-1] == {}


def test_baselines_are_not_fitted_where_rows_are_many(toy_config, tmp_path, capsys):
    toy_config.report.baselines, toy_config.report.baseline_rows = True, 93
    results = run_all(toy_config, tmp_path)
    text = "94 rows are more than report.baseline_rows (93)."
    assert [each["left_out"] for each in results["baselines"].values()] == [text, text]
    assert f"Baselines left out: {text}" in (tmp_path / "report" / "report.md").read_text()
    print_results(results, Console())
    assert capsys.readouterr().out.count(text) == 1
    toy_config.report.baselines = False
    assert "baselines" not in run_all(toy_config, tmp_path)


def test_non_finite_loss_names_the_step_and_keeps_what_is_saved(toy_config, tmp_path, monkeypatch):
    make_train_step = run_module.make_train_step

    def poisoned(*args):
        step = make_train_step(*args)

        def wrapped(state, batch):
            if int(state.step) == 4:
                batch = {**batch, "x": batch["x"] * np.nan}
            return step(state, batch)

        return wrapped

    monkeypatch.setattr(run_module, "make_train_step", poisoned)
    toy_config.log_every, toy_config.checkpoint_every = 50, 3
    with pytest.raises(NonFiniteLossError, match="The loss is nan at step 5 .phase 'joint'"):
        train_all(toy_config, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert np.isfinite(train_all(toy_config, tmp_path).step)


def test_workdir_of_another_config(toy_config, tmp_path):
    claim(toy_config, tmp_path)
    toy_config.loss.temperature = 0.3
    toy_config.batch_size = 8
    text = (
        r"another config \(batch_size: there 16, here 8; loss.temperature: there 0.07, here 0.3\). "
        rf"Choose another, such as --workdir={tmp_path}_batch_size=8_temperature=0.3, or remove"
    )
    with pytest.raises(ValueError, match=text):
        claim(toy_config, tmp_path)


def test_unwritable_workdir(toy_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"workdir .*file/run cannot be written to: Not a directory"):
        claim(toy_config, tmp_path / "file" / "run")


def test_full_disk(toy_config, tmp_path, monkeypatch):
    free = dataclasses.make_dataclass("Usage", ["free"])(free=2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    with pytest.raises(OSError, match=r"needs about \d+ MiB .* has 1 MiB left"):
        claim(toy_config, tmp_path)


def test_batch_larger_than_the_split(toy_config, tmp_path):
    toy_config.batch_size = 128
    with pytest.raises(ValueError, match="1 to the 70 examples of the train split, got 128"):
        claim(toy_config, tmp_path)


def test_batch_that_the_devices_cannot_share(toy_config, tmp_path):
    toy_config.batch_size = 13
    with pytest.raises(ValueError, match="multiple of the 2 devices, got 13; .* 12 and 14"):
        claim(toy_config, tmp_path)


def test_microbatches_that_the_devices_cannot_share(toy_config, tmp_path):
    toy_config.microbatches = 12
    text = "multiple of the 2 devices × 12 microbatches, got 16; the least is 24"
    with pytest.raises(ValueError, match=text):
        claim(toy_config, tmp_path)


@pytest.mark.parametrize(
    ("data", "fsdp", "text"),
    [
        (0, 3, "mesh.fsdp=3 does not fit the 2 devices"),
        (3, 2, "mesh.data=3 × mesh.fsdp=2 does not fit the 2 devices"),
    ],
)
def test_a_mesh_that_does_not_fit(toy_config, tmp_path, data, fsdp, text):
    toy_config.mesh.data, toy_config.mesh.fsdp = data, fsdp
    with pytest.raises(ValueError, match=text):
        claim(toy_config, tmp_path)


def test_a_workdir_in_a_bucket(toy_config):
    with pytest.raises(ValueError, match="workdir gs:/bucket/run is a URL, not a folder: mount"):
        claim(toy_config, Path("gs://bucket/run"))


def test_how_a_run_is_carried_out_may_change(toy_config, tmp_path):
    """Devices, memory and log may change when a run resumes; what it computes may not."""
    train_all(toy_config, tmp_path)
    toy_config.mesh.fsdp, toy_config.microbatches, toy_config.log_every = 2, 2, 7
    toy_config.model.remat, toy_config.loss.implementation = True, "ring"
    assert int(train_all(toy_config, tmp_path).step) == 10
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["fsdp"] == 2
    toy_config.model.dtype = "bfloat16"
    text = r"another config .model.dtype: there 'float32', here 'bfloat16'."
    with pytest.raises(ValueError, match=text):
        claim(toy_config, tmp_path)


def test_an_open_batch_size_stays_what_it_was(toy_config, tmp_path):
    claim(toy_config, tmp_path)
    toy_config.batch_size = 0
    assert claim(toy_config, tmp_path).config.batch_size == 16


def test_supcon_needs_single_labels(toy_config, tmp_path):
    toy_config.loss.name = "supcon"
    with pytest.raises(ValueError, match=r"needs exactly one label an example, got \d in row"):
        claim(toy_config, tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("model.encoder", "mpl", "Unknown encoder 'mpl'. Did you mean 'mlp'"),
        ("model.encoder", "convnet", "'convnet' does not fit inputs of shape"),
        ("model.depth", 0, "model.depth must be a whole number, at least 1, got 0"),
        ("loss.normalizer", "labels", "loss.normalizer is for mulsupcon, not for 'sd'"),
        ("augment.feature_mask", 1.5, "augment.feature_mask must be a number, at least 0, below 1"),
        ("supervise.learning_rates", "head=2", "Unknown part of learning_rates 'head'"),
        ("queue.size", 24, "queue.size must be a multiple of batch_size 16, got 24"),
        ("model.weights", "some/file", "model.weights: encoder 'mlp' cannot load weights"),
        ("model.init_from", "nowhere", "nowhere is not the workdir of a run"),
    ],
)
def test_a_config_that_fails_claims_no_workdir(toy_config, tmp_path, path, value, text):
    *parents, name = path.split(".")
    target = toy_config
    for parent in parents:
        target = getattr(target, parent)
    before = getattr(target, name)
    setattr(target, name, value)
    workdir = tmp_path / "run"
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        train_all(toy_config, workdir)
    assert not workdir.exists()
    setattr(target, name, before)
    claim(toy_config, workdir)


def test_an_encoder_that_fails_claims_no_workdir(toy_config, tmp_path, monkeypatch):
    """What no check foresees shows when the step is traced, before anything is written."""

    class Broken(nnx.Module):
        out_features = 16

        def __call__(self, x, *, rngs=None, where=None):
            return x @ jnp.ones((3, 16))

    monkeypatch.setattr("sdjax.models.registry.ENCODERS", dict(ENCODERS))
    register_encoder("broken", lambda config, spec, rngs: Broken())
    toy_config.model.encoder = "broken"
    with pytest.raises(TypeError, match="dot_general"):
        train_all(toy_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_changed_under_a_run(toy_config, toy_files, tmp_path):
    train_all(toy_config, tmp_path / "run")
    with np.load(toy_files / "train.npz") as file:
        fewer = {name: file[name][:60] for name in file}
    changed = tmp_path / "train.npz"
    np.savez(changed, **fewer)
    toy_config.data.train = str(changed)
    with pytest.raises(ValueError, match=r"a run on other data: changed since then: train\."):
        train_all(toy_config, tmp_path / "run")


def test_the_same_data_under_another_path_and_another_validation_interval(
    toy_config, toy_files, tmp_path
):
    """What a run computes is the same: it resumes."""
    train_all(toy_config, tmp_path / "run")
    for split in ("train", "validation", "test"):
        path = tmp_path / f"copy_of_{split}.npz"
        path.write_bytes((toy_files / f"{split}.npz").read_bytes())
        setattr(toy_config.data, split, str(path))
    toy_config.evaluate_every = 2
    assert int(train_all(toy_config, tmp_path / "run").step) == 10
    toy_config.data.split_seed = 1
    with pytest.raises(ValueError, match=r"another config .data.split_seed: there 0, here 1."):
        train_all(toy_config, tmp_path / "run")


def test_the_config_of_another_version(toy_config, tmp_path):
    claim(toy_config, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"width"', '"breadth"'))
    text = r"was written by another version of sdjax.*Unknown config field 'breadth'"
    with pytest.raises(ValueError, match=text):
        claim(toy_config, tmp_path)


def test_the_best_checkpoint_is_kept_and_tested(toy_config, tmp_path, monkeypatch):
    figures = iter([0.2, 0.7, 0.4, 0.6])
    make_validate = run_module.make_validate

    def validate_as_told(*args):
        validate = make_validate(*args)
        return lambda state: {**validate(state), "mAP": next(figures)}

    monkeypatch.setattr(run_module, "make_validate", validate_as_told)
    restore_best, gone = Checkpoints.restore_best, []

    def restore_and_note(self, abstract_state):
        gc.collect()
        gone.append(last() is None)
        return restore_best(self, abstract_state)

    monkeypatch.setattr(Checkpoints, "restore_best", restore_and_note)
    train_phase, last = run_module._Running.train_phase, None

    def train_phase_and_note(*given):
        nonlocal last
        state = train_phase(*given)
        last = weakref.ref(jax.tree.leaves(state.opt_state)[-1])
        return state

    monkeypatch.setattr(run_module._Running, "train_phase", train_phase_and_note)
    toy_config.supervise.epochs, toy_config.keep_checkpoints = 4, 1
    toy_config.checkpoint_every, toy_config.select_by = 1000, "mAP"
    setup = make_setup(toy_config)
    state = train(setup, tmp_path)
    assert int(state.step) == 10
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
    assert gone == [True]  # There may be no room for two states.
    best = score(setup, state, tmp_path)
    assert (
        "Tested**: step 10, the best by validation mAP"
        in (tmp_path / "report" / "report.md").read_text()
    )
    assert load(tmp_path).step == 10
    # The finished run is tested again alike, and the last step is still there to go on from.
    assert score(setup, train(setup, tmp_path), tmp_path) == best
    with run_module.opened(setup, tmp_path) as checkpoints:
        assert int(checkpoints.restore_newest(setup.abstract_state)[0].step) == 20


def test_without_a_workdir_nothing_is_written_and_no_main_thread_is_needed(
    toy_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    setup = make_setup(toy_config)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        results = pool.submit(lambda: score(setup, train(setup))).result()
    assert results == results_of(toy_config, tmp_path / "written")
    assert [path.name for path in tmp_path.iterdir()] == ["written"]
    toy_config.select_by = "mAP"
    with pytest.raises(
        ValueError, match="select_by keeps the best checkpoint, and needs a workdir"
    ):
        train(make_setup(toy_config))


def test_seeds_of_a_setup_share_what_is_compiled(toy_config):
    setup = make_setup(toy_config)
    caches = (make_train_step, make_losses, make_forward)
    states, built = [], []
    for seed in (0, 1):
        states.append(train(setup.with_seed(seed)))
        built.append([cache.cache_info().misses for cache in caches])
    kernels = [np.asarray(jax.tree.leaves(state.params)[0]) for state in states]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    assert built[0] == built[1]


def test_the_network_is_built_once_for_all_runs_of_a_kind(toy_config, tmp_path, monkeypatch):
    """Also for a run with another seed and diary, and for those who use its model."""
    train_all(toy_config, tmp_path / "first")
    monkeypatch.setattr("sdjax.training.state.Model", lambda *_, **__: pytest.fail("built anew"))
    toy_config.seed, toy_config.log_every = 5, 2
    train_all(toy_config, tmp_path / "second")
    load(tmp_path / "second")


def test_logged_training_values_are_means_of_the_interval(toy_config, tmp_path):
    train_all(toy_config, tmp_path / "each")
    toy_config.log_every = 5
    toy_config.checkpoint_every = 1000
    train_all(toy_config, tmp_path / "fifth")
    each, fifth = (
        [r for r in read_records(tmp_path / name / "metrics.jsonl") if r["split"] == "train"]
        for name in ("each", "fifth")
    )
    assert [record["step"] for record in fifth] == [5, 10]
    for name in ("loss", "contrastive", "bce", "gradient_norm"):
        means = [np.mean([r[name] for r in each[k : k + 5]]) for k in (0, 5)]
        np.testing.assert_allclose([r[name] for r in fifth], means, rtol=1e-6)


def test_label_indices_train_as_multi_hot_labels_do(toy_config, toy_files, tmp_path):
    wanted = results_of(toy_config, tmp_path / "multi_hot")
    for length in (3, 5):  # as many as classes, and more
        workdir = tmp_path / f"lists_of_{length}"
        for split in ("train", "validation", "test"):
            with np.load(toy_files / f"{split}.npz") as file:
                x, labels = file["x"], file["labels"]
            indices = np.full((len(labels), length), -1)
            for row, present in enumerate(labels):
                places = np.flatnonzero(present)
                indices[row, : len(places)] = places
            path = tmp_path / f"{split}_{length}.npz"
            np.savez(path, x=x, labels=indices, num_classes=3)
            setattr(toy_config.data, split, str(path))
        found = run_all(toy_config, workdir)
        for name in ("mAP", "micro_auc"):
            np.testing.assert_allclose(found["test"][name], wanted["test"][name], rtol=1e-6)
        losses = [
            [r["loss"] for r in read_records(folder / "metrics.jsonl")]
            for folder in (tmp_path / "multi_hot", workdir)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        assert load(workdir).predict_proba(x).shape == (40, 3)


def test_a_run_starts_from_the_weights_of_another(toy_config, tmp_path):
    toy_config.recipe = "probe"
    train_all(toy_config, tmp_path / "first")
    first = load(tmp_path / "first")
    toy_config.recipe, toy_config.seed = "bce", 5
    toy_config.supervise.learning_rate = 0.0
    toy_config.model.init_from = str(tmp_path / "first")
    toy_config.model.members = 2
    setup = make_setup(toy_config)
    state = setup.initial_state()
    for part in ("encoder", "projection", "classifier"):
        for old, new in zip(
            jax.tree.leaves(first.weights.params[part]), jax.tree.leaves(state.params[part])
        ):
            np.testing.assert_array_equal(new, np.concatenate([old, old]))
    # What is traced, compiled and restored is of one structure.
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract_state(setup.position(0)))
    toy_config.model.width = 24
    text = r"its model is of another shape \(encoder.layers.0.bias: \(16,\) there, \(24,\) here"
    with pytest.raises(ValueError, match=text):
        make_setup(toy_config)


def test_an_encoder_that_replaces_another_of_its_name(toy_config, monkeypatch):
    """As it is while one is written in a notebook: nothing of the old one is kept."""

    class Scaled(nnx.Module):
        def __init__(self, scale, rngs):
            start = nnx.initializers.constant(scale)
            self.linear = nnx.Linear(6, 16, kernel_init=start, rngs=rngs)
            self.out_features = 16

        def __call__(self, x, *, rngs=None, where=None):
            return self.linear(x)

    toy_config.model.encoder = "own"
    monkeypatch.setitem(ENCODERS, "own", None)
    for scale in (1.0, 2.0):
        register_encoder("own", lambda config, spec, rngs, scale=scale: Scaled(scale, rngs))
        kernel = make_setup(toy_config).initial_state().params["encoder"]["linear"]["kernel"]
        np.testing.assert_array_equal(kernel, np.full((1, 6, 16), scale))


def test_an_encoder_of_ones_own_with_several_inputs_and_weights(tmp_path, monkeypatch):
    """From a pytree of arrays to test figures, by a registered encoder that loads a file."""

    class Bags(nnx.Module):
        def __init__(self, config, spec, rngs):
            self.table = nnx.Embed(spec["bound"].shape[0] + 8, config.width, rngs=rngs)
            self.linear = nnx.Linear(2, config.width, rngs=rngs)
            self.out_features = config.width

        def __call__(self, x, *, rngs=None, where=None):
            words = jnp.where(x["mask"][..., None], self.table(x["ids"]), 0).sum(axis=1)
            return nnx.relu(words + self.linear(x["bound"]))

    def load_table(module, path):
        module.table.embedding[...] = jnp.asarray(np.load(path))

    monkeypatch.setattr("sdjax.models.registry.ENCODERS", dict(ENCODERS))
    register_encoder("bags", Bags, takes="{ids, mask, bound}", load=load_table)
    rng = np.random.default_rng(0)
    sources = []
    for size in (48, 16, 16):
        ids = rng.integers(0, 10, (size, 4)).astype(np.int32)
        labels = np.stack([(ids == k).any(axis=1) for k in range(3)], axis=1).astype(np.uint8)
        inputs = {
            "ids": ids,
            "mask": np.ones((size, 4), bool),
            "bound": rng.normal(size=(size, 2)).astype(np.float32),
        }
        sources.append(ArraySource(inputs, labels))
    dataset = Dataset("bags", *sources, label_names=("a", "b", "c"))
    table = rng.normal(size=(10, 16)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)
    config = Config(recipe="joint", batch_size=16)
    config.model.encoder, config.model.width = "bags", 16
    config.model.weights = str(tmp_path / "table.npy")
    config.supervise.epochs, config.supervise.learning_rate = 40, 0.02
    setup = make_setup(config, dataset=dataset)
    np.testing.assert_array_equal(
        setup.initial_state().params["encoder"]["table"]["embedding"][...][0], table
    )
    assert score(setup, train(setup))["test"]["mAP"] > 0.8
    config.model.encoder, config.model.weights = "mlp", ""
    with pytest.raises(ValueError, match=r"'mlp' does not fit inputs of shape .*'ids'"):
        make_setup(config, dataset=dataset)


def test_records_drops_what_a_resumed_run_repeats(tmp_path):
    records = Records(tmp_path, 0)
    for step in (1, 2, 3):
        records.write({"step": step, "split": "train", "loss": step / 2})
    records.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    Records(tmp_path, 2).close()
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("case", ["rare", "single", "images", "unlabelled validation"])
def test_data_at_the_edge_train_and_test(toy_config, tmp_path, case):
    """Empty label sets with labels that never occur; one label; images; no metric to select by."""
    rng = np.random.default_rng(0)
    # The sizes of the toy data, so that programs are shared with other tests.
    for split, size in (("train", 70), ("validation", 24), ("test", 40)):
        x = rng.normal(size=(size, 8, 8) if case == "images" else (size, 6)).astype(np.float32)
        labels = (rng.random((size, 1 if case == "single" else 3)) < 0.3).astype(np.uint8)
        if case == "rare":
            labels[:, 1:] = 0
            labels[: size // 2] = 0
        if case == "unlabelled validation" and split == "validation":
            labels[:] = 0
        np.savez(tmp_path / f"{split}.npz", x=x, labels=labels)
        setattr(toy_config.data, split, str(tmp_path / f"{split}.npz"))
    if case == "images":
        toy_config.model.depth = 1
        toy_config.augment.shift = 1
    toy_config.report.baselines = True
    results = run_all(toy_config, tmp_path / "run")
    test = results["test"]
    if case == "images":
        assert "baselines" not in results
    else:
        assert all(0 <= each["mAP"] <= 1 for each in results["baselines"].values())
    assert 0 <= test["mAP"] <= 1
    assert test["counts"]["labels_without_positive"] == (2 if case == "rare" else 0)
    losses = [record["loss"] for record in read_records(tmp_path / "run" / "metrics.jsonl")]
    assert np.isfinite(losses).all()
    toy_config.select_by = "mAP"
    if case == "unlabelled validation":
        assert results["validation"]["mAP"] is None
        with pytest.raises(ValueError, match="select_by='mAP' needs a label in the validation sp"):
            make_setup(toy_config)
    else:
        make_setup(toy_config)


def test_retrieval_is_that_of_the_embeddings(toy_config, tmp_path, caplog):
    setup = make_setup(toy_config)
    state = train(setup, tmp_path)
    results = score(setup, state, tmp_path)
    dataset = setup.dataset
    tested, gallery = (
        run_module.outputs(setup, state, s, projects=True) for s in (dataset.test, dataset.train)
    )
    for name, z, rows in (
        ("h", tested.embeddings, gallery.embeddings),
        ("z", tested.projections, gallery.projections),
    ):
        expected = retrieval.evaluate(
            z, dataset.test.labels, rows, dataset.train.labels, k=50, few=10
        )
        expected["linear_mAP"] = retrieval.linear_probe(
            z, dataset.test.labels, rows, dataset.train.labels
        )
        assert results["retrieval"][name].keys() == expected.keys()
        for metric, value in expected.items():
            assert results["retrieval"][name][metric] == pytest.approx(value), metric
        assert expected["ndcg_at_50"] > 0.5
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"| {results['retrieval']['z']['ndcg_at_50']:.4f} |" in text
    toy_config.report.retrieval_rows = 60
    none = score(make_setup(toy_config), state, tmp_path)
    assert "retrieval" not in none
    assert "neighbours: 70 rows are more than report.retrieval_rows (60)." in caplog.text
