"""A whole run: phases, steps, checkpoints, test.

A batch's way from file to gradient: `data/readers` reads, `data/sources` preprocesses,
`data/batches` orders, here it goes to the devices, `step` takes the gradient of `objective`, whose
loss is of `sdjax.losses`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from sdjax import data as data_lib
from sdjax.errors import InputError
from sdjax.training import workdir as workdir_lib
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.errors import Interrupted, NonFiniteLossError
from sdjax.training.evaluate import Outputs, make_forward, make_validate, run_model
from sdjax.training.interrupt import InterruptGuard
from sdjax.training.logbook import Logbook
from sdjax.training.mesh import (
    batch_sharding,
    evaluation_batch_size,
    one_program_at_a_time,
    rows_of_process,
)
from sdjax.training.objective import Metrics
from sdjax.training.processes import failing_together, is_main
from sdjax.training.profiler import StepProfiler
from sdjax.training.programs import make_room
from sdjax.training.recipes import Phase
from sdjax.training.results import retrieval_results, test_results, with_baselines, write_report
from sdjax.training.setup import Setup
from sdjax.training.state import TrainState, beginner
from sdjax.training.step import make_train_step


def train(setup: Setup, workdir: Path | None = None, *, profile: bool = False) -> TrainState:
    """The trained state: resumes what `workdir` holds, and trains what is left.

    Args:
      setup: of the run.
      workdir: folder for all that the run writes; None writes nothing.
      profile: trace a few steps into the workdir's `profile/`.

    Returns:
      The state to test: the last one, or with `config.select_by` the best.

    Raises:
      InputError: if the workdir is another run's.
      OSError: if the workdir cannot be written to, or its disk is too full.
      Interrupted: after SIGTERM or Ctrl-C, once all is saved.
      NonFiniteLossError: naming the step; what was saved before it stays.
    """
    if workdir is None and setup.config.select_by:
        raise InputError("select_by keeps the best checkpoint, and needs a workdir to keep it in.")
    make_room()
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if workdir is not None:
            checkpoints = stack.enter_context(opened(setup, workdir))
        state = _restored_or_initial(setup, checkpoints)
        step = int(state.step)
        traced = workdir / workdir_lib.PROFILE if profile and workdir and is_main() else None
        run = _Running(
            setup,
            checkpoints,
            stack.enter_context(Logbook(workdir, step)),
            stack.enter_context(InterruptGuard()),
            stack.enter_context(StepProfiler(traced)),
        )
        if step == setup.phases[-1].stop or run.out_of_patience(step):
            run.logbook.say(f"The run is finished, after step {step}: it is only tested.")
        elif step:
            run.logbook.say(f"Resuming after step {step} of {setup.phases[-1].stop}.")
        for phase in setup.phases:
            if step >= phase.stop or run.out_of_patience(step):
                continue
            if step == phase.start and step > 0:
                state = beginner(setup.config, setup.spec, phase, setup.mesh)(state)
            state = run.train_phase(phase, step, state)
            step = int(state.step)
        if checkpoints is not None:
            checkpoints.wait()
            if checkpoints.best_step() not in (None, step):
                del state  # There may be no room for both.
                best = checkpoints.restore_best(setup.abstract_state)
                assert best is not None
                state = best[0]
        # A signal during the last validation and save has not been looked for yet.
        late = run.guard.requested(step + 1)
        if late is not None:
            run.stop(late, step)
    return state


@contextlib.contextmanager
def opened(setup: Setup, workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of `workdir`, once it is the home of the run."""
    with failing_together():
        if is_main():
            description = workdir_lib.describe_data(setup.dataset)
            workdir_lib.check_workdir(workdir, setup.config, description)
            leaves = jax.tree.leaves(setup.abstract_state(setup.position(0)))
            state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
            kept = setup.config.keep_checkpoints + bool(setup.config.select_by)
            workdir_lib.check_free_space(workdir, (kept + 1) * state_bytes + 2**25)
            preprocess = setup.dataset.preprocess
            workdir_lib.open_workdir(workdir, setup.config, description, preprocess)
    if jax.process_count() > 1:
        workdir_lib.check_shared(workdir)
    checkpoints = Checkpoints(
        workdir / workdir_lib.CHECKPOINTS,
        keep=setup.config.keep_checkpoints,
        best_by=setup.config.select_by,
    )
    with contextlib.closing(checkpoints):
        yield checkpoints


