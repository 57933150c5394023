"""A whole study on small data: what is run, what is left on disk, and what goes on."""

import copy
import dataclasses
import functools
import json
import os
import shutil
import signal
import time

import browser
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from toys import write_toy_files

from sdjax.errors import InputError
from sdjax.study import runs, study, tuning
from sdjax.study.plan import DataSet, Plan
from sdjax.study.space import Parameter
from sdjax.training import Interrupted, make_setup, score, train

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture(scope="module")
def plan(toy_config):
    """Two methods, one of which fails with large batches, and a model of scikit-learn."""
    grid = {"recipe": ("joint", "bce"), "batch_size": ("16", "1000")}
    return Plan({"toy": DataSet(toy_config)}, grid, seeds=2, baselines=("nearest_neighbors",))


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory):
    """(folder, table) of the study."""
    workdir = tmp_path_factory.mktemp("study")
    return workdir, study.run(plan, workdir, title="Toys", told="python -m sdjax.study --seeds=2")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """No reports but that of `finished`: drawing takes most of the time."""
    monkeypatch.setattr(study._Study, "write_report", lambda *_: None)


def figures(frame):
    return frame.drop(columns="seconds")


def test_the_table_has_a_row_a_run(finished, plan, toy_config):
    workdir, frame = finished
    assert list(zip(frame["method"], frame["seed"], frame["status"])) == [
        ("joint batch_size=16", 0, "done"),
        ("joint batch_size=16", 1, "done"),
        ("joint batch_size=1000", 0, "failed"),
        ("joint batch_size=1000", 1, "failed"),
        ("bce batch_size=16", 0, "done"),
        ("bce batch_size=16", 1, "done"),
        ("bce batch_size=1000", 0, "failed"),
        ("bce batch_size=1000", 1, "failed"),
        # It has no seed, and is fitted once.
        ("k nearest neighbours", 0, "done"),
    ]
    pd.testing.assert_frame_equal(pd.read_parquet(workdir / "runs.parquet"), frame)
    # Each run is the one of the command that the table names.
    run = frame.iloc[5]
    assert run["command"] == " ".join(
        f"--config.{name}={value}"
        for name, value in (
            *(("recipe", "bce"), ("seed", 1), ("batch_size", 16)),
            *((f"data.{k}", getattr(toy_config.data, k)) for k in ("name", *runs.SPLITS)),
            *(("model.width", 8), ("model.projection_dim", 4), ("supervise.epochs", 1)),
        )
    )
    setup = make_setup(dataclasses.replace(toy_config, recipe="bce", seed=1))
    alone = score(setup, train(setup), retrieves=True)
    assert run["test.mAP"] == alone["test"]["mAP"]
    assert run["test_tuned.micro_f1"] == alone["test_tuned"]["micro_f1"]
    assert run["test.tail.mAP"] == alone["test"]["groups"]["tail"]["mAP"]
    assert run["retrieval.h.exact_at_10"] == alone["retrieval"]["h"]["exact_at_10"]
    assert (run["recipe"], run["batch_size"]) == ("bce", 16)
    assert np.isnan(run["retrieval.z.exact_at_10"])  # bce projects nothing
    # Neighbours by the raw inputs, and a linear classifier on them.
    assert 0.5 < frame.iloc[8]["retrieval.h.linear_mAP"] <= 1
    assert "batch_size" in frame.iloc[3]["error"] and "1000" in frame.iloc[3]["error"]


def test_the_report_tells_of_all_of_it(finished):
    text = browser.parsed(finished[0] / "report" / "report.html")
    for part in (
        "Toys",
        "--seeds=2",
        "9, 4 of which failed",
        "bce batch_size=16",
        "InputError: batch",
    ):
        assert part in text, part


def test_the_report_shows_relations_and_needs_no_data(
    finished, plan, tmp_path, monkeypatch, capsys
):
    workdir = shutil.copytree(finished[0], tmp_path / "study")
    # The first run of each method has a map.
    assert sorted(path.parts[-3:-1] for path in workdir.glob("runs/*/*/*/map.json")) == [
        (path.name, "0") for path in sorted(workdir.glob("runs/toy/*_batch_size=16-*"))
    ]
    assert {path.name for path in workdir.glob("report/*_toy.*")} >= {
        *("gradients_toy.svg", "maps_toy.png")
    }

    def lost(*_):
        raise FileNotFoundError("train.npz")

    monkeypatch.setattr(runs.Data, "dataset", lost)
    again = study._Study(plan, workdir, None, False, Console(width=200, stderr=True))
    assert list(again._relations()["toy"].losses) == ["sd"]
    (workdir / "relations" / "toy.json").unlink()
    assert again._relations() == {}
    assert "toy: its relations are left out of the report: train.npz" in capsys.readouterr().err


