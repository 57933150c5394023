"""Stays of the eICU database as words, and the organ systems of their diagnoses as labels.

    python -m sdjax.data.eicu --folder=EICU --output=data/eicu

From the tables of the eICU Collaborative Research Database, its demo or the whole (PhysioNet), it
writes train.svm and test.svm, and the names of what they number, features.txt and labels.txt. A
word is a column with one of its values, such as "medication.drugname=furosemide"; `diagnosis` gives
labels alone. Patients, not stays, are drawn into the test split.

References:
  Pollard et al., The eICU Collaborative Research Database, 2018
  (https://doi.org/10.1038/sdata.2018.178).
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from sdjax._src import stop
from sdjax.data import csv_tables
from sdjax.errors import InputError, check_no_words, ending_in_a_line

STAY = "patientunitstayid"
# Table: the columns whose values are words.
WORDS = {
    "pastHistory": ["pasthistorypath", "pasthistoryvalue"],
    "medication": ["drugname"],
    "treatment": ["treatmentstring"],
    "physicalExam": ["physicalexampath"],
    "admissionDx": ["admitdxpath"],
    "patient": ["gender", "ethnicity", "unittype", "unitadmitsource", "apacheadmissiondx"],
}
FEWEST_STAYS = 5  # that a word is in
TEST_SHARE = 0.3  # of the patients


def write(
    folder: Path,
    output: Path,
    *,
    fewest_stays: int = FEWEST_STAYS,
    test_share: float = TEST_SHARE,
    seed: int = 0,
) -> dict[str, int]:
    """Writes both splits into the folder `output`; returns how many of what there are.

    Tables are read in chunks: what is in memory is a number for each word of each stay.

    Args:
      folder: of the tables, as .csv or .csv.gz, or above them.
      output: folder; it is made.
      fewest_stays: that a word is in, or else it is left out.
      test_share: of the patients, who are drawn.
      seed: draws them.

    Raises:
      InputError: if a table or a column is missing, or no diagnosis is there.
    """
    from scipy import sparse
    from sklearn.datasets import dump_svmlight_file

    if not 0 < test_share < 1:
        raise InputError(f"test_share must lie between 0 and 1, got {test_share}.")
    stays, labels, label_names = _diagnoses(folder)
    rows, columns, words = _words(folder, stays, fewest_stays)
    ones = np.ones(len(rows), np.float32)
    x = sparse.csr_matrix((ones, (rows, columns)), (len(stays), len(words)))
    tested = _drawn(_patients(folder, stays), test_share, seed)
    output.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", ~tested), ("test", tested)):
        path = str(output / f"{name}.svm")
        dump_svmlight_file(x[chosen], labels[chosen].astype(int), path, multilabel=True)
    for name, lines in (("features", words), ("labels", label_names)):
        text = "".join(f"{line}\n" for line in lines)
        (output / f"{name}.txt").write_text(text, encoding="utf-8")
    sizes = {"features": len(words), "labels": len(label_names)}
    return {"train": int((~tested).sum()), "test": int(tested.sum()), **sizes}


def _diagnoses(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Stays with a diagnosis, in rising order; their organ systems, multi-hot; names of these."""
    pairs: set[tuple[int, str]] = set()
    path = csv_tables.find([folder], "diagnosis")
    for chunk in csv_tables.chunks(path, [STAY, "diagnosisstring"]):
        chunk = chunk.dropna()
        systems = chunk["diagnosisstring"].str.split("|").str[0]
        pairs.update(zip(chunk[STAY].astype(int), systems, strict=True))
    if not pairs:
        raise InputError(f"{path}: no stay has a diagnosis.")
    stays = np.array(sorted({stay for stay, _ in pairs}))
    names = sorted({system for _, system in pairs})
    place = {name: column for column, name in enumerate(names)}
    labels = np.zeros((len(stays), len(names)), bool)
    rows = np.searchsorted(stays, [stay for stay, _ in pairs])
    labels[rows, [place[system] for _, system in pairs]] = True
    return stays, labels, names


def _words(
    folder: Path, stays: np.ndarray, fewest_stays: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(row, column) of each word of each stay, and the words, sorted, in enough stays each."""
    import pandas as pd

    number: dict[str, int] = {}
    known: Any = pd.Index(stays)
    parts: list[np.ndarray] = []
    for table, columns in WORDS.items():
        path = csv_tables.find([folder], table)
        for chunk in csv_tables.chunks(path, [STAY, *columns]):
            chunk = chunk.dropna(subset=[STAY])
            rows = known.get_indexer(pd.Index(chunk[STAY].astype(int)))
            chunk, rows = chunk[rows >= 0], rows[rows >= 0]
            for column in columns:
                there = chunk[column].notna().to_numpy()
                codes, values = pd.factorize(chunk[column][there].str.lower())
                found = [f"{table}.{column}={value}" for value in values]
                numbers = [number.setdefault(word, len(number)) for word in found]
                if found:
                    pairs = np.stack([np.array(numbers)[codes], rows[there]], axis=1)
                    parts.append(np.unique(pairs, axis=0))
    pairs = np.unique(np.concatenate(parts), axis=0) if parts else np.zeros((0, 2), np.int64)
    counts = np.bincount(pairs[:, 0], minlength=len(number))
    kept = sorted(word for word, place in number.items() if counts[place] >= fewest_stays)
    column = np.full(len(number), -1)
    column[[number[word] for word in kept]] = np.arange(len(kept))
    pairs = pairs[column[pairs[:, 0]] >= 0]
    return pairs[:, 1], column[pairs[:, 0]], kept


def _patients(folder: Path, stays: np.ndarray) -> np.ndarray:
    """The patient of each stay."""
    patient: dict[int, str] = {}
    path = csv_tables.find([folder], "patient")
    for chunk in csv_tables.chunks(path, [STAY, "uniquepid"]):
        patient.update(zip(chunk[STAY].astype(int), chunk["uniquepid"], strict=True))
    absent = [stay for stay in stays.tolist() if stay not in patient]
    if absent:
        raise InputError(f"{path}: {len(absent)} stays with diagnoses are absent, as {absent[0]}.")
    return np.array([patient[stay] for stay in stays.tolist()])


def _drawn(persons: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Whether the patient of each stay is one of those that are drawn, bool [N]."""
    known = np.unique(persons)
    order = np.random.default_rng(seed).permutation(len(known))
    return np.isin(persons, known[order[: int(len(known) * share + 1e-9)]])


def main(argv: list[str]) -> None:
    check_no_words(argv)
    given = flags.FLAGS
    with ending_in_a_line():
        sizes = write(
            Path(given.folder),
            Path(given.output),
            fewest_stays=given.fewest_stays,
            test_share=given.test_share,
            seed=given.seed,
        )
    print(f"Wrote {given.output}: {', '.join(f'{n:,} {name}' for name, n in sizes.items())}")


if __name__ == "__main__":
    stop.with_a_line()
    flags.DEFINE_string("folder", None, "Folder of the tables, or above them.", required=True)
    flags.DEFINE_string("output", None, "Folder to write into.", required=True)
    flags.DEFINE_integer("fewest_stays", FEWEST_STAYS, "Stays that a word is in at least.")
    flags.DEFINE_float("test_share", TEST_SHARE, "Share of the patients in the test split.")
    flags.DEFINE_integer("seed", 0, "Draws those patients.")
    app.run(main)
