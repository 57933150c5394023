"""What the losses take: labels, class ids and embeddings of unusual values, dtypes and sizes."""

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
from sdjax._src import evaluate, tiling

ROWS, TILE = 40, 32
CORES = ("dense", "tiled")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "SMALLEST_TILE", TILE)
    monkeypatch.setattr(tiling, "LARGEST_TILE", TILE)


def draw(rows=ROWS, classes=cases.CLASSES, seed=0, share=0.4):
    rng = np.random.default_rng(seed)
    return cases.embeddings(rng, rows), rng.random((rows, classes)) < share


def two_devices(kind=AxisType.Auto):
    return jax.make_mesh((2,), ("a",), (kind,), devices=jax.devices()[:2])


def compare(outputs, result, what):
    cases.assert_close(outputs[0], result.mean, 1e-10, f"{what} value")
    cases.assert_close(outputs[1], result.gradient()[0], 1e-10, f"{what} gradient")


# --- multi-hot labels under jit: anything but 0 is present ---------------------------------------


def numbers(matrix, kind, rng):
    """`matrix` with its ones, and nothing else, turned into other numbers."""
    present = {
        "2": (np.int32, [2]),
        "255": (np.uint8, [255]),
        "-1": (np.int8, [-1]),
        "int-mixed": (np.int32, [-1, 1, 2, 256, 2**31 - 1]),
        "0.5": (np.float32, [0.5]),
        "float-mixed": (np.float64, [-1.0, 1e-30, 0.5, 1.0, 7.0]),
    }
    dtype, values = present[kind]
    return np.where(matrix, rng.choice(np.array(values, dtype), matrix.shape), 0).astype(dtype)


# Up to 96 labels are bits; of more, rows with few are lists as well.
@pytest.mark.parametrize(
    ("implementation", "classes"),
    [("dense", cases.CLASSES), ("tiled", cases.CLASSES), ("tiled", 150)],
)
def test_labels_that_are_not_0_or_1_under_jit(implementation, classes):
    share = 0.4 if classes == cases.CLASSES else 0.02
    z, matrix = draw(classes=classes, share=share)
    matrix[3], matrix[5] = True, False
    sets, rng = reference.label_sets(matrix), np.random.default_rng(1)
    # sd asks for sizes and overlaps, mulsupcon for counts besides, of each kind of number once.
    names = ("sd", "mulsupcon") if implementation == "dense" else ("mulsupcon",)
    results = {name: reference.loss(name, z, sets) for name in names}
    kinds = ("255", "-1", "int-mixed", "float-mixed")
    if implementation == "tiled":
        # A program each: what differs between the others is done before there are tiles.
        kinds = ("255", "float-mixed") if classes == cases.CLASSES else ("int-mixed",)

    @cases.jit
    def run(z, labels):
        return [sdjax.LOSSES[name](z, labels, implementation=implementation) for name in names]

    for kind in kinds:
        for name, value in zip(names, run(z, numbers(matrix, kind, rng))):
            cases.assert_close(value, results[name].mean, 1e-10, f"{name} {kind}")


def test_labels_that_are_not_0_or_1_among_explicit_candidates():
    (z, y), (q, yq) = draw(), draw(seed=1)
    rng = np.random.default_rng(2)
    result = reference.loss("mulsupcon", z, reference.label_sets(y), q, reference.label_sets(yq))
    for implementation in CORES:
        run = cases.jit(functools.partial(sdjax.mulsupcon_loss, implementation=implementation))
        value = run(z, numbers(y, "float-mixed", rng), q, numbers(yq, "255", rng))
        cases.assert_close(value, result.mean, 1e-10, implementation)


@pytest.mark.parametrize("kind", ["2", "255", "-1", "0.5"])
def test_labels_that_are_not_0_or_1_outside_jit(kind):
    z, matrix = draw()
    bad = numbers(matrix, kind, np.random.default_rng(0))
    for labels in (bad, jnp.asarray(bad)):
        with pytest.raises(ValueError, match=rf"labels must be 0 or 1; got {kind}"):
            sdjax.sd_loss(z, labels)


