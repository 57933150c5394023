"""Checkpoints of the training state and the data position, over Orbax."""

from collections.abc import Callable
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Sharding

from sdjax.training.state import TrainState

Position = dict[str, int | str]


class ForeignCheckpointError(ValueError):
    """A checkpoint is sound, but not one of this run."""


class Checkpoints:
    """The checkpoints of a run: written in the background, each whole or not at all.

    Args:
      directory: where they lie, one folder a step.
      keep: how many of the newest are kept.
      read_only: never write, and leave broken ones where they are.
    """

    def __init__(self, directory: Path, keep: int = 1, *, read_only: bool = False):
        self._directory = directory.absolute()
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Starts to write the state after `step` steps."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
        )
        self._manager.save(step, args=items)

    def restore_newest(
        self, abstract_state: Callable[[Position], TrainState], sharding: Sharding
    ) -> tuple[TrainState, Position] | None:
        """The newest checkpoint that can be read, as (state, position); None without any.

        One that cannot be read is reported and set aside, and the one before it is tried.

        Args:
          abstract_state: shapes and dtypes of the state at a position.
          sharding: how the arrays are to lie on the devices.

        Raises:
          ValueError: if there are checkpoints, and none of them can be read.
          ForeignCheckpointError: if `abstract_state` raises it.
        """
        broken = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, abstract_state, sharding)
                self._set_aside(broken)
                return restored
            except ForeignCheckpointError:
                raise
            except Exception as error:  # Orbax raises many types for a damaged file.
                logging.error(
                    "Checkpoint of step %d cannot be read: %s: %s",
                    step,
                    type(error).__name__,
                    str(error)[:300],
                )
                broken.append(step)
        if broken:
            raise ValueError(
                f"None of the checkpoints in {self._directory} can be read (steps "
                f"{', '.join(map(str, broken))}). Remove that folder to start again."
            )
        return None

    def _restore(
        self, step: int, abstract_state: Callable[[Position], TrainState], sharding: Sharding
    ) -> tuple[TrainState, Position]:
        item = ocp.args.Composite(position=ocp.args.JsonRestore())
        position = self._manager.restore(step, args=item)["position"]
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract_state(position),
        )
        item = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=item)["state"], position

    def _set_aside(self, steps: list[int]) -> None:
        """Moves broken checkpoints out of the way of new ones, without deleting them."""
        if self._read_only:
            return
        for step in steps:
            target = self._directory.with_name("broken_checkpoints") / str(step)
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
            logging.warning("Moved the broken checkpoint of step %d to %s.", step, target)
        if steps:
            self._manager.reload()

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads of the writer."""
        self._manager.close()
