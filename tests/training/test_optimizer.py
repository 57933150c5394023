import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import Config, PhaseConfig
from sdjax.training.optimizer import learning_rate_schedule, make_optimizer
from sdjax.training.phases import Phase
from sdjax.training.state import init_model

CONFIG = Config()
CONFIG.model.encoder, CONFIG.model.width, CONFIG.model.projection_dim = "mlp", 8, 4


def params_of_model():
    stacked = init_model(CONFIG, (5,), 3, jax.random.key(0))[0]
    return jax.tree.map(lambda x: x[0], stacked)


def phase_of(config, trained):
    return Phase("joint", 1.0, 1.0, trained, config, start=0, stop=10)


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
        return updated(config, ("encoder", "projection", "classifier"))[1]

    with_decay, without = shift(0.5), shift(0.0)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), with_decay, without)
    matrices = jax.tree.map(lambda x: x.ndim > 1, without)
    assert jax.tree.leaves(different) == jax.tree.leaves(matrices)


def test_clipping_bounds_the_global_norm():
    config = PhaseConfig(optimizer="sgd", momentum=0.0, warmup=0.0, learning_rate=1.0)
    config.weight_decay, config.clip_norm = 0.0, 0.5
    params = params_of_model()
    optimizer = make_optimizer(phase_of(config, ("encoder", "projection", "classifier")))
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


def test_unknown_optimizer():
    with pytest.raises(ValueError, match="Unknown optimizer 'adam'. Did you mean 'adamw'"):
        make_optimizer(phase_of(PhaseConfig(optimizer="adam"), ()))
