"""Candidates that validation judges, and the last training on train and validation."""

import dataclasses
import json

import numpy as np
import pytest

from sdjax.config import Config, candidates, check, without_overrides
from sdjax.errors import InputError
from sdjax.training import Interrupted, load, make_setup, score, select, train
from sdjax.training import selection as selection_lib
from sdjax.training.logbook import read_records
from sdjax.training.run import outputs

pytestmark = pytest.mark.usefixtures("two_devices")


@pytest.fixture
def config(toy_config):
    toy_config.select_by = "mAP"
    toy_config.candidates = (
        "recipe=bce supervise.learning_rate=1e-5",
        "recipe=bce",
        "image: seed=3",
    )
    return toy_config


def trained(config, workdir):
    setup = select(make_setup(config), workdir)
    state = train(setup, workdir)
    return setup, state, score(setup, state, workdir)


def test_candidates_are_overrides():
    config = Config(candidates=("recipe=bce model.width=8", "dense: model.remat=True", "image:"))
    made = candidates(config, "dense")
    assert list(made) == ["recipe=bce model.width=8", "model.remat=True"]
    first, second = made.values()
    assert (first.recipe, first.model.width, first.candidates) == ("bce", 8, ())
    assert second.model.remat is True and second.recipe == "joint"
    assert list(candidates(config, "image")) == ["recipe=bce model.width=8", ""]
    assert candidates(Config(), "dense") == {"": Config()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe", "must be FIELD=VALUE"),
        ("recpe=bce", "Did you mean 'recipe'"),
        ("model.width=wide", "model.width must be of type int, got 'wide'"),
        ("refit=yes", "refit must be of type bool, got 'yes'"),
        ("candidates=a", "cannot set candidates"),
        ("spares: recipe=bce", "Did you mean 'sparse'"),
    ],
)
def test_candidates_that_are_not(text, message):
    with pytest.raises(InputError, match=message):
        check(Config(candidates=(text,), select_by="mAP"))


def test_patience_needs_a_judge():
    with pytest.raises(InputError, match="patience needs select_by"):
        check(Config(patience=3))


def test_what_was_typed_holds_for_every_candidate():
    config = Config(candidates=("dense: recipe=bce seed=1", "dense: recipe=joint seed=1", "seed=2"))
    left = without_overrides(config, ["recipe"])
    assert left.candidates == ("dense: seed=1", "seed=2")


def test_the_best_candidate_is_the_run(config, tmp_path, capsys):
    setup, state, results = trained(config, tmp_path / "w")
    said = capsys.readouterr().err
    assert "Candidate 1 of 2: supervise.learning_rate=1e-5" in said
    chosen = json.loads((tmp_path / "w" / "selection.json").read_text())
    values = [each["validation"]["mAP"] for each in chosen["candidates"]]
    assert chosen["chosen"] == int(np.argmax(values))
    assert results["validation"]["mAP"] == pytest.approx(max(values), abs=1e-6)
    assert results["selection"] == chosen
    report = (tmp_path / "w" / "report" / "report.md").read_text()
    assert (
        f"(chosen) | {chosen['candidates'][chosen['chosen']]['epochs']} | {max(values):.4f}"
        in report
    )
    # As if it had been trained alone.
    alone = dataclasses.replace(config, candidates=(), recipe="bce")
    if chosen["chosen"] == 0:
        alone.supervise = dataclasses.replace(config.supervise, learning_rate=1e-5)
    assert setup.config == make_setup(alone).config
    expected = score(make_setup(alone), train(make_setup(alone), tmp_path / "alone"))
    assert results["test"] == expected["test"]
    # The same command only tests again, and the model can be loaded.
    _, again, results_again = trained(config, tmp_path / "w")
    assert int(again.step) == int(state.step) and results_again["test"] == results["test"]
    assert "The run is finished" in capsys.readouterr().err
    assert load(tmp_path / "w").config.recipe == "bce"


