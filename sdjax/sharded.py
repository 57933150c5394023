"""The losses of a batch that is sharded over a mesh, for use under plain `jax.jit`.

    with jax.set_mesh(mesh):
        loss = sdjax.sharded.sd_loss(z, labels, axis_name="data", implementation="ring")

Each loss here is the one of the same name in `sdjax`, mapped over the rows of global arrays. It
takes the same arguments and returns the same value. Inside shard_map or pmap, use the loss itself
with `axis_name=`.

Further arguments:
  axis_name: mesh axis, or axes, along which the rows are sharded.
  mesh: the mesh; by default the one that `jax.set_mesh` has set.

Raises:
  ValueError: if there is no mesh, it lacks the axis, or a number of rows is not a multiple of the
    number of devices along it: pad the batch, and say so with `where`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from sdjax import losses
from sdjax.collectives import AxisName
from sdjax.labels import LabelIndices, is_known

MASKS = ("where", "candidate_where")
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


def over_mesh(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`loss`, which takes `axis_name`, as a function of global arrays; see the module."""

    @functools.wraps(loss)
    def sharded(
        *args: Any,
        axis_name: AxisName,
        mesh: Mesh | None = None,
        temperature: ArrayLike = 0.07,
        reduction: str = "mean",
        **options: Any,
    ) -> jax.Array:
        used = _check_mesh(mesh, axis_name)
        rows = P(axis_name)
        masks = {name: options.pop(name) for name in MASKS if options.get(name) is not None}
        arrays = [x if isinstance(x, LabelIndices) or x is None else jnp.asarray(x) for x in args]
        known = is_known(temperature)
        if known:
            temperature = np.asarray(temperature)[()]
        given = _placed((arrays, jax.tree.map(jnp.asarray, masks)), used, axis_name)

        def local(given: tuple[list[Any], dict[str, jax.Array]], traced: jax.Array | None):
            arrays, masks = given
            return loss(
                *arrays,
                # Known where the loss is traced, it is checked, and saves a program for the rest.
                temperature=temperature if traced is None else traced,
                reduction=reduction,
                axis_name=axis_name,
                **masks,
                **options,
            )

        out = rows if reduction == "none" else P()
        run = jax.shard_map(local, mesh=used, in_specs=(rows, P()), out_specs=out)
        return run(given, None if known else jnp.asarray(temperature))

    return sharded


def _check_mesh(mesh: Mesh | None, axis_name: AxisName) -> Mesh:
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if not mesh.axis_names:
        raise ValueError("mesh must be given, or set by jax.set_mesh; there is none.")
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    for name in axes:
        if name not in mesh.axis_names:
            raise ValueError(f"axis_name must be of the mesh {mesh.axis_names}, got {name!r}.")
    return mesh


def _placed(tree: Any, mesh: Mesh, axis_name: AxisName) -> Any:
    """`tree` with its rows sharded along the axis."""
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name
    devices = math.prod(mesh.shape[name] for name in axes)
    explicit = all(t == AxisType.Explicit for t in mesh.axis_types)

    def place(x: jax.Array) -> jax.Array:
        if len(x) % devices:
            raise ValueError(
                f"the number of rows must be a multiple of the {devices} devices along "
                f"{axis_name!r}, got {len(x)}: pad the batch, with where=False for padding."
            )
        # Explicit meshes want to be told; on others the compiler does it.
        return jax.reshard(x, P(axis_name)) if explicit else x

    return jax.tree.map(place, tree)


contrastive_loss = over_mesh(losses.contrastive_loss)
LOSSES = {name: over_mesh(loss) for name, loss in losses.LOSSES.items()}
sd_loss = LOSSES["sd"]
mulsupcon_loss = LOSSES["mulsupcon"]
any_loss = LOSSES["any"]
all_loss = LOSSES["all"]
jaccard_loss = LOSSES["jaccard"]
soft_jaccard_loss = LOSSES["soft_jaccard"]
similarity_only_loss = LOSSES["similarity_only"]
dissimilarity_only_loss = LOSSES["dissimilarity_only"]
symmetric_loss = LOSSES["symmetric"]
supcon_loss = LOSSES["supcon"]
