"""Discharge summaries of MIMIC with their ICD codes: `python -m sdjax.data.mimic --set=NAME ...`.

From your own copy of the database (PhysioNet, credentialed access) it writes train.parquet,
validation.parquet and test.parquet with the columns id (of the admission), subject_id, text and
labels, and codes.txt, the names of all labels; the configs mimic3_full, mimic3_50 and mimic4_icd10
read them. Texts are prepared and codes are written as CAML does, addenda joined to their summary.

References:
  Mullenbach et al., Explainable Prediction of Medical Codes from Clinical Text (CAML), 2018
  (https://arxiv.org/abs/1802.05695). Edin et al., Automated Medical Coding on MIMIC-III and
  MIMIC-IV: A Critical Review and Replicability Study, 2023 (https://arxiv.org/abs/2304.10909).
"""

import dataclasses
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from sdjax import writing
from sdjax._src import stop
from sdjax.checks import one_of
from sdjax.data import csv_tables, icd
from sdjax.data.mimic_splits import SPLITS, read_splits
from sdjax.data.note_store import NoteStore
from sdjax.errors import InputError, check_no_words, ending_in_a_line

CODES = "codes.txt"
DESCRIPTIONS = "codes.tsv"
SUMMARY = "summary.json"
_ROWS_AT_ONCE = 1000  # of a Parquet file
# Words as CAML takes them. In MIMIC-IV what is de-identified is "___", which is no word.
_WORDS = {3: re.compile(r"\w+"), 4: re.compile(r"[A-Za-z0-9]+")}


@dataclasses.dataclass(frozen=True)
class Task:
    """One of the data sets that are made of MIMIC.

    Attributes:
      database: MIMIC-III or MIMIC-IV.
      split_lists: what the files of the splits are called; see `read_splits`.
      most_labels: only so many of the most frequent codes are labels; 0: all.
      least_count: of admissions that carry a code which is a label.
    """

    database: int
    split_lists: str
    most_labels: int = 0
    least_count: int = 1


TASKS = {
    "mimic3_full": Task(3, "full"),
    "mimic3_50": Task(3, "50", most_labels=50),
    "mimic4_icd10": Task(4, "", least_count=10),
}


