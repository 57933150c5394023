"""Trains and tests a model: `python train.py --config=configs/NAME.py --workdir=DIR`."""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from sdjax.config import Config, check_overrides

_HERE = Path(__file__).parent
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/CONFIG by default.")


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    # Imported late, so that a wrong flag is reported at once.
    from sdjax.training import Interrupted, NonFiniteLossError, Run, print_results

    config: Config = flags.FLAGS.config
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(_WORKDIR.value or _HERE / "runs" / name)
    try:
        run = Run(config, workdir)
        results = run.test(run.train())
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise
    except (NonFiniteLossError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print_results(results, Console())
    print(f"Results  {workdir / 'results.json'}\nReport   {workdir / 'report' / 'report.md'}")


if __name__ == "__main__":
    try:
        check_overrides(sys.argv[1:], Config)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    config_flags.DEFINE_config_file("config", str(_HERE / "configs" / "yeast.py"))
    app.run(main)
