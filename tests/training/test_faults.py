"""Real processes, killed: the same command resumes, and ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from pods import final_state

from sdjax.training.logbook import read_records

ROOT = Path(__file__).parents[2]
LAST = 40  # steps: two phases of 4 epochs of 5 batches


def command(toy_files, workdir):
    overrides = {
        "recipe": "finetune", "batch_size": 16, "model.width": 16, "model.projection_dim": 8,
        "pretrain.epochs": 4, "supervise.epochs": 4, "pretrain.ema_decay": 0.9,
        "checkpoint_every": 1, "log_every": 1, "evaluate_every": 2,
        "data.train": toy_files / "train.npz", "data.test": toy_files / "test.npz",
        "data.validation": toy_files / "validation.npz", "report.baselines": False,
        "candidates": "()", "refit": False,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    config = f"--config={ROOT / 'configs' / 'own_data.py'}"
    return [sys.executable, str(ROOT / "train.py"), config, f"--workdir={workdir}", *flags]


def environment():
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    return {**os.environ, **cache, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def finish(toy_files, workdir):
    done = subprocess.run(
        command(toy_files, workdir), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def start_and_kill(toy_files, workdir, when, number=signal.SIGKILL):
    """Starts a run, and sends the signal once `when()` holds; returns its exit status."""
    with (workdir.parent / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command(toy_files, workdir), env=environment(), stdout=log, stderr=log
        )
        while process.poll() is None and not when():
            time.sleep(0.001)
        process.send_signal(number)
        return process.wait(timeout=60)


def steps_saved(workdir):
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.exists() else []
    return [int(name) for name in names if name.isdigit()]


def writing(workdir):
    folder = workdir / "checkpoints"
    return folder.exists() and any("tmp" in name for name in os.listdir(folder))


def assert_same_end(one, other):
    results = [json.loads((workdir / "results.json").read_text()) for workdir in (one, other)]
    assert results[0] == results[1]
    for x, y in zip(final_state(one), final_state(other), strict=True):
        np.testing.assert_array_equal(x, y)
    records = [
        [(r["step"], r["split"], r["loss"]) for r in read_records(workdir / "metrics.jsonl")]
        for workdir in (one, other)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def uninterrupted(toy_files, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(toy_files, workdir)
    return workdir


def kill_often(toy_files, workdir, kills, seed):
    """Kills a run at random steps, every second time while a checkpoint is being written."""
    rng = random.Random(seed)
    last = max(steps_saved(workdir), default=0)
    for number in range(kills):
        target = last + rng.randint(1, max((LAST - 2 - last) // (kills - number), 1))

        def when(target=target, number=number):
            step = max(steps_saved(workdir), default=0)
            # At the last step there is no later write to wait for.
            return step >= target and (number % 2 == 0 or step == LAST or writing(workdir))

        assert start_and_kill(toy_files, workdir, when) == -signal.SIGKILL
        assert max(steps_saved(workdir)) >= last
        last = max(steps_saved(workdir))
    finish(toy_files, workdir)


@pytest.mark.slow
def test_killed_many_times(toy_files, uninterrupted, tmp_path):
    kill_often(toy_files, tmp_path / "run", kills=6, seed=int(time.time()))
    assert_same_end(uninterrupted, tmp_path / "run")


@pytest.mark.slow
def test_sigterm_saves_and_says_so(toy_files, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    status = start_and_kill(toy_files, workdir, lambda: steps_saved(workdir), signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    log = (tmp_path / "log.txt").read_text()
    assert "Stopped by SIGTERM after step" in log
    assert "The same command resumes from there." in log
    assert "Traceback" not in log
    finish(toy_files, workdir)
    assert_same_end(uninterrupted, workdir)
