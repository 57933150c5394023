"""Data sets of medical coding from synthetic tables of the exact schemas of MIMIC."""

import csv
import gzip
import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from published_models import FOLDER

from sdjax.config import Config, DataConfig, check
from sdjax.configs import mimic3_50, mimic3_full, mimic4_icd10
from sdjax.data import icd, load, mimic
from sdjax.data.mimic_splits import read_splits
from sdjax.data.note_store import NoteStore
from sdjax.errors import InputError
from sdjax.training import make_setup
from sdjax.training.mesh import make_mesh

NOTES = (
    "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,DESCRIPTION,CGID,ISERROR,TEXT"
)
CODES = "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE"
TITLES = "ROW_ID,ICD9_CODE,SHORT_TITLE,LONG_TITLE"


def write_table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        file.write(header + "\n")
        csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)


def note(row, subject, admission, text, category="Discharge summary", description="Report"):
    return [row, subject, admission, "2101-01-01", "", "", category, description, "", "", text]


@pytest.fixture
def third(tmp_path):
    """MIMIC-III with what goes wrong in it: see the texts beside."""
    folder = tmp_path / "mimic3"
    summary = 'Admission Date:  [**2101-1-1**]\n\nThe patient, 64,\ntook "250mg" of ASA.\n'
    write_table(
        folder / "NOTEEVENTS.csv.gz",
        NOTES,
        [
            note(1, 20, 200, "First summary.\r\nSecond line"),
            note(2, 10, 101, summary),
            note(3, 10, 100, "Nursing", category="Nursing/other"),  # no summary
            note(4, 10, 101, "An addendum", description="Addendum"),  # behind its summary
            note(2, 10, 101, summary),  # the row is there twice
            note(5, 30, "", "A summary of no admission"),
            note(6, 30, 300, "Summary of test"),
            note(7, 40, 400, "A summary of no split"),
            note(8, 50, 500, "No code is known"),
            note(9, 30, 301, ""),  # no text
        ],
    )
    write_table(
        folder / "DIAGNOSES_ICD.csv",
        CODES,
        [
            [1, 10, 101, 1, "4019"],
            [2, 10, 101, 2, "0389"],  # a leading zero
            [3, 10, 101, 3, "E8120"],
            [4, 10, 101, 4, "V1582"],
            [5, 10, 101, 5, ""],  # missing
            [6, 20, 200, 1, "486"],  # no point
            [7, 20, 200, 2, "E849"],
            [8, 30, 300, 1, "4019"],
            [9, 99, 999, 1, "25000"],  # an admission without a note
            [10, 40, 400, 1, "41401"],
            [11, 40, 400, 2, "4019"],
        ],
    )
    write_table(
        folder / "PROCEDURES_ICD.csv",
        CODES,
        [
            [1, 10, 101, 1, "0066"],
            [2, 10, 101, 2, "3893"],
            [3, 10, 101, 3, "3893"],  # twice in an admission
            [4, 30, 300, 1, "3893"],
            [5, 40, 400, 1, "3893"],
        ],
    )
    write_table(folder / "D_ICD_DIAGNOSES.csv", TITLES, [[1, "4019", "HTN", "Hypertension  NOS"]])
    write_table(folder / "D_ICD_PROCEDURES.csv", TITLES, [[1, "0066", "PTCA", "PTCA, coronary"]])
    splits = tmp_path / "splits"
    splits.mkdir()
    for kind in ("full", "50"):
        for split, ids in {"train": [101, 888], "dev": [200, 500], "test": [300, 301]}.items():
            text = "".join(f"{number}\n" for number in ids)
            (splits / f"{split}_{kind}_hadm_ids.csv").write_text(text)
    return folder, splits


def rows_of(path):
    return pd.read_parquet(path).to_dict("records")


def test_mimic3_full(third, tmp_path):
    folder, splits = third
    output = tmp_path / "out"
    summary = mimic.write("mimic3_full", [folder], splits, output)
    (train,) = rows_of(output / "train.parquet")
    assert (train["id"], train["subject_id"]) == (101, 10)
    # Numbers go, "250mg" stays; the addendum follows.
    assert train["text"] == "admission date the patient took 250mg of asa an addendum"
    expected = ["00.66", "038.9", "38.93", "401.9", "E812.0", "V15.82"]
    assert list(train["labels"]) == expected
    (validation,) = rows_of(output / "validation.parquet")
    assert validation["text"] == "first summary second line"
    assert list(validation["labels"]) == ["486", "E849"]
    (test,) = rows_of(output / "test.parquet")
    assert list(test["labels"]) == ["38.93", "401.9"]
    names = (output / "codes.txt").read_text().split()
    assert names == sorted({*expected, "486", "E849"})
    titles = dict(line.split("\t") for line in (output / "codes.tsv").read_text().splitlines())
    assert titles["401.9"] == "Hypertension NOS" and titles["00.66"] == "PTCA, coronary"
    assert titles["486"] == ""
    assert summary == json.loads((output / "summary.json").read_text())
    assert summary == {
        "codes without a code or an admission": 1,
        "notes without an admission or a text": 2,
        "notes that are there twice": 1,
        "notes of no split": 1,
        "labels": 8,
        "admissions of the splits without a note": 2,
        "admissions of the splits without a label": 1,
        "train rows": 1,
        "validation rows": 1,
        "test rows": 1,
    }
    assert not (output / "notes.tmp").exists()


