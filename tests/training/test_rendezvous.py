"""Processes that meet, that are late, that never come, and that contradict each other."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pods import free_port

from sdjax.training.processes import initialize
from sdjax.training.rendezvous import meet


def connect(port):
    return socket.create_connection(("localhost", port))


def meeting(calls, num_processes=3, timeout=2.0):
    """What becomes of each call: (seconds of delay, process id[, number of processes])."""
    coordinator = f"localhost:{free_port()}"

    def arrive(delay, process_id, count=num_processes):
        time.sleep(delay)
        try:
            return meet(coordinator, count, process_id, timeout)
        except (OSError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: arrive(*call), calls))


@pytest.mark.parametrize("delays", [(0, 0, 0), (0.5, 0, 1), (0, 1, 0.5)])
def test_all_meet_in_any_order(delays):
    assert meeting([(delay, k) for k, delay in enumerate(delays)], timeout=20) == [None] * 3


@pytest.mark.parametrize(
    ("present", "text"),
    [((0, 2), "process 1 of 4 did"), ((0, 3), "processes 1, 2 of 4 did"), ((0,), "1, 2, 3 of 4")],
)
def test_every_process_learns_who_is_missing(present, text):
    if present == (0, 2):
        present = (0, 2, 3)
    for error in meeting([(0, k) for k in present], num_processes=4, timeout=1.0):
        assert isinstance(error, TimeoutError)
        assert text in str(error) and "not start within 1 seconds" in str(error)


def test_without_process_0():
    (error,) = meeting([(0, 2)], timeout=0.5)
    assert isinstance(error, TimeoutError)
    assert "process 2 of 3 did not reach process 0 at localhost:" in str(error)
    assert "within 0.5 seconds" in str(error)


def test_one_number_twice():
    errors = meeting([(0, 0), (0.1, 1), (0.3, 1)], timeout=20)
    assert {str(error) for error in errors} == {"two processes were started with --process_id=1."}
    assert all(isinstance(error, ValueError) for error in errors)


def test_other_numbers_of_processes():
    errors = meeting([(0, 0), (0, 1, 4)], timeout=20)
    text = "process 0 was started with --num_processes=3, process 1 with --num_processes=4."
    assert [str(error) for error in errors] == [text] * 2


def call_and_hang_up(port: int) -> None:
    """Calls as process 1 of 3, and is gone."""
    called = False
    while not called:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("localhost", port)) as call,
        ):
            call.sendall(json.dumps({"process_id": 1, "num_processes": 3}).encode())
            time.sleep(0.3)
            called = True


def test_one_that_was_killed_and_started_again_takes_its_place():
    port = free_port()
    address = f"localhost:{port}"
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(meet, address, 3, 0, 20)
        call_and_hang_up(port)
        rest = [pool.submit(meet, address, 3, k, 20) for k in (1, 2)]
        assert [each.result() for each in (first, *rest)] == [None] * 3


def test_one_that_was_killed_counts_as_absent_until_it_has_started_again():
    port = free_port()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(meet, f"localhost:{port}", 3, 0, 20)
        call_and_hang_up(port)
        second = pool.submit(meet, f"localhost:{port}", 3, 2, 20)
        with pytest.raises(TimeoutError):
            first.result(1.5)
        meet(f"localhost:{port}", 3, 1, 20)
        assert (first.result(), second.result()) == (None, None)


def test_strangers_are_ignored():
    port = free_port()

    def disturb():
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"[]", b"", b'{"process_id": "x"}'):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("localhost", port)) as call,
            ):
                call.sendall(said)

    stranger = threading.Thread(target=disturb)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, f"localhost:{port}", 2, 0, 20)
        time.sleep(0.2)
        stranger.start()
        stranger.join()
        second = pool.submit(meet, f"localhost:{port}", 2, 1, 20)
        assert first.result() is second.result() is None


def test_a_port_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} cannot be opened .*; choose another"):
            meet(f"localhost:{port}", 2, 0, 1)


@pytest.mark.parametrize("coordinator", ["localhost", "localhost:x", ":80"])
def test_an_address_without_host_or_port(coordinator):
    with pytest.raises(ValueError, match=f"--coordinator must be HOST:PORT, got '{coordinator}'"):
        meet(coordinator, 2, 0, 1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"coordinator": "a:1"}, "missing: --num_processes, --process_id"),
        ({"num_processes": 2, "process_id": 0}, "missing: --coordinator"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, r"lie in \[0, 2\).* got 2"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "num_processes must be at"),
    ],
)
def test_flags_that_do_not_fit_together(given, text):
    with pytest.raises(ValueError, match=text):
        initialize(**given)
