"""The losses beyond weights of overlaps, against the loops of `numpy_relatives`."""

import functools
import inspect
import itertools
import re

import cases
import jax
import numpy as np
import numpy_reference as reference
import numpy_relatives as relatives
import pytest

import sdjax

OPTIONS = [("prototype", None), ("msc", 0.3), ("mscwrg", 0.5), ("mscrg", 1.0)]
IMPLEMENTATIONS = ("dense", "tiled")


def arguments_of(name, alpha):
    return {} if alpha is None else {"alpha": alpha}


def batch(name, rng, label_kind, mask_kind, queue=False, ids=False):
    """Arrays (z, prototypes[, candidates]), label matrices, and options."""
    sizes = (cases.BATCH, cases.QUEUE) if queue else (cases.BATCH,)
    arrays = [cases.embeddings(rng, rows) for rows in (sizes[0], cases.CLASSES, *sizes[1:])]
    matrices = [cases.label_matrix(label_kind, rng, rows) for rows in sizes]
    options = {"where": np.ones(cases.BATCH, bool)}
    masks = cases.masks(mask_kind, rng, sizes[-1])
    if name == "prototype":
        masks.pop("candidate_where", None)
    else:
        options["candidate_where"] = np.ones(sizes[-1], bool)
    options |= masks
    if ids:
        options["ids"] = rng.integers(-2, 3, cases.BATCH).astype(np.int32)
        if queue:
            options["candidate_ids"] = rng.integers(-2, 3, cases.QUEUE).astype(np.int32)
    return arrays, matrices, options


def expected(name, arrays, matrices, cotangent, **options):
    """Value, rows and gradients of the mean plus those of Σ cotangent · rows."""
    z, prototypes, *rest = arrays
    sets = [reference.label_sets(matrix) for matrix in matrices]
    given = [z, sets[0], prototypes] + ([rest[0], sets[1]] if rest else [])
    result, gradients = relatives.loss(name, *given, **options)
    both = [a + b for a, b in zip(gradients(), gradients(cotangent), strict=True)]
    return result.mean, result.rows[: len(z)], both


def program(name, alpha, implementation, **static):
    """(mean, rows, gradients) as a compiled function of arrays, labels and options."""

    @cases.jit
    def run(arrays, labels, cotangent, options):
        def call(*arrays):
            z, prototypes, *rest = arrays
            given = [z, labels[0], prototypes] + ([rest[0], labels[1]] if rest else [])
            keywords = options | static | arguments_of(name, alpha)

            def loss(reduction):
                return sdjax.LOSSES[name](
                    *given, reduction=reduction, implementation=implementation, **keywords
                )

            mean, rows = loss("mean"), loss("none")
            return mean + (rows * cotangent).sum(), (mean, rows)

        places = tuple(range(len(arrays)))
        gradients, (mean, rows) = jax.grad(call, places, has_aux=True)(*arrays)
        return mean, rows, gradients

    return run


def compare(found, wanted, what=""):
    (mean, rows, gradients), (exact_mean, exact_rows, exact) = found, wanted
    cases.assert_close(mean, exact_mean, 1e-10, f"{what} mean")
    cases.assert_close(rows, exact_rows, 1e-10, f"{what} rows")
    for place, (a, b) in enumerate(zip(gradients, exact, strict=True)):
        cases.assert_close(a, b, 1e-10, f"{what} gradient {place}")


MODES = [
    (*of, queue) for of in OPTIONS for queue in (False, True) if of[0] != "prototype" or not queue
]