# --- class ids ------------------------------------------------------------------------------------

FAR = 2**32  # what 32 bits cannot tell from 0


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("ids", [[0, FAR], [0, 2**40 + 1], [FAR - 1 + 2**33, 1]], ids=str)
def test_class_ids_beyond_32_bits_outside_jit(ids, x64):
    z, given = draw(2)[0].astype(np.float32), np.array(ids, np.int64)
    with jax.enable_x64(x64):
        with pytest.raises(ValueError, match="class_ids"):
            sdjax.supcon_loss(z, given)
        with pytest.raises(ValueError, match="candidate_class_ids"):
            sdjax.supcon_loss(z, np.array([0, 1]), z, given)
        if x64:
            with pytest.raises(ValueError, match="class_ids"):
                sdjax.supcon_loss(z, jnp.asarray(given))


def ids_in_64_bits(rng, rows):
    """Some are equal in their lower 32 bits alone; -1 is no class, nor is any below."""
    return rng.choice(np.array([0, 1, FAR, FAR + 1, 2**40, -1, -FAR, FAR - 1]), rows)


@pytest.mark.parametrize("mode", ["self", "explicit"])
@pytest.mark.parametrize("implementation", CORES)
def test_class_ids_in_64_bits_under_jit(implementation, mode):
    rng = np.random.default_rng(3)
    z, q = cases.embeddings(rng, ROWS), cases.embeddings(rng, TILE)
    ids, queue_ids = ids_in_64_bits(rng, ROWS), ids_in_64_bits(rng, TILE)
    sets, queue_sets = reference.class_sets(ids), reference.class_sets(queue_ids)
    rest, plain = ((q, queue_ids), (q, queue_sets)) if mode == "explicit" else ((), ())

    @cases.jit
    def run(z, ids, *rest):
        return jax.value_and_grad(sdjax.supcon_loss)(z, ids, *rest, implementation=implementation)

    result = reference.loss("supcon", z, sets, *plain)
    narrow = reference.loss("supcon", z, reference.class_sets(ids.astype(np.int32)), *plain)
    assert abs(result.mean - narrow.mean) > 1e-3
    compare(run(z, ids, *rest), result, mode)


def test_class_ids_without_sign():
    """As signed numbers of 32 bits, the largest would be no class, or another."""
    z = cases.embeddings(np.random.default_rng(4), 4)
    wanted = reference.loss("supcon", z, reference.class_sets([0, 200, 200, 0])).mean
    with jax.enable_x64(False):
        for dtype in (np.uint8, np.uint16):
            value = cases.jit(sdjax.supcon_loss)(z, np.array([0, 200, 200, 0], dtype))
            np.testing.assert_allclose(value, wanted, rtol=1e-5)
        known = np.array([0, 2**31 - 1, 2**31 - 1, 0], np.uint32)
        value = cases.jit(lambda: sdjax.supcon_loss(z, known))()
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        for large in (2**31, 2**32 - 1):
            ids = np.array([0, large, large, 0], np.uint32)
            with pytest.raises(ValueError, match=r"class_ids.*32 bits"):
                sdjax.supcon_loss(z, ids)
            with pytest.raises(TypeError, match=r"class_ids.*uint32"):
                jax.eval_shape(sdjax.supcon_loss, z, ids)


# --- embeddings of eight bits ---------------------------------------------------------------------

FLOAT8 = {"float8_e4m3fn": jnp.float8_e4m3fn, "float8_e5m2": jnp.float8_e5m2}


def check_narrow(outputs, result, cotangent, dtype):
    """Rows to float32's precision; the gradient rounded once, which may be to a subnormal.

    Before, its products may be of numbers of 8 bits of precision.
    """
    rows, gradients = outputs
    assert rows.dtype == jnp.float32
    cases.assert_close(rows, result.rows, 1e-5, "rows")
    info = jnp.finfo(dtype)
    for gradient, exact in zip(gradients, result.gradient(cotangent)):
        assert gradient.dtype == dtype
        assert np.abs(exact).max() < float(info.max)
        error = np.abs(np.asarray(gradient).astype(np.float64) - exact)
        step = np.maximum(float(info.eps) * np.abs(exact), float(info.smallest_subnormal))
        assert np.any(exact > 4 * float(info.smallest_subnormal))
        np.testing.assert_array_less(error, 0.51 * step + 4e-3 * np.sqrt(np.mean(exact**2)))


