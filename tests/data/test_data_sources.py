"""Sources of pytrees: token ids and masks, several inputs, lists of label indices."""

import h5py
import jax
import numpy as np
import pytest

from sdjax import LabelIndices, data
from sdjax.config import DataConfig
from sdjax.data import rows as rows_lib
from sdjax.data.examples import Examples
from sdjax.data.preprocess import Preprocess
from sdjax.data.rows import Computed, Subset


def tokens(count=7, labels=None):
    """A source of ids and masks whose labels are lists of indices."""
    ids = np.arange(count * 4, dtype=np.int32).reshape(count, 4)
    inputs = {"ids": ids, "nested": {"mask": ids % 3 > 0}}
    if labels is None:
        indices = np.stack([np.arange(count), np.full(count, -1)], axis=1)
        labels = LabelIndices(indices, 5000)
    return data.ArraySource(inputs, labels)


def test_examples_are_trees():
    source = tokens()
    example = source[2]
    np.testing.assert_array_equal(example["x"]["ids"], [8, 9, 10, 11])
    np.testing.assert_array_equal(example["x"]["nested"]["mask"], [True, False, True, True])
    np.testing.assert_array_equal(example["labels"].indices, [2, -1])
    assert example["labels"].num_classes == 5000
    assert source.input_spec == {
        "ids": jax.ShapeDtypeStruct((4,), np.int32),
        "nested": {"mask": jax.ShapeDtypeStruct((4,), bool)},
    }
    assert len(source) == 7
    assert source.in_memory


def test_every_leaf_of_a_batch_is_padded():
    last = list(data.evaluation_batches(tokens(), 4))[-1]
    assert last["where"].tolist() == [True, True, True, False]
    np.testing.assert_array_equal(last["x"]["ids"][2:], [[24, 25, 26, 27], [0] * 4])
    np.testing.assert_array_equal(last["x"]["nested"]["mask"][3], [False] * 4)
    assert isinstance(last["labels"], LabelIndices)
    np.testing.assert_array_equal(last["labels"].indices, [[4, -1], [5, -1], [6, -1], [-1, -1]])
    assert last["labels"].indices.dtype == np.int32
    labels = np.eye(7, 3, dtype=bool)
    last = list(data.evaluation_batches(tokens(labels=labels), 4))[-1]
    np.testing.assert_array_equal(last["labels"], [[0] * 3] * 4)
    assert last["labels"].dtype == np.uint8


def test_training_batches_of_trees():
    source = tokens()
    batches = data.training_batches(source, 7, seed=0, drop_remainder=True)
    batch = next(batches)
    rows = np.asarray(batch["labels"].indices)[:, 0]
    assert sorted(rows) == list(range(7))
    np.testing.assert_array_equal(batch["x"]["ids"][:, 0], 4 * rows)


def test_trees_on_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = next(data.evaluation_batches(tokens(), 4))
    arrays = data.to_device(batch, sharding)
    assert jax.tree.structure(arrays) == jax.tree.structure(batch)
    assert arrays["labels"].num_classes == 5000
    for array, value in zip(jax.tree.leaves(arrays), jax.tree.leaves(batch), strict=True):
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(array, value)


def test_preprocessing_of_trees():
    source = data.ArraySource(
        {"a": np.arange(4), "b": np.arange(4) * 10},
        np.ones((4, 1), np.uint8),
        lambda x: {"sum": x["a"] + x["b"]},
    )
    np.testing.assert_array_equal(source.inputs(np.array([3, 1]))["sum"], [33, 11])


