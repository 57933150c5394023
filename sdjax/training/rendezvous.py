"""Processes that were told of each other by hand meet here before JAX starts.

JAX ends a process in which others are missed, without saying which. So each calls process 0 first,
which tells all of them who is there.
"""

import contextlib
import json
import socket
import time

from sdjax.errors import InputError

_RETRY_SECONDS = 0.2
_ANSWER_SECONDS = 5.0  # how much later than its own time limit a process waits for the verdict


def meet(coordinator: str, num_processes: int, process_id: int, timeout: float) -> None:
    """Returns once all processes have called process 0.

    Args:
      coordinator: HOST:PORT at which process 0 is reached; the port is free again afterwards.
      num_processes: how many there are.
      process_id: which of them this one is.
      timeout: seconds.

    Raises:
      TimeoutError: if some have not called in time; says which, in every process that has.
      ValueError: if they contradict each other.
      OSError: if process 0 cannot open the port.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    address = (host.strip("[]"), int(port))
    if process_id == 0:
        error = _receive_calls(address, num_processes, timeout)
    else:
        error = _call(address, num_processes, process_id, timeout)
    if error is not None:
        raise error


def _receive_calls(
    address: tuple[str, int], num_processes: int, timeout: float
) -> Exception | None:
    """Process 0: gathers calls, and answers all of them alike."""
    deadline = time.monotonic() + timeout
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        server = socket.create_server(("", address[1]), family=family, backlog=num_processes)
    except OSError as error:
        return OSError(
            f"--coordinator: port {address[1]} cannot be opened ({error.strerror}); choose another."
        )
    calls: dict[int, socket.socket] = {}
    answered: list[socket.socket] = []
    error = None
    with server, contextlib.ExitStack() as stack:
        while len(calls) < num_processes - 1 and error is None:
            left = deadline - time.monotonic()
            if left <= 0:
                absent = sorted(set(range(1, num_processes)) - set(calls))
                error = _absent(absent, num_processes, timeout)
                break
            server.settimeout(left)
            try:
                call = stack.enter_context(server.accept()[0])
                call.settimeout(_RETRY_SECONDS)
                said = json.loads(call.recv(1024))
                number, total = int(said["process_id"]), int(said["num_processes"])
                call.setblocking(False)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # Not one of ours, such as a port scan; or the time is up.
            if total != num_processes:
                error = InputError(
                    f"process 0 was started with --num_processes={num_processes}, process "
                    f"{number} with --num_processes={total}."
                )
            elif number in calls and not _hung_up(calls[number]):
                error = InputError(f"two processes were started with --process_id={number}.")
            calls[number] = call
            answered.append(call)
            # One that was killed meanwhile is started again, and must find process 0.
            calls = {number: call for number, call in calls.items() if not _hung_up(call)}
        late = isinstance(error, TimeoutError)
        verdict = {"error": "" if error is None else str(error), "late": late}
        for call in answered:
            with contextlib.suppress(OSError):
                call.sendall(json.dumps(verdict).encode())
    return error


def _call(
    address: tuple[str, int], num_processes: int, process_id: int, timeout: float
) -> Exception | None:
    """The others: call until process 0 answers."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError), socket.create_connection(address, left) as call:
            said = {"process_id": process_id, "num_processes": num_processes}
            call.sendall(json.dumps(said).encode())
            # Process 0 keeps the time, and may have started later than this one.
            call.settimeout(timeout + _ANSWER_SECONDS)
            if answer := call.recv(4096):
                verdict = json.loads(answer)
                kind = TimeoutError if verdict["late"] else InputError
                return kind(verdict["error"]) if verdict["error"] else None
        time.sleep(_RETRY_SECONDS)
    return TimeoutError(
        f"process {process_id} of {num_processes} did not reach process 0 at {address[0]}:"
        f"{address[1]} within {timeout:g} seconds: has it started, and is the port open to others?"
    )


def _hung_up(call: socket.socket) -> bool:
    """Whether the caller is gone, as one that was killed and has started again."""
    try:
        return call.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False  # It is silent, and waits.
    except OSError:
        return True


def _absent(numbers: list[int], num_processes: int, timeout: float) -> TimeoutError:
    noun = "process" if len(numbers) == 1 else "processes"
    return TimeoutError(
        f"{noun} {', '.join(map(str, numbers))} of {num_processes} did not start within "
        f"{timeout:g} seconds."
    )
