"""Devices, and how arrays lie on them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sdjax.config import Config, MeshConfig
from sdjax.errors import InputError

DATA_AXIS, FSDP_AXIS = "data", "fsdp"
# Smaller arrays are on every device: their exchange costs more than their memory.
_SMALLEST_SHARDED = 2**10
_MOST_EVALUATED = 2**13


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices of all processes.

    Args:
      config: its shape; by default all devices along the data axis.
      devices: in place of those that jax sees.

    Raises:
      ValueError: if the shape does not fit the number of devices.
    """
    config = config or MeshConfig()
    count = jax.device_count() if devices is None else len(devices)
    data = config.data or count // config.fsdp
    if data * config.fsdp != count:
        processes = jax.process_count() if devices is None else 1
        of = f" ({processes} processes)" if processes > 1 else ""
        asked = f"mesh.data={config.data} × mesh.fsdp={config.fsdp}"
        if not config.data:
            asked = f"mesh.fsdp={config.fsdp}"
        raise InputError(f"{asked} does not fit the {count} devices{of}.")
    names, kinds = (DATA_AXIS, FSDP_AXIS), (AxisType.Auto,) * 2
    return jax.make_mesh((data, config.fsdp), names, kinds, devices=devices)


def batch_axes(mesh: Mesh) -> str | tuple[str, str]:
    """The axes along which the rows of a batch are spread: all of them.

    Devices that share parameters would otherwise compute the same rows.
    """
    return (DATA_AXIS, FSDP_AXIS) if mesh.shape[FSDP_AXIS] > 1 else DATA_AXIS


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: Any, mesh: Mesh) -> Any:
    """Sharding of each array of a state, or of their shapes.

    Large ones lie along the FSDP axis: the longest axis that divides is cut, other than the first,
    which counts members. What is remembered of past batches lies as the rows of a batch do.
    """
    parts = mesh.shape[FSDP_AXIS]

    def sharding(path: Any, x: Any) -> NamedSharding:
        if _is_of_queue(path) and len(x.shape) > 1:
            return NamedSharding(mesh, PartitionSpec(None, batch_axes(mesh)))
        axes = [axis for axis in range(1, len(x.shape)) if x.shape[axis] % parts == 0]
        if parts == 1 or not axes or math.prod(x.shape) < _SMALLEST_SHARDED:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: x.shape[axis])
        spec = [FSDP_AXIS if axis == longest else None for axis in range(len(x.shape))]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _is_of_queue(path: Any) -> bool:
    """Whether a leaf of a state belongs to `aux["queue"]`."""
    names = [getattr(key, "name", getattr(key, "key", None)) for key in path[:2]]
    return names == ["aux", "queue"]


def rows_of_process(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Positions in a batch of the rows that this process's devices hold, in rising order."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    positions = np.arange(batch_size)
    return np.unique(np.concatenate([positions[place] for place in places if place is not None]))


def evaluation_batch_size(config: Config, num_examples: int, mesh: Mesh) -> int:
    """Examples that are evaluated at once, outputs of which every device holds.

    At most those of a training batch and those there are, but a multiple of devices ×
    microbatches; with a queue just those of a training batch, beside which it lies.
    """
    if config.queue.size:
        return config.batch_size
    most = min(config.batch_size, num_examples, _MOST_EVALUATED)
    parts = mesh.size * config.least_microbatches
    return -(-most // parts) * parts


def one_program_at_a_time(mesh: Mesh) -> bool:
    """Whether a step must end before the next is started.

    Virtual CPU devices share a few threads: steps that wait for each other's devices may take
    all of them, and wait for ever.
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def check_batch_size(batch_size: int, num_examples: int, microbatches: int, mesh: Mesh) -> None:
    """Raises ValueError for a batch that the data or the devices cannot hold."""
    if not 0 < batch_size <= num_examples:
        raise InputError(
            f"batch_size must be from 1 to the {num_examples} examples of the train split, "
            f"got {batch_size}."
        )
    parts = mesh.size * microbatches
    if batch_size % parts:
        of = f"{mesh.size} devices" + (f" × {microbatches} microbatches" * (microbatches > 1))
        lower = batch_size - batch_size % parts
        nearest = f"nearest are {lower} and" if lower else "least is"
        raise InputError(
            f"batch_size must be a multiple of the {of}, got {batch_size}; the {nearest} "
            f"{lower + parts}."
        )
