"""Label sets in the forms from which the overlap of a tile of pairs is cheapest."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from sdjax import labels as labels_lib
from sdjax._src import collectives
from sdjax.labels import LabelIndices, Labels

Array = jax.Array

BITS = 32
# Up to this many labels, bits side by side beat lists of any length.
MOST_LABELS_AS_BITS = 128
# Labels of a row that are counted in one step.
CHUNK = 16
# Rows of multi-hot labels that are converted at once.
CONVERTED_ROWS = 64
# The longest lists that multi-hot labels are turned into.
LONGEST_LIST = 32


class LabelForm(Protocol):
    """The label sets of some rows, a pytree."""

    def take(self, start: Array, size: int) -> "LabelForm":
        """The label sets of `size` rows."""
        ...

    def as_columns(self) -> Any:
        """What rows of a tile need of these, if they are its columns."""
        ...

    def shared(self, columns: Any, dtype: jnp.dtype) -> Array:
        """|S∩T| of each pair of rows and columns, [rows, columns]."""
        ...

    def weighted(self, columns: Any, values: Array) -> Array:
        """Σ_{l∈S∩T} values[l] of each pair, [rows, columns]; values [C]."""
        ...


class TableForm(LabelForm, Protocol):
    """Label sets that can have a table beside them: a number for each label of each row, [N, K].

    Where K places stand for which labels is the form's own; places of no label hold 0.
    """

    def present(self, dtype: jnp.dtype) -> Array:
        """The table that is 1 for each label, [rows, K]."""
        ...

    def by_table(self, columns: Any, table: Array) -> Array:
        """Σ_{l∈S∩T} of the row's number for l, of each pair, [rows, columns]."""
        ...

    def carried(self, columns: Any, weight: Array) -> Array:
        """For each label of each row, Σ weight over the columns that carry it, [rows, K].

        `weight` is [rows, columns]. Places of no label may hold anything.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bits:
    """One bit for each label, uint32 [N, ⌈C/32⌉]: a pair shares popcount(a & b) labels.

    A table beside them has a place for each label, [N, C].
    """

    words: Array
    num_classes: int = dataclasses.field(metadata={"static": True})

    def take(self, start: Array, size: int) -> "Bits":
        return Bits(lax.dynamic_slice_in_dim(self.words, start, size), self.num_classes)

    def as_columns(self) -> Array:
        return self.words.T

    def shared(self, columns: Array, dtype: jnp.dtype) -> Array:
        # TPUs have fast matrix units, and count bits slowly.
        shared = lax.platform_dependent(self.words, columns, tpu=_multiplied, default=_counted)
        return shared.astype(dtype)

    def weighted(self, columns: Array, values: Array) -> Array:
        return self.by_table(columns, self.present(values.dtype) * values[None, :])

    def present(self, dtype: jnp.dtype) -> Array:
        return _unpack(self.words, self.num_classes, dtype)

    def by_table(self, columns: Array, table: Array) -> Array:
        others = _unpack(columns.T, self.num_classes, table.dtype)
        return jnp.matmul(table, others.T, precision=lax.Precision.HIGHEST)

    def carried(self, columns: Array, weight: Array) -> Array:
        others = _unpack(columns.T, self.num_classes, weight.dtype)
        return jnp.matmul(weight, others, precision=lax.Precision.HIGHEST)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """Which columns carry each label: the bits of `rows` at the place of the label.

    Attributes:
      rows: uint32 [P, W]; column j is bit j % 32 of word j // 32. The last row has no bits.
      place: the row of each label, int32 [C + 1]; None where label l is row l.
      first: the first column that carries the label of each row, int32 [P]; `num_columns` for none.
      alone: whether no label has two carriers, as with prototypes.
      num_columns: W · 32 or fewer.
    """

    rows: Array
    place: Array | None
    first: Array
    alone: Array
    num_columns: int = dataclasses.field(metadata={"static": True})

    def carriers(self, indices: Array) -> Array:
        """For each label of each row the columns that carry it, uint32 [rows, L, W]."""
        return self.rows.at[self._places(indices)].get(mode="promise_in_bounds")

    def carrier(self, indices: Array) -> Array:
        """For each label of each row the first column that carries it, int32 [rows, L]."""
        return self.first.at[self._places(indices)].get(mode="promise_in_bounds")

    def _places(self, indices: Array) -> Array:
        return indices if self.place is None else self.place[indices]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lists:
    """The labels of each row once, int32 [N, L], padded with C.

    Columns are a table with a row for each label, whose bits say which columns carry it: a pair
    shares as many labels as there are bits of its column in the table's rows at its row's labels.
    A table of numbers beside the lists has a place for each entry, [N, L].
    """

    indices: Array
    num_classes: int = dataclasses.field(metadata={"static": True})

    def take(self, start: Array, size: int) -> "Lists":
        indices = lax.dynamic_slice_in_dim(self.indices, start, size)
        return dataclasses.replace(self, indices=indices)

    def as_columns(self) -> Table:
        num, length = self.indices.shape
        num_places, place, places = self.num_classes + 1, None, self.indices
        if num * length < self.num_classes:
            # A row for each label that these columns have, whatever the number of labels.
            num_places = num * length + 1
            numbers = jnp.arange(num * length, dtype=jnp.int32).reshape(num, length)
            place = jnp.full(self.num_classes + 1, num_places - 1, jnp.int32)
            place = place.at[self.indices].min(numbers).at[self.num_classes].set(num_places - 1)
            places = place[self.indices]
        num_words = -(-num // BITS)
        column = jnp.arange(num, dtype=jnp.int32)[:, None]
        word = jnp.broadcast_to(column // BITS, places.shape)
        bit = jnp.ones((), jnp.uint32) << (column % BITS).astype(jnp.uint32)
        places = jnp.where(self.indices < self.num_classes, places, num_places)
        # The bits of a word are distinct: adding them sets them.
        bits = jnp.broadcast_to(bit, word.shape)
        rows = jnp.zeros((num_places, num_words), jnp.uint32)
        rows = rows.at[places, word].add(bits, mode="drop")
        columns = jnp.broadcast_to(column, places.shape)
        first = jnp.full(num_places, num, jnp.int32).at[places].min(columns, mode="drop")
        numbers = jnp.zeros(num_places, jnp.int32).at[places].add(1, mode="drop")
        return Table(rows, place, first, numbers.max() <= 1, num)

    def shared(self, columns: Table, dtype: jnp.dtype) -> Array:
        num, length = self.indices.shape
        indices = jnp.pad(
            self.indices, ((0, 0), (0, -length % CHUNK)), constant_values=self.num_classes
        )
        longest = self._longest()

        def step(k: Array, planes: Array) -> Array:
            chunk = lax.dynamic_slice_in_dim(indices, k * CHUNK, CHUNK, 1)
            carriers = columns.carriers(chunk)
            # Plane p holds bit p of the number of each column, all columns of a word at once.
            added = list(planes)
            for n in range(CHUNK):
                carry = carriers[:, n]
                for p in range(len(added)):
                    added[p], carry = added[p] ^ carry, added[p] & carry
            return jnp.stack(added)

        planes = jnp.zeros((length.bit_length(), num, columns.rows.shape[1]), jnp.uint32)
        planes = collectives.varying(planes, indices, columns)
        planes = lax.fori_loop(0, (longest + CHUNK - 1) // CHUNK, step, planes)

        def unpacked() -> Array:
            total = sum(_bits(plane) << jnp.uint32(p) for p, plane in enumerate(planes))
            return jnp.asarray(total).astype(jnp.int32).astype(dtype)[:, : columns.num_columns]

        nothing = collectives.varying(jnp.zeros((num, columns.num_columns), dtype), planes)
        # As a branch it is computed once; otherwise XLA may compute it anew for each use.
        return lax.cond(longest > 0, unpacked, lambda: nothing)

    def weighted(self, columns: Table, values: Array) -> Array:
        return self._added(columns, values.at[self.indices].get(mode="fill", fill_value=0))

    def present(self, dtype: jnp.dtype) -> Array:
        return (self.indices < self.num_classes).astype(dtype)

    def by_table(self, columns: Table, table: Array) -> Array:
        return lax.cond(columns.alone, self._placed, self._added, columns, table)

    def carried(self, columns: Table, weight: Array) -> Array:
        return lax.cond(columns.alone, self._taken, self._summed, columns, weight)

    def _placed(self, columns: Table, table: Array) -> Array:
        """`by_table` where each label has one column at most."""
        zeros = jnp.zeros((len(self.indices), columns.num_columns), table.dtype)
        zeros = collectives.varying(zeros, columns.first, self.indices, table)
        rows = jnp.arange(len(zeros), dtype=jnp.int32)[:, None]
        return zeros.at[rows, columns.carrier(self.indices)].add(table, mode="drop")

    def _taken(self, columns: Table, weight: Array) -> Array:
        """`carried` where each label has one column at most."""
        rows = jnp.arange(len(weight), dtype=jnp.int32)[:, None]
        return weight.at[rows, columns.carrier(self.indices)].get(mode="fill", fill_value=0)

    def _added(self, columns: Table, table: Array) -> Array:
        """`by_table`, label by label."""
        carriers, num = columns.carriers(self.indices), columns.num_columns

        def step(k: Array, total: Array) -> Array:
            carrier = lax.dynamic_index_in_dim(carriers, k, 1, keepdims=False)
            value = lax.dynamic_index_in_dim(table, k, 1)
            return total + jnp.where(_bits(carrier) != 0, value, 0)[:, :num]

        zeros = jnp.zeros((len(self.indices), num), table.dtype)
        zeros = collectives.varying(zeros, carriers, table)
        return lax.fori_loop(0, self._longest(), step, zeros)

    def _summed(self, columns: Table, weight: Array) -> Array:
        """`carried`, label by label."""
        carriers, num = columns.carriers(self.indices), columns.num_columns

        def step(k: Array, total: Array) -> Array:
            carrier = lax.dynamic_index_in_dim(carriers, k, 1, keepdims=False)
            sums = jnp.where(_bits(carrier)[:, :num] != 0, weight, 0).sum(axis=1, keepdims=True)
            return lax.dynamic_update_slice_in_dim(total, sums, k, 1)

        zeros = collectives.varying(jnp.zeros(self.indices.shape, weight.dtype), carriers, weight)
        return lax.fori_loop(0, self._longest(), step, zeros)

    def _longest(self) -> Array:
        """One past the last place that holds a label in some row, int32."""
        place = jnp.arange(self.indices.shape[1], dtype=jnp.int32)[None, :]
        return jnp.max(jnp.where(self.indices < self.num_classes, place + 1, 0), initial=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BitsOrLists:
    """Lists where the labels of all rows fit in them, bool [N], else bits."""

    bits: Bits
    lists: Lists
    fits: Array

    def take(self, start: Array, size: int) -> "BitsOrLists":
        fits = lax.dynamic_slice_in_dim(self.fits, start, size)
        return BitsOrLists(self.bits.take(start, size), self.lists.take(start, size), fits)

    def as_columns(self) -> tuple[Array, Table, Array]:
        return self.bits.as_columns(), self.lists.as_columns(), self.fits

    def shared(self, columns: tuple[Array, Table, Array], dtype: jnp.dtype) -> Array:
        words, table, fit = columns

        def bits() -> Array:
            return self.bits.shared(words, dtype)

        def lists_if_they_fit() -> Array:
            fits = self.fits.all() & fit.all()
            return lax.cond(fits, lambda: self.lists.shared(table, dtype), bits)

        # Where bits are multiplied, lists save nothing.
        return lax.platform_dependent(tpu=bits, default=lists_if_they_fit)

    def weighted(self, columns: tuple[Array, Table, Array], values: Array) -> Array:
        words, table, fit = columns
        return lax.cond(
            self.fits.all() & fit.all(),
            lambda: self.lists.weighted(table, values),
            lambda: self.bits.weighted(words, values),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classes:
    """At most one label a row, int [N]; -1 for none."""

    indices: Array

    def take(self, start: Array, size: int) -> "Classes":
        return Classes(lax.dynamic_slice_in_dim(self.indices, start, size))

    def as_columns(self) -> Array:
        return self.indices

    def shared(self, columns: Array, dtype: jnp.dtype) -> Array:
        rows = self.indices[:, None]
        return ((rows == columns[None, :]) & (rows >= 0)).astype(dtype)

    def weighted(self, columns: Array, values: Array) -> Array:
        of_rows = values.at[self.indices].get(mode="fill", fill_value=0)
        return self.shared(columns, values.dtype) * of_rows[:, None]

    def present(self, dtype: jnp.dtype) -> Array:
        return (self.indices >= 0).astype(dtype)[:, None]

    def by_table(self, columns: Array, table: Array) -> Array:
        return self.shared(columns, table.dtype) * table

    def carried(self, columns: Array, weight: Array) -> Array:
        return (self.shared(columns, weight.dtype) * weight).sum(axis=1, keepdims=True)


def prepare(*sides: Labels, with_table: bool = False) -> tuple[Any, ...]:
    """The label sets of both sides, or of one, in the form that suits them.

    Each is a `LabelForm`, or a `TableForm` if it is to have a table.
    """
    num_classes = labels_lib.num_classes(sides[0])
    listed = [side for side in sides if isinstance(side, LabelIndices)]
    if len(listed) == len(sides) and all(jnp.shape(side.indices)[1] == 1 for side in listed):
        return _as_classes(*listed)
    if num_classes <= MOST_LABELS_AS_BITS or 0 < len(listed) < len(sides):
        return tuple(_as_bits(side) for side in sides)
    if listed:
        return tuple(Lists(labels_lib.unique_indices(side), num_classes) for side in listed)
    if with_table:
        return tuple(_as_bits(side) for side in sides)
    return tuple(_bits_or_lists(jnp.asarray(labels_lib.canonical(side))) for side in sides)


def _as_classes(*sides: LabelIndices) -> tuple[Classes, ...]:
    """Lists of one label at most as its number, of the same dtype on both sides."""
    single = [labels_lib.single_index(side) for side in sides]
    dtype = jnp.promote_types(single[0].dtype, single[-1].dtype)
    return tuple(Classes(index.astype(dtype)) for index in single)


def _as_bits(labels: Labels) -> Bits:
    if not isinstance(labels, LabelIndices):
        labels = jnp.asarray(labels_lib.canonical(labels))
        return Bits(_pack(labels), labels.shape[1])
    num_words = -(-labels.num_classes // BITS)
    indices = labels_lib.unique_indices(labels)
    indices = jnp.where(indices < labels.num_classes, indices, num_words * BITS)
    words = jnp.arange(num_words, dtype=jnp.int32)[None, :, None]
    bit = jnp.ones((), jnp.uint32) << (indices % BITS).astype(jnp.uint32)[:, None, :]
    here = (indices // BITS)[:, None, :] == words
    words = jnp.where(here, bit, jnp.uint32(0)).sum(axis=2, dtype=jnp.uint32)
    return Bits(words, labels.num_classes)


def _bits_or_lists(labels: Array) -> BitsOrLists:
    num_classes = labels.shape[1]
    length = min(LONGEST_LIST, num_classes)

    def of_row(row: Array) -> tuple[Array, Array, Array]:
        words = _pack(row[None])
        fits = lax.population_count(words).sum(dtype=jnp.uint32) <= length
        return words[0], _list(words, length, num_classes)[0], fits

    # A few rows at a time: intermediate arrays take far more than a bit for each label.
    words, lists, fits = lax.map(of_row, labels, batch_size=CONVERTED_ROWS)
    return BitsOrLists(Bits(words, num_classes), Lists(lists, num_classes), fits)


def _both(row_word: Array, column_word: Array) -> Array:
    """Bits that two words have in common, of words [T] and words [U], int32 [T, U]."""
    both = row_word[:, None] & column_word[None, :]
    return lax.population_count(both).astype(jnp.int32)


def _counted(words: Array, columns: Array) -> Array:
    """Bits that words [T, W] and columns [W, U] have in common, [T, U]: one word at a time."""
    num_words = len(columns)
    if num_words * BITS <= MOST_LABELS_AS_BITS:
        return jnp.asarray(sum(_both(words[:, k], columns[k]) for k in range(num_words)))

    def step(k: Array, total: Array) -> Array:
        row_word = lax.dynamic_index_in_dim(words, k, 1, keepdims=False)
        return total + _both(row_word, lax.dynamic_index_in_dim(columns, k, 0, False))

    zeros = jnp.zeros((len(words), columns.shape[1]), jnp.int32)
    zeros = collectives.varying(zeros, words, columns)
    return lax.fori_loop(0, num_words, step, zeros)


def _multiplied(words: Array, columns: Array) -> Array:
    """The same by a matrix unit, in bfloat16: exact, as sums of ones are in float32."""
    rows, others = (_bits(x).astype(jnp.bfloat16) for x in (words, columns.T))
    total = jnp.matmul(rows, others.T, preferred_element_type=jnp.float32)
    return total.astype(jnp.int32)


def _pack(labels: Array) -> Array:
    """Words uint32 [N, ⌈C/32⌉] of bool [N, C]; label l is bit l % 32 of word l // 32."""
    num, num_classes = labels.shape
    num_words = max(1, -(-num_classes // BITS))
    bits = jnp.pad(labels, ((0, 0), (0, num_words * BITS - num_classes)))
    bits = bits.reshape(num, num_words, BITS)
    shifts = jnp.arange(BITS, dtype=jnp.uint32)[None, None, :]
    return (bits.astype(jnp.uint32) << shifts).sum(axis=2, dtype=jnp.uint32)


def _list(words: Array, length: int, num_classes: int) -> Array:
    """The first `length` labels of each row of words [N, W], int32 [N, length], padded with C."""
    count = lax.population_count(words).astype(jnp.int32)
    through = jnp.cumsum(count, axis=1)
    rank = jnp.arange(length, dtype=jnp.int32)
    # The word that holds the label of each rank, and the label's rank inside it.
    word = (through[:, None, :] <= rank[None, :, None]).sum(axis=2, dtype=jnp.int32)
    some = word < words.shape[1]
    word = jnp.where(some, word, 0)
    inside = rank[None, :] - jnp.take_along_axis(through - count, word, axis=1)
    value = jnp.take_along_axis(words, word, axis=1)
    value = lax.fori_loop(
        0, BITS - 1, lambda k, v: jnp.where(k < inside, v & (v - jnp.uint32(1)), v), value
    )
    lowest = value & (~value + jnp.uint32(1))
    bit = lax.population_count(lowest - jnp.uint32(1)).astype(jnp.int32)
    return jnp.where(some, word * BITS + bit, num_classes)


def _bits(words: Array) -> Array:
    """Bits uint32 [N, 32 · W] of words [N, W]; column j is bit j % 32 of word j // 32."""
    shifts = jnp.arange(BITS, dtype=jnp.uint32)[None, None, :]
    return ((words[:, :, None] >> shifts) & jnp.uint32(1)).reshape(len(words), -1)


def _unpack(words: Array, num_classes: int, dtype: jnp.dtype) -> Array:
    """Multi-hot [N, C] of words [N, ⌈C/32⌉]."""
    return _bits(words)[:, :num_classes].astype(dtype)
