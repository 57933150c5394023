"""Batches: exact, seeded, resumable, padded; and the sources they are fetched from."""

import itertools

import jax
import numpy as np
import pytest
from imports import assert_not_loaded

from sdjax import data
from sdjax.data.examples import Examples
from sdjax.data.preprocess import Preprocess
from sdjax.data.sources import make_source
from sdjax.errors import InputError


def numbered(count, modality="vector"):
    """A source whose inputs tell the row, once the standardisation is undone."""
    shape = (count, 3) if modality == "vector" else (count, 2, 2, 1)
    x = np.broadcast_to(np.arange(count).reshape(-1, *[1] * (len(shape) - 1)), shape)
    labels = (np.arange(count)[:, None] >> np.arange(8) & 1).astype(np.uint8)
    names = tuple("abcdefgh")
    examples = Examples("test", x.astype(np.float32), labels, names)
    return make_source(examples, Preprocess.fit(examples))


def rows_of(batch):
    """The row numbers of a batch, read off its labels."""
    return (batch["labels"] @ (1 << np.arange(8)))[batch["where"]].tolist()


def take(iterator, count):
    return list(itertools.islice(iterator, count))


@pytest.mark.parametrize(
    ("examples", "size", "drop", "steps"),
    [(10, 5, False, 2), (10, 4, False, 3), (10, 4, True, 2), (3, 8, False, 1), (8, 8, True, 1)],
)
def test_steps_per_epoch(examples, size, drop, steps):
    assert data.steps_per_epoch(examples, size, drop) == steps


@pytest.mark.parametrize("arguments", [(0, 4, False), (4, 0, False), (4, -1, True)])
def test_steps_per_epoch_of_nothing(arguments):
    with pytest.raises(ValueError, match="must be 1 or more"):
        data.steps_per_epoch(*arguments)


def test_batch_larger_than_the_split():
    source = numbered(5)
    with pytest.raises(ValueError, match=r"batch_size 8 is larger .* 5 examples.*Lower batch_size"):
        data.training_batches(source, 8, seed=0, drop_remainder=True)
    batch = next(data.training_batches(source, 8, seed=0, drop_remainder=False))
    assert batch["where"].tolist() == [True] * 5 + [False] * 3
    assert sorted(rows_of(batch)) == list(range(5))


@pytest.mark.parametrize("modality", ["vector", "image"])
@pytest.mark.parametrize("drop", [True, False])
def test_every_example_once_an_epoch(modality, drop):
    source = numbered(23, modality)
    steps = data.steps_per_epoch(23, 5, drop)
    batches = take(data.training_batches(source, 5, seed=1, drop_remainder=drop), 4 * steps)
    epochs = [
        list(itertools.chain(*map(rows_of, batches[k : k + steps])))
        for k in range(0, len(batches), steps)
    ]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == (20 if drop else 23)
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in its own order
    if drop:
        assert set().union(*epochs) == set(range(23))  # what is left out changes
    for batch in batches:
        assert {value.shape[0] for value in batch.values()} == {5}
        assert batch["x"].dtype == np.float32
        assert batch["labels"].dtype == np.uint8
        assert batch["where"].dtype == bool


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(1201, 120, 2 * [110] + 9 * [109]), (23, 5, [5, 5, 5, 4, 4]), (20, 5, [5] * 4), (3, 8, [3])],
)
def test_rows_are_spread_evenly_over_an_epoch(count, size, sizes):
    source = data.ArraySource(np.arange(count), np.ones((count, 1)))
    steps = data.steps_per_epoch(count, size, drop_remainder=False)
    batches = take(data.training_batches(source, size, seed=2, drop_remainder=False), steps)
    assert sorted((batch["where"].sum() for batch in batches), reverse=True) == sizes
    for batch in batches:
        assert batch["where"].shape == (size,)
        assert (np.diff(batch["where"].astype(int)) <= 0).all()  # padding comes last
    seen = np.concatenate([batch["x"][batch["where"]] for batch in batches])
    np.testing.assert_array_equal(seen, np.random.default_rng([2, 0]).permutation(count))


