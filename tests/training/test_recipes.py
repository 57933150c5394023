import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import Config, PhaseConfig
from sdjax.errors import InputError
from sdjax.training.recipes import (
    Phase,
    learning_rate_schedule,
    make_optimizer,
    make_phases,
    parameter_name,
    phase_of_step,
)
from sdjax.training.state import ExampleSpec, init_model

CONFIG = Config()
CONFIG.model.encoder, CONFIG.model.width, CONFIG.model.projection_dim = "mlp", 8, 4
WHOLE = ("encoder", "projection", "classifier")


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        ("probe", ["pretrain", "probe"]),
        ("finetune", ["pretrain", "finetune"]),
        ("joint", ["joint"]),
        ("bce", ["bce"]),
    ],
)
def test_recipes(recipe, names):
    config = Config(recipe=recipe)
    config.pretrain.epochs, config.supervise.epochs = 3, 5
    phases = make_phases(config, steps_per_epoch=7)
    assert [phase.name for phase in phases] == names
    lengths = [{"pretrain": 21}.get(name, 35) for name in names]
    assert [phase.num_steps for phase in phases] == lengths
    assert phases[0].start == 0
    for before, after in itertools.pairwise(phases):
        assert before.stop == after.start


def test_objectives():
    config = Config(recipe="joint", contrastive_weight=0.3)
    (joint,) = make_phases(config, 1)
    assert (joint.contrastive, joint.supervised) == (0.3, 1.0)
    config.recipe = "probe"
    pretrain, probe = make_phases(config, 1)
    assert (pretrain.contrastive, pretrain.supervised) == (1.0, 0.0)
    assert (probe.contrastive, probe.supervised) == (0.0, 1.0)
    assert probe.trained == ("classifier",)
    assert not probe.trains_encoder


def test_a_state_at_the_boundary_belongs_to_the_phase_that_ended():
    config = Config(recipe="probe")
    config.pretrain.epochs, config.supervise.epochs = 2, 3
    phases = make_phases(config, steps_per_epoch=5)
    names = [phase_of_step(phases, step).name for step in (0, 9, 10, 11, 25)]
    assert names == ["pretrain", "pretrain", "pretrain", "probe", "probe"]


def params_of_model():
    x, labels = jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.uint8)
    weights = init_model(CONFIG, ExampleSpec.of(x, labels), jax.random.key(0))
    return jax.tree.map(lambda x: x[0], weights.params)


def phase_of(config, trained):
    return Phase("joint", 1.0, 1.0, trained, config, start=0, stop=10, schedule_steps=10)


def updated(config, trained):
    params = params_of_model()
    optimizer = make_optimizer(phase_of(config, trained))
    state, start = optimizer.init(params), params
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
    return start, params


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_the_trained_parts_move(name):
    before, after = updated(PhaseConfig(optimizer=name, warmup=0.0), ("classifier",))
    for part in before:
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[part], after[part])
        assert all(jax.tree.leaves(moved)) == (part == "classifier"), part


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_vectors(name):
    def shift(decay):
        config = PhaseConfig(optimizer=name, warmup=0.0, weight_decay=decay, clip_norm=0.0)
        return updated(config, WHOLE)[1]

    with_decay, without = shift(0.5), shift(0.0)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), with_decay, without)
    matrices = jax.tree.map(lambda x: x.ndim > 1, without)
    assert jax.tree.leaves(different) == jax.tree.leaves(matrices)


@pytest.mark.parametrize("rates", ["", "encoder=0"])
def test_clipping_bounds_the_global_norm_of_what_is_trained(rates):
    config = PhaseConfig(optimizer="sgd", momentum=0.0, warmup=0.0, learning_rate=1.0)
    config.weight_decay, config.clip_norm, config.learning_rates = 0.0, 0.5, rates
    params = params_of_model()
    optimizer = make_optimizer(phase_of(config, WHOLE))
    huge = jax.tree.map(lambda x: 100 * jnp.ones_like(x), params)
    updates, _ = optimizer.update(huge, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-5)


