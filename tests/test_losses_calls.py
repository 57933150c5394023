"""Ways to call the losses: what each option means, however and wherever it is given."""

import contextlib
import functools
import inspect
import logging
import pydoc
import re
import warnings

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

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")

ROWS, QUEUE, FEATURES = 16, 12, 3
FUNCTIONS = {"contrastive": "contrastive_loss"} | {
    name: f"{name}_loss" for name in cases.LOSS_NAMES
}


def mesh(shape=(2,), kind=AxisType.Auto):
    axes = tuple("ab"[: len(shape)])
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, axes, (kind,) * len(shape), devices=devices)


def side(seed, rows):
    rng = np.random.default_rng(seed)
    return cases.embeddings(rng, rows), rng.random((rows, cases.CLASSES)) < 0.4


def value_of(arguments):
    """(z, matrix[, candidates, matrix]) as the reference takes them."""
    return [reference.label_sets(a) if a.dtype == bool else a for a in arguments]


# --- signatures ---------------------------------------------------------------------------------

OPTIONS = {
    "temperature": 0.07,
    "normalize": True,
    "where": None,
    "candidate_where": None,
    "positive_where": None,
    "ids": None,
    "candidate_ids": None,
    "form": "out",
    "without_positives": "skip",
    "reduction": "mean",
    "axis_name": None,
    "candidates_sharded": None,
    "implementation": "auto",
}
OF_ONE = {
    "contrastive": {"weight": "sd", "normalizer": "positives"},
    "mulsupcon": {"normalizer": "batch_labels"},
    "jaccard": {"threshold": 0.5, "weighted": True, "empty_sets": "disjoint"},
}


@pytest.mark.parametrize("module", [sdjax, sdjax.sharded], ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name, module):
    function = getattr(module, FUNCTIONS[name])
    assert function.__name__ == FUNCTIONS[name]
    parameters = inspect.signature(function).parameters.values()
    first = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    of_labels = "class_ids" if name == "supcon" else "labels"
    assert [(p.name, p.default) for p in first] == [
        ("z", inspect.Parameter.empty),
        (of_labels, inspect.Parameter.empty),
        ("candidates", None),
        (f"candidate_{of_labels}", None),
    ]
    expected = OPTIONS | OF_ONE.get(name, {})
    if module is sdjax.sharded:
        expected = expected | {"axis_name": inspect.Parameter.empty, "mesh": None}
    by_keyword = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert by_keyword == expected
    assert len(first) + len(by_keyword) == len(parameters), "no *args, no **kwargs"
    shown = pydoc.plain(pydoc.render_doc(function))
    missing = [option for option in expected if not re.search(rf"\b{option}\b", shown)]
    assert not missing, f"help() lacks {missing}"


