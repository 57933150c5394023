"""The training state: one pytree, all that a step needs besides its batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from sdjax.config import Config
from sdjax.data import Source
from sdjax.labels import num_classes
from sdjax.models import Model, registry
from sdjax.training import momentum_queue
from sdjax.training.mesh import Mesh, state_sharding
from sdjax.training.recipes import Phase, make_optimizer
from sdjax.training.supervised import needs_counts

Array = jax.Array
Aux = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ExampleSpec:
    """Shapes and dtypes of one example, hashable.

    Args:
      treedef: `PyTreeDef`, the structure of {"x", "labels"}.
      leaves: a `jax.ShapeDtypeStruct` each, without the batch's axis.
    """

    treedef: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, inputs: Any, labels: Any) -> "ExampleSpec":
        """Of the pytree of `inputs` and the `labels` of one example."""
        leaves, treedef = jax.tree.flatten({"x": inputs, "labels": labels})
        return cls(treedef, tuple(leaves))

    @classmethod
    def of_source(cls, source: Source) -> "ExampleSpec":
        """Of the examples of `source`."""
        labels = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), source.labels)
        return cls.of(source.input_spec, labels)

    def __reduce__(self) -> Any:
        # JAX pickles the structure of builtin containers alone.
        return ExampleSpec.of, (self.inputs, self.labels)

    @property
    def inputs(self) -> Any:
        return jax.tree.unflatten(self.treedef, self.leaves)["x"]

    @property
    def labels(self) -> Any:
        return jax.tree.unflatten(self.treedef, self.leaves)["labels"]

    @property
    def num_classes(self) -> int:
        return num_classes(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), self.labels)
        )

    def batch(self, size: int, sharding: Any = None) -> Any:
        """Shapes and dtypes of a batch of `size` examples."""

        def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

        rows = [array(leaf.shape, leaf.dtype) for leaf in self.leaves]
        return {**jax.tree.unflatten(self.treedef, rows), "where": array((), jnp.bool_)}


class Weights(NamedTuple):
    """What the model computes with.

    Attributes:
      params: parameters, which learn by gradient.
      variables: the others, such as batch statistics.
    """

    params: nnx.State
    variables: nnx.State


class TrainState(NamedTuple):
    """The training state.

    All but step and key have a leading axis of M members, which learn independently.

    Attributes:
      step: steps taken since the start of the run, int32 scalar.
      params: parameters of the model, those of the loss among them.
      aux: all that changes without a gradient: "variables" of the model, such as batch statistics,
        and "queue" and "follower" of a phase with a queue (see `momentum_queue`).
      opt_state: of the phase's optimizer.
      average: exponential moving average of params and variables, or None.
      key: random key data, uint32; each step folds its number into it.
    """

    step: Array
    params: nnx.State
    aux: Aux
    opt_state: Any
    average: Weights | None
    key: Array

    @property
    def best(self) -> Weights:
        """What to evaluate, and to carry into the next phase."""
        if self.average is not None:
            return self.average
        return Weights(self.params, self.aux["variables"])


def program_config(config: Config) -> Config:
    """`config` with the defaults of the fields that change no compiled program."""
    default = Config()
    names = ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints")
    names += ("select_by", "patience", "candidates", "refit", "thresholds")
    return dataclasses.replace(
        config,
        **{name: getattr(default, name) for name in names},
        seed=0,
        data=default.data,
        report=default.report,
        model=dataclasses.replace(config.model, init_from="", weights=""),
    )


def _shared(make: Callable[Concatenate[Config, P], T]) -> Callable[Concatenate[Config, P], T]:
    """Has `make` give the same object for the same arguments, so that runs share what is compiled.

    Of the config what programs depend on is compared; and the encoder, since its name may be that
    of another one by now.
    """

    @functools.lru_cache(maxsize=128)
    def of_encoder(
        encoder: registry.Encoder | None, config: Config, *rest: P.args, **named: P.kwargs
    ) -> T:
        return make(config, *rest, **named)

    @functools.wraps(make)
    def shared(config: Config, *rest: P.args, **named: P.kwargs) -> T:
        encoder = registry.ENCODERS.get(config.model.encoder)
        return of_encoder(encoder, program_config(config), *rest, **named)

    return shared


def make_model(config: Config, spec: ExampleSpec, key: Array | int = 0) -> Model:
    """The model of one member, with fresh parameters."""
    rngs = nnx.Rngs(params=key)
    given = (config.model, config.loss, spec.inputs, spec.num_classes)
    return Model(*given, weighted=needs_counts(config.supervised), rngs=rngs)


def model_graph(config: Config, spec: ExampleSpec) -> nnx.GraphDef:
    """The structure of the model of one member, without parameters."""
    return model_shapes(config, spec)[0]


@_shared
def model_shapes(config: Config, spec: ExampleSpec) -> tuple[nnx.GraphDef, Weights]:
    """The structure of the model of one member, and shapes and dtypes of all members' weights."""
    graph, *parts = nnx.split(nnx.eval_shape(lambda: make_model(config, spec)), nnx.Param, ...)

    def of_members(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.model.members, *x.shape), x.dtype)

    return graph, Weights(*jax.tree.map(of_members, parts))


