"""What goes wrong with a loss on a batch, over temperatures and dtypes, in one cell of a table."""

import importlib
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from peers import float64
from peers.case import single_label
from peers.hard_cases import NUM_CLASSES, Batch
from peers.step import Unavailable, to_numpy
from peers.subjects import Subject

TEMPERATURES = (0.001, 0.003, 0.01, 0.02, 0.05, 0.07, 0.1, 0.3, 1.0)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
# A true value or gradient below this may well be 0 in 16 bits.
NEGLIGIBLE = 1e-3
HUGE = 1e6
Conditions = dict[str, set[tuple[str, float]]]


def cell(subject: Subject, batch: Batch) -> str:
    """What a table says: "ok", or each symptom and the temperatures and dtypes that show it."""
    found: Conditions = {}
    for dtype in DTYPES:
        for temperature in TEMPERATURES:
            try:
                names = symptoms(subject, batch, dtype, temperature)
            except Unavailable:
                return "not available"
            for name in names:
                found.setdefault(name, set()).add((dtype, temperature))
    return "; ".join(_describe(name, found[name]) for name in found) or "ok"


def symptoms(subject: Subject, batch: Batch, dtype: str, temperature: float) -> list[str]:
    """Names of what is wrong, at the embeddings as they are rounded to `dtype`."""
    labels, num_classes = batch.labels, NUM_CLASSES
    if subject.single_label:
        labels, num_classes = single_label(labels, num_classes)
    z = batch.z.astype(DTYPES[dtype]).astype(np.float32)
    try:
        module = importlib.import_module(f"peers.{subject.module}")
    except ImportError as error:
        raise Unavailable(str(error)) from error
    assert subject.loss is not None
    expected = float64.value_and_gradient(z, labels, num_classes, temperature, subject.loss)
    options = subject.options | {"dtype": dtype}
    try:
        step = module.prepare(z, labels, num_classes, temperature, **options)
        value, gradient = (to_numpy(array) for array in step.run())
    except Unavailable:
        raise
    except Exception as error:
        return [f"raises {type(error).__name__}"]
    return list(_compare(float(value), gradient, *expected, nonzero=np.any(z != 0, axis=1)))


def _compare(
    value: float,
    gradient: np.ndarray,
    true_value: float,
    true_gradient: np.ndarray,
    nonzero: np.ndarray,
) -> Iterable[str]:
    if not np.isfinite(value) or not np.isfinite(gradient).all():
        yield "NaN or inf"
        return
    if np.abs(gradient).max() > HUGE * max(1, np.abs(true_gradient).max()):
        yield f"gradient over {HUGE:.0e}"
    if abs(true_value) > NEGLIGIBLE:
        if value == 0:
            yield "value 0"
        elif abs(value - true_value) > 0.1 * abs(true_value):
            yield "value off by over 10%"
    # What the gradient of a zero row should be is a matter of taste.
    gradient, true_gradient = gradient[nonzero], true_gradient[nonzero]
    norm = np.linalg.norm(true_gradient)
    if norm > NEGLIGIBLE:
        if not gradient.any():
            yield "gradient 0"
        elif np.linalg.norm(gradient - true_gradient) > 0.5 * norm:
            yield "gradient off by over 50%"


def _describe(name: str, conditions: set[tuple[str, float]]) -> str:
    """For example "gradient 0 at τ ≤ .01 (float32, bfloat16)"."""
    by_temperatures: dict[tuple[float, ...], list[str]] = {}
    for dtype in DTYPES:
        where = tuple(t for t in TEMPERATURES if (dtype, t) in conditions)
        if where:
            by_temperatures.setdefault(where, []).append(dtype)
    parts = []
    for where, dtypes in by_temperatures.items():
        text = _temperatures(where)
        if len(dtypes) < len(DTYPES):
            text += f" ({', '.join(dtypes)})"
        parts.append(text)
    return f"{name} {', '.join(parts)}"


def _temperatures(where: tuple[float, ...]) -> str:
    if len(where) == len(TEMPERATURES):
        return "at every τ"
    if where == TEMPERATURES[: len(where)]:
        return f"at τ ≤ {_short(where[-1])}"
    if where == TEMPERATURES[-len(where) :]:
        return f"at τ ≥ {_short(where[0])}"
    return "at τ = " + ", ".join(map(_short, where))


def _short(temperature: float) -> str:
    return f"{temperature:g}".removeprefix("0")