def write(
    name: str, folders: Sequence[Path], splits: Path, output: Path, *, raw_text: bool = False
) -> dict[str, int]:
    """Writes the data set `name` into the folder `output`; returns what was kept and left out.

    Notes are read and written in chunks: none of the tables is in memory as a whole, but for the
    codes of each admission.

    Args:
      name: one of `TASKS`.
      folders: where the tables lie, or below: NOTEEVENTS, DIAGNOSES_ICD, PROCEDURES_ICD (III), or
        discharge, diagnoses_icd, procedures_icd (IV), as .csv or .csv.gz.
      splits: the lists of admissions of each split; see `mimic_splits.read_splits`.
      output: folder; it is made.
      raw_text: keep the notes as they are, not words in lower case without numbers.

    Raises:
      InputError: if a table, a column or a split is missing, or no row is left.
    """
    task = TASKS[one_of("set", name, TASKS)]
    summary: Counter[str] = Counter()
    split_of = read_splits(splits, task.split_lists)
    codes = read_codes(task, folders, summary)
    output.mkdir(parents=True, exist_ok=True)
    with NoteStore(output / "notes.tmp") as store:
        noted = _store_notes(task, folders, split_of, store, summary, raw_text)
        labels = _choose_labels(task, codes, noted, split_of)
        summary["labels"] = len(labels)
        summary["admissions of the splits without a note"] = len(split_of.keys() - noted)
        for split in SPLITS:
            path = output / f"{split}.parquet"
            summary[f"{split} rows"] = _write_split(path, store.rows(split), codes, labels, summary)
    (output / CODES).write_text("".join(f"{code}\n" for code in labels), encoding="utf-8")
    _write_descriptions(output / DESCRIPTIONS, task, folders, labels)
    (output / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    empty = [split for split in SPLITS if not summary[f"{split} rows"]]
    if empty:
        raise InputError(
            f"{', '.join(empty)}: no row is left; are the tables and the splits of one database? "
            f"{json.dumps(summary)}"
        )
    return dict(summary)


def read_codes(
    task: Task, folders: Sequence[Path], summary: Counter[str]
) -> Mapping[int, list[str]]:
    """The codes of each admission, diagnoses first, with repetitions as in the tables."""
    codes: dict[int, list[str]] = defaultdict(list)
    column = "icd9_code" if task.database == 3 else "icd_code"
    columns = ["hadm_id", column] + ["icd_version"] * (task.database == 4)
    version = 9 if task.database == 3 else 10
    for table, diagnosis in (("DIAGNOSES_ICD", True), ("PROCEDURES_ICD", False)):
        for chunk in csv_tables.chunks(csv_tables.find(folders, table), columns):
            if task.database == 4:
                chunk = chunk[chunk["icd_version"].str.strip() == str(version)]
            ids, written = _admissions(chunk), chunk[column].str.strip()
            usable = ids.notna() & written.notna() & (written != "")
            summary["codes without a code or an admission"] += int((~usable).sum())
            for number, code in zip(ids[usable].astype(int), written[usable], strict=True):
                pointed = icd.with_point(code.upper(), version, diagnosis)
                codes[number].append(sys.intern(pointed))
    return codes


def _admissions(chunk: Any) -> Any:
    """Numbers of the admissions; NaN where there is none."""
    import pandas as pd

    return pd.to_numeric(chunk["hadm_id"], errors="coerce")


def _store_notes(
    task: Task,
    folders: Sequence[Path],
    split_of: Mapping[int, str],
    store: NoteStore,
    summary: Counter[str],
    raw_text: bool,
) -> set[int]:
    """Puts the discharge summaries of all splits into `store`; the admissions that have any."""
    third = task.database == 3
    table, key = ("NOTEEVENTS", "row_id") if third else ("discharge", "note_id")
    columns = [key, "subject_id", "hadm_id", "text"] + ["category"] * third
    noted, known = set(), set()
    for chunk in csv_tables.chunks(csv_tables.find(folders, table), columns):
        if third:
            chunk = chunk[chunk["category"].str.strip() == "Discharge summary"]
        ids = _admissions(chunk)
        summary["notes without an admission or a text"] += int(
            (ids.isna() | chunk["text"].isna()).sum()
        )
        chunk = chunk.assign(hadm_id=ids).dropna(subset=["hadm_id", "text"])
        for row in chunk.itertuples(index=False):
            number, name = int(row.hadm_id), getattr(row, key)
            if name in known:
                summary["notes that are there twice"] += 1
                continue
            known.add(name)
            noted.add(number)
            if number not in split_of:
                summary["notes of no split"] += 1
                continue
            text = row.text if raw_text else clean(row.text, task.database)
            store.add(split_of[number], int(row.subject_id), number, text)
    return noted


def clean(text: str, database: int = 3) -> str:
    """A note as CAML has it: words in lower case, without punctuation and without numbers."""
    words = _WORDS[database].findall(text)
    return " ".join(word.lower() for word in words if not word.isnumeric())


def _choose_labels(
    task: Task, codes: Mapping[int, list[str]], noted: set[int], split_of: Mapping[int, str]
) -> list[str]:
    """The codes that are labels, sorted."""
    if task.most_labels:
        # As CAML counts: repetitions within an admission too, and admissions of no split.
        counts = Counter(code for number in sorted(noted) for code in codes.get(number, ()))
        return sorted(code for code, _ in counts.most_common(task.most_labels))
    among = noted if task.least_count > 1 else noted & split_of.keys()
    counts = Counter(code for number in among for code in set(codes.get(number, ())))
    return sorted(code for code, count in counts.items() if count >= task.least_count)


def _write_split(
    path: Path,
    rows: Iterator[tuple[int, int, str]],
    codes: Mapping[int, list[str]],
    labels: list[str],
    summary: Counter[str],
) -> int:
    """Writes the admissions of a split that have a label; returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known, written = set(labels), 0
    schema = pa.schema(
        {
            "id": pa.int64(),
            "subject_id": pa.int64(),
            "text": pa.string(),
            "labels": pa.list_(pa.string()),
        }
    )
    batch: list[dict[str, object]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as file:

        def flush() -> None:
            file.write_table(pa.Table.from_pylist(batch, schema))
            batch.clear()

        for subject, number, text in rows:
            carried = sorted(known.intersection(codes.get(number, ())))
            if not carried:
                summary["admissions of the splits without a label"] += 1
                continue
            batch.append({"id": number, "subject_id": subject, "text": text, "labels": carried})
            written += 1
            if len(batch) == _ROWS_AT_ONCE:
                flush()
        flush()
    return written


def _write_descriptions(path: Path, task: Task, folders: Sequence[Path], labels: list[str]) -> None:
    """A line "code, tab, description" for each label, where D_ICD_DIAGNOSES and so on are there."""
    column = "icd9_code" if task.database == 3 else "icd_code"
    columns = [column, "long_title"] + ["icd_version"] * (task.database == 4)
    version = 9 if task.database == 3 else 10
    found: dict[str, str] = {}
    for table, diagnosis in (("D_ICD_DIAGNOSES", True), ("D_ICD_PROCEDURES", False)):
        try:
            source = csv_tables.find(folders, table)
        except InputError:
            continue
        for chunk in csv_tables.chunks(source, columns):
            if task.database == 4:
                chunk = chunk[chunk["icd_version"].str.strip() == str(version)]
            chunk = chunk.dropna()
            for code, title in zip(chunk[column], chunk["long_title"], strict=True):
                pointed = icd.with_point(code.strip().upper(), version, diagnosis)
                found.setdefault(pointed, " ".join(title.split()))
    lines = [f"{code}\t{found.get(code, '')}\n" for code in labels]
    path.write_text("".join(lines), encoding="utf-8")


def main(argv: list[str]) -> None:
    check_no_words(argv)
    given = flags.FLAGS
    with ending_in_a_line():
        summary = write(
            given.set,
            [Path(folder) for folder in given.folder],
            Path(given.splits),
            Path(given.output),
            raw_text=given.raw_text,
        )
    writing.tell(summary, given.output)


if __name__ == "__main__":
    stop.with_a_line()
    flags.DEFINE_enum("set", None, list(TASKS), "Which data set.", required=True)
    flags.DEFINE_list(
        "folder", None, "Folders of the tables (.csv or .csv.gz), or above them.", required=True
    )
    flags.DEFINE_string(
        "splits",
        None,
        "Admissions of each split: a folder of lists (train_full_hadm_ids.csv, dev_..., test_..., "
        "as CAML's repository has them; train_hadm_ids.csv and so on for MIMIC-IV), or one file "
        "with the columns _id (or hadm_id) and split.",
        required=True,
    )
    flags.DEFINE_string("output", None, "Folder to write into.", required=True)
    flags.DEFINE_bool("raw_text", False, "Keep the notes as they are.")
    app.run(main)