def test_small_chunks_change_nothing(third, tmp_path, monkeypatch):
    from sdjax.data import csv_tables

    folder, splits = third
    mimic.write("mimic3_full", [folder], splits, tmp_path / "whole")
    chunks = csv_tables.chunks
    monkeypatch.setattr(csv_tables, "chunks", lambda path, columns: chunks(path, columns, rows=2))
    monkeypatch.setattr(mimic, "_ROWS_AT_ONCE", 1)
    mimic.write("mimic3_full", [folder], splits, tmp_path / "parts")
    for name in ("train.parquet", "validation.parquet", "test.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(tmp_path / "whole" / name), pd.read_parquet(tmp_path / "parts" / name)
        )


def test_mimic3_50_takes_the_most_frequent_codes(third, tmp_path, monkeypatch):
    """Counted as CAML does: repetitions within an admission, and admissions of no split, count."""
    folder, splits = third
    task = mimic.Task(3, "50", most_labels=2)
    monkeypatch.setitem(mimic.TASKS, "mimic3_50", task)
    with pytest.raises(InputError, match="validation: no row is left"):
        mimic.write("mimic3_50", [folder], splits, tmp_path / "out")
    assert (tmp_path / "out" / "codes.txt").read_text().split() == ["38.93", "401.9"]
    (train,) = rows_of(tmp_path / "out" / "train.parquet")
    assert list(train["labels"]) == ["38.93", "401.9"]


def test_mimic4_keeps_codes_of_version_10_that_are_frequent(tmp_path, monkeypatch):
    hospital, notes = tmp_path / "mimiciv" / "hosp", tmp_path / "note"
    header = "subject_id,hadm_id,seq_num,icd_code,icd_version"
    write_table(
        hospital / "diagnoses_icd.csv.gz",
        header,
        [
            [1, 11, 1, "I10", 10],
            [1, 11, 2, "A0811", 10],
            [2, 12, 1, "4019", 9],
            [3, 13, 1, "I10", 10],
            [4, 14, 1, "Z9911", 10],
        ],
    )
    write_table(
        hospital / "procedures_icd.csv.gz",
        header.replace("seq_num", "seq_num,chartdate"),
        [[1, 11, 1, "2180-01-01", "02HV33Z", 10], [3, 13, 1, "2180-01-01", "02HV33Z", 10]],
    )
    write_table(
        notes / "discharge.csv.gz",
        "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text",
        [
            [f"{n}-DS-1", n, 10 + n, "DS", 1, "", "", f"Name: ___ x{n} {n}, No. 5"]
            for n in range(1, 5)
        ],
    )
    frame = pd.DataFrame({"_id": [11, 12, 13, 14], "split": ["train", "train", "val", "test"]})
    frame.to_feather(tmp_path / "split.feather")
    monkeypatch.setitem(mimic.TASKS, "mimic4_icd10", mimic.Task(4, "", least_count=2))
    given = ("mimic4_icd10", [tmp_path / "mimiciv", notes], tmp_path / "split.feather")
    with pytest.raises(InputError, match="test: no row is left"):
        mimic.write(*given, tmp_path / "out")
    assert (tmp_path / "out" / "codes.txt").read_text().split() == ["02HV33Z", "I10"]
    (train,) = rows_of(tmp_path / "out" / "train.parquet")
    assert (train["id"], train["text"]) == (11, "name x1 no")
    monkeypatch.setitem(mimic.TASKS, "mimic4_icd10", mimic.Task(4, ""))
    mimic.write(*given, tmp_path / "all", raw_text=True)
    (test,) = rows_of(tmp_path / "all" / "test.parquet")
    assert list(test["labels"]) == ["Z99.11"] and test["text"] == "Name: ___ x4 4, No. 5"


def test_points():
    for given, version, diagnosis, expected in [
        ("4019", 9, True, "401.9"),
        ("486", 9, True, "486"),
        ("E849", 9, True, "E849"),
        ("E8120", 9, True, "E812.0"),
        ("V1582", 9, True, "V15.82"),
        ("401.9", 9, True, "401.9"),
        ("0066", 9, False, "00.66"),
        ("E0800", 10, True, "E08.00"),
        ("02HV33Z", 10, False, "02HV33Z"),
    ]:
        assert icd.with_point(given, version, diagnosis) == expected


