"""A memory of past embeddings with their labels, and the encoder that makes them (MoCo).

A queue of K embeddings is kept as K / B slots of a batch each. Its arrays are [B, K / B, ...] for
each member, with rows spread over the devices as those of a batch are: a batch is remembered, and
met by the next ones, without leaving its devices.

References:
  He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2020
  (https://arxiv.org/abs/1911.05722).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.labels import LabelIndices

Array = jax.Array
Aux = dict[str, Any]

# The parts of the model that make a candidate's embedding.
_FOLLOWED = ("encoder", "adapters", "projection")


def check(config: Config) -> None:
    """Raises InputError unless the queue holds whole batches."""
    if config.queue.size % config.batch_size:
        raise InputError(
            f"queue.size must be a multiple of batch_size {config.batch_size}, got "
            f"{config.queue.size}."
        )


def begin(config: Config, spec: Any, weights: Any) -> Aux:
    """{"queue", "follower"} before the first step: an empty queue, and a copy of the model.

    Args:
      config: sized.
      spec: `ExampleSpec`.
      weights: `Weights` of all members.
    """
    members, batch = config.model.members, config.batch_size
    slots = config.queue.size // batch

    def empty(shape: tuple[int, ...], dtype: Any, fill: float = 0) -> Array:
        return jnp.full((members, batch, slots, *shape), fill, dtype)

    labels = spec.labels
    absent = -1 if isinstance(labels, LabelIndices) else 0
    return {
        "queue": {
            "z": empty((config.model.projection_dim,), jnp.float32),
            "labels": jax.tree.map(lambda x: empty(x.shape, x.dtype, absent), labels),
            "where": empty((), jnp.bool_),
            "slot": jnp.zeros(members, jnp.int32),
        },
        # A copy: donated buffers must not appear twice.
        "follower": {
            "params": jax.tree.map(jnp.copy, _followed(weights.params)),
            "variables": jax.tree.map(jnp.copy, _followed(weights.variables)),
        },
    }


def follow(follower: Aux, params: nnx.State, momentum: float) -> Aux:
    """The follower, its parameters m·θ' + (1 − m)·θ."""
    moved = jax.tree.map(
        lambda old, new: momentum * old + (1 - momentum) * new,
        follower["params"],
        jax.lax.stop_gradient(_followed(params)),
    )
    return {**follower, "params": moved}


def weights_of(follower: Aux, params: nnx.State, variables: nnx.State) -> tuple[Any, Any]:
    """Parameters and variables of a model whose followed parts are the follower's."""
    return (
        nnx.merge_state(jax.lax.stop_gradient(params), follower["params"]),
        nnx.merge_state(variables, follower["variables"]),
    )


def with_statistics(follower: Aux, variables: nnx.State) -> Aux:
    """The follower, with the `variables` that a model of its weights came back with."""
    return {**follower, "variables": _followed(variables)}


def candidates(queue: Aux, z: Array, labels: Any, where: Array) -> tuple[Array, Any, Array]:
    """The candidates of the batch and all that is remembered: rows of z, labels and where."""

    def joined(new: Array, old: Array) -> Array:
        # Slots beside rows, so that every device keeps the rows that it has.
        both = jnp.concatenate([new[:, None], old], axis=1)
        return both.reshape(-1, *both.shape[2:])

    sets = (labels, queue["labels"])
    length = max(x.shape[-1] for x in jax.tree.leaves(sets))
    labels, remembered = (_of_length(each, length) for each in sets)
    return jax.tree.map(joined, (z, labels, where), (queue["z"], remembered, queue["where"]))


def remember(queue: Aux, z: Array, labels: Any, where: Array) -> Aux:
    """The queue with a batch in place of its oldest."""
    slot = queue["slot"]

    def replaced(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new[:, None].astype(old.dtype), slot, 1)

    kept = {name: queue[name] for name in ("z", "labels", "where")}
    new = {"z": jax.lax.stop_gradient(z), "labels": labels, "where": where}
    slots = queue["where"].shape[1]
    return {**jax.tree.map(replaced, kept, new), "slot": (slot + 1) % slots}


def _followed(state: nnx.State) -> nnx.State:
    return nnx.filter_state(state, lambda path, _: path[0] in _FOLLOWED)


def _of_length(labels: Any, length: int) -> Any:
    """`labels`, their lists padded to `length`; those of another split may be shorter."""

    def padded(x: Array) -> Array:
        widths = [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])]
        return jnp.pad(x, widths, constant_values=-1)

    return jax.tree.map(padded, labels) if isinstance(labels, LabelIndices) else labels
