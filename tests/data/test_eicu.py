"""Stays of eICU as words, from synthetic tables of its schema."""

import gzip

import numpy as np
import pytest

from sdjax.config import check
from sdjax.configs.eicu import get_config
from sdjax.data import csv_tables, eicu
from sdjax.data.readers.files import read_examples
from sdjax.data.readers.options import ReadOptions
from sdjax.errors import InputError

STAYS = 8
LATER = "apacheadmissiondx,uniquepid"


@pytest.fixture
def folder(tmp_path):
    """Of stay 1 to 8: words that tell which, labels by parity, patients of two stays each."""
    stays = range(1, STAYS + 1)
    tables = {
        "diagnosis": "diagnosisid,patientunitstayid,diagnosisstring\n"
        + "".join(f"{n},{n},{'renal|x' if n % 2 else 'cardiovascular|y|z'}\n" for n in stays)
        + "9,1,renal|again\n10,2,toxicology\n11,9,\n",  # a stay of no diagnosis
        "pastHistory": "patientunitstayid,pasthistorypath,pasthistoryvalue\n"
        + "".join(f"{n},notes/Past,{n % 2}\n" for n in stays),
        "medication": "medicationid,patientunitstayid,drugname\n"
        + "".join(f"{n},{n},{'ASPIRIN' if n < 5 else ''}\n" for n in stays)
        + "9,1,aspirin\n10,99,aspirin\n",
        "treatment": "patientunitstayid,treatmentstring\n1,rare\n",
        "physicalExam": "patientunitstayid,physicalexampath\n",
        "admissionDx": "patientunitstayid,admitdxpath\n",
        "patient": f"patientunitstayid,gender,ethnicity,unittype,unitadmitsource,{LATER}\n"
        + "".join(f"{n},Male,,MICU,,,p{n // 2}\n" for n in range(1, 10)),
    }
    for name, text in tables.items():
        with gzip.open(tmp_path / f"{name}.csv.gz", "wt") as file:
            file.write(text)
    return tmp_path


def test_words_labels_and_patients(folder, tmp_path, monkeypatch):
    chunks = csv_tables.chunks
    monkeypatch.setattr(csv_tables, "chunks", lambda path, columns: chunks(path, columns, rows=3))
    output = tmp_path / "out"
    sizes = eicu.write(folder, output, fewest_stays=4, test_share=0.4)
    words = (output / "features.txt").read_text().splitlines()
    assert words == [
        "medication.drugname=aspirin",
        "pastHistory.pasthistorypath=notes/past",
        "pastHistory.pasthistoryvalue=0",
        "pastHistory.pasthistoryvalue=1",
        "patient.gender=male",
        "patient.unittype=micu",
    ]
    names = (output / "labels.txt").read_text().splitlines()
    assert names == ["cardiovascular", "renal", "toxicology"]
    assert sizes["features"] == 6 and sizes["labels"] == 3
    assert sizes["train"] + sizes["test"] == STAYS
    found = {}
    for split in ("train", "test"):
        options = ReadOptions(
            feature_names=tuple(map(str, range(6))), label_names=tuple(map(str, range(3)))
        )
        examples = read_examples(str(output / f"{split}.svm"), options)
        assert len(examples) == sizes[split]
        found[split] = np.concatenate([examples.inputs[:], np.asarray(examples.labels)], axis=1)
    rows = np.concatenate(list(found.values()))
    assert sorted(rows[:, 0]) == [0, 0, 0, 0, 1, 1, 1, 1]
    # Words of odd stays beside the label of odd stays.
    np.testing.assert_array_equal(rows[:, 3], rows[:, 7])
    np.testing.assert_array_equal(rows[:, 2], rows[:, 6])
    assert rows[:, 8].sum() == 1
    again = eicu.write(folder, tmp_path / "again", fewest_stays=4, test_share=0.4)
    assert again == sizes
    assert (output / "test.svm").read_bytes() == (tmp_path / "again" / "test.svm").read_bytes()


def test_a_patient_is_in_one_split():
    persons = np.array(["a", "b", "a", "c", "d", "b"])
    for seed in range(5):
        tested = eicu._drawn(persons, 0.5, seed)
        assert tested[0] == tested[2] and tested[1] == tested[5]
        assert len(set(persons[tested])) == 2


def test_tables_that_are_missing(folder, tmp_path):
    with pytest.raises(InputError, match="test_share must lie between 0 and 1, got 1"):
        eicu.write(folder, tmp_path / "out", test_share=1)
    (folder / "medication.csv.gz").unlink()
    with pytest.raises(InputError, match="no table medication there"):
        eicu.write(folder, tmp_path / "out")
    check(get_config())