@pytest.mark.parametrize("name,alpha,queue", MODES)
def test_every_label_set_and_mask(name, alpha, queue):
    """Compiled once, then all kinds of label sets and masks as values; each core by turns."""
    number = MODES.index((name, alpha, queue))
    rng = np.random.default_rng(number)
    push = ("skip", "push")[number // 2 % 2]
    run = program(name, alpha, IMPLEMENTATIONS[(number + queue) % 2], without_positives=push)
    kinds = list(itertools.product(cases.LABEL_KINDS, cases.EDGE_MASK_KINDS))
    for label_kind, mask_kind in kinds[number % 2 :: 2]:
        arrays, matrices, options = batch(name, rng, label_kind, mask_kind, queue)
        options["temperature"] = float(rng.choice([0.07, 0.5, 2.0]))
        cotangent = rng.normal(size=cases.BATCH)
        extra = {"without_positives": push, **arguments_of(name, alpha)}
        wanted = expected(name, arrays, matrices, cotangent, **options, **extra)
        found = run(arrays, matrices, cotangent, options)
        compare(found, wanted, f"{label_kind} {mask_kind}")


@pytest.mark.parametrize("queue", [False, True], ids=["self", "queue"])
@pytest.mark.parametrize("name", relatives.NAMES[1:])
def test_formats_and_ids(name, queue):
    """Index lists with copies of anchors, a known temperature, without normalisation."""
    rng = np.random.default_rng(queue)
    arrays, matrices, options = batch(name, rng, "some_empty", "both", queue, ids=True)
    static = {"temperature": 0.5, "normalize": False} | ({"beta": 3.0} if name == "msc" else {})
    alpha = {"msc": 2.0, "mscwrg": 0.0, "mscrg": -1.0}[name]
    lists = [cases.to_format(matrix, "indices", rng) for matrix in matrices]
    cotangent = rng.normal(size=cases.BATCH)
    wanted = expected(name, arrays, matrices, cotangent, **options, **static, alpha=alpha)
    run = program(name, alpha, IMPLEMENTATIONS[queue == (name == "msc")], **static)
    compare(run(arrays, lists, cotangent, options), wanted)


# --- each label by itself -------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [False, True], ids=["self", "queue"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_label_wise(implementation, queue):
    rng = np.random.default_rng(7)
    push = "push" if queue == (implementation == "dense") else "skip"

    @cases.jit
    def run(arrays, labels, cotangent, options):
        def call(reduction, *arrays):
            given = [a for pair in zip(arrays, labels, strict=True) for a in pair]
            return sdjax.label_wise_loss(
                *given,
                reduction=reduction,
                implementation=implementation,
                without_positives=push,
                **options,
            )

        return cases.value_and_gradients(call, tuple(arrays), cotangent)

    kinds = list(itertools.product(cases.LABEL_KINDS, cases.EDGE_MASK_KINDS))
    for label_kind, mask_kind in kinds[queue::2]:
        (z, _, *rest), matrices, options = batch("label_wise", rng, label_kind, mask_kind, queue)
        options["temperature"] = float(rng.choice([0.07, 0.5]))
        cotangent = rng.normal(size=cases.BATCH)
        sets = [reference.label_sets(matrix) for matrix in matrices]
        result = relatives.label_wise(
            z, sets[0], cases.CLASSES, *rest, *sets[1:], without_positives=push, **options
        )
        outputs = run([z, *rest], matrices, cotangent, options)
        cases.check(result, outputs, cotangent, np.float64, f"{label_kind} {mask_kind}")


def test_label_wise_without_copies():
    """Copies of an anchor are none of its candidates, in the dense core alone."""
    rng = np.random.default_rng(8)
    z, matrix = cases.embeddings(rng), cases.label_matrix("random", rng)
    ids = np.array([0, 0, 1, 1, -1, -1, 2, 3], np.int32)
    result = relatives.label_wise(
        z, reference.label_sets(matrix), cases.CLASSES, ids=ids, temperature=0.2
    )
    run = cases.jit(jax.value_and_grad(sdjax.label_wise_loss))
    value, gradient = run(z, matrix, ids=ids, temperature=0.2)
    cases.assert_close(value, result.mean, 1e-10, "value")
    cases.assert_close(gradient, result.gradient()[0], 1e-10, "gradient")
    with pytest.raises(ValueError, match="ids of label_wise needs implementation='dense'"):
        sdjax.label_wise_loss(z, matrix, ids=ids, implementation="tiled")


def test_herocon():
    rng = np.random.default_rng(9)

    @cases.jit
    def run(z, labels, lists, where, temperature):
        def of(labels):
            return jax.value_and_grad(sdjax.herocon_loss)(
                z, labels, where=where, temperature=temperature
            )

        return of(labels), of(lists)

    for kind, mask in itertools.product(cases.LABEL_KINDS, ("none", "where", "one_anchor")):
        z, matrix = cases.embeddings(rng), cases.label_matrix(kind, rng)
        where = cases.masks(mask, rng).get("where", np.ones(cases.BATCH, bool))
        temperature = float(rng.choice([1.0, 0.1]))
        sets = reference.label_sets(matrix)
        value, gradient = relatives.herocon(z, sets, cases.CLASSES, where, temperature=temperature)
        lists = cases.to_format(matrix, "indices", rng)
        for ours in run(z, matrix, lists, where, temperature):
            cases.assert_close(ours[0], value, 1e-10, f"{kind} {mask}")
            cases.assert_close(ours[1], gradient, 1e-10, f"{kind} {mask} gradient")


def test_rows_from_labels():
    rng = np.random.default_rng(10)
    embeddings = rng.normal(size=(cases.BATCH, cases.CLASSES, cases.DIM))
    matrix = cases.label_matrix("some_empty", rng)
    where = np.arange(cases.BATCH) != 3
    wanted = [
        (embeddings[i, label], label)
        for i in range(cases.BATCH)
        for label in range(cases.CLASSES)
        if where[i] and matrix[i, label]
    ]
    plain = np.array([z for z, _ in wanted])
    exact = reference.loss("supcon", plain, reference.class_sets([label for _, label in wanted]))
    of_rows = exact.gradient()[0]

    def loss(embeddings, labels):
        rows = sdjax.rows_from_labels(embeddings, labels, where)
        return sdjax.supcon_loss(rows.z, rows.class_ids, where=rows.where), rows

    run = cases.jit(jax.value_and_grad(loss, has_aux=True))
    for labels in (matrix, cases.to_format(matrix, "indices", rng)):
        (value, rows), gradient = run(embeddings, labels)
        np.testing.assert_array_equal(rows.z[rows.where], plain)
        assert list(rows.class_ids[rows.where]) == [label for _, label in wanted]
        assert set(np.asarray(rows.class_ids[~rows.where])) == {-1}
        cases.assert_close(value, exact.mean, 1e-10, "value")
        cases.assert_close(gradient[matrix & where[:, None]], of_rows, 1e-10, "gradient")


# --- options of the family ------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("empty_sets", ["disjoint", "identical"])
def test_jaccard_options(empty_sets, weighted):
    rng = np.random.default_rng(11)
    z, matrix = cases.embeddings(rng), cases.label_matrix("some_empty", rng)

    def weight(s, t):
        overlap = reference.soft_jaccard(s, t)
        if not s | t:
            overlap = float(empty_sets == "identical")
        return (overlap if weighted else 1.0) if overlap >= 0.3 else 0.0

    result = reference.contrastive(z, reference.label_sets(matrix), weight=weight)
    loss = functools.partial(
        sdjax.jaccard_loss,
        threshold=0.3,
        weighted=weighted,
        empty_sets=empty_sets,
        implementation=IMPLEMENTATIONS[weighted],
    )
    value, gradient = cases.jit(jax.value_and_grad(loss))(z, matrix)
    cases.assert_close(value, result.mean, 1e-10, "value")
    cases.assert_close(gradient, result.gradient()[0], 1e-10, "gradient")


@pytest.mark.parametrize("name,form", [("any", "in"), ("mulsupcon", "out")])
def test_pushed_without_positives(name, form):
    """L = log Σ e^s for the anchors that lack a positive; MulSupCon counts each as one label."""
    rng = np.random.default_rng(12)
    z, matrix = cases.embeddings(rng), cases.label_matrix("lonely_label", rng)
    matrix[-1] = False
    where = np.arange(cases.BATCH) != 2
    sets = reference.label_sets(matrix)
    skipped = reference.loss(name, z, sets, where=where, form=form, temperature=0.2)
    pushed = relatives.general(
        z,
        where & (skipped.positives == 0),
        None,
        lambda i: [j for j in range(cases.BATCH) if j != i and where[j]],
        lambda i, pool: {},
        temperature=0.2,
        without_positives="push",
    )
    assert 1 < pushed.share.astype(bool).sum() < 7
    size = np.maximum(matrix.sum(axis=1), 1) if name == "mulsupcon" else np.ones(cases.BATCH)
    share = np.where(where, size, 0) / size[where].sum()
    rows = skipped.rows + pushed.rows
    gradient = skipped.gradient(share)[0] + pushed.gradient(share)[0]

    def loss(z, reduction="mean", implementation="dense"):
        return sdjax.LOSSES[name](
            z,
            matrix,
            where=where,
            form=form,
            temperature=0.2,
            without_positives="push",
            reduction=reduction,
            implementation=implementation,
        )

    @cases.jit
    def run(z):
        each = [jax.value_and_grad(loss)(z, "mean", core) for core in IMPLEMENTATIONS]
        return loss(z, "none"), each

    found_rows, each = run(z)
    cases.assert_close(found_rows, rows, 1e-10, "rows")
    for value, found in each:
        cases.assert_close(value, np.dot(share, rows), 1e-10, "mean")
        cases.assert_close(found, gradient, 1e-10, "gradient")


# --- what users write -----------------------------------------------------------------------------

Z, LABELS, PROTOTYPES = np.ones((4, 3)), np.eye(4, 5, dtype=bool), np.ones((5, 3))
GIVEN = (Z, LABELS, PROTOTYPES)
BAD = {
    "few": (sdjax.msc_loss, (Z, LABELS, PROTOTYPES[:4]), {}, r"\(5, 3\), got shape \(4, 3\)"),
    "features": (sdjax.prototype_loss, (Z, LABELS, PROTOTYPES[:, :2]), {}, "prototypes must be"),
    "int": (sdjax.msc_loss, (Z, LABELS, np.ones((5, 3), int)), {}, "prototypes must be floating"),
    "beta": (sdjax.msc_loss, GIVEN, {"beta": 0.0}, "beta must be a finite number, above 0, got 0"),
    "alpha": (sdjax.msc_loss, GIVEN, {"alpha": -1}, "alpha must be a finite number, at least 0"),
    "alpha of mscrg": (sdjax.mscrg_loss, GIVEN, {"alpha": np.nan}, "alpha must be a finite number"),
    "queue": (sdjax.mscwrg_loss, (*GIVEN, Z), {"alpha": 1.0}, "candidate_labels go together"),
    "push": (sdjax.sd_loss, (Z, LABELS), {"without_positives": "pull"}, "without_positives 'pull'"),
    "reduction": (sdjax.label_wise_loss, (Z, LABELS), {"reduction": "max"}, "reduction 'max'"),
    "empty sets": (sdjax.jaccard_loss, (Z, LABELS), {"empty_sets": "same"}, "empty_sets 'same'"),
    "weighted": (sdjax.jaccard_loss, (Z, LABELS), {"weighted": 1}, "weighted must be True or"),
    "herocon": (sdjax.herocon_loss, (Z, LABELS[:3]), {}, "same number of rows"),
    "rows": (sdjax.rows_from_labels, (np.ones((4, 4, 3)), LABELS), {}, "embeddings must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    function, arguments, options, text = BAD[case]
    with pytest.raises((TypeError, ValueError), match=text):
        function(*arguments, **options)


@pytest.mark.parametrize("name", [*relatives.NAMES, *relatives.LABEL_WISE])
def test_help_names_every_option(name):
    for module in (sdjax, sdjax.sharded):
        function = getattr(module, f"{name}_loss")
        options = inspect.signature(function).parameters
        assert ("mesh" in options) == (module is sdjax.sharded)
        text = inspect.getdoc(function)
        assert [x for x in options if not re.search(rf"\b{x}\b", text)] == []
        assert all(word in text for word in ("Args:", "Returns:", "Raises:", "References:"))


def test_one_row_and_labels_that_nobody_has():
    """Finite values and gradients under jit, whatever is missing."""
    nothing = np.zeros((1, 3), bool)

    @cases.jit
    def run(z, prototypes, labels):
        out = {}
        for name in (*relatives.NAMES, *relatives.LABEL_WISE):
            given = (prototypes,) if name in relatives.NAMES else ()
            more = {"alpha": -1.0} if name in ("mscwrg", "mscrg") else {}
            loss = functools.partial(sdjax.LOSSES[name], **more)
            out[name] = jax.value_and_grad(lambda z, f=loss, g=given: f(z, labels, *g))(z)
        return out

    rng = np.random.default_rng(0)
    for labels in (nothing, ~nothing, np.eye(1, 3, dtype=bool)):
        found = run(rng.normal(size=(1, 4)), rng.normal(size=(3, 4)), labels)
        for name, (value, gradient) in found.items():
            assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
            if not labels.any():
                assert value == 0 and not np.any(gradient), name
