"""The tiled core, over several tiles, against the loops of `numpy_reference`."""

import functools
import itertools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest

import sdjax
from sdjax._src import label_overlap, tiled, tiling
from sdjax._src.evaluate import AUTO_DENSE_PAIRS, IMPLEMENTATIONS

ROWS, QUEUE, TILE = 70, 41, 32
CLASSES = 150
LABELS = ("bits", "lists", "either")
SCENES = list(itertools.product(("self", "masked", "explicit"), LABELS))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Three tiles, of which the last overlaps the one before, and masks that cross them."""
    monkeypatch.setattr(tiling, "SMALLEST_TILE", TILE)
    monkeypatch.setattr(tiling, "LARGEST_TILE", TILE)


def matrix_of(labels: str, rng, rows: int, crowded: bool) -> np.ndarray:
    """Label sets, a few empty; `crowded` has a row with more labels than a list may hold."""
    if labels == "bits":
        out = rng.random((rows, cases.CLASSES)) < 0.4
    else:
        out = np.zeros((rows, CLASSES), bool)
        for row in out:
            row[rng.choice(12, rng.integers(0, 4), replace=False) * 12] = True
        if crowded:
            out[3, : label_overlap.LONGEST_LIST + 5] = True
    out[:: max(rows // 3, 2)] = False
    return out


def given(name: str, labels: str, matrix: np.ndarray, rng):
    """(what the loss takes, what the reference takes)."""
    if name == "supcon":
        ids = np.where(matrix.any(axis=1), matrix.argmax(axis=1), -1).astype(np.int32)
        return jnp.asarray(ids), reference.class_sets(ids)
    length = 2 * int(matrix.sum(axis=1).max()) + 1
    kind = "indices" if labels == "lists" else "int"
    length = 80 if labels == "lists" else length
    return cases.to_format(matrix, kind, rng, length), reference.label_sets(matrix)


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_against_the_reference(name, form):
    number = cases.LOSS_NAMES.index(name) + 4 * cases.FORMS.index(form)
    mode, labels = SCENES[number % len(SCENES)]
    rng = np.random.default_rng(number)
    sizes = (ROWS, QUEUE) if mode == "explicit" else (ROWS,)
    # One temperature that is known when the loss is traced; or two that are not, which takes a
    # program for bounded similarities and one for others.
    batches = ((0.5, False), (0.01, True))
    traced = number % 4 == 0
    batches = batches if traced else (batches[number % 2],)

    @functools.partial(cases.jit, static_argnums=() if traced else 4)
    def run(arrays, targets, cotangent, masks, temperature):
        def call(reduction, *arrays):
            ours = [a for pair in zip(arrays, targets, strict=True) for a in pair]
            return sdjax.LOSSES[name](
                *ours,
                reduction=reduction,
                form=form,
                temperature=temperature,
                normalize=number % 3 > 0,
                implementation="tiled",
                **masks,
            )

        reduction = cases.REDUCTIONS[number // 2 % 2]
        return cases.value_and_gradients(call, arrays, cotangent, [reduction])

    for temperature, crowded in batches:
        arrays = tuple(cases.embeddings(rng, rows) for rows in sizes)
        matrices = [matrix_of(labels, rng, rows, crowded) for rows in sizes]
        mine, theirs = zip(*(given(name, labels, m, rng) for m in matrices), strict=True)
        masks = {}
        if mode != "self":
            masks["where"] = rng.random(ROWS) < 0.8
            masks["candidate_where"] = rng.random(sizes[-1]) < 0.7
        cotangent = rng.normal(size=ROWS)
        outputs = run(arrays, mine, cotangent, masks, temperature)
        plain = [a for pair in zip(arrays, theirs, strict=True) for a in pair]
        result = reference.loss(
            name, *plain, form=form, temperature=temperature, normalize=number % 3 > 0, **masks
        )
        assert result.positives.any()
        what = f"{mode} {labels} τ={temperature}"
        cases.check(result, outputs, cotangent, np.float64, what)


def embedded(rng, dtype, rows=ROWS):
    return rng.normal(size=(rows, 16)).astype(np.float32).astype(dtype)


@functools.cache
def program(implementation, form="out"):
    """Loss, and its gradients to the embeddings and the temperature."""

    def loss(z, matrix, temperature):
        return sdjax.sd_loss(
            z, matrix, temperature=temperature, implementation=implementation, form=form
        )

    return cases.jit(jax.value_and_grad(loss, (0, 2)))


def gradients(z, matrix, implementation, form="out", temperature=0.07):
    wide = np.float64 if z.dtype == np.float64 else np.float32
    temperature = wide(temperature)
    value, (of_z, of_temperature) = program(implementation, form)(z, matrix, temperature)
    return value, of_z, of_temperature


def relative(x, y) -> float:
    x, y = (np.asarray(a).astype(np.float64) for a in (x, y))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize(
    "dtype,tolerance", [("float32", 1e-5), ("bfloat16", 3e-3), ("float16", 1e-3)]
)
def test_narrow_embeddings_against_float64(dtype, tolerance, form):
    """The products are of narrow numbers, exact ones in the forward pass."""
    rng = np.random.default_rng(0)
    matrix = matrix_of("bits", rng, ROWS, False)
    z = embedded(rng, dtype) * 3
    for temperature in (0.02, 0.5):
        ours = gradients(z, matrix, "tiled", form=form, temperature=temperature)
        exact = gradients(z.astype(np.float64), matrix, "dense", form=form, temperature=temperature)
        assert ours[0].dtype == jnp.float32
        assert ours[1].dtype == z.dtype
        assert relative(ours[0], exact[0]) < 1e-5
        assert relative(ours[1], exact[1]) < tolerance
        assert relative(ours[2], exact[2]) < max(tolerance, 1e-4)


BAD_ROWS = ("no_positives", "empty", "same_labels", "one_row", "equal_rows", "clusters", "zeros")


@functools.cache
def masked_program(normalize, implementation, form):
    """Loss of some of the rows, and its gradient to the embeddings."""

    def loss(z, matrix, temperature, where):
        return sdjax.sd_loss(
            z,
            matrix,
            temperature=temperature,
            where=where,
            form=form,
            implementation=implementation,
            normalize=normalize,
        )

    return cases.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    ("dtype", "form"),
    [("float32", "out"), ("bfloat16", "out"), ("bfloat16", "in"), ("float16", "in")],
)
def test_nothing_overflows(dtype, form):
    """From temperature 0.001 to 1, over rows that break other losses."""
    rng = np.random.default_rng(0)
    # What a gradient loses to products of narrow numbers, of the size of its largest parts.
    tolerance = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 5e-4}[dtype]

    def check(programs, z, matrix, temperature, what):
        ours, dense = programs
        where = np.arange(ROWS) < (1 if what.startswith("one_row") else ROWS)
        value, gradient = ours(z, matrix, np.float32(temperature), where)
        wide = z.astype(np.float64)
        exact_value, exact = dense(wide, matrix, float(np.float32(temperature)), where)
        longest = np.linalg.norm(wide, axis=1).max() if programs is plain else 1.0
        largest = longest**2 / temperature  # similarity
        np.testing.assert_allclose(value, exact_value, rtol=1e-5, atol=3e-7 * largest, err_msg=what)
        error = np.abs(np.asarray(gradient).astype(np.float64) - exact).max()
        scale = max(np.abs(exact).max(), longest / temperature / ROWS)
        assert error <= (tolerance + 3e-7 * largest) * scale, what

    normalized, plain = (
        tuple(masked_program(normalize, each, form) for each in ("tiled", "dense"))
        for normalize in (True, False)
    )
    for kind in BAD_ROWS:
        z, matrix = embedded(rng, dtype), matrix_of("bits", rng, ROWS, False)
        if kind == "no_positives":
            matrix = np.eye(ROWS, dtype=bool)[:, : cases.CLASSES]
        elif kind == "empty":
            matrix = np.zeros_like(matrix)
        elif kind == "same_labels":
            matrix = np.ones_like(matrix)
        elif kind == "equal_rows":
            z = np.broadcast_to(z[:1], z.shape)
        elif kind == "clusters":
            z = (z[np.arange(ROWS) % 3].astype("f4") + 1e-4 * embedded(rng, "f4")).astype(dtype)
        elif kind == "zeros":
            z[::3] = 0
        for temperature in (0.001, 0.01, 0.05, 1.0):
            check(normalized, z, matrix, temperature, f"{kind} τ={temperature}")
    for scale in (1e-3, 1e2) if (dtype, form) != ("bfloat16", "out") else ():
        z = embedded(rng, dtype) * np.asarray(scale, dtype)
        check(plain, z, matrix_of("bits", rng, ROWS, False), 0.05, f"{scale=}")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("crowded", [False, True])
def test_overlap_of_a_tile(labels, crowded):
    rng = np.random.default_rng(0)
    for rows, columns in ((33, 40),) if crowded else ((33, 40), (1, 1)):
        matrices = [matrix_of(labels, rng, n, crowded and n > 3)[:n] for n in (rows, columns)]
        sides = [given("sd", labels, m, rng)[0] for m in matrices]

        @cases.jit
        def both(sides, values):
            one, other = label_overlap.prepare(*sides)
            columns = other.as_columns()
            return one.shared(columns, jnp.float32), one.weighted(columns, values)

        values = rng.random(matrices[0].shape[1])
        shared, weighted = both(sides, values)
        np.testing.assert_array_equal(shared, matrices[0].astype(int) @ matrices[1].T.astype(int))
        np.testing.assert_allclose(weighted, (matrices[0] * values) @ matrices[1].T, atol=1e-12)


@pytest.mark.parametrize("num_classes", [1, 33, 500])
def test_bits_counted_and_multiplied(num_classes):
    """TPUs multiply what others count."""
    rng = np.random.default_rng(0)
    rows, columns = rng.random((37, num_classes)) < 0.3, rng.random((64, num_classes)) < 0.7

    @cases.jit
    def run(*sides):
        one, other = map(label_overlap._as_bits, sides)
        both = label_overlap._counted, label_overlap._multiplied
        return [shared(one.words, other.as_columns()) for shared in both]

    for found in run(rows, columns):
        np.testing.assert_array_equal(found, rows.astype(int) @ columns.T.astype(int))


@pytest.mark.parametrize(("platform", "multiplied"), [("tpu", True), ("cpu", False)])
def test_each_platform_gets_its_own_overlap(platform, multiplied):
    sides = jax.eval_shape(label_overlap.prepare, np.zeros((64, 500)), np.zeros((32, 500)))
    shared = jax.jit(lambda one, other: one.shared(other.as_columns(), jnp.float32))
    text = shared.trace(*sides).lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) == multiplied
    assert ("popcnt" in text) != multiplied


def test_lists_of_few_rows_among_very_many_labels():
    """The table of the columns has a row for each label they have, not for each there is."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 10**6, (40, 5)).astype(np.int32)
    indices[1] = indices[0]

    @cases.jit
    def run(labels):
        (lists,) = label_overlap.prepare(labels)
        columns = lists.as_columns()
        return columns.rows, lists.shared(columns, jnp.float32)

    rows, shared = run(sdjax.LabelIndices(indices, 10**6))
    assert rows.shape == (40 * 5 + 1, 2)
    wanted = [[len(set(a) & set(b)) for b in indices] for a in indices]
    np.testing.assert_array_equal(shared, wanted)


