"""Test metrics over seeds: ensemble and one network, with and without the SD loss; and trees.

    python benchmarks/yeast.py --workdir=runs/yeast_seeds

Runs that are there are only tested again.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from sklearn.ensemble import ExtraTreesClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import yeast
from sdjax import metrics
from sdjax.config import DataConfig
from sdjax.data import load
from sdjax.training import make_setup, score, select, train

NAMES = {"joint": "SD + BCE", "bce": "BCE alone"}
METRICS = ("mAP", "micro_f1", "macro_f1", "micro_auc", "macro_auc")
WORKDIR = flags.DEFINE_string("workdir", "runs/yeast_seeds", "Folder of the runs.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.")


def extra_trees(seed: int) -> dict[str, float]:
    """Test metrics of 500 extra trees, fitted on all rows of train and validation."""
    data = load(DataConfig(name="yeast"))
    splits = (data.train, data.validation)
    x = np.concatenate([source.inputs(np.arange(len(source))) for source in splits])
    labels = np.concatenate([source.labels for source in splits])
    trees = ExtraTreesClassifier(500, min_samples_leaf=2, n_jobs=-1, random_state=seed)
    trees.fit(x, labels)
    test = data.test.inputs(np.arange(len(data.test)))
    scores = np.stack([scores[:, 1] for scores in trees.predict_proba(test)], axis=1)
    return metrics.evaluate(data.test.labels, scores)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(SEEDS.value):
        for members, recipe in itertools.product((4, 1), ("joint", "bce")):
            name = f"{NAMES[recipe]}, " + (f"{members} networks" if members > 1 else "one network")
            config = dataclasses.replace(yeast.get_config(), seed=seed, recipe=recipe)
            config.model.members, config.report.baselines = members, False
            workdir = Path(WORKDIR.value) / f"{recipe}_{members}_{seed}"
            setup = select(make_setup(config), workdir)
            figures = score(setup, train(setup, workdir), workdir)
            results.setdefault(name, []).append(figures["test"])
        results.setdefault("500 extra trees (scikit-learn)", []).append(extra_trees(seed))
    print("| with | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for name, runs in results.items():
        values = np.array([[run[metric] for metric in METRICS] for run in runs])
        cells = [
            f"{mean:.4f} ± {std:.4f}"
            for mean, std in zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    summary = Path(WORKDIR.value) / "summary.json"
    summary.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
