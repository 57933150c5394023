"""Hyperparameters by Optuna: for each method as many trials, judged by validation alone."""

import importlib
import shutil
import time
from pathlib import Path
from typing import Any

from sdjax.config import Config, flat
from sdjax.errors import InputError
from sdjax.study import runs
from sdjax.study.plan import Method, Plan, idle
from sdjax.study.space import Parameter
from sdjax.training import Interrupted
from sdjax.training.workdir import write_json

_FAILED = None  # value of a trial that could not be trained


def import_optuna() -> Any:
    """Optuna, which says less than it would.

    Raises:
      InputError: where it is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise InputError(
            'Tuning needs Optuna: pip install "sdjax[study]" (or pip install optuna).'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Tuner:
    """The trials of one method on one data set.

    A trial depends on those before it and on its number alone, so that an interrupted study goes
    on as if it had not been.

    Args:
      plan: of the study.
      data: name of the data set.
      method: that is tuned.
      folder: for the trials, a file each.
    """

    def __init__(self, plan: Plan, data: str, method: Method, folder: Path):
        self._plan, self._method, self._folder = plan, method, folder
        self._base = plan.data[data].config
        config = method.config(self._base)
        fixed = {word.partition("=")[0] for word in method.overrides}
        self.space = [e for e in plan.space if e.name not in fixed and not idle(config, e.name)]
        self.trials = self._read()

    def config(self, overrides: list[str], seed: int) -> Config:
        """The method's config with the values of a trial."""
        return self._method.config(self._base, *overrides, f"seed={seed}")

    def best(self, trials: int) -> list[str]:
        """FIELD=VALUE of the best of the first so many trials; none where all failed."""
        sound = [each for each in self.trials[:trials] if each["value"] is not _FAILED]
        return max(sound, key=lambda each: each["value"])["overrides"] if sound else []

    def run_trial(self, data: runs.Data) -> dict[str, Any]:
        """Trains and judges the next trial, and writes it down."""
        number = len(self.trials)
        parameters = self._suggested(number)
        # The first trial is the method as it is.
        overrides = [f"{name}={value}" for name, value in parameters.items()] if number else []
        entry: dict[str, Any] = {"number": number, "overrides": overrides}
        entry["parameters"] = parameters
        start = time.monotonic()
        try:
            config = self.config(overrides, self._base.seed)
            config.refit = False  # It would learn from what judges it.
            setup, state = runs.trained(data.setup(config, keep=False), self._folder / f"{number}")
            found = runs.validation_metrics(setup, state)
            entry |= {"value": found[self._plan.tuned_by], "validation": found}
        except (Interrupted, KeyboardInterrupt):
            raise
        except Exception as error:
            entry |= {"value": _FAILED, "error": f"{type(error).__name__}: {error}"}
        entry["seconds"] = time.monotonic() - start
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._folder / f"{number}", ignore_errors=True)
        write_json(self._folder / f"{number}.json", entry)
        self.trials.append(entry)
        return entry

    def _read(self) -> list[dict[str, Any]]:
        trials = []
        while (path := self._folder / f"{len(trials)}.json").exists():
            trials.append(runs.read_json(path))
        return trials

    def _suggested(self, number: int) -> dict[str, Any]:
        """The values of trial `number`; of the first the method's own, where the space has them."""
        if not number:
            values = flat(self._method.config(self._base))
            own = {each.name: each.place(values[each.name]) for each in self.space}
            return {} if None in own.values() else own
        optuna = import_optuna()
        samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        study = optuna.create_study(
            direction="maximize", sampler=samplers[self._plan.sampler](seed=number)
        )
        distributions = {each.name: _distribution(optuna, each, self._base) for each in self.space}
        for each in self.trials:
            if each["parameters"] and each["value"] is not _FAILED:
                trial = optuna.trial.create_trial(
                    params=each["parameters"], distributions=distributions, value=each["value"]
                )
                study.add_trial(trial)
        return study.ask(distributions).params


def _distribution(optuna: Any, parameter: Parameter, config: Config) -> Any:
    if parameter.values:
        return optuna.distributions.CategoricalDistribution(parameter.values)
    if parameter.whole(config):
        low, high = int(parameter.low), int(parameter.high)
        return optuna.distributions.IntDistribution(low, high, log=parameter.log)
    return optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)