def test_padding_is_zeros():
    batches = take(data.training_batches(numbered(7), 4, seed=0, drop_remainder=False), 2)
    assert batches[1]["where"].tolist() == [True, True, True, False]
    assert not batches[1]["x"][3].any()
    assert not batches[1]["labels"][3].any()


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 13])
def test_resuming_equals_never_stopping(start, drop):
    source = numbered(23)
    whole = take(data.training_batches(source, 5, seed=3, drop_remainder=drop), 20)
    resumed = data.training_batches(source, 5, seed=3, drop_remainder=drop, start=start)
    for expected, batch in zip(whole[start:], resumed, strict=False):
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_the_seed_draws_the_order():
    source = numbered(100)
    first = [
        rows_of(next(data.training_batches(source, 50, seed=seed, drop_remainder=True)))
        for seed in (0, 0, 1)
    ]
    assert first[0] == first[1] != first[2]


@pytest.mark.parametrize("name", ["seed", "start"])
def test_negative_numbers(name):
    numbers = {"seed": 0, "start": 0, name: -1}
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
        data.training_batches(numbered(5), 2, drop_remainder=False, **numbers)


def test_rows_and_inputs_belong_together():
    source = numbered(40)
    for batch in take(data.training_batches(source, 16, seed=0, drop_remainder=False), 6):
        for x, row in zip(batch["x"], rows_of(batch), strict=False):
            np.testing.assert_array_equal(x, source[row]["x"])


def test_evaluation_is_one_pass_in_order():
    batches = list(data.evaluation_batches(numbered(23), 5))
    assert list(itertools.chain(*map(rows_of, batches))) == list(range(23))
    assert {batch["x"].shape for batch in batches} == {(5, 3)}
    assert batches[-1]["where"].sum() == 3


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 3, 6], [1, 4, 7], [2, 5]]])
def test_processes_share_each_batch(shares):
    """Each gets its rows of the batch, wherever they stand."""
    source = numbered(23)
    for make in (
        lambda **share: data.evaluation_batches(source, 8, **share),
        lambda **share: data.training_batches(source, 8, seed=0, drop_remainder=False, **share),
    ):
        whole = take(make(), 3)
        for rows in map(np.array, shares):
            for part, batch in zip(take(make(rows=rows), 3), whole, strict=True):
                for name in batch:
                    np.testing.assert_array_equal(part[name], batch[name][rows])


@pytest.mark.parametrize("rows", [[], [-1, 2], [6, 8], [3, 2], [1, 1]])
def test_rows_that_are_not_of_a_batch(rows):
    with pytest.raises(ValueError, match="rows must be rising positions in a batch of 8, got"):
        data.evaluation_batches(numbered(9), 8, rows=np.array(rows, int))


def test_to_device_shards_rows():
    devices = jax.devices()[:2] if len(jax.devices()) > 1 else jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = next(data.evaluation_batches(numbered(7), 4))
    arrays = data.to_device(batch, sharding)
    for name, value in batch.items():
        np.testing.assert_array_equal(np.asarray(arrays[name]), value)
        assert arrays[name].sharding == sharding


def test_source_is_a_sequence_of_examples():
    source = numbered(9)
    assert len(source) == len(list(source)) == 9
    np.testing.assert_array_equal(source[-1]["labels"], source[np.int64(8)]["labels"])
    for row in (9, -10):
        with pytest.raises(IndexError):
            source[row]


def test_preprocess_checks_its_inputs():
    preprocess = Preprocess.fit(Examples("t", np.ones((4, 3), np.float32), None))
    assert preprocess(np.ones((1, 3))).dtype == np.float32
    with pytest.raises(InputError, match=r"shape \[N, 3\], got \(1, 2\)\."):
        preprocess(np.ones((1, 2)))
    with pytest.raises(InputError, match=r"shape \[N, 3\], got \(3,\); one input .* x\[None\]"):
        preprocess(np.ones(3))
    with pytest.raises(InputError, match=r"got \(2, 1, 3\)"):
        preprocess(np.ones((2, 1, 3)))
    with pytest.raises(InputError, match="must be numbers, got object"):
        preprocess(np.array([[1, None, 2]]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_preprocess_refuses_what_is_not_finite(value):
    preprocess = Preprocess.fit(Examples("t", np.ones((4, 2), np.float32), None, (), ("a", "b")))
    x = np.ones((5, 2))
    x[2, 1] = x[4, 0] = value
    with pytest.raises(InputError, match=r"feature 'b' is (nan|-?inf) in row 2 .*; 2 inputs"):
        preprocess(x)


def test_importing_is_cheap():
    slow = ("tensorflow", "tensorflow_datasets", "grain", "pandas", "h5py", "PIL")
    assert_not_loaded("sdjax.data", slow)