def test_labels_of_different_formats_meet():
    rng = np.random.default_rng(0)
    z, matrix = embedded(rng, "float32"), matrix_of("lists", rng, ROWS, True)
    lists = sdjax.LabelIndices.from_multi_hot(matrix)
    one = sdjax.LabelIndices(lists.indices[:, :1], CLASSES)

    @cases.jit
    def run(z, matrix, lists, one):
        arguments = [(a, b) for a in (matrix, lists) for b in (matrix, lists)]
        losses = [sdjax.sd_loss(z, a, z, b, implementation="tiled") for a, b in arguments]
        pairs = [
            [sdjax.any_loss(z, a, z, b, implementation=name) for name in ("tiled", "dense")]
            for a, b in ((one, lists), (lists, one), (one, one))
        ]
        return losses, pairs

    losses, pairs = run(z, matrix, lists, one)
    np.testing.assert_allclose(losses, [losses[0]] * 4, rtol=1e-6)
    for tiled_loss, dense_loss in pairs:
        np.testing.assert_allclose(tiled_loss, dense_loss, rtol=1e-6)


def test_own_weight_that_closes_over_a_traced_number():
    rng = np.random.default_rng(0)
    z, matrix = embedded(rng, "float64"), matrix_of("bits", rng, ROWS, False)

    def loss(z, scale, implementation):
        def weight(o):
            return o.shared * scale / (1 + o.candidate_size)

        return sdjax.contrastive_loss(z, matrix, weight=weight, implementation=implementation)

    @cases.jit
    def run(z, scale):
        both = (functools.partial(loss, implementation=name) for name in ("tiled", "dense"))
        return [jax.value_and_grad(of, (0, 1))(z, scale) for of in both]

    for scale in (0.5, 2.0):
        (tiled, of_tiled), (dense, of_dense) = run(z, scale)
        np.testing.assert_allclose(tiled, dense, rtol=1e-12)
        np.testing.assert_allclose(of_tiled[0], of_dense[0], atol=1e-12)
        assert of_tiled[1] == of_dense[1] == 0


