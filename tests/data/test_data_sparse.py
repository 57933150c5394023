"""Sparse inputs: they stay sparse from the file to the batch, and mean what dense ones mean."""

import dataclasses
import gzip
import json
import re

import numpy as np
import pytest
from array_files import write_arrays
from scipy import sparse

from sdjax import LabelIndices, data
from sdjax.config import DataConfig
from sdjax.data import examples, hashing
from sdjax.data.examples import Examples
from sdjax.data.preprocess import Preprocess, is_sparse
from sdjax.data.readers.files import ReadOptions, read_examples
from sdjax.data.rows import SparseRows, Subset, as_row_array


def read(path, **options):
    return read_examples(str(path), ReadOptions(**options))


def load(train, test, **fields):
    config = DataConfig(name="files", train=str(train), test=str(test), **fields)
    return data.load(dataclasses.replace(config, validation_fraction=0.25))


@pytest.fixture
def dense():
    random = np.random.default_rng(0)
    values = random.normal(size=(12, 7)) * (random.random((12, 7)) < 0.4)
    values[3] = 0
    values[:, 5] = 0
    values[:, 6] = 0.3  # constant
    return values.astype(np.float32)


@pytest.fixture
def labels():
    return (np.random.default_rng(1).random((12, 3)) < 0.5).astype(np.uint8)


def parts(name, matrix):
    names = ("data", "indices", "indptr", "shape")
    return {f"{name}_{part}": np.asarray(getattr(matrix, part)) for part in names}


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_array, sparse.coo_array])
def test_rows_of_a_sparse_matrix(make, dense):
    rows = SparseRows(make(dense.astype(np.float64)))
    assert (rows.shape, rows.dtype, len(rows)) == ((12, 7), np.float32, 12)
    for chosen in (slice(2, 9), np.array([5, 0, 5]), np.array([], int)):
        found = rows[chosen]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, dense[chosen])
        np.testing.assert_array_equal(Subset(rows, np.arange(12))[chosen], dense[chosen])


def test_a_matrix_is_put_in_order_and_left_as_it_was():
    given = sparse.csr_matrix(
        (np.array([1, 2, 0, 4], np.float32), [3, 3, 1, 0], [0, 3, 4]), (2, 5), copy=True
    )
    rows = SparseRows(given)
    np.testing.assert_array_equal(rows[:], [[0, 0, 0, 3, 0], [4, 0, 0, 0, 0]])
    assert rows.matrix.nnz == 2
    np.testing.assert_array_equal(given.data, [1, 2, 0, 4])
    np.testing.assert_array_equal(given.indices, [3, 3, 1, 0])


def test_sources_take_sparse_matrices(dense, labels):
    matrix = sparse.csr_matrix(dense)
    source = data.ArraySource({"x": matrix, "n": np.arange(12)}, labels)
    assert source.in_memory
    batch = source.fetch(np.array([4, 1]))
    assert isinstance(batch["x"]["x"], np.ndarray)
    np.testing.assert_array_equal(batch["x"]["x"], dense[[4, 1]])
    assert source.input_spec["x"].shape == (7,)
    with pytest.raises(ValueError, match=r"inputs has 12 rows, and labels 5"):
        data.ArraySource(matrix, labels[:5])


def test_fingerprints_follow_the_content(dense, labels):
    first = data.ArraySource(sparse.csr_matrix(dense), labels)
    assert first.fingerprint == data.ArraySource(sparse.coo_array(dense), labels).fingerprint
    for row, column in ((0, 5), (11, 0)):
        other = dense.copy()
        other[row, column] += 1
        assert data.ArraySource(sparse.csr_matrix(other), labels).fingerprint != first.fingerprint
    moved = np.roll(dense, 1, axis=1)
    hashes = hashing.row_hashes(SparseRows(sparse.csr_matrix(moved)))
    same = hashes == hashing.row_hashes(SparseRows(sparse.csr_matrix(dense)))
    np.testing.assert_array_equal(same, (moved == dense).all(axis=1))
    order = np.array([3, 0])
    rows = Subset(SparseRows(sparse.csr_matrix(moved)), order)
    np.testing.assert_array_equal(hashing.row_hashes(rows), hashes[order])


def test_moments_are_those_of_dense_inputs(dense, labels):
    dense[:, 0] += 100 * (dense[:, 0] != 0)
    expected = data.Preprocess.fit(Examples("", dense, labels))
    found = data.Preprocess.fit(Examples("", SparseRows(sparse.csr_matrix(dense)), labels))
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)
    assert found.std[5] == found.std[6] == 1