def init_model(config: Config, spec: ExampleSpec, key: Array) -> Weights:
    """Fresh parameters and other variables of all members."""

    def member(key: Array) -> Weights:
        _, params, variables = nnx.split(make_model(config, spec, key), nnx.Param, ...)
        return Weights(params, variables)

    return jax.vmap(member)(jax.random.split(key, config.model.members))


def init_state(
    config: Config, spec: ExampleSpec, phase: Phase, key: Array, initial: Weights | None = None
) -> TrainState:
    """The state before the first step of `phase`, with fresh parameters.

    Args:
      config: of the run.
      spec: of an example.
      phase: that the state is to take steps of.
      key: of the run's seed.
      initial: weights for parts of the model, in place of fresh ones.
    """
    params_key, step_key = jax.random.split(key)
    weights = init_model(config, spec, params_key)
    if initial is not None:
        weights = Weights(*map(nnx.merge_state, weights, initial))
    return _first_state(config, spec, phase, step_key, weights)


def _first_state(
    config: Config, spec: ExampleSpec, phase: Phase, key: Array, weights: Weights
) -> TrainState:
    state = TrainState(
        step=jnp.asarray(phase.start, jnp.int32),
        params=weights.params,
        aux={"variables": weights.variables},
        opt_state=None,
        average=None,
        key=jax.random.key_data(key),
    )
    return begin_phase(state, config, spec, phase)


def begin_phase(state: TrainState, config: Config, spec: ExampleSpec, phase: Phase) -> TrainState:
    """`state` with the optimizer of `phase`, which starts from the best weights so far."""
    weights = state.best
    optimizer = make_optimizer(phase)
    aux: Aux = {"variables": weights.variables}
    if config.queue.size and phase.contrastive:
        aux |= momentum_queue.begin(config, spec, weights)
    averaged = phase.config.ema_decay > 0
    return state._replace(
        params=weights.params,
        aux=aux,
        opt_state=jax.vmap(optimizer.init)(weights.params),
        # A copy: donated buffers must not appear twice.
        average=jax.tree.map(jnp.copy, weights) if averaged else None,
    )


def place(make: Callable[..., TrainState], mesh: Mesh, *given: Any) -> TrainState:
    """The state that `make` makes of `given`, computed where it lies on the devices of `mesh`."""
    shardings = state_sharding(jax.eval_shape(make, *given), mesh)
    return jax.jit(make, out_shardings=shardings)(*given)


@_shared
def initializer(
    config: Config, spec: ExampleSpec, phase: Phase, mesh: Mesh
) -> Callable[..., TrainState]:
    """`init_state` as a function of (key, initial), jitted and placed on `mesh`."""

    def make(key: Array, initial: Weights | None) -> TrainState:
        return init_state(config, spec, phase, key, initial)

    return functools.partial(place, make, mesh)


@_shared
def beginner(
    config: Config, spec: ExampleSpec, phase: Phase, mesh: Mesh
) -> Callable[[TrainState], TrainState]:
    """`begin_phase` as a function of the state alone, jitted and placed on `mesh`."""

    def make(state: TrainState) -> TrainState:
        return begin_phase(state, config, spec, phase)

    return functools.partial(place, make, mesh)


@_shared
def abstract(config: Config, spec: ExampleSpec, phase: Phase, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state in `phase`."""
    make = functools.partial(_first_state, config, spec, phase)
    shapes = jax.eval_shape(make, jax.random.key(0), model_shapes(config, spec)[1])
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_sharding(shapes, mesh),
    )


def update_average(average: Any, weights: Any, decay: float, count: Array) -> Any:
    """Moving average whose decay rises to `decay`, so that early weights are soon forgotten."""
    if average is None:
        return None
    rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(
        lambda old, new: (
            optax.incremental_update(new, old, rate)
            if jnp.issubdtype(new.dtype, jnp.floating)
            else new
        ),
        average,
        weights,
    )
