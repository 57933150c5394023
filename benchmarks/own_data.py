"""`configs/own_data.py` as it is, beside forests and logistic regression, on five public sets.

    python benchmarks/own_data.py --folder=DATA --workdir=runs/own_data

DATA holds the folders yeast_mulsupcon (the official split, hdf5), scene, bibtex and medical_cmc2007
(Mulan's ARFF and XML) and eicu_crd_demo (tables of the eICU demo, csv.gz, of which
`sdjax.data.eicu` makes words and organ systems). The other models are scikit-learn's with its
defaults (500 trees), fitted on all of train, inputs standardised by it. Runs that are there are
only tested again.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdjax import metrics
from sdjax.config import DataConfig
from sdjax.data import eicu, load

ROOT = Path(__file__).parents[1]
FOLDER = flags.DEFINE_string("folder", None, "Folder of the five sets.", required=True)
WORKDIR = flags.DEFINE_string("workdir", "runs/own_data", "Folder of the runs.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.")
SETS = flags.DEFINE_list("sets", ["yeast", "scene", "bibtex", "cmc2007", "eicu"], "Which sets.")

OURS = "sdjax"
MODELS: dict[str, Callable[[int], Any]] = {
    "extra trees": lambda seed: ExtraTreesClassifier(500, n_jobs=-1, random_state=seed),
    "random forest": lambda seed: RandomForestClassifier(500, n_jobs=-1, random_state=seed),
    "logistic regression": lambda _: OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=1000)),
}


def files(name: str, folder: Path, workdir: Path) -> DataConfig:
    """Where a set lies; that of eICU is written from its tables."""
    if name == "eicu":
        eicu.write(folder / "eicu_crd_demo", workdir / "eicu")
        train, test = (str(workdir / "eicu" / f"{split}.svm") for split in ("train", "test"))
        return DataConfig(name="files", train=train, validation="", test=test)
    if name == "yeast":
        stem = folder / "yeast_mulsupcon" / "yeast_official_"
        train, test = f"{stem}trainval.hdf5", f"{stem}test.hdf5"
        return DataConfig(name="files", train=train, validation="", test=test)
    stem = {"cmc2007": "medical_cmc2007/medical"}.get(name, f"{name}/{name}")
    train, test, labels = (
        str(folder / f"{stem}{end}") for end in ("-train.arff", "-test.arff", ".xml")
    )
    return DataConfig(name="files", train=train, validation="", test=test, labels=labels)


def run(data: DataConfig, workdir: Path, seed: int) -> tuple[float, float]:
    """Test mAP and seconds of the command, as a user types it."""
    command = [
        *(sys.executable, "-m", "sdjax.train", "--config=own_data", f"--workdir={workdir}"),
        *(f"--config.data.train={data.train}", f"--config.data.test={data.test}"),
        *(f"--config.data.labels={data.labels}", f"--config.seed={seed}"),
        "--config.report.baselines=False",
    ]
    timing = workdir / "seconds.json"
    start = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True)
    if not timing.exists():
        timing.write_text(json.dumps(time.monotonic() - start))
    results = json.loads((workdir / "results.json").read_text())
    return results["test"]["mAP"], json.loads(timing.read_text())


def fitted(data: DataConfig, name: str, seed: int) -> tuple[float, float]:
    """Test mAP and seconds of one of `MODELS`, fitted on all rows of train."""
    loaded = load(DataConfig(**{**vars(data), "scaling": "standard"}))
    splits = (loaded.train, loaded.validation)
    x = np.concatenate([source.inputs(np.arange(len(source))) for source in splits])
    labels = np.concatenate([np.asarray(source.labels) for source in splits])
    varied = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
    start = time.monotonic()
    model = MODELS[name](seed).fit(x, labels[:, varied])
    found = model.predict_proba(loaded.test.inputs(np.arange(len(loaded.test))))
    seconds = time.monotonic() - start
    if isinstance(found, list):
        found = np.stack([each[:, 1] for each in found], axis=1)
    scores = np.zeros((len(loaded.test), labels.shape[1]))
    scores[:, labels.all(axis=0)] = 1
    scores[:, varied] = found
    return metrics.evaluate(loaded.test.labels, scores, only=("mAP",))["mAP"], seconds


def main(argv: list[str]) -> None:
    del argv
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in SETS.value:
        data = files(name, Path(FOLDER.value), workdir.absolute())
        for model in (OURS, *MODELS):
            for seed in range(1 if model == "logistic regression" else SEEDS.value):
                key = f"{name}/{model}/{seed}"
                if key in results:
                    continue
                if model == OURS:
                    folder = workdir.absolute() / f"{name}_{seed}"
                    results[key] = run(data, folder, seed)
                else:
                    results[key] = fitted(data, model, seed)
                print(key, *results[key], flush=True)
                path.write_text(json.dumps(results, indent=1))
    print(table(results))


def table(results: dict[str, list[float]]) -> str:
    """Mean ± standard deviation of the mAP over seeds, and mean seconds, a row a set."""
    models = (OURS, *MODELS)
    lines = [
        f"| set | {' | '.join(models)} | seconds: {' / '.join(models)} |",
        "|---|" + "---|" * (len(models) + 1),
    ]
    for name in SETS.value:
        cells, times = [], []
        for model in models:
            found = [v for key, v in results.items() if key.startswith(f"{name}/{model}/")]
            scores, seconds = np.array(found).T
            spread = f" ± {scores.std(ddof=1):.4f}" if len(scores) > 1 else ""
            cells.append(f"{scores.mean():.4f}{spread}")
            times.append(f"{seconds.mean():.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {' / '.join(times)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
