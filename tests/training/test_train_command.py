"""`train.py` as a user types it, mistakes included."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compilation import quick_environment
from pods import forked_command

import sdjax
from sdjax.configs import FOLDER, with_paths

ROOT = Path(__file__).parents[2]


def environment():
    return {**os.environ, **quick_environment(), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}


def train(*arguments):
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config.batchsize=3"], "Unknown config key 'batchsize'. Did you mean 'batch_size'"),
        (
            ["--config.data.nam=x"],
            "'data.nam'. Did you mean 'data.name'? Known: data.name, data.tr",
        ),
        (["--config.modl.width=3"], "Unknown config key 'modl.width'. Did you mean 'model.width'"),
        (["--config.model=mlp"], "config.model is a section: set a field of it, model.encoder, "),
        (["--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir ?"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config.batch_size=many"], "batch_size=many"),
        (["--config=own_date"], "Unknown config 'own_date'. Did you mean 'own_data'"),
        (["configs/digits.py"], "Unexpected arguments: configs/digits.py"),
    ],
)
def test_wrong_flags(arguments, text, tmp_path):
    status, errors = forked_command(tmp_path, [f"--workdir={tmp_path / 'run'}", *arguments])
    assert status not in (0, None)
    assert text in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_one_line_without_a_traceback_unless_asked_for(tmp_path, debug):
    arguments = [
        *(["--debug"] if debug else []),
        f"--workdir={tmp_path / 'run'}",
        f"--config={ROOT / 'configs' / 'own_data.py'}",
        f"--config.data.train={tmp_path / 'train.npz'}",
        f"--config.data.test={tmp_path / 'test.npz'}",
    ]
    status, errors = forked_command(tmp_path, arguments)
    assert status == 1
    assert "no such file" in errors
    lines = errors.splitlines()
    if debug:
        assert lines[1].startswith("Traceback")
        assert "make_setup" in errors
    else:
        assert len(lines) == 2
        assert lines[1].startswith("Error: ")


def interrupted_after(text, command, number=signal.SIGINT):
    """Exit status, and what came on standard error behind the first line with `text`, of a signal.

    By default that of Ctrl-C.
    """
    # A shell that starts the tests in the background has them ignore it, and what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    with process:
        assert any(text in line for line in process.stderr)
        process.send_signal(number)
        behind = process.stderr.read()
    return process.returncode, behind


@pytest.mark.parametrize("command", [["train.py"], ["-m", "sdjax.train"]], ids=" ".join)
@pytest.mark.parametrize("module", ["numpy.version", "jax._src.core", "sdjax.losses"])
def test_ctrl_c_while_libraries_are_imported(command, module):
    status, behind = interrupted_after(f" {module}\n", ["-X", "importtime", *command])
    assert status in (-signal.SIGINT, 128 + signal.SIGINT)
    for line in behind.splitlines():
        assert line.startswith(("import time:", "Stopped by SIGINT."))


@pytest.mark.parametrize(
    ("text", "name"), [("sdjax ", "SIGINT"), ("Workdir", "SIGTERM"), ("Baselines:", "SIGINT")]
)
def test_a_signal_outside_the_steps_is_one_line(toy_files, finished, text, name):
    """While data are read, the step is traced, and the finished run is tested again."""
    workdir, _ = finished
    number = signal.Signals[name]
    status, behind = interrupted_after(text, ["train.py", *own_data(toy_files, workdir)], number)
    assert status == 128 + number
    lines = behind.splitlines()
    assert lines[-1] == f"Stopped by {name}. The same command resumes from what is saved."
    told = ("Data ", "Inputs", "Labels", "Devices", "Candidates", "Workdir", "The run is finished")
    assert all(line.startswith((*told, "Baselines:")) for line in lines[:-1])


def test_configs_go_by_name_or_path():
    yeast = str(FOLDER / "yeast.py")
    assert with_paths(["x", "--config=yeast", "--workdir=yeast"])[1:] == [
        f"--config={yeast}",
        "--workdir=yeast",
    ]
    assert with_paths(["x", "--config", "yeast"]) == ["x", "--config", yeast]
    for argv in (["--config=mine/a.py"], ["--config=a.py:x"], ["--config.seed=1"], ["--config"]):
        assert with_paths(argv) == argv


def own_data(toy_files, workdir):
    """Arguments of a short run on files."""
    return [
        f"--workdir={workdir}",
        f"--config={ROOT / 'configs' / 'own_data.py'}",
        f"--config.data.train={toy_files / 'train.npz'}",
        f"--config.data.test={toy_files / 'test.npz'}",
        "--config.batch_size=16",
        "--config.supervise.epochs=2",
        "--config.model.width=16",
        "--config.model.members=1",
    ]


@pytest.fixture(scope="module")
def finished(toy_files, tmp_path_factory):
    """The workdir of a run, and what it told; it has no baselines yet."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = train(*own_data(toy_files, workdir), "--config.report.baselines=False", "--profile")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_ends_with_a_table_and_the_paths_of_its_results(finished):
    workdir, done = finished
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    told = done.stderr.splitlines()
    assert told[0] == f"sdjax {sdjax.__version__}: own_data, in {workdir}"
    titles = ["Data", "Inputs", "Labels", "Devices", "Candidates", "Workdir"]
    assert [line.split()[0] for line in told[1:7]] == titles
    assert told[6].split() == ["Workdir", str(workdir)]
    lines = done.stdout.splitlines()
    assert any("mAP" in line for line in lines)
    assert lines[-3].split() == ["Results", str(workdir / "results.json")]
    assert lines[-2].split() == ["Report", str(workdir / "report" / "report.html")]
    assert lines[-1].split() == [str(workdir / "report" / "report.md")]
    report = (workdir / "report" / "report.md").read_text()
    (command,) = (line for line in report.splitlines() if line.startswith("- **Command**"))
    assert f"{ROOT / 'train.py'} --workdir={workdir} --config={ROOT}" in command
    assert command.startswith("- **Command**: `python")
