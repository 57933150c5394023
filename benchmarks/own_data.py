"""`configs/own_data.py` as it is, beside forests and logistic regression, on five public sets.

    python benchmarks/own_data.py --folder=DATA --workdir=runs/own_data

DATA holds the folders yeast_mulsupcon (the official split, hdf5), scene, bibtex and medical_cmc2007
(Mulan's ARFF and XML) and eicu_crd_demo (tables of the eICU demo, csv.gz; features are the words of
its tables without `diagnosis`, labels the organ systems of `diagnosisstring`, test 30 % of the
patients). The other models are scikit-learn's with its defaults (500 trees), fitted on all of
train, inputs standardised by it. Runs that are there are only tested again.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import app, flags
from scipy import sparse
from sklearn.datasets import dump_svmlight_file
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdjax import metrics
from sdjax.config import DataConfig
from sdjax.data import load

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
# Table of the eICU demo: the columns whose values are words.
EICU_WORDS = {
    "pastHistory": ["pasthistorypath", "pasthistoryvalue"],
    "medication": ["drugname"],
    "treatment": ["treatmentstring"],
    "physicalExam": ["physicalexampath"],
    "admissionDx": ["admitdxpath"],
    "patient": ["gender", "ethnicity", "unittype", "unitadmitsource", "apacheadmissiondx"],
}
EICU_FEWEST_STAYS = 5  # that a word is in


def files(name: str, folder: Path, workdir: Path) -> DataConfig:
    """Where a set lies; that of eICU is written from its tables."""
    if name == "eicu":
        train, test = (str(workdir / f"eicu_{split}.svm") for split in ("train", "test"))
        write_eicu(folder / "eicu_crd_demo", train, test)
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


def write_eicu(tables: Path, train: str, test: str) -> None:
    """Stays with diagnoses as words and organ systems, in svmlight's format."""

    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(tables / f"{name}.csv.gz", low_memory=False)

    diagnosis, patients = read("diagnosis"), read("patient").set_index("patientunitstayid")
    stays = pd.Index(sorted(diagnosis["patientunitstayid"].unique()))
    systems = diagnosis["diagnosisstring"].str.split("|").str[0]
    labels = pd.crosstab(diagnosis["patientunitstayid"], systems).loc[stays].to_numpy() > 0
    parts = []
    for table, columns in EICU_WORDS.items():
        frame = read(table)
        for column in columns:
            words = f"{table}.{column}=" + frame[column].astype(str).str.lower()
            parts.append(pd.DataFrame({"stay": frame["patientunitstayid"], "word": words}))
    words = pd.concat(parts).drop_duplicates()
    words = words[words["stay"].isin(stays)]
    counts = words.groupby("word")["stay"].nunique()
    kept = pd.Index(sorted(counts[counts >= EICU_FEWEST_STAYS].index))
    words = words[words["word"].isin(kept)]
    places = stays.get_indexer(words["stay"]), kept.get_indexer(words["word"])
    x = sparse.csr_matrix((np.ones(len(words), np.float32), places), (len(stays), len(kept)))
    persons = patients.loc[stays, "uniquepid"].to_numpy()
    known = np.array(sorted(set(persons)))
    drawn = np.random.default_rng(0).permutation(len(known))[: len(known) * 3 // 10]
    tested = np.isin(persons, known[drawn])
    for path, rows in ((train, ~tested), (test, tested)):
        dump_svmlight_file(x[rows], labels[rows].astype(int), path, multilabel=True)


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