def test_only_what_is_missing_is_made(finished, plan, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished[0], tmp_path / "study")
    made = []
    real = {name: getattr(runs, name) for name in ("fit", "fit_baseline")}

    def counted(name, *arguments):
        made.append(arguments)
        return real[name](*arguments)

    for name in real:
        monkeypatch.setattr(runs, name, functools.partial(counted, name))
    again = study.run(plan, workdir)
    assert made == []
    pd.testing.assert_frame_equal(again, finished[1])
    (removed,) = workdir.glob("runs/toy/joint_batch_size=16-*/1")
    shutil.rmtree(removed)
    # What was being written when the process was killed is no run.
    removed.mkdir()
    (removed / "run.tmp").write_text("{")
    again = study.run(plan, workdir)
    assert [config.seed for _, config, *_ in made] == [1]
    pd.testing.assert_frame_equal(figures(again), figures(finished[1]))
    made.clear()
    study.run(plan, workdir, retry_failed=True)
    assert len(made) == 4


def test_an_interrupted_study_goes_on(finished, plan, tmp_path, monkeypatch):
    real, made = runs.fit, []

    def stops_in_the_second(*arguments):
        made.append(arguments)
        if len(made) == 2:
            raise Interrupted(15, "after step 3; nothing is saved.")
        return real(*arguments)

    monkeypatch.setattr(runs, "fit", stops_in_the_second)
    with pytest.raises(Interrupted, match="in a run of the study; the same command goes on"):
        study.run(plan, tmp_path)
    assert len(pd.read_parquet(tmp_path / "runs.parquet")) == 1
    pd.testing.assert_frame_equal(figures(study.run(plan, tmp_path)), figures(finished[1]))


