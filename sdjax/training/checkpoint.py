"""Checkpoints of the training state and the data position, over Orbax."""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers as ocp_managers

from sdjax.errors import InputError
from sdjax.training.errors import LostPeerError
from sdjax.training.manifest import (
    MANIFEST,
    STATE,
    DamagedCheckpointError,
    ForeignCheckpointError,
    Position,
    check_model,
    make_manifest,
    read_manifest,
    verify,
)
from sdjax.training.preservation import BestStep
from sdjax.training.processes import failing_together, gather_texts, is_main
from sdjax.training.storage import (
    State,
    SummedStateHandler,
    async_options,
    proven_damage,
    read_alone,
    read_error,
    write_error,
)

__all__ = [
    "Checkpoints",
    "DamagedCheckpointError",
    "ForeignCheckpointError",
    "Position",
    "UnreadableCheckpointError",
]


class UnreadableCheckpointError(OSError):
    """A checkpoint that may be sound cannot be read now."""


class Checkpoints:
    """The checkpoints of a run: written in the background, each whole or not at all.

    Each has a manifest: the data position, the metrics, and shape, dtype and checksum of every
    array, by which damage is found. All processes of a run call each method alike, and get the
    same answer.

    Args:
      directory: where they lie, one folder a step, for all processes.
      keep: how many of the newest are kept.
      best_by: name of a validation metric by which the best one is kept too; "" for none. Larger is
        better, but not for losses and `metrics.LOWER_IS_BETTER`.
      read_only: never write, and leave damaged ones where they are.

    Raises:
      UnreadableCheckpointError: if the metrics of one cannot be read.
    """

    def __init__(
        self, directory: Path, keep: int = 1, *, best_by: str = "", read_only: bool = False
    ):
        self._directory = directory.absolute()
        self._read_only = read_only
        self._saving: int | None = None
        self._best = BestStep(best_by)
        newest = ocp_managers.LatestN(None if read_only else keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp_managers.AnyPreservationPolicy([newest, self._best]),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            async_options=async_options(),
        )
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(STATE, ocp.args.StandardSave, SummedStateHandler())
        handlers.add(MANIFEST, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, handler_registry=handlers
        )
        if best_by:
            self._rank_saved()

    def save(
        self,
        step: int,
        state: Any,
        position: Position,
        metrics: Mapping[str, float | None] | None = None,
    ) -> None:
        """Starts to write the state after `step` steps.

        Args:
          step: not smaller than that of any checkpoint there is; one that is there stays as it is.
          state: any pytree of arrays.
          position: of the data.
          metrics: of the validation at this step, None without one. Those that are None or not
            finite count as absent.

        Raises:
          OSError: if this checkpoint, or the one before it, could not be written.
          ValueError: if `metrics` do not hold `best_by`, or there is a checkpoint of a later step.
        """
        self.wait()
        newest = max(self.steps(), default=-1)
        if step < newest:  # Orbax would not write it, and not say so.
            raise InputError(
                f"Checkpoints are saved in order of their steps: got step {step}, and there is one "
                f"of step {newest} in {self._directory}."
            )
        if step == newest:
            return
        self._best.check(metrics or {})
        given = {k: float(v) for k, v in (metrics or {}).items() if v is not None}
        finite = {k: v for k, v in given.items() if math.isfinite(v)}
        self._saving = step
        items = {
            STATE: ocp.args.StandardSave(state),
            MANIFEST: ocp.args.JsonSave(make_manifest(state, position, finite)),
        }
        # What process 0 writes decides, on all, which are kept.
        value = json.loads(gather_texts(json.dumps(self._best.value(finite)))[0])
        self._best.add(step, value)
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**items))

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, in order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the best checkpoint by `best_by`; None if none has that metric."""
        return next(iter(self._best.best_first(self.steps())), None)

    def restore_newest(
        self, abstract_state: Callable[[Position], State]
    ) -> tuple[State, Position] | None:
        """The newest checkpoint that is whole, as (state, position); None without any.

        One that is proven to be damaged is reported and set aside, and the one before it is tried.

        Args:
          abstract_state: shapes, dtypes and shardings of the state at a position.

        Raises:
          UnreadableCheckpointError: if one cannot be read for another reason; nothing is changed.
          DamagedCheckpointError: if there are checkpoints, and all are damaged.
          ForeignCheckpointError: if one is of another model, or `abstract_state` raises it.
          OSError: if what was saved last could not be written.
        """
        return self._restore_first(reversed(self.steps()), abstract_state)

    def restore_best(
        self, abstract_state: Callable[[Position], State]
    ) -> tuple[State, Position] | None:
        """The best checkpoint by `best_by` that is whole; None if none has that metric.

        Args and Raises as those of `restore_newest`.
        """
        return self._restore_first(self._best.best_first(self.steps()), abstract_state)

    def wait(self) -> None:
        """Returns when all that was saved is on disk.

        Raises:
          OSError: if it could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads of the writer.

        Raises:
          OSError: if what was saved last could not be written.
        """
        with self._explained():
            self._manager.close()

    def _restore_first(
        self, steps: Iterable[int], abstract_state: Callable[[Position], State]
    ) -> tuple[State, Position] | None:
        self.wait()
        damaged: dict[int, DamagedCheckpointError] = {}
        for step in steps:
            try:
                state, position = self._restore(step, abstract_state)
            except DamagedCheckpointError as error:
                logging.error(
                    "Checkpoint of step %d cannot be read, it is damaged: %s", step, error
                )
                damaged[step] = error
            else:
                self._set_aside(list(damaged))
                return state, position
        if damaged:
            texts = "; ".join(f"step {step}: {error}" for step, error in damaged.items())
            raise DamagedCheckpointError(
                f"All checkpoints in {self._directory} that could be used are damaged ({texts}). "
                "They are left there. Restore that folder from a copy, or start again with another "
                "workdir."
            )
        return None

    def _restore(
        self, step: int, abstract_state: Callable[[Position], State]
    ) -> tuple[State, Position]:
        folder = self._directory / str(step)
        with self._one_verdict(step):
            manifest = read_manifest(folder)
        with failing_together():
            target = abstract_state(manifest["position"])
            check_model(manifest, target)
        with self._one_verdict(step):
            try:
                state = read_alone(folder / STATE, target)
            except Exception as error:
                if not proven_damage(error):
                    raise
                read_manifest(folder)  # Files miss too where the whole disk has gone away.
                raise DamagedCheckpointError(read_error(error)) from error
        # Apart, as the processes compute it in common. Each has read its own copy of what is the
        # same on all, so that they may find different sums.
        with self._one_verdict(step):
            verify(state, manifest)
        return state, manifest["position"]

    @contextlib.contextmanager
    def _one_verdict(self, step: int) -> Iterator[None]:
        """A block whose gravest error, of all processes, is raised on all of them.

        A checkpoint that one process cannot read is unreadable, even if another finds it damaged.
        """
        error: Exception | None = None
        try:
            yield
        except (ForeignCheckpointError, DamagedCheckpointError, LostPeerError) as raised:
            error = raised
        except Exception as raised:
            error = UnreadableCheckpointError(
                f"The checkpoint of step {step} in {self._directory} cannot be read: "
                f"{read_error(raised)}. It may be sound, and nothing was changed. Run the same "
                "command again once the cause is gone."
            )
            error.__cause__ = raised
        gravest = _gravest(error)
        if gravest is not None:
            raise gravest

    def _rank_saved(self) -> None:
        """Ranks the checkpoints there are; what damaged ones say does not count."""
        for step in self.steps():
            try:
                with self._one_verdict(step):
                    manifest = read_manifest(self._directory / str(step))
            except (DamagedCheckpointError, ForeignCheckpointError) as error:
                logging.error("The metrics of step %d do not count: %s", step, error)
            else:
                self._best.add(step, self._best.value(manifest["metrics"]))

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints out of the way of new ones, without deleting them."""
        if self._read_only or not steps:
            return
        with failing_together():
            for step in steps if is_main() else []:
                target = _unused(self._directory.with_name("broken_checkpoints") / str(step))
                target.parent.mkdir(exist_ok=True)
                (self._directory / str(step)).rename(target)
                logging.warning("Moved the damaged checkpoint of step %d to %s.", step, target)
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of an error in writing which checkpoint it was, and which are left."""
        try:
            yield
        except (OSError, ValueError) as error:
            kept = sorted(
                int(path.name) for path in self._directory.iterdir() if path.name.isdigit()
            )
            left = "There is no other."
            if kept:
                steps = ", ".join(map(str, kept))
                left = f"Kept: those of steps {steps}. The same command resumes from the last."
            raise OSError(
                f"The checkpoint of step {self._saving} could not be written to "
                f"{self._directory}: {write_error(error)}. {left}"
            ) from error


def _gravest(error: Exception | None) -> Exception | None:
    """The gravest of the errors of all processes; of equal ones one's own."""
    kinds = (UnreadableCheckpointError, ForeignCheckpointError, DamagedCheckpointError)
    mine = next((i for i, kind in enumerate(kinds) if isinstance(error, kind)), len(kinds))
    with failing_together():
        # A process that has lost another fails here, as that one does not come.
        texts = gather_texts(json.dumps([mine, str(error)]))
    found = [json.loads(text) for text in texts]
    number, (kind, text) = min(enumerate(found), key=lambda each: each[1][0])
    if kind == mine:
        return error
    return kinds[kind](f"Process {number}: {text}")


def _unused(path: Path) -> Path:
    """`path`, with a number if there is one already: a step may break, be written, and break."""
    names = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], names) if not each.exists())
