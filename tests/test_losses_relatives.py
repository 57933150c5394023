"""The losses beyond weights of overlaps, against the loops of `numpy_relatives`."""

import itertools

import cases
import jax
import numpy as np
import numpy_reference as reference
import numpy_relatives as relatives
import pytest

import sdjax

ALPHAS = {"prototype": (None,), "msc": (1.0, 0.3), "mscwrg": (1.0, 0.0, 0.5, -1.0), "mscrg": (1.0,)}
OPTIONS = [(name, alpha) for name, alphas in ALPHAS.items() for alpha in alphas]
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


@pytest.mark.parametrize("queue", [False, True], ids=["self", "queue"])
@pytest.mark.parametrize("name,alpha", OPTIONS)
def test_every_label_set_and_mask(name, alpha, queue):
    """Compiled once for each core, then all kinds of label sets and masks as values."""
    if name == "prototype" and queue:
        pytest.skip("it has no other candidates")
    rng = np.random.default_rng(len(name))
    number = OPTIONS.index((name, alpha)) + queue
    kinds = list(itertools.product(cases.LABEL_KINDS, cases.EDGE_MASK_KINDS))
    push = "push" if number % 2 else "skip"
    runs = [program(name, alpha, core, without_positives=push) for core in IMPLEMENTATIONS]
    for k, (label_kind, mask_kind) in enumerate(kinds[number % 3 :: 3]):
        arrays, matrices, options = batch(name, rng, label_kind, mask_kind, queue)
        options["temperature"] = float(rng.choice([0.07, 0.5, 2.0]))
        cotangent = rng.normal(size=cases.BATCH)
        extra = {"without_positives": push, **arguments_of(name, alpha)}
        wanted = expected(name, arrays, matrices, cotangent, **options, **extra)
        found = runs[k % 2](arrays, matrices, cotangent, options)
        compare(found, wanted, f"{label_kind} {mask_kind}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", relatives.NAMES[1:])
def test_formats_and_ids(name, implementation):
    """Index lists with copies of anchors, a known temperature, without normalisation."""
    for queue in (False, True):
        rng = np.random.default_rng(queue)
        arrays, matrices, options = batch(name, rng, "some_empty", "both", queue, ids=True)
        static = {"temperature": 0.5, "normalize": False} | ({"beta": 3.0} if name == "msc" else {})
        alpha = {"msc": 2.0, "mscwrg": 0.0, "mscrg": -1.0}[name]
        lists = [cases.to_format(matrix, "indices", rng) for matrix in matrices]
        cotangent = rng.normal(size=cases.BATCH)
        wanted = expected(name, arrays, matrices, cotangent, **options, **static, alpha=alpha)
        run = program(name, alpha, implementation, **static)
        compare(run(arrays, lists, cotangent, options), wanted, f"{queue=}")
