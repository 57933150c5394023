"""Trains and tests a model: `python -m sdjax.train --config=NAME --workdir=DIR`.

NAME is a config that comes with sdjax (yeast, digits, own_data, ...), or the path of one's own. The
same command resumes. On a TPU pod, GKE or Slurm run it once on every machine; elsewhere with
--coordinator, --num_processes and --process_id (docs/scaling.md).
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags, logging
from ml_collections import config_flags
from rich.console import Console

from sdjax import __version__
from sdjax._src import stop
from sdjax.config import Config, candidates, overrides, without_overrides
from sdjax.configs import run_with_config, typed_command
from sdjax.errors import check_no_words

if TYPE_CHECKING:
    from sdjax.training import Setup

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/CONFIG by default.")
_PROFILE = flags.DEFINE_bool("profile", False, "Trace a few training steps into WORKDIR/profile.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of every error.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of the processes this one is.")
_START_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for all processes.")
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds without a sign of life after which a process is dead."
)


def run() -> None:
    """The command: reads `sys.argv`."""
    stop.with_a_line("The same command resumes from what is saved.")
    run_with_config(main)


def main(argv: list[str]) -> None:
    check_no_words(argv)
    logging.set_verbosity(logging.WARNING)
    # What was typed holds for every candidate.
    config = without_overrides(flags.FLAGS.config, overrides(sys.argv[1:], Config))
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or Path("runs") / name)
    # Before what takes seconds to import.
    print(f"sdjax {__version__}: {name}, in {workdir}", file=sys.stderr, flush=True)
    from sdjax import training

    with training.reported_errors(debug=_DEBUG.value):
        training.initialize(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_ID.value,
            start_timeout=_START_TIMEOUT.value,
            heartbeat_timeout=_HEARTBEAT_TIMEOUT.value,
        )
        setup = training.make_setup(training.with_saved_batch_size(config, workdir))
        if training.is_main():
            print(_summary(setup, workdir), file=sys.stderr, flush=True)
        setup = training.select(setup, workdir)
        state = training.train(setup, workdir, profile=_PROFILE.value)
        results = training.score(setup, state, workdir, command=typed_command())
        if results is not None:
            training.print_results(results, Console())
            print(f"Results  {workdir / 'results.json'}")
            print(f"Report   {workdir / 'report' / 'report.html'}")
            print(f"         {workdir / 'report' / 'report.md'}")


def _summary(setup: "Setup", workdir: Path) -> str:
    """What the run will train on, and where."""
    import jax

    from sdjax.data import summarise

    details: dict[str, object] = {"Devices": f"{setup.mesh.size} {jax.devices()[0].device_kind}"}
    if setup.config.candidates:
        made = candidates(setup.config, setup.dataset.kind)
        details["Candidates"] = (
            f"{len(made)}, judged by validation {setup.config.select_by or 'mAP'}"
        )
    else:
        parameters = jax.tree.leaves(setup.abstract_state(setup.position(0)).params)
        details["Parameters"] = f"{sum(leaf.size for leaf in parameters):,}"
    details["Workdir"] = workdir
    return "\n".join(summarise(setup.dataset, details))


if __name__ == "__main__":
    run()
