"""Weights of one's own: what they may close over, what they may be, and where they may run."""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sdjax
from sdjax._src import tiling

ROWS = 70
CORES = ("tiled", "dense")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "SMALLEST_TILE", 32)
    monkeypatch.setattr(tiling, "LARGEST_TILE", 32)


def draw(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return cases.embeddings(rng, rows), rng.random((rows, cases.CLASSES)) < 0.4


def expected(z, matrix, plain):
    return reference.contrastive(z, reference.label_sets(matrix), weight=plain)


def compare(outputs, z, matrix, plain, what=""):
    """Value and gradient against those of `plain`, the weight as a function of two sets."""
    result = expected(z, matrix, plain)
    assert result.positives.any()
    cases.assert_close(outputs[0], result.mean, 1e-10, f"{what} value")
    cases.assert_close(outputs[1], result.gradient()[0], 1e-10, f"{what} gradient")


def grad_of(matrix, weight, implementation="tiled", **options):
    def loss(z):
        return sdjax.contrastive_loss(
            z, matrix, weight=weight, implementation=implementation, **options
        )

    return jax.value_and_grad(loss)


# --- state that changes between calls -------------------------------------------------------------

POWER = 1.0


class Scaled:
    """A weight whose state is an attribute."""

    def __init__(self):
        self.power = 1.0

    def __call__(self, o):
        return o.shared**self.power / (1 + o.candidate_size)


def by_attribute():
    weight = Scaled()

    def change(power):
        weight.power = power

    return weight, change


def by_global():
    def change(power):
        globals()["POWER"] = power

    return (lambda o: o.shared**POWER / (1 + o.candidate_size)), change


def by_closure():
    power = 1.0

    def weight(o):
        return o.shared**power / (1 + o.candidate_size)

    def change(new):
        nonlocal power
        power = new

    return weight, change


def by_array(make):
    """An array, or one that is overwritten in place."""
    power = [make(1.0)]

    def weight(o):
        return o.shared ** power[0] / (1 + o.candidate_size)

    def change(new):
        if isinstance(power[0], np.ndarray):
            power[0][...] = new
        else:
            power[0] = make(new)

    return weight, change


STATES = {
    "attribute": by_attribute,
    "global": by_global,
    "closure": by_closure,
    "jax-array": functools.partial(by_array, jnp.asarray),
    "numpy-array-in-place": functools.partial(by_array, lambda x: np.array(x)),
}


def powered(power):
    return lambda s, t: len(s & t) ** power / (1 + len(t))


@pytest.mark.parametrize("state", STATES)
def test_state_that_changes_shows_in_the_next_call(state):
    z, matrix = draw()
    weight, change = STATES[state]()
    values = []
    for power in (1.0, 3.0, 1.0):
        change(power)
        value = sdjax.contrastive_loss(z, matrix, weight=weight, implementation="tiled")
        cases.assert_close(value, expected(z, matrix, powered(power)).mean, 1e-10, f"{power}")
        values.append(float(value))
    assert values[0] == values[2] != values[1]


def test_state_that_changes_shows_in_a_fresh_jit():
    """Gradients as well, whose program is traced later than that of the value."""
    z, matrix = draw()
    weight, change = by_attribute()
    for power in (1.0, 3.0):
        change(power)
        compare(cases.jit(grad_of(matrix, weight))(z), z, matrix, powered(power), f"{power}")


def test_an_array_that_is_overwritten_changes_no_equal_weight():
    """The gradient of a weight that equals an earlier one is traced after that one's array is."""
    z, matrix = draw()
    power = np.array(2.5)
    overwritten = lambda o: o.shared**power / (1 + o.candidate_size)  # noqa: E731
    before = sdjax.contrastive_loss(z, matrix, weight=overwritten, implementation="tiled")
    cases.assert_close(before, expected(z, matrix, powered(2.5)).mean, 1e-10, "before")
    power[...] = 1.0
    constant = lambda o: o.shared**2.5 / (1 + o.candidate_size)  # noqa: E731
    compare(cases.jit(grad_of(matrix, constant))(z), z, matrix, powered(2.5))


def test_state_that_changes_where_auto_takes_tiles(monkeypatch):
    """At the size from which `auto` is tiled, with the tiles of users."""
    monkeypatch.undo()
    z, matrix = draw(520)
    weight, values = Scaled(), []
    for power in (1.0, 3.0):
        weight.power = power
        auto = sdjax.contrastive_loss(z, matrix, weight=weight)
        fixed = sdjax.contrastive_loss(
            z, matrix, weight=lambda o, p=power: o.shared**p / (1 + o.candidate_size)
        )
        np.testing.assert_allclose(auto, fixed, rtol=1e-12)
        values.append(float(auto))
    assert abs(values[0] - values[1]) > 1e-3


# --- what is traced outside -----------------------------------------------------------------------


def closing_over(number, flag, table):
    """A weight with an int, a bool, and an array of float and one of int in its closure."""
    floats, ints = table

    def weight(o):
        place = o.candidate_size.astype(jnp.int32)
        bonus = jnp.where(flag, floats[place], ints[place].astype(o.shared.dtype))
        return o.shared * bonus / (number.astype(o.shared.dtype) + o.anchor_size)

    return weight


def closed_over(seed):
    rng = np.random.default_rng(seed)
    floats, ints = rng.uniform(0.5, 2, cases.CLASSES + 1), rng.integers(1, 4, cases.CLASSES + 1)
    return np.int32(seed + 1), np.bool_(seed % 2), (floats, ints.astype(np.int32))


def plain_of(number, flag, table):
    bonus = table[0] if flag else table[1]
    return lambda s, t: len(s & t) * float(bonus[len(t)]) / (int(number) + len(s))


@pytest.mark.parametrize("implementation", CORES)
def test_traced_ints_bools_and_arrays(implementation):
    z, matrix = draw()

    @cases.jit
    def run(z, captured):
        return grad_of(matrix, closing_over(*captured), implementation)(z)

    for seed in (0, 1):
        captured = closed_over(seed)
        compare(run(z, captured), z, matrix, plain_of(*captured), f"{seed}")


def test_gradients_outside_jit_of_what_it_closes_over():
    """What is differentiated has no influence on the weight, and neither has jit."""
    z, matrix = draw()
    number, flag, (floats, ints) = closed_over(1)

    def loss(z, floats):
        weight = closing_over(jnp.asarray(number), jnp.asarray(flag), (floats, jnp.asarray(ints)))
        return sdjax.contrastive_loss(z, matrix, weight=weight, implementation="tiled")

    value, (of_z, of_floats) = jax.value_and_grad(loss, (0, 1))(jnp.asarray(z), jnp.asarray(floats))
    plain = plain_of(number, flag, (floats, ints))
    compare((value, of_z), z, matrix, plain)
    assert not np.any(of_floats)


@pytest.mark.parametrize("implementation", CORES)
def test_traced_under_vmap(implementation):
    """Each of three has its own embeddings, number, flag and tables; the labels are one."""
    _, matrix = draw()
    zs = np.stack([draw(seed=seed)[0] for seed in range(3)])
    captured = [closed_over(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *captured)

    @cases.jit
    @jax.vmap
    def run(z, captured):
        return grad_of(matrix, closing_over(*captured), implementation)(z)

    values, gradients = run(zs, stacked)
    for k in range(3):
        compare((values[k], gradients[k]), zs[k], matrix, plain_of(*captured[k]), f"{k}")


def test_traced_inside_scan():
    """The tracers are of the loop's body, not of the function around it."""
    z, matrix = draw()
    captured = [closed_over(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *captured)

    @cases.jit
    def run(z, stacked):
        def step(carry, captured):
            return carry, grad_of(matrix, closing_over(*captured))(z)

        return jax.lax.scan(step, None, stacked)[1]

    values, gradients = run(z, stacked)
    for k in range(2):
        compare((values[k], gradients[k]), z, matrix, plain_of(*captured[k]), f"{k}")


@pytest.mark.parametrize("implementation", CORES)
def test_nothing_leaks(implementation):
    z, matrix = draw(40)
    number, flag, table = captured = closed_over(1)

    @cases.jit
    def run(z, number, table):
        return grad_of(matrix, closing_over(number, flag, table), implementation)(z)

    with jax.checking_leaks():
        outputs = run(z, number, table)
    compare(outputs, z, matrix, plain_of(*captured))


# --- what a weight may be -----------------------------------------------------------------------


@dataclasses.dataclass
class Table:
    """Callable, but not hashable, and equal to others of the same fields."""

    bonus: float

    def __call__(self, o):
        return o.shared * (1 + self.bonus * o.candidate_size)

    def of_sets(self, s, t):
        return len(s & t) * (1 + self.bonus * len(t))

    def method(self, o):
        return self(o)


@dataclasses.dataclass
class Arrays:
    """Holds an array, for which `==` is no truth value."""

    bonus: np.ndarray

    def __call__(self, o):
        return o.shared * (1 + self.bonus[1] * o.candidate_size)


def arrays(bonus):
    return Arrays(np.array([0.0, bonus]))


def of_keywords(o, *, bonus):
    return o.shared * (1 + bonus * o.candidate_size)


@pytest.mark.parametrize("implementation", CORES)
def test_callables(implementation):
    z, matrix = draw()
    with pytest.raises(TypeError, match="unhashable"):
        hash(Table(0.5))
    weights = [(bonus, make(bonus)) for bonus in (0.5, 3.0) for make in (Table, arrays)]
    weights.append((0.5, Table(0.5).method))
    weights.append((0.5, functools.partial(of_keywords, bonus=0.5)))
    for bonus, weight in weights:
        value = sdjax.contrastive_loss(z, matrix, weight=weight, implementation=implementation)
        plain = expected(z, matrix, Table(bonus).of_sets).mean
        cases.assert_close(value, plain, 1e-10, f"{weight}")


def test_gradients_of_a_callable_that_is_not_hashable():
    z, matrix = draw(40)
    weight = Table(0.5)
    compare(cases.jit(grad_of(matrix, weight))(z), z, matrix, weight.of_sets)


# --- the threshold of jaccard ---------------------------------------------------------------------


@pytest.mark.parametrize("implementation", CORES)
def test_threshold_of_any_kind(implementation):
    z, matrix = draw()
    sets = reference.label_sets(matrix)
    of_two = [reference.loss("jaccard", z, sets, threshold=t).mean for t in (0.25, 0.75)]
    assert of_two[0] != of_two[1]
    for threshold, wanted in zip((0.25, 0.75), of_two):
        for kind in (float, np.float32, jnp.asarray, np.asarray):
            given = kind(threshold)
            value = sdjax.jaccard_loss(z, matrix, threshold=given, implementation=implementation)
            cases.assert_close(value, wanted, 1e-10, f"{kind}")


@pytest.mark.parametrize("implementation", CORES)
def test_traced_threshold(implementation):
    z, matrix = draw()
    sets = reference.label_sets(matrix)

    @cases.jit
    def run(z, threshold):
        def loss(z, threshold):
            return sdjax.jaccard_loss(z, matrix, threshold=threshold, implementation=implementation)

        return jax.value_and_grad(loss, (0, 1))(z, threshold)

    # A half and a third are on the edge of what sets have: at least as much is a positive.
    for threshold in (0.25, 0.5, 1.0):
        value, (gradient, of_threshold) = run(z, threshold)
        result = reference.loss("jaccard", z, sets, threshold=threshold)
        cases.assert_close(value, result.mean, 1e-10, f"{threshold} value")
        cases.assert_close(gradient, result.gradient()[0], 1e-10, f"{threshold} gradient")
        assert of_threshold == 0


def test_thresholds_under_vmap():
    z, matrix = draw(40)
    sets, thresholds = reference.label_sets(matrix), np.array([0.25, 0.5, 1.0])
    values = cases.jit(jax.vmap(lambda t: sdjax.jaccard_loss(z, matrix, threshold=t)))(thresholds)
    wanted = [reference.loss("jaccard", z, sets, threshold=t).mean for t in thresholds]
    np.testing.assert_allclose(values, wanted, rtol=1e-10)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, float("nan")])
def test_bad_threshold_that_is_an_array(threshold):
    z, matrix = draw(8)
    for given in (jnp.asarray(threshold), np.asarray(threshold)):
        with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\]"):
            sdjax.jaccard_loss(z, matrix, threshold=given)


