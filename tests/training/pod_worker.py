"""`train.py` under observation: notes the rows that it reads, and ends where it is told to."""

import atexit
import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import garbage
import jax
from compilation import compile_quickly
from drawing import leave_figures_empty

import sdjax.data.batches as batches
from sdjax.report import baselines
from sdjax.training import run

ROOT = Path(__file__).parents[2]
TRAIN_ROWS = 70  # of the toy data
FEW_TREES = 40  # in place of 500

# Processes are forked off one that has imported all this.
garbage.collect_seldom()
garbage.collect()


def work(
    log: Path,
    diary: Path,
    plan: str,
    report: bool,
    arguments: list[str],
    environment: dict[str, str],
    settings: dict[str, Any],
) -> None:
    """A process of a pod.

    Args:
      log: gets what it prints.
      diary: gets one JSON line a batch: the split's size and the rows read of it.
      plan: "" or SIGNAL@PLACE:NUMBER, for a signal that the process sends to itself at the NUMBERth
        training batch ("step") or evaluation batch ("evaluation"), or while the first checkpoint
        after that training batch is being written ("write").
      report: whether the run writes its report, without figures.
      arguments: of `train.py`.
      environment: variables that it finds.
      settings: of jax, which has been imported before.
    """
    os.environ.update(environment)
    for name, value in settings.items():
        jax.config.update(name, value)
    observe(diary, plan)
    if report:
        leave_figures_empty()
        baselines.TREES = FEW_TREES
    else:
        run.write_report = lambda *_: None
    compile_quickly()
    command(log, log, arguments)


def command(out: Path, errors: Path, arguments: list[str]) -> None:
    """`train.py` with these arguments; what it prints goes to two files, or to one."""
    for stream, path in ((sys.stdout, out), (sys.stderr, errors)):
        stream.flush()
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    sys.argv = [str(ROOT / "train.py"), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        # As at the end of an interpreter, which a forked process does not come to.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()


def observe(diary: Path, plan: str) -> None:
    fetch = batches._fetch
    kind, _, moment = plan.partition("@")
    place, _, number = moment.partition(":")
    seen = {"step": 0, "evaluation": 0}

    def observed(source, examples, positions):
        where = "step" if len(source) == TRAIN_ROWS else "evaluation"
        rows = examples[positions[positions < len(examples)]].tolist()
        with diary.open("a") as file:
            file.write(json.dumps([len(source), rows]) + "\n")
        seen[where] += 1
        if plan and seen[where] == int(number):
            if where == place:
                os.kill(os.getpid(), getattr(signal, kind))
            elif (where, place) == ("step", "write"):
                threading.Thread(target=kill_in_a_write, args=[kind], daemon=True).start()
        return fetch(source, examples, positions)

    batches._fetch = observed


def kill_in_a_write(kind: str) -> None:
    (workdir,) = (each for each in sys.argv if each.startswith("--workdir="))
    folder = Path(workdir.removeprefix("--workdir=")) / "checkpoints"
    while not any("tmp" in path.name for path in folder.iterdir()):
        time.sleep(0.0005)
    os.kill(os.getpid(), getattr(signal, kind))