def test_notes_are_joined_in_the_order_in_which_they_came(tmp_path):
    with NoteStore(tmp_path / "notes") as store:
        for admission, text in [(7, "c"), (5, "a"), (7, "b"), (7, "a")]:
            store.add("train", 1, admission, text)
        store.add("test", 1, 5, "other")
        assert list(store.rows("train")) == [(1, 5, "a"), (1, 7, "c b a")]


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda f, s: (f / "PROCEDURES_ICD.csv").unlink(), "no table PROCEDURES_ICD there"),
        (
            lambda f, s: write_table(f / "DIAGNOSES_ICD.csv", "HADM_ID,CODE", [[1, 2]]),
            "columns that are absent: 'icd9_code'. Columns: 'HADM_ID', 'CODE'",
        ),
        (
            lambda f, s: (
                (f / "again").mkdir() or write_table(f / "again/noteevents.csv", NOTES, [])
            ),
            "Table NOTEEVENTS is there 2 times",
        ),
        (
            lambda f, s: (f / "NOTEEVENTS.csv.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3cut"),
            "NOTEEVENTS.csv.gz: cannot be read as CSV",
        ),
        (lambda f, s: (s / "dev_full_hadm_ids.csv").unlink(), "one file of the split 'validation'"),
        (
            lambda f, s: (s / "dev_full_hadm_ids.csv").write_text("200\nx1\n"),
            "line 2 is no number of an admission: 'x1'",
        ),
        (
            lambda f, s: (s / "dev_full_hadm_ids.csv").write_text("200\n101\n"),
            "validation shares admissions with another split: '101'",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(third, tmp_path, spoil, text):
    folder, splits = third
    spoil(folder, splits)
    with pytest.raises(InputError, match=text):
        mimic.write("mimic3_full", [folder], splits, tmp_path / "out")


def test_tables_of_splits(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("hadm_id,split\n1,train\n2,dev\n3,test\n")
    assert read_splits(path) == {1: "train", 2: "validation", 3: "test"}
    path.write_text("hadm_id,split\n1,train\n2,dev\n")
    with pytest.raises(InputError, match="no row of the split 'test'"):
        read_splits(path)
    path.write_text("hadm,split\n1,train\n")
    with pytest.raises(InputError, match="the columns _id .or hadm_id. and split are needed"):
        read_splits(path)


def test_from_the_command_to_a_run_that_is_ready(third, tmp_path):
    """The command, then the config that is shipped, on a small encoder."""
    folder, splits = third
    output = tmp_path / "out"
    flags = ["--set=mimic3_full", f"--folder={folder}", f"--splits={splits}", f"--output={output}"]
    command = [sys.executable, "-m", "sdjax.data.mimic", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8  labels" in done.stdout and f"Wrote {output}" in done.stdout
    config = mimic3_full.of_folder(str(output))
    config.batch_size = config.microbatches = 1
    config.model.weights = str(FOLDER / "bert")
    config.model.segment_length, config.model.segment_overlap = 8, 2
    setup = make_setup(config, mesh=make_mesh(devices=jax.devices()[:1]))
    assert setup.dataset.num_classes == 8 and len(setup.dataset.train) == 1
    assert setup.dataset.train.input_spec["ids"].shape[0] > 20


@pytest.mark.parametrize("module", [mimic3_full, mimic3_50, mimic4_icd10])
def test_configs_are_valid(module):
    config = module.get_config()
    check(config)
    assert config.model.pooling == "label_wise" and config.data.label_names.endswith("codes.txt")


def test_labels_that_train_lacks_are_named_in_a_file(tmp_path):
    for split, labels in {"train": ["a", "c"], "test": ["b", "a"]}.items():
        lines = [json.dumps({"x": [float(k), 1.0], "labels": [n]}) for k, n in enumerate(labels)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = Config(data=DataConfig(name="files", validation="")).data
    config.train, config.test = str(tmp_path / "train.jsonl"), str(tmp_path / "test.jsonl")
    with pytest.raises(InputError, match="labels that are not among the 2 known ones: 'b'"):
        load(config)
    config.label_names = str(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("a\nb\n\nc\n")
    dataset = load(config)
    assert dataset.label_names == ("a", "b", "c")
    np.testing.assert_array_equal(dataset.test.labels, [[0, 1, 0], [1, 0, 0]])
    (tmp_path / "names.txt").write_text("a\na\n")
    with pytest.raises(InputError, match="names that are there twice: 'a'"):
        load(config)