@pytest.mark.parametrize("module", [sdjax, sdjax.sharded], ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_mistyped_option(name, module):
    z, matrix = side(0, 4)
    labels = cases.class_ids(matrix) if name == "supcon" else matrix
    also = {} if module is sdjax else {"axis_name": "a", "mesh": mesh()}
    with pytest.raises(TypeError) as info:
        getattr(module, FUNCTIONS[name])(z, labels, temprature=0.1, **also)
    wanted = f"{FUNCTIONS[name]}() got an unexpected keyword argument 'temprature'"
    assert wanted in str(info.value)


def test_weights_have_the_names_of_the_losses():
    assert set(sdjax.relations.WEIGHTS) == set(cases.LOSS_NAMES) - {"mulsupcon", "supcon"}
    z, matrix = side(0, ROWS)

    @cases.jit
    def run(z):
        by_name = {
            name: sdjax.contrastive_loss(z, matrix, weight=name, normalizer=normalizer)
            for name, (_, normalizer) in reference.LOSSES.items()
        }
        return by_name, sdjax.contrastive_loss(z, matrix, weight="mulsupcon")

    by_name, by_positives = run(z)
    for name, (weight, normalizer) in reference.LOSSES.items():
        result = reference.contrastive(
            z, reference.label_sets(matrix), weight=weight, normalizer=normalizer
        )
        cases.assert_close(by_name[name], result.mean, 1e-10, name)
    # By default the normalizer is that of most: mulsupcon's weight does not change it.
    result = reference.contrastive(z, reference.label_sets(matrix), weight="mulsupcon")
    cases.assert_close(by_positives, result.mean, 1e-10, "mulsupcon by positives")


# --- sdjax.sharded: every way of giving the arguments ---------------------------------------------

EXPLICIT = {
    "positional": lambda f, z, y, q, yq: f(z, y, q, yq),
    "labels too": lambda f, z, y, q, yq: f(z, labels=y, candidates=q, candidate_labels=yq),
    "candidates": lambda f, z, y, q, yq: f(z, y, candidates=q, candidate_labels=yq),
    "candidate_labels": lambda f, z, y, q, yq: f(z, y, q, candidate_labels=yq),
    "all": lambda f, z, y, q, yq: f(candidate_labels=yq, candidates=q, labels=y, z=z),
}
SELF = {
    "labels": lambda f, z, y: f(z, labels=y),
    "all": lambda f, z, y: f(labels=y, z=z),
}


@pytest.mark.parametrize("implementation", ["dense", "tiled", "ring"])
@pytest.mark.parametrize("mode", ["self", "explicit"])
def test_sharded_by_position_or_keyword(mode, implementation):
    given = side(0, ROWS) + (side(1, QUEUE) if mode == "explicit" else ())
    loss = functools.partial(
        sdjax.sharded.sd_loss, axis_name="a", mesh=mesh(), implementation=implementation
    )
    wanted = reference.loss("sd", *value_of(given))
    for name, way in (EXPLICIT if mode == "explicit" else SELF).items():
        cases.assert_close(way(loss, *given), wanted.mean, 1e-10, name)


def test_gradients_of_sharded_candidates_by_keyword():
    z, y, q, yq = given = side(0, ROWS) + side(1, QUEUE)
    loss = functools.partial(sdjax.sharded.sd_loss, axis_name="a", mesh=mesh())

    @cases.jit
    def run(z, q):
        return [
            jax.value_and_grad(lambda z, q, way=way: way(loss, z, y, q, yq), (0, 1))(z, q)
            for way in (EXPLICIT["candidates"], EXPLICIT["all"])
        ]

    result = reference.loss("sd", *value_of(given))
    for value, gradients in run(z, q):
        # Candidates that are there twice change the value alone.
        cases.assert_close(value, result.mean, 1e-10, "value")
        for name, ours, exact in zip(("z", "candidates"), gradients, result.gradient()):
            cases.assert_close(ours, exact, 1e-10, name)


def test_sharded_class_ids_by_keyword():
    (z, y), (q, yq) = side(0, ROWS), side(1, QUEUE)
    ids, queue_ids = cases.class_ids(y), cases.class_ids(yq)
    loss = functools.partial(sdjax.sharded.supcon_loss, axis_name="a", mesh=mesh())
    sets = reference.class_sets(ids), reference.class_sets(queue_ids)
    wanted = reference.loss("supcon", z, sets[0], q, sets[1]).mean
    assert wanted > 0
    for value in (
        loss(z, ids, q, queue_ids),
        loss(z, ids, candidates=q, candidate_class_ids=queue_ids),
        loss(candidate_class_ids=queue_ids, candidates=q, class_ids=ids, z=z),
    ):
        cases.assert_close(value, wanted, 1e-10, "supcon")


@pytest.mark.parametrize("implementation", ["dense", "tiled"])
def test_sharded_candidates_kept_whole(implementation):
    """A queue on every device; its rows need not be a multiple of the devices."""
    given = side(0, ROWS) + side(1, QUEUE - 1)
    value = sdjax.sharded.mulsupcon_loss(
        *given, axis_name="a", mesh=mesh(), candidates_sharded=False, implementation=implementation
    )
    wanted = reference.loss("mulsupcon", *value_of(given)).mean
    cases.assert_close(value, wanted, 1e-10, "whole")


# --- inside shard_map and pmap: candidates of each device, or of all -----------------------------


def encoded():
    """Features of anchors and queue, labels, masks; the embeddings are x @ w and queue @ v."""
    rng = np.random.default_rng(3)
    data = {
        "x": rng.normal(size=(ROWS, FEATURES)),
        "labels": rng.random((ROWS, cases.CLASSES)) < 0.4,
        "where": rng.random(ROWS) < 0.8,
    }
    queue = {
        "x": rng.normal(size=(QUEUE, FEATURES)),
        "labels": rng.random((QUEUE, cases.CLASSES)) < 0.4,
        "where": rng.random(QUEUE) < 0.8,
    }
    weights = tuple(rng.normal(size=(2, FEATURES, cases.DIM)))
    return weights, data, queue


def local_loss(name, weights, data, queue, **options):
    w, v = weights
    return sdjax.LOSSES[name](
        data["x"] @ w,
        data["labels"],
        queue["x"] @ v,
        queue["labels"],
        where=data["where"],
        candidate_where=queue["where"],
        **options,
    )


def steps(names, weights, data, queue, axis_name, **options):
    """{name: (value, gradients)} by the documented rule."""
    out = {}
    for name in names:
        value, gradients = jax.value_and_grad(functools.partial(local_loss, name))(
            weights, data, queue, axis_name=axis_name, **options
        )
        out[name] = value, jax.lax.pmean(gradients, axis_name)
    return out


def check_steps(outputs, weights, data, queue):
    for name, (value, gradients) in outputs.items():
        result = reference.loss(
            name,
            data["x"] @ weights[0],
            reference.label_sets(data["labels"]),
            queue["x"] @ weights[1],
            reference.label_sets(queue["labels"]),
            where=data["where"],
            candidate_where=queue["where"],
        )
        cases.assert_close(value, result.mean, 1e-10, f"{name} value")
        for given, ours, exact in zip((data, queue), gradients, result.gradient()):
            assert np.any(exact)
            cases.assert_close(ours, given["x"].T @ exact, 1e-10, f"{name} gradient")


# mulsupcon also counts the candidates that carry each label.
MAPPED = {
    "vma-dense": (("sd", "mulsupcon"), "dense", True, P(), {}),
    "vma-tiled": (("mulsupcon",), "tiled", True, P(), {}),
    "vma-ring": (("mulsupcon",), "ring", True, P(), {}),
    "vma-dense-told": (("mulsupcon",), "dense", True, P(), {"candidates_sharded": False}),
    "dense-whole": (("sd", "mulsupcon"), "dense", False, P(), {"candidates_sharded": False}),
    "tiled-whole": (("mulsupcon",), "tiled", False, P(), {"candidates_sharded": False}),
    "ring-whole": (("mulsupcon",), "ring", False, P(), {"candidates_sharded": False}),
    "dense-split": (("sd", "mulsupcon"), "dense", False, P("a"), {"candidates_sharded": True}),
    "ring-split": (("mulsupcon",), "ring", False, P("a"), {"candidates_sharded": True}),
}


@pytest.mark.parametrize("case", MAPPED)
def test_candidates_under_shard_map(case):
    names, implementation, check_vma, queue_spec, options = MAPPED[case]
    problem = encoded()
    run = jax.shard_map(
        lambda *args: steps(names, *args, "a", implementation=implementation, **options),
        mesh=mesh(),
        in_specs=(P(), P("a"), queue_spec),
        out_specs=P(),
        check_vma=check_vma,
    )
    check_steps(cases.jit(run)(*problem), *problem)


@pytest.mark.parametrize(
    ("implementation", "axis"), [("dense", "a"), ("dense", "b"), ("tiled", "a"), ("ring", "b")]
)
def test_candidates_along_one_of_two_axes(implementation, axis):
    problem = encoded()
    run = jax.shard_map(
        lambda *args: steps(("mulsupcon",), *args, ("a", "b"), implementation=implementation),
        mesh=mesh((2, 2)),
        in_specs=(P(), P(("a", "b")), P(axis)),
        out_specs=P(),
    )
    check_steps(cases.jit(run)(*problem), *problem)


def test_mask_without_varying_axes_goes_with_candidates_that_have_them():
    """The same on each device, it is a mask of that device's rows all the same."""
    weights, data, queue = encoded()
    of_one = np.arange(QUEUE // 2) % 3 > 0
    run = jax.shard_map(
        lambda weights, data, queue: steps(
            ("sd",), weights, data, queue | {"where": jnp.asarray(of_one)}, "a"
        ),
        mesh=mesh(),
        in_specs=(P(), P("a"), P("a")),
        out_specs=P(),
    )
    problem = weights, data, queue | {"where": np.tile(of_one, 2)}
    check_steps(cases.jit(run)(*problem), *problem)


@pytest.mark.parametrize("sharded", [True, False])
def test_candidates_under_pmap(sharded):
    weights, data, queue = problem = encoded()

    def split(tree):
        return jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), tree)

    run = jax.pmap(
        lambda *args: steps(("mulsupcon",), *args, "a", candidates_sharded=sharded),
        axis_name="a",
        in_axes=(None, 0, 0 if sharded else None),
        devices=jax.devices()[:2],
    )
    outputs = jax.device_get(run(weights, split(data), split(queue) if sharded else queue))
    for device in range(2):
        of_one = jax.tree.map(lambda x, device=device: x[device], outputs)
        check_steps(of_one, *problem)