def test_vmap_is_a_loop():
    rng = np.random.default_rng(0)
    z = np.stack([embedded(rng, "float64") for _ in range(3)])
    matrices = np.stack([matrix_of("bits", rng, ROWS, False) for _ in range(3)])

    def gradient(z, matrix):
        return jax.grad(lambda z: sdjax.sd_loss(z, matrix, implementation="tiled"))(z)

    together, alone = cases.jit(jax.vmap(gradient))(z, matrices), cases.jit(gradient)
    for k in range(3):
        np.testing.assert_allclose(together[k], alone(z[k], matrices[k]), atol=1e-12)


def test_no_second_derivative():
    z, matrix = jnp.ones((8, 4)), jnp.ones((8, 2), bool)

    def loss(z):
        return sdjax.sd_loss(z, matrix, implementation="tiled")

    with pytest.raises(NotImplementedError, match="implementation='dense'"):
        jax.eval_shape(jax.grad(lambda z: jax.grad(loss)(z).sum()), z)


@pytest.mark.parametrize("labels", ["bits", "lists"])
def test_memory_does_not_grow_with_pairs(labels, monkeypatch):
    monkeypatch.undo()
    rows, features = 4096, 64
    matrix = jax.ShapeDtypeStruct((rows, 20), bool)
    if labels == "lists":
        matrix = sdjax.LabelIndices(jax.ShapeDtypeStruct((rows, 8), jnp.int32), 10_000)

    def compiled(implementation):
        def loss(z, labels):
            return sdjax.sd_loss(z, labels, implementation=implementation)

        z = jax.ShapeDtypeStruct((rows, features), jnp.float32)
        return jax.jit(jax.value_and_grad(loss)).lower(z, matrix).compile().memory_analysis()

    pairs = 4 * rows**2
    assert compiled("dense").temp_size_in_bytes > pairs
    assert compiled("tiled").temp_size_in_bytes < pairs / 4


