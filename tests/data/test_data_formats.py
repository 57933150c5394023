"""What else practitioners bring: delimiters, encodings, gzip, names of labels in one column."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from absl import logging

from sdjax import LabelIndices, data
from sdjax.config import DataConfig
from sdjax.data import examples, overlap
from sdjax.data.readers.files import ReadOptions, read_examples

ARFF = """@relation t
@attribute a numeric
@attribute 'Swainson\\'s Thrush' {0,1}
@attribute "the \\"Pin\\\\e\\"" {0,1}
@data
1.5,0,1
2.5,1,0
"""


def read(path, **options):
    return read_examples(str(path), ReadOptions(**options))


@pytest.fixture
def frame():
    return pd.DataFrame({"a": [1.5, -2.0, 3.25], "b": [0, 4, 5], "l_0": [1, 0, 1]})


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    return found


def load(train, test, **fields):
    config = DataConfig(name="files", train=str(train), test=str(test), **fields)
    config.validation = config.validation if "validation" in fields else str(train)
    return data.load(config)


@pytest.fixture(autouse=True)
def one_file_for_two_splits(monkeypatch):
    """Here train is validation as well."""
    monkeypatch.setattr(overlap, "check_paths", lambda paths: None)
    monkeypatch.setattr(overlap, "check_contents", lambda splits: None)


@pytest.mark.parametrize(
    ("name", "separator"),
    [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("A.TSV", "\t")],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_delimiters_are_found(name, separator, end, frame, tmp_path):
    path = tmp_path / (name + end)
    frame.to_csv(path, sep=separator, index=False, compression="gzip" if end else None)
    found = read(path, labels="l_*")
    np.testing.assert_array_equal(found.inputs, frame[["a", "b"]].astype(np.float32))
    np.testing.assert_array_equal(found.labels, frame[["l_0"]])
    assert found.feature_names == ("a", "b")


def test_the_delimiter_is_the_one_of_all_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,"b; ; ;",tags\n1,2,x;y\n3,4,x;z\n')
    assert read(path, labels="tags", label_separator=";").feature_names == ("a", "b; ; ;")
    path.write_text("a\tl_0\n" + "1\t0\n" * 3)
    assert read(path, labels="l_0").inputs.shape == (3, 1)
    # A field of the length of a whole line is too long for the csv module; that is no error.
    names = [f"feature_{k}" for k in range(12_000)]
    path.write_text(";".join([*names, "l"]) + "\n" + ";".join(["1"] * 12_001))
    assert read(path, labels="l").inputs.shape == (1, 12_000)


def test_decimal_commas(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a;b;l\n1,5;2;1\n-0,25;3.5;0\n")
    np.testing.assert_array_equal(read(path, labels="l").inputs, [[1.5, 2], [-0.25, 3.5]])


@pytest.mark.parametrize("line", ["0.5,1,0", "3;1,5;0", "1,2,2"])
def test_a_missing_header_line_is_reported(line, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=r"a\.csv: there is no header line: .* numbers alone"):
        read(path, labels="l")


def test_columns_that_are_counted_are_a_header(tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame([[1.5, 2, 0], [2.5, 1, 1]]).to_csv(path, index=False)
    found = read(path, labels="2")
    np.testing.assert_array_equal(found.inputs, [[1.5, 2], [2.5, 1]])


@pytest.mark.parametrize(
    ("encoding", "said"), [("utf-8", ""), ("utf-8-sig", ""), ("cp1252", "cp1252")]
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.arff", "a.arff.gz", "a.jsonl"])
def test_encodings(name, encoding, said, tmp_path, warnings):
    text = {
        "csv": "größe,l_é€\n1.5,1\n",
        "arff": "@relation t\n@attribute größe numeric\n@attribute l_é€ {0,1}\n@data\n1.5,1\n",
        "jsonl": '{"größe": 1.5, "l_é€": 1}\n',
    }[name.split(".")[1]].encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = read(path, labels="l_*")
    assert (found.feature_names, found.label_names) == (("größe",), ("l_é€",))
    assert found.inputs[0, 0] == 1.5
    assert len(warnings) == bool(said)
    assert all(str(path) in warning and said in warning for warning in warnings)


def test_what_cp1252_lacks_is_latin_1(tmp_path, warnings):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\x81\xe9,l\n1,0\n")
    assert read(path, labels="l").feature_names == ("\x81é",)
    assert "latin-1" in warnings[0]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.arff", "a.jsonl"])
def test_utf_16_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes("größe,l\n1,0\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a\.\w+: cannot be read as .*UTF-16\?"):
        read(tmp_path / name, labels="l")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.arff.gz", "a.jsonl.gz", "a.svm.gz"])
@pytest.mark.parametrize("content", [b"a,b\n1,2\n", gzip.compress(b"a,b\n1,2\n" * 9, mtime=0)[:-9]])
def test_broken_gzip(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        read(tmp_path / name, labels="b")


def test_arrays_are_not_read_through_gzip(tmp_path):
    (tmp_path / "a.npz.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"suffix '.npz.gz'; data files are .*text also as .gz"):
        read(tmp_path / "a.npz.gz")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_quotation_marks_in_names_of_arff(end, tmp_path):
    names = ("Swainson's Thrush", 'the "Pin\\e"')
    labels = '<label name="Swainson\'s Thrush"/><label name="the &quot;Pin\\e&quot;"/>'
    (tmp_path / "a.xml").write_text(f"<labels>{labels}</labels>")
    content = ARFF.encode()
    (tmp_path / f"A.ARFF{end}").write_bytes(gzip.compress(content) if end else content)
    (tmp_path / "a.xml").rename(tmp_path / "A.xml")
    found = read(tmp_path / f"A.ARFF{end}")
    assert found.label_names == names
    np.testing.assert_array_equal(found.labels, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(found.inputs, [[1.5], [2.5]])


# Labels in one column


def write(path, frame):
    suffixes = {".csv": frame.to_csv, ".tsv": lambda p, index: frame.to_csv(p, sep="\t")}
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        suffixes[path.suffix](path, index=False)


@pytest.mark.parametrize("end", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_one_column_of_label_names(end, tmp_path):
    train = pd.DataFrame({"a": [1.0, 2, 3, 4], "tags": ["b; a", None, "NA", "07;a;a"]})
    test = pd.DataFrame({"tags": ["", "07"], "a": [2.0, 1]})
    write(tmp_path / f"train{end}", train)
    write(tmp_path / f"test{end}", test)
    loaded = load(
        tmp_path / f"train{end}", tmp_path / f"test{end}", labels="tags", label_separator=";"
    )
    assert loaded.label_names == ("07", "NA", "a", "b")
    expected = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]]
    np.testing.assert_array_equal(loaded.train.labels, expected)
    np.testing.assert_array_equal(loaded.test.labels, [[0, 0, 0, 0], [1, 0, 0, 0]])
    assert loaded.preprocess.feature_names == ("a",)
    for new in (test, test[["a"]]):
        write(tmp_path / f"new{end}", new)
        x, _ = data.read_inputs(str(tmp_path / f"new{end}"), loaded.preprocess)
        np.testing.assert_array_equal(x, loaded.preprocess(test[["a"]].to_numpy()))
    write(tmp_path / f"test{end}", test.assign(tags=["z;a", "y"]))
    with pytest.raises(ValueError, match=r"not among the 4 known ones: 'y', 'z'"):
        load(tmp_path / f"train{end}", tmp_path / f"test{end}", labels="tags", label_separator=";")


def test_numbers_in_one_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a;tags\n1.5;4,27\n2.5;27\n"3.5";\n')
    found = read(path, labels="tags", label_separator=",")
    assert found.label_names == ("27", "4")
    np.testing.assert_array_equal(found.labels, [[1, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(found.inputs, [[1.5], [2.5], [3.5]])


def test_many_names_in_one_column_stay_lists(tmp_path):
    count = examples.MOST_MULTI_HOT + 1
    tags = [f"t{k:05}" for k in range(count)]
    pd.DataFrame({"a": [1, 2], "tags": ["|".join(tags), tags[7]]}).to_csv(tmp_path / "a.csv")
    found = read(tmp_path / "a.csv", labels="tags", label_separator="|")
    assert isinstance(found.labels, LabelIndices)
    assert found.labels.num_classes == count
    np.testing.assert_array_equal(found.labels.indices[0], range(count))
    np.testing.assert_array_equal(found.labels.indices[1, :2], [7, -1])


@pytest.mark.parametrize("end", [".parquet", ".jsonl"])
def test_a_column_of_lists(end, tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2], "tags": [["x", "y"], []]})
    write(tmp_path / f"a{end}", frame)
    found = read(tmp_path / f"a{end}", labels="tags")
    assert found.label_names == ("x", "y")
    np.testing.assert_array_equal(found.labels, [[1, 1], [0, 0]])


def test_wrong_columns_of_names(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,t_0,t_1\n1,x;y,x\n2,,x\n")
    with pytest.raises(ValueError, match=r"splits one column, and data.labels is 2: 't_0', 't_1'"):
        read(path, labels="t_*", label_separator=";")
    with pytest.raises(ValueError, match=r"data.labels 'u' matches no column"):
        read(path, labels="u", label_separator=";")
    with pytest.raises(ValueError, match=r"'t_1' is x in row 0.*data.label_separator"):
        read(path, labels="t_1", ignore="t_0")
    path.write_text("a,t\n1,\n2,;\n")
    with pytest.raises(ValueError, match="no row has a label"):
        read(path, labels="t", label_separator=";")


# JSON lines


def write_lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_lists_of_numbers_of_labels(tmp_path):
    rows = [{"x": [1.0], "labels": y} for y in ([10, 2], [2], [])]
    train = write_lines(tmp_path / "a.jsonl", rows)
    test = write_lines(tmp_path / "b.jsonl", [{"x": [2.0], "labels": y} for y in ([10], [2])])
    loaded = load(train, test)
    assert loaded.label_names == ("2", "10")
    np.testing.assert_array_equal(loaded.train.labels, [[1, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(loaded.test.labels, [[0, 1], [1, 0]])
    write_lines(test, [{"x": [2.0], "labels": [3]}])
    with pytest.raises(ValueError, match="not among the 2 known ones: '3'"):
        load(train, test)
    for wrong in (0.5, -1, "a", True):
        write_lines(train, [*rows, {"x": [2.0], "labels": [3, wrong]}])
        with pytest.raises(ValueError, match=rf"got {wrong!r} in row 3"):
            read(train)


def test_names_in_one_text_beside_a_list_of_inputs(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"x": [1], "y": "b,a"}, {"x": [2], "y": ""}])
    found = read(path, label_separator=",")
    assert found.label_names == ("a", "b")
    np.testing.assert_array_equal(found.labels, [[1, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"text with data.label_separator, got 'b,a'"):
        read(path)


def test_text_is_refused(tmp_path):
    rows = [{"id": "k", "text": "A long day.", "labels": ["joy"]}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"field 'text' is text \('A long day.'\).*in data.text"):
        read(path)
    with pytest.raises(ValueError, match=r"the input 'A long day.' is no image.*in data.text"):
        read(path, input_key="text")
    (tmp_path / "a.csv").write_text("text,l\nA long day.,1\n")
    with pytest.raises(ValueError, match=r"'text' is not a number: 'A long .*in data.text"):
        read(tmp_path / "a.csv", labels="l")
