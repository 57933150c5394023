"""The processes of a run: how they find each other, agree, and fail together."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdjax.errors import InputError
from sdjax.training.errors import LostPeerError, PeerError
from sdjax.training.rendezvous import meet

_TEXT_BYTES = 2**14
# Of JAX where it finds no pod, GKE, Slurm or MPI job around it.
_NO_CLUSTER = "coordinator_address should be defined"


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins the processes of a run; does nothing where there is only this one.

    TPU pods, GKE, Slurm and Open MPI tell each process who the others are. Elsewhere say so.

    Args:
      coordinator: HOST:PORT at which process 0 is reached by all.
      num_processes: how many there are.
      process_id: which of them this one is, from 0.
      start_timeout: seconds to wait for all of them to start.
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead.

    Raises:
      ValueError: if some of the three are given and others are not, or out of range.
      TimeoutError: if not all have started in time; says which are missing.
      OSError: if process 0 cannot open the port.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    timeouts: dict[str, Any] = {
        "initialization_timeout": start_timeout,
        "heartbeat_timeout_seconds": heartbeat_timeout,
    }
    if all(value is None for value in given.values()):
        try:
            jax.distributed.initialize(**timeouts)
        except ValueError as error:
            if _NO_CLUSTER not in str(error):
                raise
        return
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing or coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            "--coordinator, --num_processes and --process_id go together; missing: "
            f"{', '.join(missing)}."
        )
    if num_processes < 1:
        raise InputError(f"--num_processes must be at least 1, got {num_processes}.")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id must lie in [0, {num_processes}) for --num_processes="
            f"{num_processes}, got {process_id}."
        )
    # JAX itself would end the process without saying who is missing.
    meet(coordinator, num_processes, process_id, start_timeout)
    jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)


def is_main() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return jax.process_index() == 0


def gather_texts(text: str) -> list[str]:
    """The `text` of every process, cut to 16 kB each, in order of the processes."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.zeros(_TEXT_BYTES, np.uint8)
    data = text.encode()[:_TEXT_BYTES]
    encoded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(encoded)
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in np.asarray(rows)]


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """A block that fails on every process if it fails on one, so that none waits for ever.

    Raises:
      PeerError: where the block went well here and not elsewhere; says where, and why.
      LostPeerError: if another process is gone.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    mine = "" if error is None else f"{socket.gethostname()}: {error}"
    try:
        texts = gather_texts(mine)
    except (jax.errors.JaxRuntimeError, ValueError) as lost:
        raise LostPeerError(str(lost).splitlines()[0][:300]) from (error or lost)
    if error is not None:
        raise error
    failed = [f"process {number} ({text})" for number, text in enumerate(texts) if text]
    if failed:
        raise PeerError("; ".join(failed))


def check_equal(values: dict[str, Any]) -> None:
    """Raises ValueError if `values`, JSON under names for people, differ between processes."""
    texts = [json.loads(text) for text in gather_texts(json.dumps(values))]
    for number, other in enumerate(texts):
        names = [name for name in values if other[name] != texts[0][name]]
        if names:
            different = "; ".join(
                f"{name}: {texts[0][name]!r} in process 0, {other[name]!r} in process {number}"
                for name in names
            )
            raise InputError(f"All {len(texts)} processes must do the same, but {different}.")
