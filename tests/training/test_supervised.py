"""The supervised losses against loops over the equations of their papers, and in runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import RECIPES, SupervisedConfig
from sdjax.training import make_setup, train
from sdjax.training.evaluate import make_losses
from sdjax.training.mesh import make_mesh
from sdjax.training.state import abstract
from sdjax.training.step import make_train_step
from sdjax.training.supervised import elementwise_loss, label_weights

pytestmark = pytest.mark.usefixtures("two_devices")

CASES = [
    SupervisedConfig(),
    SupervisedConfig(pos_weight=3.0),
    SupervisedConfig(name="focal", gamma=1.5, pos_weight=2.0),
    SupervisedConfig(name="asl", gamma_pos=1.0, gamma_neg=3.0, clip=0.1),
    SupervisedConfig(name="asl", gamma_neg=0.5, clip=0.0),
    SupervisedConfig(name="class_balanced", beta=0.9),
]
COUNTS, NUM_EXAMPLES = np.array([1, 40, 0, 7]), 50


def one(x, y, c, config):
    """The loss of logit x and label y of class c, by the papers' equations."""
    p = 1 / (1 + np.exp(-x))
    if config.name == "class_balanced":
        each = [(1 - config.beta) / (1 - config.beta ** max(n, 1)) for n in COUNTS]
        weight = each[c] / np.mean(each)
        return weight * -np.log(p if y else 1 - p)
    if config.name == "focal":
        p_t = p if y else 1 - p
        value = -((1 - p_t) ** config.gamma) * np.log(p_t)
    elif config.name == "asl" and y:
        value = -((1 - p) ** config.gamma_pos) * np.log(p)
    elif config.name == "asl":
        p_m = max(p - config.clip, 0)
        value = -(p_m**config.gamma_neg) * np.log(1 - p_m)
    else:
        value = -np.log(p if y else 1 - p)
    return value * (config.pos_weight if y else 1)


def with_gradient(loss, x):
    """Values, and the gradient of their sum."""
    values, vjp = jax.vjp(loss, x)
    return values, vjp(jnp.ones_like(values))[0]


@pytest.mark.parametrize("config", CASES, ids=lambda c: f"{c.name}-{c.pos_weight:g}-{c.clip:g}")
def test_values_and_gradients_are_those_of_the_equations(config):
    random, step, smoothing = np.random.default_rng(0), 1e-6, 0.1
    logits, labels = random.normal(size=(5, 4)) * 3, random.integers(0, 2, (5, 4))
    weights = None
    if config.name == "class_balanced":
        weights = label_weights(COUNTS, NUM_EXAMPLES, config)

    def expected(x, y, c):
        share = smoothing / 2 + (1 - smoothing) * y
        return share * one(x, 1, c, config) + (1 - share) * one(x, 0, c, config)

    def loss(x):
        return elementwise_loss(x, jnp.asarray(labels), config, smoothing, weights)

    with jax.enable_x64(True):
        values, gradient = jax.jit(with_gradient, static_argnums=0)(loss, jnp.asarray(logits))
    for row, column in np.ndindex(5, 4):
        x, y = logits[row, column], labels[row, column]
        np.testing.assert_allclose(values[row, column], expected(x, y, column), rtol=1e-6)
        slope = (expected(x + step, y, column) - expected(x - step, y, column)) / (2 * step)
        np.testing.assert_allclose(gradient[row, column], slope, rtol=1e-5, atol=1e-8)


def test_the_default_is_binary_cross_entropy_to_the_bit():
    logits = jax.random.normal(jax.random.key(0), (9, 5))
    labels = jax.random.bernoulli(jax.random.key(1), 0.3, (9, 5))
    found = elementwise_loss(logits, labels, SupervisedConfig())
    np.testing.assert_array_equal(found, optax.sigmoid_binary_cross_entropy(logits, labels))


@pytest.mark.parametrize("config", CASES, ids=lambda c: f"{c.name}-{c.pos_weight:g}-{c.clip:g}")
def test_extreme_logits_have_finite_losses_and_gradients(config):
    logits = jnp.tile(jnp.array([-1e4, -100.0, 0.0, 100.0, 1e4]), (2, 1))
    labels = jnp.array([[0], [1]])

    def loss(x):
        return elementwise_loss(x, labels, config)

    for each in jax.jit(with_gradient, static_argnums=0)(loss, logits):
        assert np.isfinite(each).all()


def test_weights_by_the_number_of_examples():
    """Rare labels weigh more, none infinitely; by default they weigh alike."""
    balanced = label_weights(COUNTS, NUM_EXAMPLES, SupervisedConfig(name="class_balanced"))
    assert balanced.dtype == np.float32
    np.testing.assert_array_equal(balanced[0], balanced[1])
    np.testing.assert_allclose(balanced[0].mean(), 1, rtol=1e-6)
    assert balanced[0][0] == balanced[0][2] > balanced[0][3] > balanced[0][1]
    alike = SupervisedConfig(name="class_balanced", beta=0.0)
    np.testing.assert_array_equal(label_weights(COUNTS, NUM_EXAMPLES, alike), np.ones((2, 4)))
    ratio = label_weights(COUNTS, NUM_EXAMPLES, SupervisedConfig(pos_weight=0.0))
    np.testing.assert_allclose(ratio, [[49, 10 / 40, 49, 43 / 7], [1, 1, 1, 1]], rtol=1e-6)


def test_a_run_learns_by_the_weights_of_its_own_data(toy_config, tmp_path):
    toy_config.recipe, toy_config.select_by = "bce", "class_balanced"
    toy_config.supervised.name, toy_config.supervised.pos_weight = "class_balanced", 0.0
    toy_config.model.members = 2
    toy_config.supervise.epochs, toy_config.supervise.learning_rate = 4, 0.01
    setup = make_setup(toy_config, mesh=make_mesh(devices=jax.devices()[:1]))
    state = train(setup, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [record["class_balanced"] for record in map(json.loads, lines)]
    assert losses[-1] < losses[0]
    labels = setup.dataset.train.labels
    expected = label_weights(labels.sum(axis=0), len(labels), toy_config.supervised)
    assert np.ptp(expected) > 0
    found = state.aux["variables"]["label_weights"]["values"][...]
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_it(toy_config, recipe):
    """By its name in all that is logged, and in the loss."""
    toy_config.recipe, toy_config.supervised.name = recipe, "asl"
    setup = make_setup(toy_config, mesh=make_mesh(devices=jax.devices()[:1]))
    phase, batch = setup.phases[-1], setup.spec.batch(16)
    state = abstract(setup.program, setup.spec, phase, setup.mesh)
    common = (setup.program, phase, setup.graph, setup.mesh)
    for metrics in (
        jax.eval_shape(make_train_step(*common), state, batch)[1],
        jax.eval_shape(make_losses(*common), state.best, state.aux, batch),
    ):
        assert "asl" in metrics and "bce" not in metrics
