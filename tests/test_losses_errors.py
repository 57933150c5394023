"""Bad inputs: the error says which argument, what was expected and what came."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import sdjax
from sdjax.errors import InputError

Z = np.random.default_rng(0).normal(size=(6, 4))
LABELS = np.eye(6, 5, dtype=np.int32)
QUEUE = np.random.default_rng(1).normal(size=(3, 4))
QUEUE_LABELS = np.ones((3, 5), np.int32)
IDS = np.arange(6) % 2
MULTI_LABEL = [name for name in cases.LOSS_NAMES if name != "supcon"]


def replaced(array, value, dtype=None):
    out = array.astype(dtype or array.dtype)
    out[2, 1] = value
    return out


def indices(value=0, dtype=np.int32, shape=(6, 2), num_classes=5):
    return sdjax.LabelIndices(np.full(shape, value, dtype), num_classes)


def raises(exception, words, function, *args, **kwargs):
    """Checks that the message holds all `words`."""
    with pytest.raises(exception) as info:
        function(*args, **kwargs)
    # Of these types exactly: jax's own errors derive from them too.
    own = (InputError, exception) if exception is ValueError else (exception,)
    assert type(info.value) in own, repr(info.value)
    missing = [word for word in words if word not in str(info.value)]
    assert not missing, f"{missing} not in {info.value}"


# case -> (exception, words of the message, arguments, keyword arguments)
BAD = {
    "label-2": (ValueError, ["labels", "0 or 1", "2"], (Z, replaced(LABELS, 2)), {}),
    "label-minus-1": (ValueError, ["labels", "0 or 1", "-1"], (Z, replaced(LABELS, -1)), {}),
    "label-half": (ValueError, ["labels", "0 or 1", "0.5"], (Z, replaced(LABELS, 0.5, float)), {}),
    "label-nan": (
        ValueError,
        ["labels", "0 or 1", "nan"],
        (Z, replaced(LABELS, np.nan, float)),
        {},
    ),
    "label-complex": (TypeError, ["labels", "complex"], (Z, LABELS.astype(complex)), {}),
    "index-too-large": (ValueError, ["labels", "5", "-1"], (Z, indices(5)), {}),
    "index-too-small": (ValueError, ["labels", "-2", "-1"], (Z, indices(-2)), {}),
    "index-float": (TypeError, ["labels", "integer", "float"], (Z, indices(dtype=np.float64)), {}),
    "index-bool": (TypeError, ["labels", "integer", "bool"], (Z, indices(dtype=bool)), {}),
    "index-rank": (ValueError, ["labels", "[B, L]", "(6,)"], (Z, indices(shape=(6,))), {}),
    "candidate-label-3": (
        ValueError,
        ["candidate_labels", "0 or 1", "3"],
        (Z, LABELS, QUEUE, 3 * QUEUE_LABELS),
        {},
    ),
    "z-rank-1": (ValueError, ["z ", "(4,)"], (Z[0], LABELS), {}),
    "z-rank-3": (ValueError, ["z ", "(6, 4, 1)"], (Z[..., None], LABELS), {}),
    "labels-rank-1": (ValueError, ["labels", "[B, C]", "(6,)"], (Z, LABELS[:, 0]), {}),
    "labels-rank-3": (ValueError, ["labels", "(6, 5, 1)"], (Z, LABELS[..., None]), {}),
    "candidates-rank": (
        ValueError,
        ["candidates", "(4,)"],
        (Z, LABELS, QUEUE[0], QUEUE_LABELS),
        {},
    ),
    "candidate-labels-rank": (
        ValueError,
        ["candidate_labels", "(3,)"],
        (Z, LABELS, QUEUE, QUEUE_LABELS[:, 0]),
        {},
    ),
    "rows": (ValueError, ["z", "labels", "6", "4"], (Z, LABELS[:4]), {}),
    "rows-of-indices": (ValueError, ["z", "labels", "6", "4"], (Z, indices(shape=(4, 2))), {}),
    "candidate-rows": (
        ValueError,
        ["candidates", "candidate_labels", "3", "2"],
        (Z, LABELS, QUEUE, QUEUE_LABELS[:2]),
        {},
    ),
    "classes": (
        ValueError,
        ["labels", "candidate_labels", "5", "4"],
        (Z, LABELS, QUEUE, QUEUE_LABELS[:, :4]),
        {},
    ),
    "classes-of-indices": (
        ValueError,
        ["labels", "candidate_labels", "5", "7"],
        (Z, LABELS, QUEUE, indices(shape=(3, 2), num_classes=7)),
        {},
    ),
    "features": (
        ValueError,
        ["z", "candidates", "4", "3"],
        (Z, LABELS, QUEUE[:, :3], QUEUE_LABELS),
        {},
    ),
    "candidates-alone": (ValueError, ["candidates", "candidate_labels"], (Z, LABELS, QUEUE), {}),
    "candidate-labels-alone": (
        ValueError,
        ["candidates", "candidate_labels"],
        (Z, LABELS, None, QUEUE_LABELS),
        {},
    ),
    "z-int": (TypeError, ["z ", "float", "int64"], (Z.astype(int), LABELS), {}),
    "z-bool": (TypeError, ["z ", "float", "bool"], (Z > 0, LABELS), {}),
    "z-complex": (TypeError, ["z ", "float", "complex128"], (Z.astype(complex), LABELS), {}),
    "candidates-int": (
        TypeError,
        ["candidates", "float", "int64"],
        (Z, LABELS, QUEUE.astype(int), QUEUE_LABELS),
        {},
    ),
    "temperature-0": (
        ValueError,
        ["temperature", "positive", "0"],
        (Z, LABELS),
        {"temperature": 0},
    ),
    "temperature-negative": (
        ValueError,
        ["temperature", "positive", "-0.1"],
        (Z, LABELS),
        {"temperature": -0.1},
    ),
    "temperature-nan": (
        ValueError,
        ["temperature", "nan"],
        (Z, LABELS),
        {"temperature": float("nan")},
    ),
    "temperature-inf": (ValueError, ["temperature", "inf"], (Z, LABELS), {"temperature": np.inf}),
    "temperature-array": (
        ValueError,
        ["temperature", "-1"],
        (Z, LABELS),
        {"temperature": jnp.asarray(-1.0)},
    ),
    "temperature-vector": (
        ValueError,
        ["temperature", "scalar", "(6,)"],
        (Z, LABELS),
        {"temperature": np.ones(6)},
    ),
    "reduction": (
        ValueError,
        ["reduction", "'meen'", "'mean'"],
        (Z, LABELS),
        {"reduction": "meen"},
    ),
    "form": (ValueError, ["form", "'outt'", "'out'"], (Z, LABELS), {"form": "outt"}),
    "implementation": (
        ValueError,
        ["implementation", "'densee'", "'dense'"],
        (Z, LABELS),
        {"implementation": "densee"},
    ),
    "where-dtype": (
        TypeError,
        ["where", "bool", "int"],
        (Z, LABELS),
        {"where": np.ones(6, np.int32)},
    ),
    "where-length": (
        ValueError,
        ["where", "6", "(5,)"],
        (Z, LABELS),
        {"where": np.ones(5, bool)},
    ),
    "where-rank": (
        ValueError,
        ["where", "(6,)", "(6, 1)"],
        (Z, LABELS),
        {"where": np.ones((6, 1), bool)},
    ),
    "candidate-where-dtype": (
        TypeError,
        ["candidate_where", "bool", "float"],
        (Z, LABELS, QUEUE, QUEUE_LABELS),
        {"candidate_where": np.ones(3)},
    ),
    "candidate-where-length": (
        ValueError,
        ["candidate_where", "3", "(6,)"],
        (Z, LABELS, QUEUE, QUEUE_LABELS),
        {"candidate_where": np.ones(6, bool)},
    ),
    "candidate-where-length-in-self-contrast": (
        ValueError,
        ["candidate_where", "6", "(3,)"],
        (Z, LABELS),
        {"candidate_where": np.ones(3, bool)},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    exception, words, args, kwargs = BAD[case]
    raises(exception, words, sdjax.sd_loss, *args, **kwargs)


VALUES = ("label", "index-too", "candidate-label-3", "temperature")


@pytest.mark.parametrize("case", [case for case in BAD if not case.startswith(VALUES)])
def test_shapes_and_dtypes_are_checked_under_jit_too(case):
    exception, words, args, kwargs = BAD[case]
    static = {k: v for k, v in kwargs.items() if not isinstance(v, np.ndarray)}
    traced = {k: v for k, v in kwargs.items() if isinstance(v, np.ndarray)}
    function = jax.jit(lambda args, traced: sdjax.sd_loss(*args, **traced, **static))
    raises(exception, words, function, args, traced)


@pytest.mark.parametrize("name", MULTI_LABEL)
def test_every_loss_checks(name):
    for case in ("label-2", "rows", "z-int", "temperature-0", "form", "where-length"):
        exception, words, args, kwargs = BAD[case]
        raises(exception, words, sdjax.LOSSES[name], *args, **kwargs)


def test_values_are_not_looked_at_under_jit():
    for args, temperature in (
        ((Z, replaced(LABELS, 2)), 0.1),
        ((Z, indices(7)), 0.1),
        ((Z, LABELS), -1.0),
    ):
        out = jax.eval_shape(lambda a, t: sdjax.sd_loss(*a, temperature=t), args, temperature)
        assert out.shape == ()


@pytest.mark.parametrize(
    "args",
    [
        (Z, LABELS),
        (Z, LABELS.astype(float)),
        (Z, LABELS, QUEUE, QUEUE_LABELS),
        (Z, LABELS, QUEUE, indices(shape=(3, 2))),
        (Z, indices(4)),
        (Z, indices(-1)),
    ],
    ids=["self", "float-labels", "explicit", "mixed-formats", "last-index", "padding-index"],
)
def test_good_neighbours_of_the_bad_arguments_pass(args):
    kwargs = dict(temperature=1e-6, where=np.ones(6, bool))
    assert jax.eval_shape(lambda: sdjax.sd_loss(*args, **kwargs)).shape == ()
    assert jax.eval_shape(lambda: sdjax.jaccard_loss(*args, threshold=1)).shape == ()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, float("nan")])
def test_threshold(threshold):
    words = ["threshold", "(0, 1]", str(threshold)]
    raises(ValueError, words, sdjax.jaccard_loss, Z, LABELS, threshold=threshold)


def test_unknown_weight():
    words = ["weight", "'soft_jacard'", "'soft_jaccard'"]
    raises(ValueError, words, sdjax.contrastive_loss, Z, LABELS, weight="soft_jacard")


@pytest.mark.parametrize("weight", [None, 0.5])
def test_weight_that_is_neither_name_nor_function(weight):
    with pytest.raises((TypeError, ValueError), match="weight"):
        sdjax.contrastive_loss(Z, LABELS, weight=weight)


@pytest.mark.parametrize("function", [sdjax.contrastive_loss, sdjax.mulsupcon_loss])
def test_unknown_normalizer(function):
    words = ["normalizer", "'positive'", "'positives'"]
    raises(ValueError, words, function, Z, LABELS, normalizer="positive")


@pytest.mark.parametrize("implementation", ["dense", "tiled"])
def test_own_weight_that_is_no_scalar(implementation):
    kwargs = {"weight": lambda o: o.shared[..., None], "implementation": implementation}
    words = ["weight", "one pair", "(1,)"]
    raises(ValueError, words, sdjax.contrastive_loss, Z, LABELS, **kwargs)
    jitted = jax.jit(lambda z: sdjax.contrastive_loss(z, LABELS, **kwargs))
    raises(ValueError, words, jitted, Z)


@pytest.mark.parametrize("implementation", ["dense", "tiled"])
def test_own_weight_that_looks_at_other_pairs(implementation):
    with pytest.raises(ValueError, match="axis 1") as info:
        sdjax.contrastive_loss(
            Z,
            LABELS,
            weight=lambda o: o.shared / o.shared.sum(axis=1, keepdims=True),
            implementation=implementation,
        )
    assert any("one pair at a time" in note for note in info.value.__notes__)


@pytest.mark.parametrize(
    "weight", [lambda o: o.anchor_size, lambda o: o.candidate_size, lambda o: 1.0]
)
def test_own_weight_of_sizes_or_constant(weight):
    dense, tiled = (
        sdjax.contrastive_loss(Z, LABELS, weight=weight, implementation=name)
        for name in ("dense", "tiled")
    )
    np.testing.assert_allclose(tiled, dense, rtol=1e-10)


BAD_CLASS_IDS = {
    "float": (TypeError, ["class_ids", "integer", "float64"], (Z, IDS.astype(float))),
    "bool": (TypeError, ["class_ids", "integer", "bool"], (Z, IDS.astype(bool))),
    "rank": (ValueError, ["class_ids", "(6, 1)"], (Z, IDS[:, None])),
    "multi-hot": (ValueError, ["class_ids", "(6, 5)"], (Z, LABELS)),
    "rows": (ValueError, ["class_ids", "6", "5"], (Z, IDS[:5])),
    "minus-2": (ValueError, ["class_ids", "-2"], (Z, IDS - 2)),
    "candidate-float": (
        TypeError,
        ["candidate_class_ids", "integer", "float64"],
        (Z, IDS, QUEUE, np.zeros(3)),
    ),
    "candidate-rows": (ValueError, ["candidate_class_ids", "3", "2"], (Z, IDS, QUEUE, IDS[:2])),
    "candidates-alone": (ValueError, ["candidate_class_ids", "candidates"], (Z, IDS, QUEUE)),
    "candidate-ids-alone": (
        ValueError,
        ["candidate_class_ids", "candidates"],
        (Z, IDS, None, IDS),
    ),
}


@pytest.mark.parametrize("case", BAD_CLASS_IDS)
def test_bad_class_ids(case):
    exception, words, args = BAD_CLASS_IDS[case]
    raises(exception, words, sdjax.supcon_loss, *args)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_misspelt_keyword(name):
    labels = IDS if name == "supcon" else LABELS
    with pytest.raises(TypeError, match="temprature"):
        sdjax.LOSSES[name](Z, labels, temprature=0.1)


@pytest.mark.parametrize("num_classes", [0, -3, 2.5])
def test_num_classes_that_count_nothing(num_classes):
    rows = sdjax.LabelIndices(np.zeros((6, 1), np.int32), num_classes)
    raises(ValueError, ["labels.num_classes", str(num_classes)], sdjax.sd_loss, Z, rows)


def test_labels_as_lists():
    assert sdjax.sd_loss(Z, LABELS.tolist()) == sdjax.sd_loss(Z, LABELS)


def test_label_indices_of_a_small_dtype():
    small = sdjax.LabelIndices(np.arange(6, dtype=np.int8)[:, None] * np.ones(2, np.int8), 300)
    wide = sdjax.LabelIndices(np.asarray(small.indices, np.int32), 300)
    assert sdjax.sd_loss(Z, small) == sdjax.sd_loss(Z, wide)


def test_infinite_weights_are_no_positives():
    # 1/0 for candidates without labels: they are no positives, all others are.
    labels = LABELS.copy()
    labels[3] = 0
    loss = sdjax.contrastive_loss(Z, labels, weight=lambda o: 1 / o.candidate_size + 0 * o.shared)
    sound = reference.contrastive(
        Z, reference.label_sets(labels), weight=lambda s, t: 1 / len(t) if t else 0
    )
    np.testing.assert_allclose(loss, sound.mean, rtol=1e-10)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs 2 devices")
def test_rows_that_are_typed_as_sharded():
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        z = jax.device_put(Z, jax.NamedSharding(mesh, P("data")))
        with pytest.raises(ValueError, match="sdjax.sharded with axis_name='data'"):
            sdjax.sd_loss(z, LABELS)
        np.testing.assert_allclose(
            sdjax.sharded.sd_loss(z, LABELS, axis_name="data"), sdjax.sd_loss(Z, LABELS), rtol=1e-6
        )