@pytest.mark.parametrize(
    ("dtype", "implementation", "mode", "normalize", "form"),
    [
        ("float8_e4m3fn", "dense", "self", True, "out"),
        ("float8_e5m2", "dense", "explicit", False, "in"),
        ("float8_e4m3fn", "tiled", "explicit", True, "in"),
        ("float8_e5m2", "tiled", "self", True, "out"),
        ("float8_e4m3fn", "ring", "explicit", True, "out"),
    ],
)
def test_embeddings_of_eight_bits(dtype, implementation, mode, normalize, form):
    rng = np.random.default_rng(5)
    sizes = (ROWS,) if mode == "self" else (ROWS, 36)
    arrays = [jnp.asarray(cases.embeddings(rng, rows)).astype(FLOAT8[dtype]) for rows in sizes]
    matrices = [rng.random((rows, cases.CLASSES)) < 0.4 for rows in sizes]
    cotangent = rng.normal(size=ROWS).astype(np.float32)
    options = dict(form=form, normalize=normalize, temperature=0.5, reduction="none")
    options["implementation"] = implementation
    loss = sdjax.sd_loss
    if implementation == "ring":
        mesh = two_devices()
        loss = functools.partial(sdjax.sharded.sd_loss, axis_name="a", mesh=mesh)

    @cases.jit
    def run(arrays, matrices, cotangent):
        def call(*arrays):
            return loss(*[a for pair in zip(arrays, matrices) for a in pair], **options)

        rows, pullback = jax.vjp(call, *arrays)
        return rows, pullback(cotangent)

    del options["implementation"]
    plain = [np.asarray(a).astype(np.float64) for a in arrays]
    given = [a for pair in zip(plain, map(reference.label_sets, matrices)) for a in pair]
    result = reference.loss(
        "sd", *given, form=form, normalize=normalize, temperature=options["temperature"]
    )
    options["implementation"] = implementation
    check_narrow(run(arrays, matrices, cotangent), result, cotangent, FLOAT8[dtype])


# --- large embeddings that are not normalized -----------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "implementation", "form", "reduction"),
    [
        ("float16", "dense", "out", "mean"),
        ("float16", "dense", "in", "sum"),
        ("float16", "tiled", "in", "mean"),
        ("float32", "dense", "in", "mean"),
        ("float32", "tiled", "in", "mean"),
    ],
)
def test_large_embeddings_as_they_are(dtype, implementation, form, reduction):
    """Similarities up to 10^10: e^(s - largest) must not see them rounded in two ways.

    Gradients that `dtype` can hold are right; others are as large as can be, or infinite.
    """
    rng = np.random.default_rng(6)
    z = (rng.uniform(-1, 1, (70, 16)) * 8000).astype(cases.DTYPES[dtype])
    matrix = rng.random((70, cases.CLASSES)) < 0.4

    @cases.jit
    def run(z):
        def loss(z):
            return sdjax.sd_loss(
                z,
                matrix,
                normalize=False,
                form=form,
                implementation=implementation,
                reduction=reduction,
            )

        return jax.value_and_grad(loss)(z)

    value, gradient = run(z)
    sets = reference.label_sets(matrix)
    result = reference.loss("sd", z.astype(np.float64), sets, normalize=False, form=form)
    exact_value, cotangent = result.mean, None
    if reduction == "sum":
        exact_value, cotangent = result.rows.sum(), np.ones(70)
    exact = result.gradient(cotangent)[0]
    np.testing.assert_allclose(value, exact_value, rtol=1e-5)
    gradient = np.asarray(gradient).astype(np.float64)
    largest = float(jnp.finfo(dtype).max)
    fits = np.abs(exact) < largest
    assert fits.all() == (reduction == "mean")
    _, rounding = cases.tolerances(z.dtype)
    scale = np.sqrt(np.mean(exact[fits] ** 2))
    np.testing.assert_allclose(gradient[fits], exact[fits], rtol=1e-5 + rounding, atol=1e-5 * scale)
    np.testing.assert_array_equal(np.sign(gradient[~fits]), np.sign(exact[~fits]))
    assert np.all(np.abs(gradient[~fits]) >= largest)


