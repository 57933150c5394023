"""One run of a study, of sdjax or of a model of scikit-learn, and what it leaves on disk."""

import dataclasses
import json
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import __version__, label_sets, metrics
from sdjax import config as config_lib
from sdjax import data as data_lib
from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.report import baselines
from sdjax.training import Interrupted, Setup, make_setup, score, select, train
from sdjax.training.evaluate import Outputs
from sdjax.training.results import retrieval_results, test_results
from sdjax.training.run import outputs
from sdjax.training.state import TrainState
from sdjax.training.workdir import CHECKPOINTS, SELECTION, SPLITS, read_selection, write_json

RECORD = "run.json"
DONE, FAILED = "done", "failed"
_BULKY = (CHECKPOINTS, SELECTION)


class Data:
    """The data sets of a study, each read when it is first needed, and the setups of its methods.

    Setups of one method share their compiled programs, and all on a data set its arrays.
    """

    def __init__(self) -> None:
        self._datasets: dict[Any, data_lib.Dataset] = {}
        self._setups: dict[Any, Setup] = {}

    def dataset(self, config: Config) -> data_lib.Dataset:
        """The data set that `config.data` names."""
        key = config.data
        if key not in self._datasets:
            self._datasets[key] = make_setup(config_lib.without_unused(config)).dataset
        return self._datasets[key]

    def forget(self, config: Config) -> None:
        """Lets go of the data set of `config`, and of the setups on it."""
        self._datasets.pop(config.data, None)
        self._setups = {k: v for k, v in self._setups.items() if k.data != config.data}

    def setup(self, config: Config, keep: bool = True) -> Setup:
        """The run of `config`; of several candidates it may be one still to be chosen.

        Args:
          config: of the run; what it has no use for is left aside, since it is there for others.
          keep: the setup, for runs of other seeds.
        """
        key = dataclasses.replace(config, seed=0)
        if key not in self._setups:
            dataset = self.dataset(config)
            candidates = list(config_lib.candidates(config, dataset.kind).values())
            if len(candidates) == 1:
                config = config_lib.without_unused(candidates[0])
            made = make_setup(config, dataset=dataset)
            # Weights of a published encoder are not to be held for each method.
            if not keep or config.model.weights or config.model.init_from:
                return made
            self._setups[key] = made
        return self._setups[key].with_seed(config.seed)


def needs_folder(config: Config) -> bool:
    """Whether the run writes files while it is trained: to choose among, or to start from again."""
    return bool(config.select_by) or config.refit or len(config.candidates) > 1


def trained(setup: Setup, folder: Path) -> tuple[Setup, TrainState]:
    """The run that was chosen, and its state to be tested; without need nothing is written."""
    if not needs_folder(setup.config):
        return setup, train(setup)
    setup = select(setup, folder)
    return setup, train(setup, folder)


def validation_metrics(setup: Setup, state: TrainState) -> dict[str, Any]:
    """The metrics by which a trial may be judged, on validation alone."""
    source = setup.dataset.validation
    scores = outputs(setup, state, source).scores
    return metrics.evaluate(source.labels, scores, only=config_lib.VALIDATION_METRICS)


def fit(data: Data, config: Config, folder: Path, mapped: bool = False) -> dict[str, Any]:
    """Trains and tests the run of `config`; what its record says of it.

    If `mapped`, where its embeddings of some rows of test lie is left in the folder.
    """
    setup, state = trained(data.setup(config), folder)

    def look(tested: Outputs) -> None:
        # Plotting is imported where it is used.
        from sdjax.study import by_relation

        by_relation.save_map(folder, tested.embeddings)

    results = score(setup, state, retrieves=True, look=look if mapped else None)
    assert results is not None
    found: dict[str, Any] = {"results": results, "parameters": _size(state)}
    if (chosen := read_selection(folder)) is not None:
        found["selection"] = chosen
    return found


def _size(state: TrainState) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


