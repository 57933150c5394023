"""The choice among candidates by validation, and the last training on train and validation."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import config as config_lib
from sdjax import data as data_lib
from sdjax import metrics as metrics_lib
from sdjax.config import VALIDATION_LOSSES, Config
from sdjax.training import workdir as workdir_lib
from sdjax.training.logbook import RECORDS, read_records
from sdjax.training.processes import failing_together, gather_texts, is_main
from sdjax.training.run import outputs, train
from sdjax.training.setup import Setup, make_setup
from sdjax.writing import whole

SCORES = "validation_scores.npy"


def select(setup: Setup, workdir: Path) -> Setup:
    """The run that validation chooses, to be trained in `workdir`.

    Candidates are trained in `workdir/selection/`, one after the other; what was chosen stands in
    `workdir/selection.json`. The chosen run is moved into `workdir`, or with `config.refit` is yet
    to be trained there, on train and validation, for the epochs after which it was best. The same
    call resumes.

    Args:
      setup: of the run; without candidates and refit it is the result.
      workdir: of the run.

    Raises:
      InputError: if a candidate cannot run, before any is trained, or `workdir` is another run's.
    """
    config = setup.config
    made = config_lib.candidates(config, setup.dataset.kind)
    if not config.refit and len(made) == 1:
        (only,) = made.values()
        return setup if only == config else _another(setup, only)
    setups = [_another(setup, dataclasses.replace(each, refit=False)) for each in made.values()]
    home = workdir / workdir_lib.SELECTION
    with failing_together():
        if is_main():
            description = workdir_lib.describe_data(setup.dataset)
            workdir_lib.check_workdir(workdir, config, description, home)
            home.mkdir(parents=True, exist_ok=True)
            workdir_lib.open_workdir(home, config, description, None)
    chosen = _read(workdir)
    if chosen is None:
        chosen = _train_all(setups, _differences(list(made)), home, config)
        with failing_together():
            if is_main():
                workdir_lib.write_json(workdir / workdir_lib.SELECTED, chosen)
    place = chosen["chosen"]
    if config.refit:
        return _refit(setups[place], chosen["candidates"][place]["epochs"], home / str(place))
    with failing_together():
        if is_main():
            _move(home / str(place), workdir)
    return setups[place]


def _another(setup: Setup, config: Config) -> Setup:
    return make_setup(config, dataset=setup.dataset, mesh=setup.mesh)


def _differences(names: list[str]) -> list[str]:
    """The overrides of each candidate that not all of them share."""
    words = [name.split() for name in names]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    return [" ".join(word for word in each if word not in shared) for each in words]


def _train_all(setups: list[Setup], names: list[str], home: Path, given: Config) -> dict[str, Any]:
    """Trains all candidates of the run that was `given`; the content of `selection.json`."""
    judged_by, refit = given.select_by or "mAP", given.refit
    results = []
    for place, (setup, name) in enumerate(zip(setups, names, strict=True)):
        if is_main() and len(setups) > 1:
            leaves = jax.tree.leaves(setup.abstract_state(setup.position(0)).params)
            size = f"{sum(leaf.size for leaf in leaves):,} parameters"
            text = f"Candidate {place + 1} of {len(setups)}: {name} ({size})"
            print(text, file=sys.stderr, flush=True)
        results.append({"overrides": name, **_train(setup, home / str(place))})
    chosen = 0
    if len(results) > 1:
        sign = -1 if judged_by in VALIDATION_LOSSES else 1
        values = [each["validation"].get(judged_by) for each in results]
        ranks = [-np.inf if value is None else sign * value for value in values]
        chosen = int(np.argmax(ranks))
        if is_main() and values[chosen] is not None:
            text = f"Chosen: {names[chosen]} (validation {judged_by} {values[chosen]:.4f})"
            print(text, file=sys.stderr, flush=True)
    return {"judged_by": judged_by, "chosen": chosen, "refit": refit, "candidates": results}


def _train(setup: Setup, folder: Path) -> dict[str, Any]:
    """Trains a candidate; says, on each process, after how many epochs it was best, and how good.

    Its validation scores are kept beside it.
    """
    state = train(setup, folder)
    phase, step = setup.phases[-1], int(state.step)
    scores = outputs(setup, state, setup.dataset.validation).scores
    found = {}
    with failing_together():
        if is_main():
            with whole(folder / SCORES) as temporary, open(temporary, "wb") as file:
                np.save(file, scores)
            found = metrics_lib.evaluate(
                setup.dataset.validation.labels, scores, only=config_lib.VALIDATION_METRICS
            )
            for record in read_records(folder / RECORDS):
                if record["step"] == step and record["split"] == "validation":
                    losses = {k: v for k, v in record.items() if k in VALIDATION_LOSSES}
                    found = {**losses, **found}
    found = json.loads(gather_texts(json.dumps(found))[0])
    epochs = (step - phase.start) // setup.steps_per_epoch
    return {"epochs": epochs, "step": step, "validation": found}


def _refit(setup: Setup, epochs: int, folder: Path) -> Setup:
    """The run of `setup` on train and validation, for as many `epochs` of the same schedule."""
    config, dataset = setup.config, setup.dataset
    config = dataclasses.replace(
        config,
        select_by="",
        patience=0,
        supervise=dataclasses.replace(config.supervise, stop_after=epochs),
    )
    rows = data_lib.JoinedSource(dataset.train, dataset.validation)
    joined = dataclasses.replace(dataset, train=rows)
    if is_main():
        text = f"Trained anew on train and validation, {len(rows):,} rows, for {epochs} epochs."
        print(text, file=sys.stderr, flush=True)
    made = make_setup(config, dataset=joined, mesh=setup.mesh)
    return dataclasses.replace(made, refit=folder / SCORES)


def _read(workdir: Path) -> dict[str, Any] | None:
    """`workdir.read_selection`, on every process."""
    chosen = None
    with failing_together():
        if is_main():
            chosen = workdir_lib.read_selection(workdir)
    return json.loads(gather_texts(json.dumps(chosen))[0])


def _move(run: Path, workdir: Path) -> None:
    """Moves the files of `run` into `workdir`; what was moved before is left alone."""
    for path in sorted(run.iterdir()) if run.exists() else []:
        os.replace(path, workdir / path.name)