def _restored_or_initial(setup: Setup, checkpoints: Checkpoints | None) -> TrainState:
    restored = checkpoints.restore_newest(setup.abstract_state) if checkpoints else None
    return setup.initial_state() if restored is None else restored[0]


class _Running:
    """What the phases of a run share while it goes on."""

    def __init__(
        self,
        setup: Setup,
        checkpoints: Checkpoints | None,
        logbook: Logbook,
        guard: InterruptGuard,
        profiler: StepProfiler,
    ):
        self.setup, self.checkpoints, self.logbook = setup, checkpoints, logbook
        self.guard, self.profiler = guard, profiler
        self._recorded = time.monotonic()

    def train_phase(self, phase: Phase, step: int, state: TrainState) -> TrainState:
        """The state at the end of `phase`, from the state after `step` steps of the run."""
        setup, config = self.setup, self.setup.config
        train_step = make_train_step(setup.program, phase, setup.graph, setup.mesh)
        validate = make_validate(
            setup.program,
            phase,
            setup.graph,
            setup.mesh,
            setup.dataset.validation,
            evaluation_batch_size(config, len(setup.dataset.validation), setup.mesh),
        )
        batches = data_lib.training_batches(
            setup.dataset.train,
            config.batch_size,
            seed=setup.data_seed(phase),
            drop_remainder=config.drop_remainder,
            start=step - phase.start,
            rows=rows_of_process(config.batch_size, setup.mesh),
        )
        sharding = batch_sharding(setup.mesh)
        pending: list[Metrics] = []
        self.logbook.say(f"{phase.name}: {phase.num_steps} steps; the first one compiles.")
        started = time.monotonic()
        while step < phase.stop:
            self.profiler.before_step(pending)
            state, step_metrics = train_step(state, data_lib.to_device(next(batches), sharding))
            if one_program_at_a_time(setup.mesh):
                jax.block_until_ready(step_metrics)
            pending.append(step_metrics)
            step += 1
            done, last = step - phase.start, step == phase.stop
            interrupted = self.guard.requested(step)  # read once: a signal may come at any time
            validates = last or done % (config.evaluate_every * setup.steps_per_epoch) == 0
            validates &= setup.validates
            saves = last or step % config.checkpoint_every == 0 or interrupted is not None
            saves |= validates and bool(config.select_by)
            if not (saves or validates or step % config.log_every == 0):
                continue
            # Before anything is saved: a broken state must not replace a sound one.
            means = finite_means(pending, step, phase)
            now = time.monotonic()
            rate = len(pending) * setup.examples_per_step / max(now - started, 1e-9)
            where = {"step": step, "epoch": done / setup.steps_per_epoch, "phase": phase.name}
            means["examples_per_second"] = rate
            # Of all that was done since the last record: compilation, validation and saving too.
            means["seconds"], self._recorded = now - self._recorded, now
            self.logbook.write({**where, "split": "train", **means})
            values = validate(state) if validates else None
            if values is not None:
                self.logbook.write({**where, "split": "validation", **values})
            mean_ap = {} if values is None else {"mAP": values.get("mAP")}
            self.logbook.update(phase.name, done, phase.num_steps, {**means, **mean_ap})
            if saves and self.checkpoints is not None:
                chosen = values if phase is setup.phases[-1] and is_main() else None
                self.checkpoints.save(step, state, setup.position(step), chosen)
            if interrupted is not None:
                self.stop(interrupted, step)
            if validates and self.out_of_patience(step):
                self.logbook.say(
                    f"Ends after step {step}: {config.select_by} has not improved for "
                    f"{config.patience} validations."
                )
                break
            pending, started = [], time.monotonic()
        return state

    def out_of_patience(self, step: int) -> bool:
        """Whether `config.patience` validations up to `step` brought no better checkpoint."""
        config = self.setup.config
        if not config.patience or self.checkpoints is None or step <= self.setup.phases[-1].start:
            return False
        best = self.checkpoints.best_step()
        waited = config.patience * config.evaluate_every * self.setup.steps_per_epoch
        return best is not None and step - best >= waited

    def stop(self, number: int, step: int) -> None:
        """Raises Interrupted by the signal `number`, once all is on disk."""
        if self.checkpoints is None:
            raise Interrupted(number, f"after step {step}; nothing is saved.")
        self.checkpoints.wait()
        raise Interrupted(number, f"after step {step}; saved. The same command resumes from there.")


