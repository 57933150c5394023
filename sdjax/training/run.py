"""A whole run: data, phases, checkpoints, test."""

import contextlib
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import data as data_lib
from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.training import workdir as workdir_lib
from sdjax.training.checkpoint import Checkpoints, ForeignCheckpointError, Position
from sdjax.training.evaluate import Outputs, make_forward, run_model
from sdjax.training.interrupt import InterruptGuard
from sdjax.training.loop import train_phase
from sdjax.training.mesh import check_batch_size, evaluation_batch_size, make_mesh
from sdjax.training.phases import Phase, make_phases, phase_of_step
from sdjax.training.processes import check_equal, is_main, together
from sdjax.training.profiler import StepProfiler
from sdjax.training.reporter import Reporter
from sdjax.training.resolve import check_config, resolve
from sdjax.training.results import test_results, write_report
from sdjax.training.state import (
    TrainState,
    abstract,
    begin_phase,
    init_state,
    model_graph,
    place,
)


class Run:
    """A training run in its workdir.

    Args:
      config: of the run.
      workdir: folder for all that the run writes; a run that is there goes on.

    Raises:
      ValueError: if config, data and workdir do not fit together.
      OSError: if the workdir cannot be written to, or its disk is too full.
    """

    def __init__(self, config: Config, workdir: Path):
        check_config(config)
        self.workdir = workdir
        # Process 0 first: what it prepares on a shared disk is ready for the others.
        for turn in (True, False):
            with together():
                if is_main() == turn:
                    self.dataset = data_lib.load(config.data)
        self.mesh = make_mesh(config.mesh)
        train, shape = self.dataset.train, self.dataset.input_shape
        config = workdir_lib.with_saved_batch_size(config, workdir)
        self.config = config = resolve(config, len(train), shape, self.mesh.size)
        sizes = {name: len(getattr(self.dataset, name)) for name in ("train", "validation", "test")}
        check_equal({**workdir_lib.flat(config), **sizes, "labels": self.dataset.num_classes})
        check_batch_size(config.batch_size, len(train), config.microbatches, self.mesh)
        if config.loss.name == "supcon":
            _check_single_label(train.labels)
        self.steps_per_epoch = data_lib.steps_per_epoch(
            len(train), config.batch_size, config.drop_remainder
        )
        self.phases = make_phases(config, self.steps_per_epoch)
        self.graph = model_graph(config, shape, self.dataset.num_classes)
        self.forward = make_forward(self.graph, self.mesh)
        with together():
            if is_main():
                self._open_workdir()
        if jax.process_count() > 1:
            workdir_lib.check_shared(workdir)
        folder = workdir / workdir_lib.CHECKPOINTS
        self.checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)

    def _open_workdir(self) -> None:
        workdir_lib.open_workdir(self.workdir, self.config)
        leaves = jax.tree.leaves(self.abstract_state(self.position(0)))
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        needed = (self.config.keep_checkpoints + 1) * state_bytes + 2**25
        workdir_lib.check_free_space(self.workdir, needed)
        preprocess = self.dataset.preprocess.to_json()
        workdir_lib.write_json(self.workdir / workdir_lib.PREPROCESS, preprocess)

    def train(self, *, profile: bool = False) -> TrainState:
        """The trained state: resumes what is saved, and trains what is left.

        Args:
          profile: trace a few steps into the workdir's `profile/`.
        """
        step, state = self.restore_or_init()
        traced = self.workdir / workdir_lib.PROFILE if profile and is_main() else None
        with (
            contextlib.closing(self.checkpoints),
            Reporter(self.workdir, step) as reporter,
            InterruptGuard() as guard,
            StepProfiler(traced) as profiler,
        ):
            if step:
                reporter.say(f"Resuming after step {step} of {self.phases[-1].stop}.")
            for phase in self.phases:
                if step >= phase.stop:
                    continue
                if step == phase.start and step > 0:
                    state = place(functools.partial(begin_phase, phase=phase), self.mesh, state)
                state = train_phase(self, phase, step, state, reporter, guard, profiler)
                step = phase.stop
        return state

    def test(self, state: TrainState) -> dict[str, Any] | None:
        """Tests the trained model; writes and returns `results.json`, and writes the report.

        Every process computes its share; process 0 writes, and has the result.
        """
        outputs = {
            name: run_model(
                self.forward,
                state.best_params,
                state.variables,
                source,
                evaluation_batch_size(self.config, len(source), self.mesh),
                self.mesh,
            )
            for name, source in (
                ("validation", self.dataset.validation),
                ("test", self.dataset.test),
            )
        }
        results = None
        with together():
            if is_main():
                results = self._write_results(outputs["validation"], outputs["test"])
        return results

    def _write_results(self, validation: Outputs, test: Outputs) -> dict[str, Any]:
        results = test_results(self.dataset, validation.scores, test.scores)
        workdir_lib.write_json(self.workdir / workdir_lib.RESULTS, results)
        write_report(self.workdir, self.config, self.dataset, test, results)
        return results

    def restore_or_init(self) -> tuple[int, TrainState]:
        """The newest saved state, else that of step 0."""
        restored = self.checkpoints.restore_newest(self.abstract_state)
        if restored is None:
            return 0, place(functools.partial(self.fresh_state, 0), self.mesh)
        state, position = restored
        return int(position["step"]), state

    def fresh_state(self, step: int) -> TrainState:
        """A state of the phase that `step` steps lead into, with fresh parameters."""
        phase = phase_of_step(self.phases, step)
        return init_state(self.config, self.dataset.input_shape, self.dataset.num_classes, phase)

    def abstract_state(self, position: Position) -> TrainState:
        """Shapes, dtypes and shardings of the state at `position`.

        Raises:
          ForeignCheckpointError: if the data does not stand there after as many steps.
        """
        step = min(int(position["step"]), self.phases[-1].stop)
        if position != self.position(step):
            raise ForeignCheckpointError(
                f"A checkpoint stands at {position} in the data, this run would stand at "
                f"{self.position(step)}: the data of the run have changed."
            )
        return abstract(functools.partial(self.fresh_state, step), self.mesh)

    def position(self, step: int) -> Position:
        """Where the data stands after `step` steps, in numbers that any number of devices reads."""
        phase = phase_of_step(self.phases, step)
        return {
            "step": step,
            "phase": phase.name,
            "seed": self.data_seed(phase),
            "next_batch": step - phase.start,
            "batch_size": self.config.batch_size,
            "num_examples": len(self.dataset.train),
        }

    def data_seed(self, phase: Phase) -> int:
        """Each phase sees its own order of the data."""
        return self.config.seed * len(self.phases) + self.phases.index(phase)


def _check_single_label(labels: np.ndarray) -> None:
    sizes = labels.sum(axis=1)
    if (sizes != 1).any():
        row = int(np.argmax(sizes != 1))
        raise InputError(
            f"loss 'supcon' needs exactly one label an example, got {int(sizes[row])} in row {row} "
            "of the train split; 'any' and 'all' are its multi-label forms."
        )
