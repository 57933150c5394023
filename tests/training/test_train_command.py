"""`train.py` as a user types it, mistakes included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def train(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--config.batchsize=3"], "Unknown config key 'batchsize'. Did you mean 'batch_size'"),
        (["--config.data.nam=x"], "Unknown config key 'data.nam'. Did you mean 'data.name'"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config.batch_size=many"], "batch_size=many"),
        (["configs/digits.py"], "Unexpected arguments: configs/digits.py"),
    ],
)
def test_wrong_flags(arguments, text, tmp_path):
    done = train(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode != 0
    assert text in done.stderr
    assert not (tmp_path / "run").exists()


def test_errors_are_one_line_without_a_traceback(tmp_path):
    done = train(
        f"--workdir={tmp_path / 'run'}",
        f"--config={ROOT / 'configs' / 'own_data.py'}",
        f"--config.data.train={tmp_path / 'train.npz'}",
        f"--config.data.test={tmp_path / 'test.npz'}",
    )
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_ends_with_a_table_and_the_paths_of_its_results(toy_files, tmp_path):
    workdir = tmp_path / "run"
    done = train(
        f"--workdir={workdir}",
        f"--config={ROOT / 'configs' / 'own_data.py'}",
        f"--config.data.train={toy_files / 'train.npz'}",
        f"--config.data.test={toy_files / 'test.npz'}",
        "--config.batch_size=16",
        "--config.supervise.epochs=2",
        "--profile",
    )
    assert done.returncode == 0, done.stderr
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    lines = done.stdout.splitlines()
    titles = ["Data", "Inputs", "Labels", "Devices", "Parameters", "Workdir"]
    assert [line.split()[0] for line in lines[:6]] == titles
    assert lines[5].split() == ["Workdir", str(workdir)]
    assert any("mAP" in line for line in lines)
    assert lines[-2].split() == ["Results", str(workdir / "results.json")]
    assert lines[-1].split() == ["Report", str(workdir / "report" / "report.md")]
