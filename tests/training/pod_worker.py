"""`train.py` under observation: notes the rows that it reads, and ends where it is told to.

    python pod_worker.py DIARY PLAN REPORT [arguments of train.py]

DIARY gets one JSON line a batch: the split's size and the rows read of it. PLAN is "" or
SIGNAL@PLACE:NUMBER, for a signal that the process sends to itself at the NUMBERth training batch
("step") or evaluation batch ("evaluation"), or while the first checkpoint after that training
batch is being written ("write"). REPORT is "report", or "" for a run without one.
"""

import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from compilation import compile_quickly

import sdjax.data.batches as batches
from sdjax.training import run

ROOT = Path(__file__).parents[2]
TRAIN_ROWS = 70  # of the toy data


def main() -> None:
    diary, plan, report = sys.argv[1:4]
    sys.argv = ["train.py", *sys.argv[4:]]
    observe(Path(diary), plan)
    if not report:
        run.write_report = lambda *_: None
    compile_quickly()
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


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


if __name__ == "__main__":
    main()