def test_auto_is_dense_for_few_pairs_and_tiled_for_many():
    def jaxpr(rows, implementation):
        z = jax.ShapeDtypeStruct((rows, 4), jnp.float32)
        labels = jax.ShapeDtypeStruct((rows, 3), bool)
        return str(
            jax.make_jaxpr(
                lambda z, labels: sdjax.sd_loss(z, labels, implementation=implementation)
            )(z, labels)
        )

    few = int(AUTO_DENSE_PAIRS**0.5)
    assert ("while" in jaxpr(few, "auto")) == ("while" in jaxpr(few, "dense")) is False
    assert "while" in jaxpr(few + 1, "auto")
    assert set(IMPLEMENTATIONS) == {"auto", "dense", "tiled", "ring"}


def test_no_rows():
    nothing = jnp.zeros((0, 4)), jnp.zeros((0, 3), bool)
    some = jnp.ones((3, 4)), jnp.ones((3, 3), bool)

    @cases.jit
    def run(nothing, some):
        return (
            sdjax.sd_loss(*nothing, implementation="tiled"),
            sdjax.sd_loss(*nothing, *some, implementation="ring"),
            sdjax.sd_loss(*some, *nothing, implementation="tiled"),
        )

    assert run(nothing, some) == (0, 0, 0)


def test_calls_outside_jit_compile_once():
    z, matrix = jnp.ones((8, 4)), jnp.ones((8, 2), bool)

    def weight(o):
        return o.shared

    def call():
        for loss in (sdjax.jaccard_loss, sdjax.mulsupcon_loss, sdjax.sd_loss):
            loss(z, matrix, implementation="tiled")
        sdjax.contrastive_loss(z, matrix, weight=weight, implementation="tiled")

    call()
    programs = tiled._compiled._cache_size()
    call()
    assert tiled._compiled._cache_size() == programs


def test_runs_agree_to_the_bit():
    rng = np.random.default_rng(0)
    z, matrix = embedded(rng, "float32"), matrix_of("bits", rng, ROWS, False)
    first, *others = (gradients(z, matrix, "tiled") for _ in range(3))
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)
