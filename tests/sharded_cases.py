"""A batch split over eight devices, its losses, and what they should be.

The encoder is z = x @ w with w replicated. The documented rule for gradients inside shard_map or
pmap: `jax.lax.pmean(jax.grad(loss)(w), axis_name)`, for the loss returned is the global one.
"""

import functools

import cases
import jax
import numpy as np
import numpy_reference as reference
from jax.sharding import AxisType

import sdjax

DEVICES, FEATURES = 8, 3
ROWS, QUEUE = 2 * DEVICES, 3 * DEVICES
AXIS = "batch"
MODES = ("self", "explicit")


def mesh():
    return jax.make_mesh((DEVICES,), (AXIS,), axis_types=(AxisType.Auto,))


def side(rng, rows):
    """One side of the pairs, with padding that is uneven across devices: all of the third's."""
    matrix = rng.permutation(cases.label_matrix("curated", rng, rows))
    where = rng.random(rows) < 0.75
    where[2 * rows // DEVICES : 3 * rows // DEVICES] = False
    where[:4] = True
    return {
        "x": rng.normal(size=(rows, FEATURES)),
        "labels": matrix,
        "ids": cases.class_ids(matrix),
        "where": where,
    }


def problem(mode):
    rng = np.random.default_rng(0)
    batch = {"anchors": side(rng, ROWS)}
    if mode == "explicit":
        batch["candidates"] = side(rng, QUEUE)
    return rng.normal(size=(FEATURES, cases.DIM)), batch


KEYS = [(name, form) for name in cases.LOSS_NAMES for form in cases.FORMS]


# Half of them for each mode: every loss, and its other form in the other mode.
HALVES = KEYS[0::4] + KEYS[3::4], KEYS[1::4] + KEYS[2::4]
KEYS_OF_MODE = dict(zip(MODES, HALVES, strict=True))


def loss_of(key, w, batch, reduction="mean", axis_name=None, **options):
    """One loss of the family in one form, of z = x @ w."""
    name, form = key
    kind = "ids" if name == "supcon" else "labels"
    args = [a for side in batch.values() for a in (side["x"] @ w, side[kind])]
    kwargs = {"where": batch["anchors"]["where"]}
    if "candidates" in batch:
        kwargs["candidate_where"] = batch["candidates"]["where"]
        # Where shard_map does not track what varies, it must be said.
        kwargs["candidates_sharded"] = None if axis_name is None else True
    return sdjax.LOSSES[name](
        *args, form=form, reduction=reduction, axis_name=axis_name, **kwargs, **options
    )


def expected(key, w, batch):
    """(mean, rows, gradient of mean with respect to w) by the reference."""
    name, form = key
    args, sides = [], list(batch.values())
    for s in sides:
        sets = reference.label_sets(s["labels"])
        args += [s["x"] @ w, reference.class_sets(s["ids"]) if name == "supcon" else sets]
    kwargs = {"where": sides[0]["where"]}
    if len(sides) > 1:
        kwargs["candidate_where"] = sides[1]["where"]
    result = reference.loss(name, *args, form=form, **kwargs)
    into = zip(sides, result.gradient())
    gradient = sum(s["x"].T @ g for s, g in into if g is not None)
    return result.mean, result.rows, gradient


def everything(keys, w, batch, axis_name=None, **options):
    """{key: (mean, gradient, rows)}, gradients by the documented rule if there is an axis."""
    out = {}
    for key in keys:
        loss = functools.partial(loss_of, key, batch=batch, axis_name=axis_name, **options)
        mean, gradient = jax.value_and_grad(loss)(w)
        if axis_name is not None:
            gradient = jax.lax.pmean(gradient, axis_name)
        out["/".join(key)] = mean, gradient, loss_of(key, w, batch, "none", axis_name, **options)
    return out


def check(outputs, w, batch):
    for joined, (mean, gradient, rows) in outputs.items():
        key = tuple(joined.split("/"))
        wanted_mean, wanted_rows, wanted_gradient = expected(key, w, batch)
        assert np.count_nonzero(wanted_rows) >= 4, key
        cases.assert_close(mean, wanted_mean, 1e-10, f"{key} mean")
        cases.assert_close(rows, wanted_rows, 1e-10, f"{key} rows")
        cases.assert_close(gradient, wanted_gradient, 1e-10, f"{key} gradient")
