"""Inputs that the loss tests share: label sets, their formats, masks, and the comparison itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy_reference as reference

import sdjax

LOSS_NAMES = tuple(reference.LOSSES)
FORMS = ("out", "in")
DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}
FORMATS = ("bool", "int", "float", "indices")
BATCH, QUEUE, DIM, CLASSES = 8, 7, 4, 5

# One set per relation with the first row as anchor: itself, R2, R1, R3, R4, R5, and two bystanders.
_CURATED = [{0, 1, 2}, {0, 1, 2}, {3, 4}, {1, 3}, {0, 2}, {0, 1, 2, 4}, {4}, {0}]


@functools.cache
def compiler_options() -> dict:
    """Options with which XLA compiles sooner, and to slower programs: those that jaxlib has."""
    options = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}

    def is_known(name: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: options[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in options.items() if is_known(name)}


def jit(function, **options):
    """`jax.jit`, compiled in a third of the time. It must not be called inside another jit."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def multi_hot(sets, num_classes: int = CLASSES) -> np.ndarray:
    out = np.zeros((len(sets), num_classes), bool)
    for row, labels in enumerate(sets):
        out[row, sorted(labels)] = True
    return out


def label_matrix(kind: str, rng: np.random.Generator, rows: int = BATCH) -> np.ndarray:
    """Returns a [rows, CLASSES] bool matrix of one of the kinds in LABEL_KINDS."""
    if kind == "random":
        return rng.random((rows, CLASSES)) < 0.4
    if kind == "curated":
        return multi_hot([_CURATED[i % len(_CURATED)] for i in range(rows)])
    if kind == "one_hot":
        return np.eye(CLASSES, dtype=bool)[rng.integers(0, CLASSES, rows)]
    if kind == "some_empty":
        out = rng.random((rows, CLASSES)) < 0.5
        out[:: max(2, rows // 3)] = False
        return out
    if kind == "all_empty":
        return np.zeros((rows, CLASSES), bool)
    if kind == "all_full":
        return np.ones((rows, CLASSES), bool)
    if kind == "same_sets":
        return np.tile(np.arange(CLASSES) % 2 == 0, (rows, 1))
    if kind == "disjoint":  # at most one example carries each label
        return multi_hot([{i} if i < CLASSES else set() for i in range(rows)])
    if kind == "lonely_label":  # a label nobody else has, beside shared ones
        out = rng.random((rows, CLASSES)) < 0.5
        out[:, 0] = False
        out[0] = np.arange(CLASSES) == 0
        out[1, 0] = False
        return out
    if kind == "one_pair":
        return multi_hot([{0, 1}, {1, 2}] + [set()] * (rows - 2))
    raise ValueError(kind)


LABEL_KINDS = (
    "random",
    "curated",
    "one_hot",
    "some_empty",
    "all_empty",
    "all_full",
    "same_sets",
    "disjoint",
    "lonely_label",
    "one_pair",
)


def to_indices(matrix: np.ndarray, rng: np.random.Generator, length: int):
    """Returns LabelIndices with repeated entries and with -1 padding anywhere in the row."""
    rows = np.full((len(matrix), length), -1, np.int32)
    for row, labels in zip(rows, matrix, strict=True):
        present = np.flatnonzero(labels)
        if len(present):
            entries = np.concatenate([present, rng.choice(present, rng.integers(0, len(present)))])
            row[: len(entries)] = entries
        rng.shuffle(row)
    return sdjax.LabelIndices(jnp.asarray(rows), matrix.shape[1])


def to_format(matrix: np.ndarray, kind: str, rng, length: int = 2 * CLASSES):
    if kind == "bool":
        return jnp.asarray(matrix)
    if kind == "int":
        return jnp.asarray(matrix.astype(np.int32))
    if kind == "float":
        return jnp.asarray(matrix.astype(np.float32))
    if kind == "indices":
        return to_indices(matrix, rng, length)
    raise ValueError(kind)


def class_ids(matrix: np.ndarray) -> np.ndarray:
    """Returns one class per row: the row read as a binary number, so equal sets share a class."""
    return (matrix @ (1 << np.arange(matrix.shape[1]))).astype(np.int32)


def labels_for(name: str, matrix: np.ndarray, kind: str, rng: np.random.Generator):
    """Returns (what the loss takes, what the reference takes)."""
    if name == "supcon":
        ids = class_ids(matrix)
        return jnp.asarray(ids), reference.class_sets(ids)
    return to_format(matrix, kind, rng), reference.label_sets(matrix)


def embeddings(rng: np.random.Generator, rows: int = BATCH, dtype=np.float64) -> np.ndarray:
    """Returns rows of unequal length, already rounded to `dtype`."""
    return (rng.normal(size=(rows, DIM)) * rng.uniform(0.5, 2.0, (rows, 1))).astype(dtype)


def masks(kind: str, rng: np.random.Generator, columns: int = BATCH) -> dict[str, np.ndarray]:
    """Returns the mask arguments for BATCH anchors and `columns` candidates."""
    rows = BATCH
    where = np.arange(rows) % 4 != 2
    candidate_where = np.arange(columns) % 3 != 1
    return {
        "none": {},
        "where": {"where": where},
        "candidate_where": {"candidate_where": candidate_where},
        "both": {"where": rng.permutation(where), "candidate_where": candidate_where},
        "all_false": {"where": np.zeros(rows, bool)},
        "no_candidates": {"candidate_where": np.zeros(columns, bool)},
        "one_anchor": {"where": np.arange(rows) == 0},
    }[kind]


MASK_KINDS = ("none", "where", "candidate_where", "both")
EDGE_MASK_KINDS = (*MASK_KINDS, "all_false", "no_candidates", "one_anchor")


REDUCTIONS = ("mean", "none")


def value_and_gradients(call, arrays: tuple, cotangent, reductions=REDUCTIONS):
    """Runs `call(reduction, *arrays)` for each reduction.

    Returns:
      {reduction: loss}, and the gradients with respect to `arrays` of the mean (if asked for)
      plus sum(cotangent * rows) (if asked for).
    """
    values, pullback = jax.vjp(lambda *args: {r: call(r, *args) for r in reductions}, *arrays)
    into = {"mean": lambda v: jnp.ones_like(v), "none": lambda v: jnp.asarray(cotangent, v.dtype)}
    return values, pullback({r: into[r](v) for r, v in values.items()})


def tolerances(dtype) -> tuple[float, float]:
    """Returns (that of the arithmetic, that of storing a gradient in `dtype` once)."""
    if dtype == np.float64:
        return 1e-10, 0.0
    return 1e-5, 0.5 * float(ml_dtypes.finfo(dtype).eps)


def assert_close(actual, desired, tolerance: float, what: str, rounding: float = 0.0):
    """Compares to `tolerance`, relative to each entry and to the size of the array's entries."""
    actual = np.asarray(actual).astype(np.float64)
    desired = np.asarray(desired, np.float64)
    assert np.all(np.isfinite(actual)), f"{what}: not finite: {actual}"
    scale = max(1.0, float(np.sqrt(np.mean(desired**2)))) if desired.size else 1.0
    np.testing.assert_allclose(
        actual,
        desired,
        rtol=tolerance + rounding,
        atol=tolerance * scale,
        err_msg=what,
        strict=True,
    )


def check(result: reference.Result, outputs, cotangent, dtype, what: str = ""):
    """Compares the output of `value_and_gradients` with the reference's result."""
    values, gradients = outputs
    tolerance, rounding = tolerances(dtype)
    accumulated = np.float64 if dtype == np.float64 else np.float32
    into_rows = np.zeros(len(result.rows))
    for reduction, value in values.items():
        expected = result.mean if reduction == "mean" else result.rows
        assert value.dtype == accumulated, f"{what}: {reduction} is {value.dtype}"
        assert_close(value, expected, tolerance, f"{what} reduction={reduction}")
        # Without a positive the value is not merely small.
        assert np.all(np.asarray(value)[np.asarray(expected) == 0] == 0), what
        into_rows += result.share if reduction == "mean" else cotangent
    for argument, got, expected in zip(("z", "candidates"), gradients, result.gradient(into_rows)):
        assert got.dtype == dtype, f"{what}: gradient is {got.dtype}"
        if not result.positives.any():
            assert not np.any(got), f"{what}: gradient without a positive: {got}"
        assert_close(got, expected, tolerance, f"{what} gradient of {argument}", rounding)
