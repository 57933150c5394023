"""Devices and how arrays lie on them."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """A mesh of all devices along which the batch is sharded."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def one_program_at_a_time(mesh: Mesh) -> bool:
    """Whether a step must end before the next is started.

    Virtual CPU devices share a few threads: steps that wait for each other's devices may take
    all of them, and wait for ever.
    """
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch_size(batch_size: int, num_examples: int, mesh: Mesh) -> None:
    """Raises ValueError for a batch that the data or the devices cannot hold."""
    if not 0 < batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be from 1 to the {num_examples} examples of the train split, "
            f"got {batch_size}."
        )
    if batch_size % mesh.size:
        lower = batch_size - batch_size % mesh.size
        raise ValueError(
            f"batch_size must be a multiple of the {mesh.size} devices, got {batch_size}; the "
            f"nearest are {lower} and {lower + mesh.size}."
        )