def fit_baseline(dataset: data_lib.Dataset, name: str, seed: int, refit: bool) -> dict[str, Any]:
    """Tests a model of scikit-learn that is fitted on train, or with `refit` on validation too.

    In few-example mode nothing is fitted on validation.

    The threshold is tuned on validation by the one that is fitted on train.

    Raises:
      InputError: if its inputs are no vectors.
    """
    if not baselines.takes(dataset.input_spec):
        raise InputError(f"The baselines are for vectors, not for inputs {dataset.input_spec}.")
    refit = refit and dataset.few is None
    splits = [getattr(dataset, split) for split in SPLITS]
    rows = [source.inputs(np.arange(len(source))) for source in splits]
    labels = [source.labels for source in splits]
    x, truth = rows[0], labels[0]
    found = baselines.scores(name, x, truth, np.concatenate(rows[1:]), seed=seed)
    assert not isinstance(found, str)  # It may take as long as it does.
    validation, test = np.split(found, [len(rows[1])])
    if refit:
        x, truth = np.concatenate(rows[:2]), label_sets.concatenate(labels[:2])
        test = baselines.scores(name, x, truth, rows[2], seed=seed)
        assert not isinstance(test, str)
    results = test_results(dataset, validation, test, per_label=False)
    if name == "nearest_neighbors":
        # The raw inputs as embeddings, among the rows that were fitted.
        joined = data_lib.JoinedSource(dataset.train, dataset.validation)
        dataset = dataclasses.replace(dataset, train=joined) if refit else dataset
        found = (Outputs(scores=test, embeddings=each) for each in (rows[2], x))
        results["retrieval"] = retrieval_results(dataset, *found)
    return {"results": results}


def record(
    folder: Path,
    about: dict[str, Any],
    dataset: data_lib.Dataset,
    make: Callable[[], dict[str, Any]],
    keep: bool = False,
) -> dict[str, Any]:
    """Makes a run and writes its `run.json`, whole or not at all; a failure is a result too.

    Args:
      folder: of the run.
      about: what is known of it before.
      dataset: that it is on.
      make: gives what is known of it after.
      keep: leave its checkpoints.
    """
    start = time.monotonic()
    entry = {**about, "made_by": circumstances(), "data_checksums": checksums(dataset)}
    entry["data_rows"] = {split: len(getattr(dataset, split)) for split in SPLITS}
    entry["data_labels"] = dataset.num_classes
    try:
        entry |= {"status": DONE, **make()}
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        entry |= {"status": FAILED, "error": text, "traceback": traceback.format_exc()}
    entry["seconds"] = time.monotonic() - start
    folder.mkdir(parents=True, exist_ok=True)
    if not keep:
        for name in _BULKY:
            shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / RECORD, entry)
    return entry


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `record` wrote; None where no run ended."""
    path = folder / RECORD
    return read_json(path) if path.exists() else None


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def as_json(config: Config) -> dict[str, Any]:
    """`config` as `json.dumps` takes it."""
    return dataclasses.asdict(config)


def checksums(dataset: data_lib.Dataset) -> dict[str, str]:
    """Of the content of the splits."""
    return {split: str(getattr(dataset, split).fingerprint) for split in SPLITS}


def check_data(name: str, dataset: data_lib.Dataset, records: Iterable[dict[str, Any]]) -> None:
    """Raises InputError if `records` of earlier runs are of other data than `dataset`."""
    here = checksums(dataset)
    for each in records:
        changed = [split for split in SPLITS if each["data_checksums"][split] != here[split]]
        if changed:
            raise InputError(
                f"Data set {name!r} has changed since its first runs: {', '.join(changed)}. "
                "Choose another --workdir, or remove its runs."
            )


def circumstances() -> dict[str, str]:
    """Versions and devices."""
    device = jax.devices()[0].device_kind
    versions = f"sdjax {__version__}, jax {jax.__version__}, Python {platform.python_version()}"
    return {"Versions": versions, "Devices": f"{jax.device_count()} {device}"}
