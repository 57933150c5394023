"""A whole run: data, phases, checkpoints, test."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax import data as data_lib
from sdjax.config import Config
from sdjax.training import workdir as workdir_lib
from sdjax.training.checkpoint import Checkpoints, ForeignCheckpointError, Position
from sdjax.training.evaluate import make_forward, run_model
from sdjax.training.interrupt import InterruptGuard
from sdjax.training.loop import train_phase
from sdjax.training.mesh import check_batch_size, make_mesh, replicated
from sdjax.training.phases import Phase, make_phases, phase_of_step
from sdjax.training.progress import TrainingProgress
from sdjax.training.records import Recorder
from sdjax.training.resolve import check_config, resolve
from sdjax.training.results import test_results, write_report
from sdjax.training.state import TrainState, begin_phase, init_model, init_state


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
        self.dataset = data_lib.load(config.data, config.seed)
        self.mesh = make_mesh()
        train, shape = self.dataset.train, self.dataset.input_shape
        self.config = config = resolve(config, len(train), shape, self.mesh.size)
        check_batch_size(config.batch_size, len(train), self.mesh)
        if config.loss.name == "supcon":
            _check_single_label(train.labels)
        self.steps_per_epoch = data_lib.steps_per_epoch(
            len(train), config.batch_size, config.drop_remainder
        )
        self.phases = make_phases(config, self.steps_per_epoch)
        self.graph = init_model(config, shape, self.dataset.num_classes, jax.random.key(0))[0]
        self.forward = make_forward(self.graph)
        workdir_lib.open_workdir(workdir, config)
        leaves = jax.tree.leaves(self.abstract_state(self.position(0)))
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        workdir_lib.check_free_space(workdir, (config.keep_checkpoints + 1) * state_bytes + 2**25)
        preprocess = self.dataset.preprocess.to_json()
        workdir_lib.write_json(workdir / workdir_lib.PREPROCESS, preprocess)
        folder = workdir / workdir_lib.CHECKPOINTS
        self.checkpoints = Checkpoints(folder, keep=config.keep_checkpoints)

    def train(self) -> TrainState:
        """The trained state: resumes what is saved, and trains what is left."""
        step, state = self.restore_or_init()
        recorder = Recorder(self.workdir, step)
        try:
            with InterruptGuard() as guard, TrainingProgress() as progress:
                if step:
                    progress.say(f"Resuming after step {step} of {self.phases[-1].stop}.")
                for phase in self.phases:
                    if step >= phase.stop:
                        continue
                    if step == phase.start and step > 0:
                        state = begin_phase(state, phase)
                    state = train_phase(self, phase, step, state, recorder, progress, guard)
                    step = phase.stop
        finally:
            recorder.close()
            self.checkpoints.close()
        return state

    def test(self, state: TrainState) -> dict[str, Any]:
        """Tests the trained model; writes and returns `results.json`, and writes the report."""
        outputs = {
            name: run_model(
                self.forward,
                state.best_params,
                state.variables,
                source,
                self.config.batch_size,
                self.mesh,
            )
            for name, source in (
                ("validation", self.dataset.validation),
                ("test", self.dataset.test),
            )
        }
        results = test_results(self.dataset, outputs["validation"].scores, outputs["test"].scores)
        workdir_lib.write_json(self.workdir / workdir_lib.RESULTS, results)
        write_report(self.workdir, self.config, self.dataset, outputs["test"], results)
        return results

    def restore_or_init(self) -> tuple[int, TrainState]:
        """The newest saved state, else that of step 0."""
        sharding = replicated(self.mesh)
        restored = self.checkpoints.restore_newest(self.abstract_state, sharding)
        if restored is None:
            return 0, jax.device_put(self.fresh_state(0), sharding)
        state, position = restored
        return int(position["step"]), state

    def fresh_state(self, step: int) -> TrainState:
        """A state of the phase that `step` steps lead into, with fresh parameters."""
        phase = phase_of_step(self.phases, step)
        return init_state(self.config, self.dataset.input_shape, self.dataset.num_classes, phase)

    def abstract_state(self, position: Position) -> TrainState:
        """Shapes and dtypes of the state at `position`.

        Raises:
          ForeignCheckpointError: if the data does not stand there after as many steps.
        """
        step = min(int(position["step"]), self.phases[-1].stop)
        if position != self.position(step):
            raise ForeignCheckpointError(
                f"A checkpoint stands at {position} in the data, this run would stand at "
                f"{self.position(step)}: the data of the run have changed."
            )
        return jax.eval_shape(lambda: self.fresh_state(step))

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
        raise ValueError(
            f"loss 'supcon' needs exactly one label an example, got {int(sizes[row])} in row {row} "
            "of the train split; 'any' and 'all' are its multi-label forms."
        )