def test_candidates_must_be_told_where_axes_are_not_tracked():
    weights, data, queue = encoded()
    run = jax.shard_map(
        lambda *args: local_loss("sd", *args, axis_name="a"),
        mesh=mesh(),
        in_specs=(P(), P("a"), P("a")),
        out_specs=P(),
        check_vma=False,
    )
    with pytest.raises(ValueError, match="candidates_sharded"):
        jax.eval_shape(run, weights, data, queue)
    run = jax.pmap(
        lambda *args: local_loss("sd", *args, axis_name="a"),
        axis_name="a",
        in_axes=(None, 0, None),
        devices=jax.devices()[:2],
    )
    with pytest.raises(ValueError, match="candidates_sharded"):
        jax.eval_shape(
            run, weights, jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), data), queue
        )


# --- outside jit: compiled once -------------------------------------------------------------------


@contextlib.contextmanager
def compilations():
    """A list that grows by the name of each program that is compiled."""
    found = []

    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Compiling "):
                found.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("jax")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        with jax.log_compiles():
            yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def large(seed=0, rows=600):
    z, matrix = side(seed, rows)
    return jnp.asarray(z, jnp.float32), jnp.asarray(matrix)


def own(z, labels, loss=sdjax.contrastive_loss, **options):
    """A new function object at each call."""
    return loss(z, labels, weight=lambda o: o.shared / (1 + o.candidate_size), **options)