def test_refit_trains_on_all_rows_for_the_epochs_that_were_best(config, tmp_path):
    config.refit = True
    config.supervise.epochs = 3
    setup, state, results = trained(config, tmp_path)
    chosen = json.loads((tmp_path / "selection.json").read_text())
    best = chosen["candidates"][chosen["chosen"]]
    dataset = setup.dataset
    given = make_setup(config).dataset
    rows = len(given.train) + len(given.validation)
    assert len(dataset.train) == rows
    assert int(state.step) == best["epochs"] * -(-rows // config.batch_size)
    # The schedule is that of all epochs.
    assert setup.phases[-1].schedule_steps == 3 * setup.steps_per_epoch
    every = dataset.train.fetch(np.arange(rows)[::-1])
    parts = [given.train.fetch(np.arange(len(given.train)))]
    parts.append(given.validation.fetch(np.arange(len(given.validation))))
    for name in ("x", "labels"):
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_array_equal(every[name][::-1], joined)
    # Thresholds and validation figures are of the run that had not seen the validation split.
    before = selection_lib._another(
        make_setup(config),
        dataclasses.replace(
            list(candidates(make_setup(config).config, "dense").values())[chosen["chosen"]],
            refit=False,
        ),
    )
    folder = tmp_path / "selection" / str(chosen["chosen"])
    scores = outputs(before, train(before, folder), given.validation).scores
    np.testing.assert_allclose(np.load(folder / "validation_scores.npy"), scores, atol=1e-6)
    assert results["validation"]["mAP"] == pytest.approx(best["validation"]["mAP"], abs=1e-6)
    records = read_records(tmp_path / "metrics.jsonl")
    assert {record["split"] for record in records} == {"train"}
    # Neighbours are sought among all rows that it was trained on.
    assert results["retrieval"]["h"]["counts"]["gallery"] == rows
    report = (tmp_path / "report" / "report.md").read_text()
    assert f"trained anew on train and validation together, for {best['epochs']} epochs" in report
    assert load(tmp_path).step == int(state.step)


def test_refit_without_candidates(toy_config, tmp_path):
    toy_config.refit = True
    setup, state, _ = trained(toy_config, tmp_path)
    assert int(state.step) == toy_config.supervise.epochs * setup.steps_per_epoch


def test_an_interrupted_choice_goes_on(config, tmp_path, monkeypatch):
    config.refit, config.select_by = True, ""
    expected = trained(config, tmp_path / "whole")[2]
    real, calls = selection_lib.train, []

    def stops_in_the_second(setup, folder):
        calls.append(folder.name)
        if folder.name == "1" and len(calls) == 2:
            raise Interrupted(15, "here")
        return real(setup, folder)

    monkeypatch.setattr(selection_lib, "train", stops_in_the_second)
    with pytest.raises(Interrupted):
        trained(config, tmp_path / "w")
    assert not (tmp_path / "w" / "selection.json").exists()
    assert trained(config, tmp_path / "w")[2]["test"] == expected["test"]
    calls.clear()
    assert trained(config, tmp_path / "w")[2]["test"] == expected["test"]
    assert calls == []  # what is chosen stays chosen


def test_another_choice_wants_another_workdir(config, tmp_path):
    trained(config, tmp_path / "w")
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(InputError, match=r"another config \(seed: there 0, here 1\).*w_seed=1"):
        select(make_setup(other), tmp_path / "w")


def test_a_candidate_that_cannot_run_fails_before_any_is_trained(config, tmp_path):
    config.candidates = ("recipe=bce", "recipe=joint loss.temperature=-1")
    with pytest.raises(InputError, match="temperature must be a number, above 0, got -1"):
        select(make_setup(config), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_patience_ends_a_run_that_gets_no_better(toy_config, tmp_path, capsys):
    toy_config.select_by, toy_config.patience = "mAP", 2
    toy_config.recipe = "bce"
    toy_config.supervise = dataclasses.replace(
        toy_config.supervise, epochs=9, learning_rate=0.0, weight_decay=0.0
    )
    setup = make_setup(toy_config)
    train(setup, tmp_path)
    assert "mAP has not improved for 2 validations" in capsys.readouterr().err
    records = read_records(tmp_path / "metrics.jsonl")
    assert records[-1]["step"] == 3 * setup.steps_per_epoch
    state = train(setup, tmp_path)
    assert "The run is finished" in capsys.readouterr().err
    assert int(state.step) == setup.steps_per_epoch


def test_a_schedule_that_is_cut_off(toy_config):
    toy_config.recipe = "bce"
    toy_config.supervise = dataclasses.replace(toy_config.supervise, epochs=9, stop_after=4)
    (phase,) = make_setup(toy_config).phases
    assert phase.num_steps * 9 == phase.schedule_steps * 4
    toy_config.supervise.stop_after = 10
    with pytest.raises(InputError, match="stop_after must be at most supervise.epochs, 9, got 10"):
        make_setup(toy_config)