def test_sparse_inputs_are_never_dense_as_a_whole(tmp_path, monkeypatch):
    """300,000 x 200,000 numbers are 240 GB."""
    random = np.random.default_rng(0)
    count, width = 300_000, 200_000
    matrix = sparse.csr_array(
        (np.ones(count, np.float32), random.integers(0, width, count), np.arange(count + 1)),
        (count, width),
    )
    labels = (random.random((count, 1)) < 0.5).astype(np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", **parts("x", matrix), y=labels)
        matrix.data *= 2
    loaded = load(tmp_path / "train.npz", tmp_path / "test.npz")
    assert (len(loaded.train), len(loaded.validation)) == (225_000, 75_000)
    x = loaded.test.inputs(np.array([7]))
    assert x.shape == (1, width)
    mean, std = (np.array(x) for x in (loaded.preprocess.mean, loaded.preprocess.std))
    raw = x[0] * std + mean
    assert raw[matrix.indices[7]] == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_stored_values_that_are_not_finite(value, tmp_path, dense, labels):
    dense[4, 2] = dense[8, 6] = value
    np.savez(tmp_path / "a.npz", **parts("x", sparse.csr_matrix(dense)), y=labels)
    with pytest.raises(ValueError, match=rf"input \(2,\) is {value} in row 4.*; 2 inputs in all"):
        read(tmp_path / "a.npz")


# .npz and HDF5


@pytest.mark.parametrize("name", ["a.npz", "a.h5"])
@pytest.mark.parametrize("sparse_labels", [True, False])
def test_matrices_by_their_parts(name, sparse_labels, tmp_path, dense, labels):
    arrays = parts("features", sparse.csr_matrix(dense))
    arrays |= parts("y", sparse.csr_matrix(labels)) if sparse_labels else {"y": labels}
    arrays["feature_names"] = np.array(list("abcdefg"), "S")
    write_arrays(tmp_path / name, **arrays)
    found = read(tmp_path / name)
    assert isinstance(found.inputs, SparseRows)
    np.testing.assert_array_equal(found.inputs[:], dense)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.labels.dtype == np.uint8
    # Another split has its columns in another order.
    order = np.array([6, 0, 1, 5, 4, 3, 2])
    arrays |= parts("features", sparse.csr_matrix(dense[:, order]))
    arrays["feature_names"] = arrays["feature_names"][order]
    write_arrays(tmp_path / f"b{name}", **arrays)
    other = read(tmp_path / f"b{name}", feature_names=found.feature_names)
    np.testing.assert_array_equal(other.inputs[:], dense)


def test_many_sparse_labels_become_lists(tmp_path):
    count = examples.MOST_MULTI_HOT + 1
    sets = sparse.csr_array(([1, 1, True], [count - 1, 3, 0], [0, 2, 2, 3]), (3, count))
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2)), **parts("y", sets))
    found = read(tmp_path / "a.npz")
    assert isinstance(found.labels, LabelIndices)
    assert found.labels.indices.dtype == np.int32
    assert found.labels.num_classes == len(found.label_names) == count
    np.testing.assert_array_equal(found.labels.indices, [[3, count - 1], [-1, -1], [0, -1]])


def test_wrong_matrices(tmp_path, dense, labels):
    path, matrix = tmp_path / "a.npz", sparse.csr_matrix(dense)
    wrong = parts("y", sparse.csr_matrix(np.where(labels, 2, 0)))
    np.savez(path, **parts("x", matrix), **wrong)
    with pytest.raises(ValueError, match=r"labels must be 0 or 1; label 'label_\d' is 2.0 in row"):
        read(path)
    for part, value in (("indices", matrix.indices + 90), ("indptr", matrix.indptr[:-1])):
        np.savez(path, **{**parts("x", matrix), f"x_{part}": value}, y=labels)
        with pytest.raises(ValueError, match=r"a.npz: cannot be read as sparse matrix 'x'"):
            read(path)
    np.savez(path, **parts("x", matrix), **parts("y", sparse.csr_matrix(labels[:5])))
    with pytest.raises(ValueError, match=r"labels must be multi-hot \[12, C\].*got \(5, 3\)"):
        read(path)


def test_a_matrix_of_scipy_alone(tmp_path, dense, labels):
    bare, both = tmp_path / "bare.npz", tmp_path / "both.npz"
    x, y = sparse.csr_matrix(dense), sparse.csr_matrix(labels)
    sparse.save_npz(bare, x)
    with pytest.raises(
        ValueError, match=r"a sparse matrix alone, and no labels.*np.savez"
    ) as error:
        read(bare)
    # The line of code that is proposed works.
    code = re.search(r"np\.savez\([^)]*\)", str(error.value)).group()
    exec(code, {"np": np, "path": both, "x": x, "y": y})
    np.savez(tmp_path / "test.npz", **parts("x", x * 2), y=labels)
    loaded = load(both, tmp_path / "test.npz")
    np.testing.assert_array_equal(loaded.test.labels, labels)
    for form in (x, sparse.coo_matrix(x)):
        sparse.save_npz(bare, form)
        inputs, _ = data.read_inputs(str(bare), loaded.preprocess)
        np.testing.assert_array_equal(inputs, loaded.preprocess(dense))


# svmlight


