"""Arrays that are asked for some of their rows at a time, and need not be in memory as a whole."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from scipy import sparse

# Elements that are worked on at a time: 32 MB of float64.
BLOCK_ELEMENTS = 1 << 22


class RowArray(Protocol):
    """What inputs have to offer, as `np.ndarray`, `np.memmap` and `h5py.Dataset` do.

    `rows` is a slice or an array of row numbers.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class Subset:
    """The rows `rows` of `base`, in that order; nothing is copied before it is asked for."""

    def __init__(self, base: RowArray, rows: np.ndarray):
        if isinstance(base, Subset):
            base, rows = base.base, base.rows[rows]
        self.base, self.rows = base, rows
        self.shape = (len(rows), *base.shape[1:])
        self.dtype = base.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return take_rows(self.base, self.rows[rows])


class Computed:
    """`function` of the rows of `base`, computed for the rows that are asked for.

    Args:
      base: N rows.
      function: of some rows of `base`, an array [n, ...]; returns as many.
      shape: of a row of the result.
      dtype: of the result.
    """

    def __init__(
        self,
        base: RowArray,
        function: Callable[[np.ndarray], np.ndarray],
        shape: tuple[int, ...],
        dtype: Any,
    ):
        self.base, self._function = base, function
        self.shape, self.dtype = (len(base), *shape), np.dtype(dtype)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._function(take_rows(self.base, rows))


class SparseRows:
    """The rows of a sparse matrix, made dense when they are asked for.

    Args:
      matrix: of any of scipy's formats, [N, F]; it is not changed.

    Attributes:
      matrix: float32, in rows (CSR); of a row each column once, in rising order, and no zeros.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, matrix: Any):
        with np.errstate(over="ignore"):  # an infinity is found by `check_finite`
            csr: Any = sparse.csr_array(matrix, dtype=np.float32)
        if not csr.has_canonical_format or not csr.data.all():
            csr = csr.copy()
            csr.sum_duplicates()
            csr.eliminate_zeros()
        self.matrix = csr
        self.shape: tuple[int, int] = csr.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.matrix[rows].toarray()

    def take(self, rows: Any) -> "SparseRows":
        """The rows at `rows`, sparse."""
        return SparseRows(self.matrix[rows])

    def content(self) -> Iterator[bytes]:
        """The bytes that a row consists of, row by row: equal for equal rows."""
        columns, values = self.matrix.indices.astype(np.int64, copy=False), self.matrix.data
        for start, stop in itertools.pairwise(self.matrix.indptr.tolist()):
            yield columns[start:stop].tobytes() + values[start:stop].tobytes()


def as_row_array(array: Any) -> RowArray:
    """`array`, or its rows where it is one of scipy's sparse matrices."""
    return SparseRows(array) if sparse.issparse(array) else array


def take_rows(array: RowArray, rows: Any) -> np.ndarray:
    """`array[rows]`; an array of another library is asked for each row once, in rising order.

    That is what h5py wants.
    """
    if isinstance(array, np.ndarray | Subset | Computed | SparseRows) or isinstance(rows, slice):
        return array[rows]
    unique, inverse = np.unique(np.asarray(rows), return_inverse=True)
    return array[unique][inverse]


def in_memory(array: RowArray) -> bool:
    """Whether taking rows is mere copying."""
    base = array.base if isinstance(array, Subset) else array
    return isinstance(base, np.ndarray | SparseRows)


def blocks(array: RowArray) -> Iterator[slice]:
    """Slices that cover the rows of `array`, a block of at most `BLOCK_ELEMENTS` each."""
    size = max(1, BLOCK_ELEMENTS // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), size):
        yield slice(start, min(start + size, len(array)))