def finite_means(pending: list[Metrics], step: int, phase: Phase) -> dict[str, float]:
    """Means of the metrics of the `pending` steps up to `step`, all of which must be finite."""
    steps = [{k: float(v) for k, v in each.items()} for each in jax.device_get(pending)]
    for number, values in enumerate(steps, start=step - len(steps) + 1):
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(values[name]):
                raise NonFiniteLossError(
                    f"The {name.replace('_', ' ')} is {values[name]} at step {number} (phase "
                    f"{phase.name!r}, learning rate {values['learning_rate']:.3g}). Checkpoints of "
                    "earlier steps are kept. A lower learning rate, a higher temperature or "
                    "clip_norm may help."
                )
    return {name: float(np.mean([each[name] for each in steps])) for name in steps[-1]}


def outputs(
    setup: Setup, state: TrainState, source: data_lib.Source, *, projects: bool = False
) -> Outputs:
    """Scores and embeddings of every example of `source`, on every process; see `make_forward`."""
    batch_size = evaluation_batch_size(setup.config, len(source), setup.mesh)
    forward = make_forward(setup.graph, setup.mesh, projects=projects)
    return run_model(forward, state.best, source, batch_size, setup.mesh)


def score(
    setup: Setup,
    state: TrainState,
    workdir: Path | None = None,
    *,
    command: str = "",
    retrieves: bool = False,
    look: Callable[[Outputs], None] | None = None,
) -> dict[str, Any] | None:
    """The test figures of a trained state; with `workdir`, writes `results.json` and the report.

    Every process computes its share; process 0 writes, and has the result; others have None.

    Args:
      setup: of the run.
      state: of `train`.
      workdir: of the run; None writes nothing.
      command: that made the run, for the report.
      retrieves: figures of neighbours without a workdir too.
      look: called, on process 0, with what the model gives of the rows of test.

    Raises:
      InputError: if there are no rows of test, or none of validation to tune thresholds by.
    """
    for split in ("test", "validation"):
        if not len(getattr(setup.dataset, split)):
            raise InputError(f"A score needs rows of {split}, and the data set has none.")
    contrasts = any(phase.contrastive for phase in setup.phases)
    retrieves |= workdir is not None
    projects = contrasts and retrieves
    tested = outputs(setup, state, setup.dataset.test, projects=projects)
    if not setup.refit:
        validation = outputs(setup, state, setup.dataset.validation).scores
    gallery = None
    rows = max(len(setup.dataset.train), len(setup.dataset.test))
    most = setup.config.report.retrieval_rows
    if retrieves and 0 < most < rows and is_main():
        text = "No figures of neighbours: %s rows are more than report.retrieval_rows (%s)."
        logging.log_first_n(logging.WARNING, text, 1, f"{rows:,}", f"{most:,}")
    if retrieves and rows <= most:
        gallery = outputs(setup, state, setup.dataset.train, projects=projects)
    results = None
    with failing_together():
        if is_main():
            per_label = setup.config.thresholds == "per_label"
            if setup.refit:
                validation = np.load(setup.refit)
            results = test_results(setup.dataset, validation, tested.scores, per_label)
            if look is not None:
                look(tested)
            data = setup.dataset
            if gallery is not None:
                results["retrieval"] = retrieval_results(data, tested, gallery)
            if workdir is not None:
                if (chosen := workdir_lib.read_selection(workdir)) is not None:
                    results["selection"] = chosen
                alone = setup.refit is not None or data.few is not None
                fitted = (data.train,) if alone else (data.train, data.validation)
                results = with_baselines(results, setup.config.report, data, fitted, workdir)
                write_report(workdir, setup, state, tested, results, command, gallery)
    return results