def test_inputs_of_other_libraries(tmp_path):
    """An h5py data set wants rising rows; nobody else has to know."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(12.0).reshape(6, 2)
        source = data.ArraySource(file["x"], np.ones((6, 1), np.uint8))
        np.testing.assert_array_equal(source.inputs(np.array([4, 0, 4]))[:, 0], [8, 0, 8])
        assert not source.in_memory


@pytest.mark.parametrize(
    ("inputs", "labels", "error"),
    [
        ({"a": np.ones(3)}, np.ones((4, 1)), r"inputs\['a'\] has 3 rows, and labels 4"),
        (np.ones(4), np.full((4, 2), 2), "label 0 is 2 in row 0"),
        (np.ones(4), np.ones(4), r"labels must be multi-hot \[N, C\], got shape \(4,\)"),
        (np.ones(2), LabelIndices(np.array([[0], [3]]), 3), r"in \[0, 3\).*got 3 in row 1"),
        (np.ones(2), LabelIndices(np.array([[0, 1], [-2, 0]]), 3), "got -2 in row 1"),
        (np.ones(2), LabelIndices(np.array([[0, 1], [2, 2]]), 3), "2 is repeated in row 1"),
        (np.ones(2), LabelIndices(np.ones((2, 1)), 3), "must be integers"),
    ],
)
def test_wrong_arrays(inputs, labels, error):
    with pytest.raises(ValueError, match=error):
        data.ArraySource(inputs, labels)


def test_views_of_rows():
    base = np.arange(20).reshape(10, 2)
    view = Subset(Subset(base, np.array([9, 3, 5, 7])), np.array([2, 0]))
    assert view.shape == (2, 2)
    assert view.base is base
    np.testing.assert_array_equal(view[np.array([1, 0])][:, 0], [18, 10])
    np.testing.assert_array_equal(view[:1][:, 0], [10])
    doubled = Computed(view, lambda x: 2.0 * x, (2,), np.float64)
    assert (doubled.shape, doubled.dtype, len(doubled)) == ((2, 2), np.float64, 2)
    np.testing.assert_array_equal(doubled[np.array([1])], [[36, 38]])


def test_moments_are_numpys_to_the_bit():
    values = np.random.default_rng(0).normal(3, 2, (500, 7)).astype(np.float32)
    preprocess = Preprocess.fit(Examples("t", values, None))
    assert preprocess.mean == tuple(values.mean(axis=0, dtype=np.float64).tolist())
    assert preprocess.std == tuple(values.std(axis=0, dtype=np.float64).tolist())


def test_blocks_change_no_result(monkeypatch):
    values = np.random.default_rng(0).normal(3, 2, (500, 7)).astype(np.float32)
    whole = Preprocess.fit(Examples("t", values, None))
    monkeypatch.setattr(rows_lib, "BLOCK_ELEMENTS", 7 * 64)
    assert [block.stop for block in rows_lib.blocks(values)] == [*range(64, 500, 64), 500]
    parts = Preprocess.fit(Examples("t", values, None))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.std, whole.std, rtol=1e-12)
    values[437, 2] = np.inf
    values[450, 1] = np.nan
    from sdjax.data.examples import check_binary, check_finite

    with pytest.raises(ValueError, match=r"input \(2,\) is inf in row 437 .* 2 inputs in all"):
        check_finite("t", values, ())
    labels = np.zeros((500, 7))
    labels[481, 6] = 0.5
    with pytest.raises(ValueError, match="label 6 is 0.5 in row 481"):
        check_binary("t", labels)
    labels[481, 6] = 1
    np.testing.assert_array_equal(check_binary("t", labels), labels)


def test_rows_have_names_and_some_can_be_looked_at():
    labels = np.ones((3, 1), np.uint8)
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)
    plain = data.ArraySource(images, labels)
    named = data.ArraySource(images, labels, names=np.array(["a", "b", "c"]))
    assert plain.names.tolist() == [0, 1, 2] and named.names.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(plain.contents(np.array([2, 0])), images[[2, 0]])
    joined = data.JoinedSource(plain, named)
    assert joined.names.tolist() == ["0", "1", "2", "a", "b", "c"]
    np.testing.assert_array_equal(joined.contents(np.array([4, 0])), images[[1, 0]])
    twice = data.JoinedSource(plain, plain).names.tolist()
    assert twice == ["0", "1", "2", "validation:0", "validation:1", "validation:2"]
    vectors = data.ArraySource(np.zeros((3, 2)), labels)
    assert vectors.contents(np.array([0])) is None
    assert data.JoinedSource(vectors, vectors).contents(np.array([0, 4])) is None


def test_rows_that_were_split_off_keep_their_numbers(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("a,l\n" + "".join(f"{row},{row % 2}\n" for row in range(20)))
    dataset = data.load(
        DataConfig(name="files", train=str(path), validation="", test="", labels="l")
    )
    splits = (dataset.train, dataset.validation, dataset.test)
    names = [split.names for split in splits]
    assert sorted(np.concatenate(names).tolist()) == list(range(20))
    for split, rows in zip(splits, names):
        np.testing.assert_array_equal(split.raw_inputs(np.arange(len(split)))[:, 0], rows)