def test_threshold_that_is_no_scalar():
    z, matrix = draw(8)
    with pytest.raises(ValueError, match="threshold"):
        sdjax.jaccard_loss(z, matrix, threshold=jnp.asarray([0.5, 0.6]))


# --- across devices -------------------------------------------------------------------------------


def two_devices():
    return jax.make_mesh((2,), ("a",), (AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
@pytest.mark.parametrize(("implementation", "check_vma"), [("tiled", False), ("ring", True)])
def test_captured_arrays_under_shard_map(implementation, check_vma):
    """Some are constants, some arguments of shard_map, the same on each device."""
    rows = 80  # 40 a device, in two tiles
    z, matrix = draw(rows)
    number, flag, table = captured = closed_over(1)

    def local(z, matrix, number, floats):
        weight = closing_over(number, flag, (floats, jnp.asarray(table[1])))
        return sdjax.contrastive_loss(
            z, matrix, weight=weight, axis_name="a", implementation=implementation
        )

    run = jax.shard_map(
        local,
        mesh=two_devices(),
        in_specs=(P("a"), P("a"), P(), P()),
        out_specs=P(),
        check_vma=check_vma,
    )
    outputs = cases.jit(jax.value_and_grad(run))(z, matrix, number, table[0])
    compare(outputs, z, matrix, plain_of(*captured))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
@pytest.mark.parametrize("implementation", ["dense", "ring"])
def test_captured_arrays_of_sharded_losses(implementation):
    """Under jit, tracers of the function around shard_map; outside, whatever they hold now."""
    z, matrix = draw(80)
    mesh = two_devices()

    def loss(z, captured):
        return sdjax.sharded.contrastive_loss(
            z,
            matrix,
            weight=closing_over(*captured),
            axis_name="a",
            mesh=mesh,
            implementation=implementation,
        )

    run = cases.jit(jax.value_and_grad(loss))
    for seed in (0, 1):
        captured = closed_over(seed)
        compare(run(z, captured), z, matrix, plain_of(*captured), f"{seed}")
    if implementation == "ring":
        for seed in (0, 1):
            captured = jax.tree.map(jnp.asarray, closed_over(seed))
            wanted = expected(z, matrix, plain_of(*closed_over(seed))).mean
            cases.assert_close(loss(z, captured), wanted, 1e-10, f"outside jit {seed}")
