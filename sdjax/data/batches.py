"""Batches on Grain: seeded, resumable at any step, padded to one shape.

A batch is {"x", "labels", "where"}: `x` a float32 array [B, ...], or a pytree of arrays [B, ...];
`labels` multi-hot uint8 [B, C], or `LabelIndices` of int32 [B, L]; `where` bool [B]. Rows where
`where` is False fill up a batch: zeros, and no labels.

Grain's own per-row shuffle and batch cost tens of milliseconds for 256 rows, so the elements of the
Grain data set here are whole batches, each fetched by one array of row numbers.
"""

import functools
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from sdjax.data.sources import Source
from sdjax.errors import InputError
from sdjax.labels import LabelIndices

Batch = dict[str, Any]
DECODING_THREADS = 4


def steps_per_epoch(num_examples: int, batch_size: int, drop_remainder: bool) -> int:
    """Number of batches that an epoch takes.

    Raises:
      ValueError: if there is none.
    """
    _check_positive("num_examples", num_examples)
    _check_positive("batch_size", batch_size)
    if not drop_remainder:
        return math.ceil(num_examples / batch_size)
    if batch_size > num_examples:
        raise InputError(
            f"batch_size {batch_size} is larger than the split of {num_examples} examples, and "
            "drop_remainder=True leaves no batch. Lower batch_size or set drop_remainder=False."
        )
    return num_examples // batch_size


def training_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    drop_remainder: bool,
    start: int = 0,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Endless batches, every example once an epoch, in an order drawn anew each epoch.

    Batch k is a pure function of (seed, k): `start=k` resumes a run exactly. Of a source with
    `widths`, rows of one width are batched together, and batches follow each other at random.

    Args:
      source: the examples.
      batch_size: B, over all processes.
      seed: of the order, non-negative.
      drop_remainder: whether an epoch's last rows that fill no batch are left out (others each
        epoch). Otherwise an epoch's rows are spread evenly over its batches, which differ by one
        row at most and are padded to B: no step is taken on a few rows left over.
      start: number of the first batch.
      rows: positions in [0, B) of the rows to fetch, such as those that this process's devices
        hold, in rising order; None is all.

    Returns:
      An iterator over batches of B rows, or of `rows` alone.

    Raises:
      ValueError: if a number is out of range, or a batch larger than the split is asked for
        with `drop_remainder`.
    """
    steps = steps_per_epoch(len(source), batch_size, drop_remainder)
    for name, number in (("seed", seed), ("start", start)):
        if number < 0:
            raise InputError(f"{name} must be 0 or more, got {number}.")
    positions = _positions(batch_size, rows)
    used = steps * batch_size if drop_remainder else len(source)

    # An epoch's order serves all its batches; two are kept for threads that work ahead.
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of all batches, and which part of them each batch is."""
        random = np.random.default_rng([seed, epoch])
        examples = random.permutation(len(source))[:used]
        if source.widths is None:
            return examples, np.arange(steps)
        # Examples of one width stay in random order, and so come the batches.
        examples = examples[np.argsort(source.widths[examples], kind="stable")]
        return examples, random.permutation(steps)

    def batch(number: int) -> Batch:
        epoch, step = divmod(number, steps)
        examples, parts = order(epoch)
        first, last = (-(-used * k // steps) for k in (parts[step], parts[step] + 1))
        return _fetch(source, examples[first:last], positions)

    return _iterate(batch, start, sys.maxsize, source)


def evaluation_batches(
    source: Source, batch_size: int, *, rows: np.ndarray | None = None
) -> Iterator[Batch]:
    """One pass over `source` in the order of `evaluation_order`, the last batch padded.

    Args:
      source: the examples.
      batch_size: B, over all processes.
      rows: positions in [0, B) of the rows to fetch, in rising order; None is all.

    Returns:
      An iterator over batches of B rows, or of `rows` alone.
    """
    steps = steps_per_epoch(len(source), batch_size, drop_remainder=False)
    positions, order = _positions(batch_size, rows), evaluation_order(source)

    def batch(number: int) -> Batch:
        return _fetch(source, order[number * batch_size :][:batch_size], positions)

    return _iterate(batch, 0, steps, source)


def evaluation_order(source: Source) -> np.ndarray:
    """Rows of `source` in the order of `evaluation_batches`: as they are, or by their widths."""
    if source.widths is None:
        return np.arange(len(source))
    return np.argsort(source.widths, kind="stable")


def to_device(batch: Batch, sharding: Any) -> dict[str, Any]:
    """`batch` as global arrays on devices.

    Args:
      batch: this process's rows.
      sharding: a `jax.sharding.Sharding` of the leading axis, over the devices of all processes.

    Returns:
      The same pytree, of `jax.Array` with the rows of all processes.
    """
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def _fetch(source: Source, examples: np.ndarray, positions: np.ndarray) -> Batch:
    """Those of a batch's `examples` that stand at `positions`; padding where there is none."""
    where = positions < len(examples)
    wanted = examples[positions[where]]
    # A process may have no row of a padded batch; one row tells it the shapes.
    wanted = wanted if len(wanted) else np.array([0])
    width = () if source.widths is None else (int(source.widths[examples].max()),)
    fetched = source.fetch(wanted, *width)
    count = int(where.sum())
    missing = len(positions) - count
    if missing:
        fetched = {name: _padded(x, count, missing) for name, x in fetched.items()}
    return {**fetched, "where": where}


def _padded(values: Any, count: int, missing: int) -> Any:
    """The first `count` rows of each array of `values`, and `missing` rows of padding."""
    fill = -1 if isinstance(values, LabelIndices) else 0

    def pad(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[:count], np.full((missing, *x.shape[1:]), fill, x.dtype)])

    return jax.tree.map(pad, values)


def _iterate(batch, start: int, stop: int, source: Source) -> Iterator[Batch]:
    """Batches `start` to `stop`, made ahead by threads where images have to be decoded."""
    import grain

    threads = 0 if source.in_memory else DECODING_THREADS
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(batch).to_iter_dataset(read_options=options))


def _positions(batch_size: int, rows: np.ndarray | None) -> np.ndarray:
    if rows is None:
        return np.arange(batch_size)
    if not len(rows) or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) <= 0).any():
        raise InputError(
            f"rows must be rising positions in a batch of {batch_size}, got {rows.tolist()}."
        )
    return rows


def _check_positive(name: str, number: int) -> None:
    if number < 1:
        raise InputError(f"{name} must be 1 or more, got {number}.")
