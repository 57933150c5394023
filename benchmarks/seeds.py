"""Seconds that many seeds take in one process: the steps are compiled once.

    python benchmarks/seeds.py --seeds=10

Nothing is written; `--config.` flags change the runs.
"""

import sys
import time
from pathlib import Path

import numpy as np
from absl import flags, logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdjax.configs import run_with_config
from sdjax.training import make_setup, score, train

_SEEDS = flags.DEFINE_integer("seeds", 10, "Number of seeds.")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    figures, started = [], time.perf_counter()
    first = make_setup(flags.FLAGS.config)
    for seed in range(_SEEDS.value):
        setup = first.with_seed(seed)
        before = time.perf_counter()
        results = score(setup, train(setup))
        assert results is not None
        figures.append(results["test"]["mAP"])
        print(
            f"seed {seed}: mAP {figures[-1]:.4f}, {time.perf_counter() - before:.1f} s", flush=True
        )
    total = time.perf_counter() - started
    print(f"mAP {np.mean(figures):.4f} ± {np.std(figures, ddof=1):.4f}, {total:.0f} s in all")


if __name__ == "__main__":
    run_with_config(main)
