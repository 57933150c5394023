"""What Orbax and TensorStore do not do by themselves: agree, sum up, and tell errors apart."""

import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from sdjax.training.processes import is_main

State = TypeVar("State")  # any pytree of arrays

SUMS = "checksums.json"
_UNUSED = ("_sharding",)  # where the arrays lay; they are read to where the run wants them

# TensorStore raises ValueError for everything, with the kind of error at the start, and decoders
# have no kind of their own.
_DAMAGE = re.compile(
    r"^(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE): |Error decoding |ZSTD_decompressStream|Truncated Zstd"
)
_NO_DAMAGE = re.compile(r"^(RESOURCE_EXHAUSTED|UNAVAILABLE|ABORTED): |Allocation error")


class SummedStateHandler(ocp.StandardCheckpointHandler):
    """Writes checksums of Orbax's own small files, which have none.

    The large ones hold the arrays: `fingerprint` is for these.
    """

    def finalize(self, directory: Any) -> None:
        """Called once all processes have written, before the checkpoint counts as there."""
        super().finalize(directory)
        if is_main():
            folder = Path(directory)
            sums = {
                str(path.relative_to(folder)): zlib.crc32(path.read_bytes())
                for path in _small_files(folder)
            }
            (folder / SUMS).write_text(json.dumps(sums))


def _small_files(folder: Path) -> Iterator[Path]:
    for path in (*folder.iterdir(), *folder.glob("array_metadatas/*")):
        if path.is_file() and path.name not in _UNUSED:
            yield path


def read_alone(folder: Path, target: State) -> State:
    """The arrays in `folder`, read by each process for itself.

    Where one fails to read, the others would wait for it inside Orbax.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"reader{me}"
    )
    with ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
    ) as reader:
        return reader.restore(folder, args=ocp.args.StandardRestore(target))


def async_options() -> ocp.AsyncOptions | None:
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


def proven_damage(error: BaseException) -> bool:
    """Whether TensorStore says that a file is missing, cut short, or not what it wrote."""
    cause = _first_cause(error)
    text = str(cause)
    return bool(
        isinstance(cause, ValueError) and _DAMAGE.search(text) and not _NO_DAMAGE.search(text)
    )


def read_error(error: BaseException) -> str:
    """Type and text of the first cause: Orbax puts an error of TensorStore into one of its own."""
    cause = _first_cause(error)
    text = str(cause).partition(" [tensorstore_spec")[0].partition(" [source locations")[0]
    if len(text) > 400:
        text = f"{text[:100]} ... {text[-300:]}"  # TensorStore has the reason at the end
    return f"{type(cause).__name__}: {text}"


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def write_error(error: Exception) -> str:
    """An error in writing, in brief: of TensorStore's long texts, the operating system's words."""
    text = str(error)
    if "No space left on device" in text:
        return "No space left on device"
    if isinstance(error, TimeoutError) and "barrier" in text:
        return "another process could not write its part, or is gone"
    return (text.splitlines() or [type(error).__name__])[0][:300]
