"""Kills processes of runs at random moments, and counts what is lost.

    python tests/fault_drill.py --kills=50 --shapes=2x2
    python tests/fault_drill.py --kills=10 --shapes=2x2,1x4,4x1

Real processes train on a small data set. One of them, process 0 with the coordinator in its turn,
kills itself with SIGKILL in a training step, while a checkpoint is being written, or in an
evaluation. The others must end by themselves. The same command then resumes, in a random one of the
shapes (PxD: P processes with D devices each). Runs that end are compared with one that nothing
interrupted: to the bit in one shape, to 1e-4 in several.
"""

import collections
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent / "training"))

from pods import Pod, assert_same_run, write_toy_files

KILLS = flags.DEFINE_integer("kills", 50, "Number of kills.")
SHAPES = flags.DEFINE_list("shapes", ["2x2"], "Processes x devices of each, to choose from.")
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
PATIENCE = flags.DEFINE_integer("patience", 60, "Seconds in which the others must end.")
PLACES = ("step", "write", "evaluation")
LARGEST = {"step": 7, "write": 6, "evaluation": 4}  # moments, counted from the start of an attempt


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        print(drill(Path(folder), KILLS.value, SHAPES.value, random.Random(SEED.value)))


def drill(folder: Path, kills: int, shapes: list[str], rng: random.Random) -> str:
    """Kills `kills` times; returns a table of what came of it."""
    files, cache = folder / "data", folder / "cache"
    write_toy_files(files)
    whole = Pod(files, folder / "whole", shapes[0], cache=cache).finish().workdir
    rtol = 0.0 if len(shapes) == 1 else 1e-4
    counts: collections.Counter[str] = collections.Counter()
    waits = []
    for run in range(10 * kills):
        workdir, ended = folder / f"run{run}", False
        while not ended:
            left = kills - counts["kills"]
            shape = rng.choice(shapes)
            count = int(shape.partition("x")[0])
            place, victim = rng.choice(PLACES), rng.randrange(count)
            plan = f"SIGKILL@{place}:{rng.randint(1, LARGEST[place])}" if left else ""
            saved = newest(workdir)
            pod = Pod(files, workdir, shape, {victim: plan}, cache=cache)
            statuses, wait = end(pod)
            counts["attempts"] += 1
            if saved and resumed_after(pod) < saved:
                counts["lost"] += 1
            if statuses[victim] == -signal.SIGKILL:
                waits.append(wait)
                who = "process 0" if victim == 0 else "another"
                counts.update(["kills", place, who])
                counts["stuck"] += wait >= PATIENCE.value
                counts["lost"] += newest(workdir) < saved
                print(f"{counts['kills']} killed: {shape} {plan} in process {victim}", flush=True)
            elif statuses == [0] * count:
                ended = True
                counts["runs"] += 1
                counts["mismatched"] += not same(whole, workdir, rtol)
            else:
                counts["failed"] += 1
                print(pod.log(0)[-2000:], flush=True)
                break
        if counts["kills"] >= kills:
            break
    return table(counts, waits)


def end(pod: Pod) -> tuple[list[int | None], float]:
    """Exit statuses, and how long the rest outlived the first that was killed."""
    while all(process.exitcode is None for process in pod.processes):
        time.sleep(0.01)
    died = time.monotonic()
    killed = any(process.exitcode == -signal.SIGKILL for process in pod.processes)
    while any(process.exitcode is None for process in pod.processes):
        if time.monotonic() - died > (PATIENCE.value if killed else 10 * PATIENCE.value):
            pod.kill()
        time.sleep(0.01)
    return [process.exitcode for process in pod.processes], time.monotonic() - died


def newest(workdir: Path) -> int:
    """The last step of which there is a whole checkpoint."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def resumed_after(pod: Pod) -> int:
    """The step after which the last attempt of a run went on."""
    steps = re.findall(r"Resuming after step (\d+)", pod.log(0))
    return int(steps[-1]) if steps else 0


def same(whole: Path, workdir: Path, rtol: float) -> bool:
    try:
        assert_same_run(whole, workdir, rtol)
    except AssertionError as error:
        print(error, flush=True)
        return False
    return True


def table(counts: collections.Counter[str], waits: list[float]) -> str:
    names = ("kills", *PLACES, "process 0", "another", "attempts", "runs", "lost", "stuck")
    names += ("mismatched", "failed")
    lines = [f"| {name} | {counts[name]} |" for name in names]
    lines += [f"| others ended after, median | {statistics.median(waits):.1f} s |"]
    lines += [f"| others ended after, longest | {np.max(waits):.1f} s |"]
    return "\n".join(["| what | count |", "|---|---|", *lines])


if __name__ == "__main__":
    app.run(main)