# Sizes of their own, so that no other test has compiled the program before.
AT_EVERY_CALL = {
    "lambda": (600, own),
    "lambda-gradient": (601, lambda z, labels: jax.grad(lambda z: own(z, labels))(z)),
    "sharded": (64, lambda z, labels: sdjax.sharded.sd_loss(z, labels, axis_name="a", mesh=mesh())),
    "sharded-by-keyword": (
        66,
        lambda z, labels: sdjax.sharded.sd_loss(z, labels=labels, axis_name="a", mesh=mesh()),
    ),
    "sharded-lambda": (
        68,
        lambda z, labels: own(
            z, labels, sdjax.sharded.contrastive_loss, axis_name="a", mesh=mesh()
        ),
    ),
}


@pytest.mark.parametrize("case", AT_EVERY_CALL)
def test_not_compiled_at_every_call(case):
    rows, call = AT_EVERY_CALL[case]
    (z, labels), (other, other_labels) = large(0, rows), large(1, rows)
    with compilations() as first:
        once = call(z, labels)
    assert first, "the handler hears of compilations"
    with compilations() as later:
        again = call(other, other_labels)
        same = call(z, labels)
    assert not later, later
    np.testing.assert_array_equal(same, once)
    assert np.any(np.asarray(again) != np.asarray(once))


# --- outside jit: arrays that are spread over a mesh ----------------------------------------------