@pytest.mark.parametrize("name", ["a.svm", "a.libsvm", "a.txt", "a.svm.gz"])
def test_svmlight(name, tmp_path):
    content = b"# a comment\n10,2 1:0.5 4:-2\n 2:1\n2 4:1.5 # another\n7\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = read(tmp_path / name)
    assert isinstance(found.inputs, SparseRows)
    assert found.feature_names == ("1", "2", "3", "4")
    expected = [[0.5, 0, 0, -2], [0, 1, 0, 0], [0, 0, 0, 1.5], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found.inputs[:], expected)
    assert found.label_names == ("2", "7", "10")
    np.testing.assert_array_equal(found.labels, [[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    assert read(tmp_path / name, labels="7,2,10,3").label_names == ("7", "2", "10", "3")


def test_features_of_svmlight_are_those_of_training(tmp_path):
    train, test = tmp_path / "train.svm", tmp_path / "test.svm"
    train.write_text("1 1:1 4:2\n2 2:1 3:3\n1 3:1\n2 4:1\n")
    test.write_text("2 2:5\n1 2:7 3:1\n")
    loaded = load(train, test)
    raw = np.array([[0, 5, 0, 0], [0, 7, 1, 0]])
    np.testing.assert_array_equal(loaded.test.inputs(np.arange(2)), loaded.preprocess(raw))
    np.testing.assert_array_equal(loaded.test.labels, [[0, 1], [1, 0]])
    restored = data.Preprocess.from_json(json.loads(json.dumps(loaded.preprocess.to_json())))
    test.write_text("2:5\n2:7 3:1\n")
    np.testing.assert_array_equal(data.read_inputs(str(test), restored)[0], restored(raw))
    for line, feature in (("1 5:1", 5), ("1 0:1", 0)):
        test.write_text(line + "\n")
        with pytest.raises(ValueError, match=f"feature {feature}; those of training are 1 to 4"):
            load(train, test)
    test.write_text("3,1 2:5\n")
    with pytest.raises(ValueError, match="not among the 2 known ones: '3'"):
        load(train, test)
    # One feature 0 in training, and all are counted from 0.
    train.write_text("1 0:1 2:2\n1 1:1\n")
    assert read(train).feature_names == ("0", "1", "2")
    other = read(test, feature_names=("0", "1", "2"), labelled=False)
    np.testing.assert_array_equal(other.inputs[:], [[0, 0, 5]])
    with pytest.raises(ValueError, match="features are numbered, those of training are named: 'a'"):
        read(test, feature_names=("a", "b"), labelled=False)


def test_extreme_classification(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("3 6 2000\n1999,0 0:0.5 4:1\n 1:2\n7 5:1\n")
    found = read(path)
    np.testing.assert_array_equal(
        found.inputs[:], [[0.5, 0, 0, 0, 1, 0], [0, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    )
    assert found.labels.num_classes == len(found.label_names) == 2000
    np.testing.assert_array_equal(found.labels.indices, [[0, 1999], [-1, -1], [7, -1]])
    path.write_text("2 4 3\n2 3:1\n1 3:1\n")
    np.testing.assert_array_equal(read(path).labels, [[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("3 4 5\n1 0:1\n", "announces 3 rows, and 1 follow; truncated"),
        ("1 4 5\n1 4:1\n", "feature 4, and the first line announces 4"),
        ("1 4 5\n5 3:1\n", r"whole numbers in \[0, 5\), got 5 in row 0"),
        ("1 1:1\n0.5 1:1\n", "labels must be whole numbers, got 0.5 in row 1"),
        ("1 1:x\n", "cannot be read as svmlight"),
        ("Nice text.\n", "cannot be read as svmlight"),
        ("1 1:1\n1 2:nan\n", "feature '2' is nan in row 1"),
        ("1:1\n", "no row has a label"),
    ],
)
def test_wrong_svmlight(content, error, tmp_path):
    (tmp_path / "a.svm").write_text(content)
    with pytest.raises(ValueError, match=f"a.svm: .*{error}"):
        read(tmp_path / "a.svm")


@pytest.mark.parametrize("dense", [False, True])
def test_pareto_scaling_of_sparse_inputs(dense):
    x = sparse.random(60, 30, 0.05, random_state=0, format="csr", dtype=np.float32)
    assert is_sparse(as_row_array(x), "vector")
    assert not is_sparse(np.ones((4, 3)), "vector")
    assert not is_sparse(np.zeros((4, 3, 3, 1)), "image")
    array = x.toarray() if dense else x
    examples = Examples("t", as_row_array(array), np.ones((60, 2), np.uint8))
    fitted = Preprocess.fit(examples)
    assert fitted == Preprocess.fit(examples, scaling="pareto")
    scaled = fitted(x.toarray())
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    std = x.toarray().std(axis=0, dtype=np.float64)
    varied = std > 0
    # Variances stand as standard deviations did, and their mean is 1.
    np.testing.assert_allclose(
        scaled.var(axis=0, dtype=np.float64)[varied], std[varied] / std[varied].mean(), rtol=1e-4
    )
    assert not scaled[:, ~varied].any()
    standard = Preprocess.fit(examples, scaling="standard")(x.toarray())
    np.testing.assert_allclose(standard.std(axis=0)[varied], 1, rtol=1e-4)
