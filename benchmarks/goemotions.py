"""GoEmotions (official split) on a published text encoder: recipes and losses at equal epochs.

    python benchmarks/goemotions.py --folder=DATA/goemotions --model=FOLDER

DATA/goemotions holds the published train.tsv, dev.tsv, test.tsv (text, numbers of labels, id) and
labels.txt. FOLDER is a model such as all-MiniLM-L6-v2. `--rows=N` trains on N rows of train, drawn
once; all of dev and test are used. Settings are those of `configs/text.py` but for the encoder's
learning rate, ten times that, and what METHODS says. Runs that are there are only read. Prints a
Markdown table of test figures, mean ± standard deviation over seeds.
"""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from peers.tables import markdown

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdjax.config import Config, replaced
from sdjax.configs import text
from sdjax.training import make_setup, score, train

FOLDER = flags.DEFINE_string("folder", None, "Folder of the data.", required=True)
MODEL = flags.DEFINE_string("model", None, "Folder of the encoder, or its id.", required=True)
WORKDIR = flags.DEFINE_string("workdir", "runs/goemotions", "Folder of the runs.")
ROWS = flags.DEFINE_integer("rows", 0, "Rows of train that are used; 0 is all.")
EPOCHS = flags.DEFINE_integer("epochs", 1, "Of supervised training.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.")
ONLY = flags.DEFINE_list("only", None, "Recipes to run, of bce, joint, finetune; all by default.")
METHODS = {
    "bce": {"recipe": "bce"},
    "joint, SD": {"recipe": "joint", "loss.name": "sd"},
    "joint, mulsupcon": {"recipe": "joint", "loss.name": "mulsupcon"},
    "SD pretraining, then fine-tuning": {"recipe": "finetune", "loss.name": "sd"},
}


def write_tables(folder: Path, target: Path, rows: int) -> None:
    """The splits as .csv files with a header, labels by name."""
    names = (folder / "labels.txt").read_text().split()
    for split in ("train", "dev", "test"):
        lines = (folder / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        if split == "train" and rows:
            order = np.random.default_rng(0).permutation(len(lines))[:rows]
            lines = [lines[row] for row in order]
        with open(target / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "emotions"])
            for line in lines:
                content, numbers, name = line.split("\t")
                labels = ";".join(names[int(number)] for number in numbers.split(","))
                writer.writerow([name, content, labels])


def make_config(tables: Path, method: str, seed: int) -> Config:
    config = replaced(text.get_config(), {**METHODS[method], "seed": seed})
    paths = (str(tables / f"{split}.csv") for split in ("train", "dev", "test"))
    names = zip(("train", "validation", "test"), paths, strict=True)
    config.data = dataclasses.replace(
        config.data, **dict(names), labels="emotions", label_separator=";", ignore="id"
    )
    config.data.data_dir = str(tables / "tokens")
    config.model.weights = MODEL.value
    config.supervise.epochs = EPOCHS.value
    config.supervise.learning_rates = "encoder=0.1"  # MiniLM is small
    config.pretrain = dataclasses.replace(config.supervise)
    config.report.retrieval_rows = 100_000
    return config


def main(argv: list[str]) -> None:
    del argv
    workdir = Path(WORKDIR.value)
    tables = workdir / f"data_{ROWS.value or 'all'}"
    tables.mkdir(parents=True, exist_ok=True)
    write_tables(Path(FOLDER.value), tables, ROWS.value)
    lines = []
    for method, changes in METHODS.items():
        if ONLY.value and changes["recipe"] not in ONLY.value:
            continue
        found = []
        for seed in range(SEEDS.value):
            path = workdir / f"{ROWS.value or 'all'}_{method}_{seed}.json".replace(", ", "_")
            if not path.exists():
                setup = make_setup(make_config(tables, method, seed))
                results = score(setup, train(setup), retrieves=True)
                path.write_text(json.dumps(results))
            found.append(json.loads(path.read_text()))
            print(method, seed, found[-1]["test"]["mAP"], flush=True)
        lines.append([method, *cells(found)])
    head = ["trained with", "mAP", "macro/micro-F1 at .5", "at one tuned threshold"]
    print(markdown([*head, "nDCG@50 of h", "exact@10 of h"], lines))


def cells(found: list[dict]) -> list[str]:
    def of(*path: str) -> str:
        values = []
        for each in found:
            for name in path:
                each = each[name]
            values.append(each)
        spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        return f"{np.mean(values):.4f}{spread}"

    def f1(part: str) -> str:
        return " / ".join(of(part, name) for name in ("macro_f1", "micro_f1"))

    near = [of("retrieval", "h", name) for name in ("ndcg_at_50", "exact_at_10")]
    return [of("test", "mAP"), f1("test"), f1("test_tuned"), *near]


if __name__ == "__main__":
    app.run(main)