def test_schedule_warms_up_then_falls_to_zero():
    schedule = learning_rate_schedule(PhaseConfig(learning_rate=2.0, warmup=0.2), 100)
    rates = np.array([schedule(step) for step in range(101)])
    assert rates[0] == 0
    assert rates.argmax() == 20
    np.testing.assert_allclose(rates[[20, 60, 100]], [2.0, 1.0, 0.0], atol=1e-6)
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_schedule_of_a_very_short_phase_is_finite(steps):
    schedule = learning_rate_schedule(PhaseConfig(warmup=0.9), steps)
    assert np.isfinite([schedule(step) for step in range(steps)]).all()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_learning_rates_of_parts(name):
    """A part's update is its factor times what it would be; 0 freezes; the longest name counts."""

    def shift(rates):
        config = PhaseConfig(optimizer=name, warmup=0.0, weight_decay=0.1, learning_rates=rates)
        config.clip_norm = 0.0
        before, after = updated(config, WHOLE)
        return {
            parameter_name(path): after - before
            for (path, after), before in zip(
                jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True
            )
        }

    plain = shift("")
    scaled = shift("encoder=0.5, encoder.layers.1=0, classifier=3")
    for parameter, value in plain.items():
        factor = 1.0
        if parameter.startswith("encoder"):
            factor = 0.0 if parameter.startswith("encoder.layers.1") else 0.5
        if parameter.startswith("classifier"):
            factor = 3.0
        # Decay meets parameters that have moved at their own rate: equal to first order.
        np.testing.assert_allclose(scaled[parameter], factor * value, rtol=2e-2, atol=1e-6)
    assert not np.any(scaled["encoder.layers.1.kernel"])


def test_learning_rates_of_parts_that_there_are_not():
    config = PhaseConfig(learning_rates="encode=0.1")
    text = r"Unknown part of learning_rates 'encode'.*Parts: classifier, encoder, projection"
    with pytest.raises(ValueError, match=text):
        make_optimizer(phase_of(config, WHOLE)).init(params_of_model())


def test_rates_decay_from_layer_to_layer():
    shapes = {
        "encoder": {"embeddings": {"word": 1}, "layers": {0: 1, 1: 1, 2: 1}, "norm": 1},
        "classifier": 1,
    }
    params = jax.tree.map(lambda _: jnp.zeros(2), shapes)
    config = PhaseConfig(optimizer="sgd", warmup=0.0, clip_norm=0.0, learning_rate=1.0, momentum=0)
    config.layer_decay, config.learning_rates = 0.5, "encoder=0.1,encoder.layers.1-2=0"
    optimizer = make_optimizer(phase_of(config, WHOLE))
    updates, _ = optimizer.update(
        jax.tree.map(jnp.ones_like, params), optimizer.init(params), params
    )
    rates = {parameter_name(path): -x for path, x in jax.tree.leaves_with_path(updates)}
    expected = {
        "classifier": 1.0,
        "encoder.norm": 0.1,
        "encoder.layers.0": 0.1 * 0.5**2,
        "encoder.layers.1": 0.0,
        "encoder.layers.2": 0.0,
        "encoder.embeddings.word": 0.1 * 0.5**3,
    }
    assert rates.keys() == expected.keys()
    for name, rate in expected.items():
        np.testing.assert_allclose(rates[name], rate, rtol=1e-6)


def test_rates_cannot_decay_without_layers():
    params = {"encoder": {"kernel": jnp.zeros(2)}, "classifier": jnp.zeros(2)}
    optimizer = make_optimizer(phase_of(PhaseConfig(layer_decay=0.5), WHOLE))
    with pytest.raises(InputError, match="layer_decay must be 1 for an encoder without layers"):
        optimizer.init(params)