def test_arrays_on_an_auto_mesh_are_warned_of_where_tiled(monkeypatch):
    monkeypatch.setattr(evaluate, "AUTO_DENSE_PAIRS", 32 * 32)
    place = jax.NamedSharding(mesh(), P("a"))
    z, matrix = large(0, 64)
    spread = jax.device_put((z, matrix), place)
    with pytest.warns(UserWarning, match=r"sdjax\.sharded"):
        value = sdjax.sd_loss(*spread)
    exact = reference.loss("sd", np.asarray(z, np.float64), reference.label_sets(matrix)).mean
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Traced; few pairs.
        jax.jit(sdjax.sd_loss).lower(*spread)
        # Its arrays are known, which is what counts; its operations need not run.
        few = jax.device_put((z[:32], matrix[:32]), place)
        jax.eval_shape(lambda: sdjax.sd_loss(*few))


# --- reduction="sum" ------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["dense", "tiled"])
def test_sum(implementation):
    # batch_labels weighs the anchors of the mean, but not those of the sum.
    names = ("sd", "mulsupcon", "soft_jaccard") if implementation == "dense" else ("mulsupcon",)
    z, matrix = side(5, ROWS)
    matrix[::5] = False
    where = np.arange(ROWS) % 7 != 3

    @cases.jit
    def run(z, matrix, where):
        return {
            name: jax.value_and_grad(
                lambda z, name=name: sdjax.LOSSES[name](
                    z, matrix, where=where, reduction="sum", implementation=implementation
                )
            )(z)
            for name in names
        }

    for name, (value, gradient) in run(z, matrix, where).items():
        result = reference.loss(name, z, reference.label_sets(matrix), where=where)
        assert value.shape == ()
        cases.assert_close(value, result.rows.sum(), 1e-10, name)
        cases.assert_close(gradient, result.gradient(np.ones(ROWS))[0], 1e-10, name)


@pytest.mark.parametrize("implementation", ["dense", "ring"])
def test_sum_over_the_global_batch(implementation):
    weights, data, _ = encoded()
    w, names = weights[0], ("mulsupcon",) if implementation == "ring" else ("sd", "mulsupcon")

    def local(w, data):
        out = {}
        for name in names:
            value, gradient = jax.value_and_grad(
                lambda w, name=name: sdjax.LOSSES[name](
                    data["x"] @ w,
                    data["labels"],
                    where=data["where"],
                    reduction="sum",
                    axis_name="a",
                    implementation=implementation,
                )
            )(w)
            out[name] = value, jax.lax.pmean(gradient, "a")
        return out

    run = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("a")), out_specs=P())
    for name, (value, gradient) in cases.jit(run)(w, data).items():
        z, sets = data["x"] @ w, reference.label_sets(data["labels"])
        result = reference.loss(name, z, sets, where=data["where"])
        exact = data["x"].T @ result.gradient(np.ones(ROWS))[0]
        cases.assert_close(value, result.rows.sum(), 1e-10, name)
        cases.assert_close(gradient, exact, 1e-10, name)
        whole = sdjax.sharded.LOSSES[name](
            z, data["labels"], where=data["where"], reduction="sum", axis_name="a", mesh=mesh(),
            implementation="dense",
        )  # fmt: skip
        cases.assert_close(whole, result.rows.sum(), 1e-10, f"sharded {name}")


# --- positive_where and ids -----------------------------------------------------------------------


