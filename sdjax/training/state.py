"""The training state: one pytree, all that a step needs besides its batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sdjax.config import Config
from sdjax.models import Model
from sdjax.training.mesh import Mesh, state_sharding
from sdjax.training.optimizer import make_optimizer
from sdjax.training.phases import Phase

Array = jax.Array


class TrainState(NamedTuple):
    """The training state.

    Parameters, variables, optimizer state and average have a leading axis of M members, which
    learn independently.

    Attributes:
      step: steps taken since the start of the run, int32 scalar.
      params: parameters of the model.
      variables: its other variables, such as batch statistics.
      opt_state: of the phase's optimizer.
      average: exponential moving average of `params`, or None.
      key: random key data, uint32; each step folds its number into it.
    """

    step: Array
    params: nnx.State
    variables: nnx.State
    opt_state: Any
    average: nnx.State | None
    key: Array

    @property
    def best_params(self) -> nnx.State:
        """The parameters to evaluate and to carry into the next phase."""
        return self.params if self.average is None else self.average


def model_graph(config: Config, input_shape: tuple[int, ...], num_classes: int) -> nnx.GraphDef:
    """The structure of the model of one member, without parameters."""

    def make() -> Model:
        return Model(config.model, input_shape, num_classes, rngs=nnx.Rngs(params=0))

    return nnx.graphdef(nnx.eval_shape(make))


def init_model(
    config: Config, input_shape: tuple[int, ...], num_classes: int, key: Array
) -> tuple[nnx.State, nnx.State]:
    """Fresh parameters and other variables of all members."""

    def member(key: Array) -> tuple[nnx.State, nnx.State]:
        model = Model(config.model, input_shape, num_classes, rngs=nnx.Rngs(params=key))
        _, params, variables = nnx.split(model, nnx.Param, ...)
        return params, variables

    return jax.vmap(member)(jax.random.split(key, config.model.members))


def init_state(
    config: Config, input_shape: tuple[int, ...], num_classes: int, phase: Phase
) -> TrainState:
    """The state before the first step of `phase`, with fresh parameters."""
    params_key, step_key = jax.random.split(jax.random.key(config.seed))
    params, variables = init_model(config, input_shape, num_classes, params_key)
    state = TrainState(
        step=jnp.asarray(phase.start, jnp.int32),
        params=params,
        variables=variables,
        opt_state=None,
        average=None,
        key=jax.random.key_data(step_key),
    )
    return begin_phase(state, phase)


def begin_phase(state: TrainState, phase: Phase) -> TrainState:
    """`state` with the optimizer of `phase`, which starts from the best parameters so far."""
    params = state.best_params
    optimizer = make_optimizer(phase)
    averaged = phase.config.ema_decay > 0
    return state._replace(
        params=params,
        opt_state=jax.vmap(optimizer.init)(params),
        # A copy: donated buffers must not appear twice.
        average=jax.tree.map(jnp.copy, params) if averaged else None,
    )


def place(make: Callable[..., TrainState], mesh: Mesh, *given: Any) -> TrainState:
    """The state that `make` makes of `given`, computed where it lies on the devices of `mesh`."""
    shardings = state_sharding(jax.eval_shape(make, *given), mesh)
    return jax.jit(make, out_shardings=shardings)(*given)


def abstract(make: Callable[[], TrainState], mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state that `make` makes."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_sharding(shapes, mesh),
    )


def update_average(average: nnx.State | None, params: Any, decay: float, count: Array) -> Any:
    """Moving average whose decay rises to `decay`, so that early parameters are soon forgotten."""
    if average is None:
        return None
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return optax.incremental_update(params, average, rate)
