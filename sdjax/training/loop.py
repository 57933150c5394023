"""The training loop of one phase."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import jax
import numpy as np

from sdjax import data as data_lib
from sdjax.training.evaluate import make_validate
from sdjax.training.interrupt import Interrupted, InterruptGuard
from sdjax.training.mesh import (
    batch_sharding,
    evaluation_batch_size,
    one_program_at_a_time,
    rows_of_process,
)
from sdjax.training.phases import Phase
from sdjax.training.profiler import StepProfiler
from sdjax.training.reporter import Reporter
from sdjax.training.state import TrainState
from sdjax.training.step import Metrics, make_objective, make_train_step

if TYPE_CHECKING:
    from sdjax.training.run import Run


class NonFiniteLossError(FloatingPointError):
    """The loss, or its gradient, is infinite or not a number."""


def train_phase(
    run: Run,
    phase: Phase,
    step: int,
    state: TrainState,
    reporter: Reporter,
    guard: InterruptGuard,
    profiler: StepProfiler,
) -> TrainState:
    """The state at the end of `phase`, from the state after `step` steps of the run.

    Raises:
      Interrupted: after SIGTERM or Ctrl-C, once all is saved.
      NonFiniteLossError: naming the step; what was saved before it stays.
    """
    config, dataset = run.config, run.dataset
    objective = make_objective(config, phase, run.graph, dataset.modality, run.mesh)
    train_step = make_train_step(phase, objective, run.mesh)
    validate = make_validate(
        objective,
        run.forward,
        dataset.validation,
        evaluation_batch_size(config, len(dataset.validation), run.mesh),
        run.mesh,
        phase,
    )
    batches = data_lib.training_batches(
        dataset.train,
        config.batch_size,
        seed=run.data_seed(phase),
        drop_remainder=config.drop_remainder,
        start=step - phase.start,
        rows=rows_of_process(config.batch_size, run.mesh),
    )
    sharding = batch_sharding(run.mesh)
    pending: list[Metrics] = []
    started = time.monotonic()
    while step < phase.stop:
        profiler.before_step(pending)
        state, step_metrics = train_step(state, data_lib.to_device(next(batches), sharding))
        if one_program_at_a_time(run.mesh):
            jax.block_until_ready(step_metrics)
        pending.append(step_metrics)
        step += 1
        done, last = step - phase.start, step == phase.stop
        interrupted = guard.requested(step)  # read once: a signal may come at any time
        saves = last or step % config.checkpoint_every == 0 or interrupted is not None
        validates = last or done % (config.evaluate_every * run.steps_per_epoch) == 0
        if not (saves or validates or step % config.log_every == 0):
            continue
        # Before anything is saved: a broken state must not replace a sound one.
        latest = latest_finite(pending, step, phase)
        rate = len(pending) * config.batch_size / max(time.monotonic() - started, 1e-9)
        epoch = done / run.steps_per_epoch
        where = {"step": step, "epoch": epoch, "phase": phase.name}
        reporter.write({**where, "split": "train", **latest, "examples_per_second": rate})
        reporter.update(phase.name, done, phase.num_steps, latest["loss"], rate)
        if validates:
            reporter.write({**where, "split": "validation", **validate(state)})
        if saves:
            run.checkpoints.save(step, state, run.position(step))
        if interrupted is not None:
            run.checkpoints.wait()
            raise Interrupted(interrupted, step)
        pending, started = [], time.monotonic()
    return state


def latest_finite(pending: list[Metrics], step: int, phase: Phase) -> dict[str, float]:
    """Metrics of step `step`, the last of the `pending` ones, all of which must be finite."""
    values: dict[str, float] = {}
    for number, arrays in enumerate(jax.device_get(pending), start=step - len(pending) + 1):
        values = {name: float(value) for name, value in arrays.items()}
        for name in ("loss", "gradient_norm"):
            if not np.isfinite(values[name]):
                raise NonFiniteLossError(
                    f"The {name.replace('_', ' ')} is {values[name]} at step {number} (phase "
                    f"{phase.name!r}, learning rate {values['learning_rate']:.3g}). Checkpoints of "
                    "earlier steps are kept. A lower learning rate, a higher temperature or "
                    "clip_norm may help."
                )
    return values
