"""What the user sees of an error, and the exit status."""

import os
import signal
import sys

import pytest

from sdjax.errors import InputError
from sdjax.training import NonFiniteLossError, PeerError, make_setup, reported_errors, score, train
from sdjax.training import run as run_module

pytestmark = pytest.mark.usefixtures("two_devices")


def ended(capsys, error, **options):
    """Exit status and standard error of a program that raises `error`."""
    with pytest.raises(SystemExit) as caught, reported_errors(**options):
        raise error
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [InputError("seed is odd."), OSError("disk away"), NonFiniteLossError("nan"), PeerError("2")],
    ids=repr,
)
def test_what_the_user_can_mend_is_one_line(capsys, error):
    assert ended(capsys, error) == (1, f"Error: {error}\n")
    code, text = ended(capsys, error, debug=True)
    assert code == 1
    assert text.startswith("Traceback") and text.endswith(f"{error}\n")


@pytest.mark.parametrize("error", [ValueError("shapes"), TypeError("x"), KeyError("y")], ids=repr)
def test_a_bug_shows_where_it_is(capsys, error):
    code, text = ended(capsys, error)
    assert code == 1
    assert text.startswith("Traceback") and "raise error" in text


def test_nothing_is_said_where_nothing_is_wrong(capsys):
    with reported_errors():
        pass
    with pytest.raises(SystemExit) as caught, reported_errors():
        sys.exit(3)
    assert caught.value.code == 3
    assert capsys.readouterr().err == ""


def test_an_interrupt_outside_the_loop_is_one_line(capsys):
    code, text = ended(capsys, KeyboardInterrupt())
    assert code == 130
    assert text == "Stopped by SIGINT. The same command resumes from what is saved.\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError("away"), 1)])
def test_one_of_several_processes_ends_without_waiting_for_the_others(monkeypatch, error, status):
    left = []

    def leave(status):
        left.append(status)
        sys.exit(status)

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit), reported_errors():
        raise error
    assert left == [status]


def test_an_interrupt_of_the_test(capsys, toy_config, tmp_path, monkeypatch):
    """Ctrl-C while the test figures are computed: the trained model is there, figures are not."""
    toy_config.supervise.epochs = 1
    setup = make_setup(toy_config)
    run_model = run_module.run_model

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return run_model(*given)

    monkeypatch.setattr(run_module, "run_model", interrupted)
    state = train(setup, tmp_path)
    capsys.readouterr()
    # A shell that starts the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as caught, reported_errors():
            score(setup, state, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130
    assert capsys.readouterr().err.splitlines() == [
        "Stopped by SIGINT. The same command resumes from what is saved."
    ]
    assert not (tmp_path / "results.json").exists()
    monkeypatch.undo()
    assert score(setup, train(setup, tmp_path), tmp_path)["test"]["mAP"] > 0
