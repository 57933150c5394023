"""Seconds until a command says something: the first line of `train.py`, and the page of `--help`.

    python benchmarks/first_line.py

Medians of a few starts, with files in the cache of the disk.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from absl import app, flags

ROOT = Path(__file__).parents[1]
TIMES = flags.DEFINE_integer("times", 5, "Starts of each.", lower_bound=1)


def seconds_to_first_line(workdir: str) -> float:
    """Of `train.py`, which is then killed."""
    command = [sys.executable, "train.py", f"--workdir={workdir}/run"]
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stderr is not None
        process.stderr.readline()
        took = time.perf_counter() - start
        process.kill()
    return took


def seconds_of_help() -> float:
    """Of `train.py --help`, to its end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "train.py", "--help"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT
    )
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        seconds_to_first_line(folder)  # fills the cache
        first = [seconds_to_first_line(folder) for _ in range(TIMES.value)]
    pages = [seconds_of_help() for _ in range(TIMES.value)]
    for name, taken in (("first line", first), ("--help", pages)):
        print(f"{name:<12}{median(taken):.2f} s  (from {min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    app.run(main)
