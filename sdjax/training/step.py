"""One training step: a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sdjax.config import Config
from sdjax.training.mesh import Mesh, state_sharding
from sdjax.training.objective import Batch, Metrics, Objective
from sdjax.training.recipes import Phase, learning_rate_schedule, make_optimizer
from sdjax.training.state import TrainState, Weights, update_average

Array = jax.Array
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@functools.lru_cache(maxsize=128)
def make_train_step(config: Config, phase: Phase, graph: nnx.GraphDef, mesh: Mesh) -> TrainStep:
    """The jitted step of a phase; it takes over (donates) the state that it is given.

    The same arguments give the same function, so that runs that differ in their seeds share one
    compilation.
    """
    optimizer = make_optimizer(phase)
    schedule = learning_rate_schedule(phase.config, phase.schedule_steps)
    objective = Objective(config, phase, graph, mesh)
    gradient = jax.value_and_grad(objective, has_aux=True)

    def member_step(params: Any, aux: Any, opt_state: Any, key: Array, batch: Batch) -> Any:
        (loss, (aux, terms)), grads = gradient(params, aux, batch, key, True)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(grads)}
        return optax.apply_updates(params, updates), aux, opt_state, metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        keys = jax.random.split(key, jax.tree.leaves(state.params)[0].shape[0])
        params, aux, opt_state, metrics = jax.vmap(member_step, (0, 0, 0, 0, None))(
            state.params, state.aux, state.opt_state, keys, batch
        )
        count, decay = state.step - phase.start, phase.config.ema_decay
        state = state._replace(
            step=state.step + 1,
            params=params,
            aux=aux,
            opt_state=opt_state,
            average=update_average(state.average, Weights(params, aux["variables"]), decay, count),
        )
        metrics = {name: values.mean() for name, values in metrics.items()}
        state = jax.lax.with_sharding_constraint(state, state_sharding(state, mesh))
        return state, {**metrics, "learning_rate": jnp.asarray(schedule(count))}

    return jax.jit(train_step, donate_argnums=0)