# --- LabelIndices of anything that holds numbers --------------------------------------------------

SETS = [[0, 2], [1], [], [2, 1, 0], [0, 2], [1, 2]]


@pytest.mark.parametrize(
    "indices",
    [
        SETS,
        tuple(map(tuple, SETS)),
        [row + [-1] * (3 - len(row)) for row in SETS],
        np.array([row + [-1] * (3 - len(row)) for row in SETS]),
        [np.array(row, int) for row in SETS],
    ],
    ids=["ragged", "tuples", "lists", "array", "arrays"],
)
@pytest.mark.parametrize("count", [3, np.int64(3), np.int32(3)], ids=lambda c: type(c).__name__)
def test_label_indices_of_lists(indices, count):
    z = cases.embeddings(np.random.default_rng(7), len(SETS))
    wanted = reference.loss("mulsupcon", z, list(map(frozenset, SETS))).mean
    labels = sdjax.LabelIndices(indices, count)
    assert wanted > 0
    cases.assert_close(cases.jit(sdjax.mulsupcon_loss)(z, labels), wanted, 1e-10, "argument of jit")
    closed = cases.jit(lambda z: sdjax.mulsupcon_loss(z, labels))
    cases.assert_close(closed(z), wanted, 1e-10, "closed over by jit")
    again = sdjax.LabelIndices(indices, 3)
    assert jax.tree.structure(labels) == jax.tree.structure(again)


def test_label_indices_of_lists_of_nothing():
    z = cases.embeddings(np.random.default_rng(7), 4)
    for rows in ([[], [], [], []], [[-1], [], [], [-1, -1]]):
        assert cases.jit(sdjax.sd_loss)(z, sdjax.LabelIndices(rows, 3)) == 0


@pytest.mark.parametrize(
    ("indices", "error", "words"),
    [
        ([[0, 3], [1]], ValueError, "3"),
        ([[0, -2], [1]], ValueError, "-2"),
        ([[0.5], [1]], TypeError, "integer"),
        ([0, 1], ValueError, r"\[B, L\]"),
    ],
)
def test_label_indices_of_bad_lists(indices, error, words):
    z = cases.embeddings(np.random.default_rng(7), 2)
    with pytest.raises(error, match=words):
        sdjax.sd_loss(z, sdjax.LabelIndices(indices, 3))


@pytest.mark.parametrize("count", [np.int64(0), np.float64(3.0), "3"])
def test_num_classes_of_the_wrong_kind(count):
    z = cases.embeddings(np.random.default_rng(7), 2)
    with pytest.raises((TypeError, ValueError), match="num_classes"):
        sdjax.sd_loss(z, sdjax.LabelIndices(np.zeros((2, 1), int), count))


# --- no labels at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["dense", "tiled", "ring"])
def test_labels_without_a_column(implementation):
    names = ("sd", "mulsupcon", "soft_jaccard") if implementation == "dense" else ("mulsupcon",)
    z, labels = cases.embeddings(np.random.default_rng(8), ROWS), np.zeros((ROWS, 0), np.int32)
    of = sdjax.LOSSES
    if implementation == "ring":
        of = {
            name: functools.partial(loss, axis_name="a", mesh=two_devices())
            for name, loss in sdjax.sharded.LOSSES.items()
        }

    @cases.jit
    def run(z, labels):
        out = {}
        for name in names:
            for form, rest in zip(cases.FORMS, ((), (z, labels))):
                loss = functools.partial(of[name], form=form, implementation=implementation)
                out[name, form] = jax.value_and_grad(loss)(z, labels, *rest)
        return out

    for key, (value, gradient) in run(z, labels).items():
        assert value == 0, key
        assert not np.any(gradient), key