def test_sigterm_between_steps_leaves_the_table(toy_config, tmp_path, monkeypatch):
    """As a scheduler sends it, here while a model of scikit-learn is fitted."""

    def fit(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(runs, "fit", lambda *_: {"results": {}})
    monkeypatch.setattr(study, "headline", lambda entry: "")
    monkeypatch.setattr(runs, "fit_baseline", fit)
    plan = Plan({"toy": DataSet(toy_config)}, baselines=("nearest_neighbors",))
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM would end the process"))
    try:
        with pytest.raises(Interrupted, match="SIGTERM in a run of the study; the same command"):
            study.run(plan, tmp_path)
        assert len(pd.read_parquet(tmp_path / "runs.parquet")) == 1
        assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_data_that_changed_is_an_error(toy_config, tmp_path, monkeypatch):
    config = dataclasses.replace(toy_config, data=dataclasses.replace(toy_config.data))
    write_toy_files(tmp_path)
    for split in runs.SPLITS:
        setattr(config.data, split, str(tmp_path / f"{split}.npz"))
    monkeypatch.setattr(runs, "fit", lambda *_: {"results": {}})
    monkeypatch.setattr(study, "headline", lambda entry: "")
    plan = Plan({"toy": DataSet(config)}, seeds=1)
    study.run(plan, tmp_path / "study")
    write_toy_files(tmp_path, seed=1)
    study.run(plan, tmp_path / "study")  # Nothing is left to be made, and nothing is.
    with pytest.raises(InputError, match="'toy' has changed since its first runs: train, valid"):
        study.run(dataclasses.replace(plan, seeds=2), tmp_path / "study")
    with study._locked(tmp_path), pytest.raises(InputError, match="Another study is at work in"):
        study.run(plan, tmp_path)


def test_a_budget_holds_whole_rounds_of_seeds(plan, tmp_path, monkeypatch, capsys):
    clock = [0.0]

    def run(*arguments):
        clock[0] += 10
        return {"results": {}}

    monkeypatch.setattr(runs, "fit", run)
    monkeypatch.setattr(runs, "fit_baseline", run)
    monkeypatch.setattr(study, "headline", lambda entry: "")
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    plan = dataclasses.replace(plan, seeds=9)
    frame = study.run(plan, tmp_path, budget=155, console=Console(width=200, stderr=True))
    # 50 seconds for the first round, with the model of scikit-learn, 40 for each of the others.
    assert frame["seed"].value_counts().to_dict() == {0: 5, 1: 4, 2: 4}
    assert "The time is spent; 24 runs are left to be made." in capsys.readouterr().err
    # Not one round: it is ended all the same, for want of anything to compare.
    assert len(study.run(plan, tmp_path / "other", budget=5)) == 5
    assert len(study.run(plan, tmp_path)) == 37


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_tuning_gives_each_method_as_many_trials(toy_config, tmp_path, monkeypatch, sampler):
    pytest.importorskip("optuna")
    tried = []

    def trained(setup, folder):
        tried.append(setup.config)
        assert not setup.config.refit
        if len(tried) == stop_at:
            raise Interrupted(15, "here")
        return setup, None

    def judged(setup, state):
        # As if high temperatures were best for joint training, whatever the rest.
        config = setup.config
        return {"mAP": config.loss.temperature if config.recipe == "joint" else 0.5}

    monkeypatch.setattr(runs, "trained", trained)
    monkeypatch.setattr(runs, "validation_metrics", judged)
    monkeypatch.setattr(runs.Data, "setup", lambda self, config, keep: _Setup(config))
    monkeypatch.setattr(runs, "fit", lambda *_: {"results": {}})
    monkeypatch.setattr(study, "headline", lambda entry: "")
    space = (Parameter("loss.temperature", 0.03, 1, log=True), Parameter("model.dropout", 0, 0.5))
    plan = Plan(
        {"toy": DataSet(dataclasses.replace(toy_config, refit=True))},
        {"recipe": ("joint", "bce")},
        trials=4,
        space=space,
        sampler=sampler,
    )
    stop_at = 0
    frame = study.run(plan, tmp_path / "whole")
    assert [config.recipe for config in tried] == ["joint", "bce"] * 4
    # The first trial is the method as it is; temperatures are for recipes that have one.
    assert tried[0].loss.temperature == 0.07 and tried[0].model.dropout == 0.1
    assert {config.loss.temperature for config in tried if config.recipe == "bce"} == {0.07}
    assert len({config.model.dropout for config in tried if config.recipe == "bce"}) == 4
    best = max((c for c in tried if c.recipe == "joint"), key=lambda c: c.loss.temperature)
    assert frame["loss.temperature"][0] == best.loss.temperature
    assert frame["model.dropout"][0] == best.model.dropout
    assert best.loss.temperature > 0.07
    # Interrupted, it goes on as if it had not been.
    expected, tried[:] = list(tried), []
    stop_at = 6
    with pytest.raises(Interrupted):
        study.run(plan, tmp_path / "w")
    stop_at = 0
    pd.testing.assert_frame_equal(figures(study.run(plan, tmp_path / "w")), figures(frame))
    assert tried[:5] + tried[6:] == expected
    # Trials that are there are not made again, and a new method has as many.
    tried.clear()
    wider = dataclasses.replace(plan, grid={"recipe": ("joint", "bce", "probe")})
    assert len(study.run(wider, tmp_path / "w")) == 3
    assert [config.recipe for config in tried] == ["probe"] * 4


def test_no_baselines_where_inputs_are_no_vectors(toy_config, tmp_path, capsys):
    config = copy.deepcopy(toy_config)
    config.augment.shift = 0
    for split in ("train", "validation", "test"):
        with np.load(getattr(config.data, split)) as file:
            images, labels = file["x"].reshape(-1, 3, 2, 1), file["labels"]
        np.savez(tmp_path / f"{split}.npz", x=images, labels=labels)
        setattr(config.data, split, str(tmp_path / f"{split}.npz"))
    # Too large a batch: what is run is not what is tested here.
    plan = Plan({"images": DataSet(config)}, {"batch_size": ("1000",)}, baselines=("extra_trees",))
    frame = study.run(plan, tmp_path / "study", console=Console(width=200, stderr=True))
    assert list(frame["method"]) == ["batch_size=1000"]
    assert "No baselines on images: they take vectors, not" in capsys.readouterr().err


class _Setup:
    """As much of a setup as a trial needs."""

    def __init__(self, config):
        self.config = config


def test_a_trial_that_fails_counts_and_is_not_chosen(toy_config, tmp_path):
    pytest.importorskip("optuna")
    plan = Plan({"toy": DataSet(toy_config)}, trials=2, space=(Parameter("batch_size", 900, 1000),))
    (method,) = plan.methods("toy")
    tuner = tuning.Tuner(plan, "toy", method, tmp_path)
    data = runs.Data()
    first, second = tuner.run_trial(data), tuner.run_trial(data)
    assert first["value"] > 0.2 and second["value"] is None and "batch_size" in second["error"]
    assert tuner.best(2) == []
    assert json.loads((tmp_path / "1.json").read_text())["overrides"] == second["overrides"]


def test_a_run_that_chooses_among_candidates(toy_config, tmp_path):
    config = dataclasses.replace(
        toy_config, candidates=("recipe=bce", "recipe=joint"), refit=True, select_by="mAP"
    )
    plan = Plan({"toy": DataSet(config)}, baselines=("nearest_neighbors",))
    frame = study.run(plan, tmp_path)
    assert list(frame["status"]) == ["done", "done"]
    (folder,) = tmp_path.glob("runs/toy/best_candidate-*/0")
    entry = json.loads((folder / "run.json").read_text())
    assert len(entry["selection"]["candidates"]) == 2
    assert not (folder / "checkpoints").exists() and not (folder / "selection").exists()
