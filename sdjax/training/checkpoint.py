"""Checkpoints of the training state and the data position, over Orbax."""

import contextlib
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from sdjax.errors import InputError
from sdjax.training.errors import LostPeerError
from sdjax.training.fingerprint import fingerprint
from sdjax.training.processes import is_main, together
from sdjax.training.state import TrainState

Position = dict[str, int | str]
Manifest = dict[str, Any]

_FORMAT = 2  # of the manifest and its checksums


class ForeignCheckpointError(InputError):
    """A checkpoint is sound, but not one of this run."""


class DamagedCheckpointError(ValueError):
    """A checkpoint does not hold what was saved."""


class Checkpoints:
    """The checkpoints of a run: written in the background, each whole or not at all.

    Each has a manifest: the data position, and shape, dtype and checksum of every array, by which
    damage is found. All processes of a run call each method alike, and get the same answer.

    Args:
      directory: where they lie, one folder a step, for all processes.
      keep: how many of the newest are kept.
      read_only: never write, and leave broken ones where they are.
    """

    def __init__(self, directory: Path, keep: int = 1, *, read_only: bool = False):
        self._directory = directory.absolute()
        self._read_only = read_only
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            async_options=_async_options(),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Starts to write the state after `step` steps.

        Raises:
          OSError: if this checkpoint, or the one before it, could not be written.
        """
        self.wait()
        self._saving = step
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            manifest=ocp.args.JsonSave(_manifest(state, position)),
        )
        with self._explained():
            self._manager.save(step, args=items)

    def restore_newest(
        self, abstract_state: Callable[[Position], TrainState]
    ) -> tuple[TrainState, Position] | None:
        """The newest checkpoint that is whole, as (state, position); None without any.

        One that is damaged is reported and set aside, and the one before it is tried.

        Args:
          abstract_state: shapes, dtypes and shardings of the state at a position.

        Raises:
          ValueError: if there are checkpoints, and none of them is whole.
          ForeignCheckpointError: if one is of another model, or `abstract_state` raises it.
        """
        broken = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with together():
                    state, manifest = self._read(step, abstract_state)
                # Apart, as they compute it in common. Each has read its own copy of what is the
                # same on all, so that they may find different sums.
                with together():
                    _verify(state, manifest)
            except (ForeignCheckpointError, LostPeerError):
                raise
            except Exception as error:  # Orbax raises many types for a damaged file.
                logging.error(
                    "Checkpoint of step %d cannot be read: %s: %s",
                    step,
                    type(error).__name__,
                    str(error)[:300],
                )
                broken.append(step)
            else:
                self._set_aside(broken)
                return state, manifest["position"]
        if broken:
            raise InputError(
                f"None of the checkpoints in {self._directory} can be read (steps "
                f"{', '.join(map(str, broken))}). Remove that folder to start again."
            )
        return None

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

    @contextlib.contextmanager
    def _reader(self) -> Iterator[ocp.CheckpointManager]:
        """A manager by which a process reads alone.

        Where one fails to read, the others would wait for it inside Orbax.
        """
        if jax.process_count() == 1:
            yield self._manager
            return
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
        )
        options = ocp.CheckpointManagerOptions(
            create=False, read_only=True, multiprocessing_options=alone
        )
        with ocp.CheckpointManager(self._directory, options=options) as reader:
            yield reader

    def _read(
        self, step: int, abstract_state: Callable[[Position], TrainState]
    ) -> tuple[TrainState, Manifest]:
        with self._reader() as reader:
            item = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            manifest = _checked(reader.restore(step, args=item)["manifest"])
            if manifest.get("format") != _FORMAT:
                raise ForeignCheckpointError(
                    f"The checkpoint of step {step} in {self._directory} was written by another "
                    "version of sdjax, which can read it."
                )
            target = abstract_state(manifest["position"])
            _check_model(manifest["arrays"], _described(target))
            item = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            return reader.restore(step, args=item)["state"], manifest

    def _set_aside(self, steps: list[int]) -> None:
        """Moves broken checkpoints out of the way of new ones, without deleting them."""
        if self._read_only or not steps:
            return
        with together():
            for step in steps if is_main() else []:
                target = _unused(self._directory.with_name("broken_checkpoints") / str(step))
                target.parent.mkdir(exist_ok=True)
                (self._directory / str(step)).rename(target)
                logging.warning("Moved the broken checkpoint of step %d to %s.", step, target)
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
                f"{self._directory}: {_reason(error)}. {left}"
            ) from error


def _async_options() -> ocp.AsyncOptions | None:
    """A barrier of Orbax at which a process whose own write has failed does not wait.

    The others, who do not know, come to another one: it would learn of its error in 20 minutes.
    """
    if jax.process_count() == 1:
        return None
    barrier = ocp.multihost.get_barrier_sync_fn()

    def barrier_unless_failed(*, key: str, timeout_ms: int) -> None:
        # Orbax comes here on the way out of a failed write too.
        if barrier is not None and sys.exception() is None:
            barrier(key=key, timeout_ms=timeout_ms)

    return ocp.AsyncOptions(barrier_sync_fn=barrier_unless_failed)


def _unused(path: Path) -> Path:
    """`path`, with a number if there is one already: a step may break, be written, and break."""
    names = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], names) if not each.exists())


def _reason(error: Exception) -> str:
    """The error in brief: of the long texts of TensorStore, the operating system's words."""
    text = str(error)
    if "No space left on device" in text:
        return "No space left on device"
    if isinstance(error, TimeoutError) and "barrier" in text:
        return "another process could not write its part, or is gone"
    return text.splitlines()[0][:300]


def _described(tree: Any) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): {"shape": list(x.shape), "dtype": str(x.dtype)}
        for path, x in leaves
    }


def _manifest(state: TrainState, position: Position) -> Manifest:
    described = _described(state)
    sums = fingerprint(state)
    arrays = {
        name: {**values, "checksum": value}
        for (name, values), value in zip(described.items(), sums, strict=True)
    }
    return _signed({"format": _FORMAT, "position": position, "arrays": arrays})


def _verify(state: TrainState, manifest: Manifest) -> None:
    for (name, saved), found in zip(manifest["arrays"].items(), fingerprint(state), strict=True):
        if saved["checksum"] != found:
            raise DamagedCheckpointError(f"the array {name} is not what was saved")


def _signed(manifest: Manifest) -> Manifest:
    return {**manifest, "crc32": _crc32(manifest)}


def _checked(manifest: Manifest) -> Manifest:
    content = {name: value for name, value in manifest.items() if name != "crc32"}
    if manifest.get("crc32") != _crc32(content):
        raise DamagedCheckpointError("its manifest is not what was saved")
    return content


def _crc32(manifest: Manifest) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _check_model(saved: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    """Raises ForeignCheckpointError unless the arrays have the same names, shapes and dtypes."""
    texts = [
        f"{name}: {_text(saved.get(name))} there, {_text(wanted.get(name))} here"
        for name in sorted(saved.keys() | wanted.keys())
        if _text(saved.get(name)) != _text(wanted.get(name))
    ]
    if texts:
        more = f"; and {len(texts) - 5} more" if len(texts) > 5 else ""
        raise ForeignCheckpointError(
            f"The checkpoint is of another model or optimizer ({'; '.join(texts[:5])}{more})."
        )


def _text(array: dict[str, Any] | None) -> str:
    return "absent" if array is None else f"{array['dtype']} {array['shape']}"