# --- forward mode ---------------------------------------------------------------------------------


def test_forward_mode_at_tiled_sizes(monkeypatch):
    z, matrix = draw()
    wrong = {
        "jvp": lambda f: jax.jvp(f, (z,), (z,)),
        "jvp-of-jit": lambda f: jax.jvp(jax.jit(f), (z,), (z,)),
        "jit-of-jvp": lambda f: jax.jit(lambda z: jax.jvp(f, (z,), (z,)))(z),
        "jacfwd": lambda f: jax.jacfwd(f)(z),
        "hessian": lambda f: jax.hessian(f)(z),
    }

    def loss(z, implementation="tiled"):
        return sdjax.sd_loss(z, matrix, implementation=implementation)

    for name, call in wrong.items():
        with pytest.raises(NotImplementedError, match="implementation='dense'"):
            # One of them as users do it, the others without running what comes before.
            call(loss) if name == "jvp" else jax.jit(lambda: call(loss)).lower()
    with pytest.raises(NotImplementedError, match="implementation='dense'"):
        jax.jvp(
            lambda t: sdjax.sd_loss(z, matrix, temperature=t, implementation="tiled"),
            (0.1,),
            (1.0,),
        )
    monkeypatch.setattr(evaluate, "AUTO_DENSE_PAIRS", ROWS * ROWS - 1)
    with pytest.raises(NotImplementedError, match="implementation='dense'"):
        jax.jvp(functools.partial(loss, implementation="auto"), (z,), (z,))


def test_forward_mode_of_something_else():
    """The loss is no function of what is differentiated."""
    z, matrix = draw()

    def scaled(x, z):
        return x**2 * sdjax.sd_loss(z, matrix, implementation="tiled")

    expected = reference.loss("sd", z, reference.label_sets(matrix)).mean
    value, slope = jax.jvp(lambda x: jax.jit(scaled)(x, z), (3.0,), (1.0,))
    np.testing.assert_allclose(value, 9 * expected, rtol=1e-10)
    np.testing.assert_allclose(slope, 6 * expected, rtol=1e-10)


# --- arrays that are typed as sharded -------------------------------------------------------------

EXPLICIT = {
    "z": lambda place, z, y, w: sdjax.sd_loss(place(z), y),
    "labels": lambda place, z, y, w: sdjax.sd_loss(z, place(y)),
    "labels of lists": lambda place, z, y, w: sdjax.sd_loss(
        z, sdjax.LabelIndices(place(y.astype(np.int32)), 9)
    ),
    "where": lambda place, z, y, w: sdjax.sd_loss(z, y, where=place(w)),
    "candidate_where": lambda place, z, y, w: sdjax.sd_loss(z, y, candidate_where=place(w)),
    "candidates": lambda place, z, y, w: sdjax.sd_loss(z, y, place(z), y),
    "candidate_labels": lambda place, z, y, w: sdjax.sd_loss(z, y, z, place(y)),
    "class_ids": lambda place, z, y, w: sdjax.supcon_loss(z, place(w.astype(np.int32))),
}


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
@pytest.mark.parametrize("case", EXPLICIT)
def test_rows_typed_as_sharded(case):
    mesh = two_devices(AxisType.Explicit)
    z, matrix = draw(8)
    where = np.arange(8) % 3 > 0

    def place(x):
        return jax.device_put(x, jax.NamedSharding(mesh, P("a")))

    with jax.set_mesh(mesh):
        name = case.split()[0]
        with pytest.raises(ValueError, match=r"sdjax\.sharded") as info:
            EXPLICIT[case](place, z, matrix, where)
        assert str(info.value).startswith(f"{name} ") or f"{name}.indices" in str(info.value)
        # Typed as the same on each device, they are as any other array.
        same = jax.device_put((z, matrix, where), jax.NamedSharding(mesh, P()))
        jax.eval_shape(functools.partial(EXPLICIT[case], lambda x: x), *same)