def chosen(kind, rng, rows, columns):
    """What restricts the pairs: every kind as values of one program."""
    explicit = columns is not None
    columns = columns or rows
    ids, candidate_ids = np.full(rows, -1), np.full(columns, -1)
    positive_where = np.ones((rows, columns), bool)
    if kind in ("positive_where", "both"):
        positive_where = rng.random((rows, columns)) < 0.6
        positive_where[1] = False
    if kind in ("ids", "both"):
        # Copies on either side, ids that are nowhere else, and -1: equal, but no ids.
        ids = rng.integers(-1, rows // 3, rows)
        candidate_ids = rng.integers(-1, rows // 3, columns)
    if kind == "no_positives":
        positive_where[:] = False
    if kind == "all_copies":
        ids, candidate_ids = np.zeros(rows, int), np.zeros(columns, int)
    out = {"positive_where": positive_where, "ids": ids.astype(np.int32)}
    return out | ({"candidate_ids": candidate_ids.astype(np.int32)} if explicit else {})


KINDS = ("none", "positive_where", "ids", "both", "no_positives", "all_copies")


@pytest.mark.parametrize("mode", ["self", "explicit"])
def test_positive_where_and_ids(mode):
    rng = np.random.default_rng(6)
    sizes = (ROWS,) if mode == "self" else (ROWS, QUEUE)
    forms = dict(zip(("sd", "mulsupcon", "soft_jaccard", "supcon"), ("out", "in", "in", "out")))
    if mode == "explicit":
        forms |= {"sd": "in", "mulsupcon": "out"}

    @cases.jit
    def run(arrays, labels, class_ids, cotangent, options):
        out = {}
        for name, form in forms.items():

            def call(reduction, *arrays, name=name, form=form):
                targets = class_ids if name == "supcon" else labels
                given = [a for pair in zip(arrays, targets) for a in pair]
                return sdjax.LOSSES[name](*given, form=form, reduction=reduction, **options)

            reduction = cases.REDUCTIONS[form == "in"]
            out[name] = cases.value_and_gradients(call, arrays, cotangent, [reduction])
        return out

    for kind in KINDS:
        arrays = tuple(cases.embeddings(rng, rows) for rows in sizes)
        matrices = [rng.random((rows, cases.CLASSES)) < 0.4 for rows in sizes]
        class_ids = [rng.integers(0, 3, rows).astype(np.int32) for rows in sizes]
        options = chosen(kind, rng, ROWS, QUEUE if mode == "explicit" else None)
        options["where"] = np.arange(ROWS) % 6 != 5
        cotangent = rng.normal(size=ROWS)
        outputs = run(arrays, matrices, class_ids, cotangent, options)
        for name, form in forms.items():
            if name == "supcon":
                sets = map(reference.class_sets, class_ids)
            else:
                sets = map(reference.label_sets, matrices)
            given = [a for pair in zip(arrays, sets) for a in pair]
            result = reference.loss(name, *given, form=form, **options)
            assert result.positives.any() == (kind not in ("no_positives", "all_copies"))
            cases.check(result, outputs[name], cotangent, np.float64, f"{kind} {name}")


@pytest.mark.parametrize(("mode", "name"), [("self", "sd"), ("explicit", "supcon")])
def test_ids_across_tiles(mode, name, monkeypatch):
    monkeypatch.setattr(tiling, "SMALLEST_TILE", 32)
    monkeypatch.setattr(tiling, "LARGEST_TILE", 32)
    rng = np.random.default_rng(7)
    sizes = (70,) if mode == "self" else (70, 41)
    form = "in" if mode == "self" else "out"

    @cases.jit
    def run(arrays, targets, cotangent, options):
        def call(reduction, *arrays):
            given = [a for pair in zip(arrays, targets) for a in pair]
            return sdjax.LOSSES[name](
                *given, form=form, reduction=reduction, implementation="tiled", **options
            )

        reduction = cases.REDUCTIONS[form == "in"]
        return cases.value_and_gradients(call, arrays, cotangent, [reduction])

    for kind in ("ids", "none", "all_copies"):
        arrays = tuple(cases.embeddings(rng, rows) for rows in sizes)
        matrices = [rng.random((rows, cases.CLASSES)) < 0.4 for rows in sizes]
        if name == "supcon":
            targets = [rng.integers(0, 4, rows).astype(np.int32) for rows in sizes]
            sets = list(map(reference.class_sets, targets))
        else:
            targets, sets = matrices, list(map(reference.label_sets, matrices))
        options = chosen(kind, rng, 70, 41 if mode == "explicit" else None)
        del options["positive_where"]
        options["where"] = rng.random(70) < 0.9
        cotangent = rng.normal(size=70)
        outputs = run(arrays, targets, cotangent, options)
        given = [a for pair in zip(arrays, sets) for a in pair]
        result = reference.loss(name, *given, form=form, **options)
        cases.check(result, outputs, cotangent, np.float64, kind)


@pytest.mark.parametrize(
    ("mode", "implementation"),
    [("self", "dense"), ("self", "ring"), ("explicit", "tiled"), ("explicit", "ring")],
)
def test_ids_across_devices(mode, implementation):
    """Copies lie on other devices than their anchors."""
    weights, data, queue = encoded()
    rng = np.random.default_rng(8)
    data["copies"], queue["copies"] = rng.integers(-1, 5, ROWS), rng.integers(-1, 5, QUEUE)

    def local(weights, data, queue):
        def loss(weights):
            options = {"where": data["where"], "ids": data["copies"]}
            given = [data["x"] @ weights[0], data["labels"]]
            if mode == "explicit":
                given += [queue["x"] @ weights[1], queue["labels"]]
                options |= {"candidate_ids": queue["copies"], "candidate_where": queue["where"]}
            return sdjax.sd_loss(*given, axis_name="a", implementation=implementation, **options)

        value, gradients = jax.value_and_grad(loss)(weights)
        return value, jax.lax.pmean(gradients, "a")

    run = jax.shard_map(local, mesh=mesh(), in_specs=(P(), P("a"), P("a")), out_specs=P())
    value, gradients = cases.jit(run)(weights, data, queue)
    given = [data["x"] @ weights[0], reference.label_sets(data["labels"])]
    options = {"where": data["where"], "ids": data["copies"]}
    if mode == "explicit":
        given += [queue["x"] @ weights[1], reference.label_sets(queue["labels"])]
        options |= {"candidate_ids": queue["copies"], "candidate_where": queue["where"]}
    result = reference.loss("sd", *given, **options)
    cases.assert_close(value, result.mean, 1e-10, "value")
    for side_of, ours, exact in zip((data, queue), gradients, result.gradient()):
        exact = np.zeros_like(ours) if exact is None else side_of["x"].T @ exact
        cases.assert_close(ours, exact, 1e-10, "gradient")


@pytest.mark.parametrize("mode", ["self", "explicit"])
def test_sharded_positive_where_and_ids(mode):
    rng = np.random.default_rng(9)
    given = side(0, ROWS) + (side(1, QUEUE) if mode == "explicit" else ())
    options = chosen("both", rng, ROWS, QUEUE if mode == "explicit" else None)
    value = sdjax.sharded.mulsupcon_loss(*given, axis_name="a", mesh=mesh(), **options)
    result = reference.loss("mulsupcon", *value_of(given), **options)
    cases.assert_close(value, result.mean, 1e-10, mode)


def test_what_only_the_dense_core_can_do():
    z, matrix = side(0, ROWS)
    ids, positive_where = np.arange(ROWS) // 2, np.ones((ROWS, ROWS), bool)
    for implementation in ("tiled", "ring"):
        with pytest.raises(ValueError, match="implementation='dense'"):
            sdjax.label_wise_loss(z, matrix, ids=ids, implementation=implementation)
        with pytest.raises(ValueError, match="implementation='dense'"):
            sdjax.sd_loss(z, matrix, positive_where=positive_where, implementation=implementation)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ids": np.zeros(ROWS, int)}, "candidate_ids"),
        ({"candidate_ids": np.zeros(QUEUE, int)}, "ids"),
        ({"ids": np.zeros(ROWS - 1, int), "candidate_ids": np.zeros(QUEUE, int)}, "ids"),
        ({"ids": np.zeros(ROWS, int), "candidate_ids": np.zeros(ROWS, int)}, "candidate_ids"),
        ({"positive_where": np.ones((ROWS, ROWS), bool)}, "positive_where"),
        ({"positive_where": np.ones(ROWS, bool)}, "positive_where"),
    ],
)
def test_options_of_the_wrong_shape(options, words):
    (z, y), (q, yq) = side(0, ROWS), side(1, QUEUE)
    with pytest.raises(ValueError, match=words):
        sdjax.sd_loss(z, y, q, yq, **options)


def test_options_of_the_wrong_dtype():
    z, matrix = side(0, ROWS)
    with pytest.raises(TypeError, match=r"positive_where.*float"):
        sdjax.sd_loss(z, matrix, positive_where=np.ones((ROWS, ROWS)))
    with pytest.raises(TypeError, match=r"ids.*float"):
        sdjax.sd_loss(z, matrix, ids=np.zeros(ROWS))
