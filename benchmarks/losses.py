"""Speed and memory of the losses beside other implementations.

    python benchmarks/losses.py [--device=cpu] [--sizes=8192:80:3,...] [--out=runs/losses_benchmark]

Each subject runs in a process of its own, under caps on time and memory, and they take turns within
rounds. Written to `--out`: losses.json, losses.md and three pictures. `--quick` takes a minute;
`peers/__init__.py` says what is compared and what it needs.
"""

import json
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from peers import case as case_lib
from peers import memory, plots, tables
from peers.case import Case
from peers.schedule import Measurement, Runner, Settings
from peers.subjects import SUBJECTS, Subject

DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where to compute.")
SIZES = flags.DEFINE_list("sizes", [], "B:C:L of each case: rows, labels, mean labels a row.")
DIM = flags.DEFINE_integer("dim", 256, "Size of embeddings, for --sizes.")
SUBJECT = flags.DEFINE_string("subjects", "", "Regular expression of the subjects to measure.")
OUT = flags.DEFINE_string("out", "runs/losses_benchmark", "Folder of the results.")
QUICK = flags.DEFINE_bool("quick", False, "Two tiny cases.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of turns.", lower_bound=1)
TIME_CAP = flags.DEFINE_float("time_cap", 60, "Most seconds for one call.")
MEMORY_GIB = flags.DEFINE_float(
    "memory_gib", 0, "Most memory of one process; by default half of what is free."
)
PATIENCE = flags.DEFINE_float(
    "patience", 20, "Most seconds that a turn waits for other programs to be quiet."
)
# Of the memory that is free: what one process may take, and what all may hold while they wait.
ONE_PROCESS, WAITING = 0.5, 0.3


def settings() -> Settings:
    free = memory.available()
    cap = MEMORY_GIB.value * 2**30 or ONE_PROCESS * free
    return Settings(
        device=DEVICE.value,
        rounds=2 if QUICK.value else ROUNDS.value,
        memory_cap=cap,
        idle_memory=max(0.0, min(WAITING * free, 0.9 * free - cap)),
        time_cap=TIME_CAP.value,
        turn_seconds=0.02 if QUICK.value else 0.2,
        patience=0 if QUICK.value else PATIENCE.value,
    )


def cases() -> list[Case]:
    if SIZES.value:
        return case_lib.parse_cases(SIZES.value, DIM.value)
    return case_lib.quick_cases() if QUICK.value else case_lib.default_cases()


def chosen(case: Case) -> list[Subject]:
    """Subjects that the flag and the case both want."""
    patterns = (SUBJECT.value, case.subjects)
    return [s for s in SUBJECTS if all(re.search(pattern, s.name) for pattern in patterns)]


def machine(used: Settings) -> dict[str, Any]:
    """Where the numbers come from."""
    packages = ("jax", "torch", "optax", "pytorch-metric-learning", "numpy")
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    versions = {name: installed[name] for name in packages if name in installed}
    return {
        "device": used.device,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory cap of a process": tables.bytes_text(used.memory_cap),
        "time cap of a call": f"{used.time_cap:.0f} s",
        "rounds": used.rounds,
        "D": ", ".join(sorted({str(case.dim) for case in cases()})),
        **versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def write(folder: Path, results: list[Measurement], about: dict[str, Any]) -> None:
    """After each case, so that a run that is cut short leaves what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"machine": about, "measurements": [m.as_dict() for m in results]}
    (folder / "losses.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "losses.md").write_text(tables.report(results, about))
    plots.write_plots(results, folder)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.INFO)
    used, folder = settings(), Path(OUT.value)
    about = machine(used)
    results: list[Measurement] = []
    for number, case in enumerate(cases()):
        results += Runner(case, chosen(case), used, check=number == 0).run()
        write(folder, results, about)
    print((folder / "losses.md").read_text())


if __name__ == "__main__":
    app.run(main)
