"""The losses of a batch that is sharded over a mesh, for use under plain `jax.jit`.

    with jax.set_mesh(mesh):
        loss = sdjax.sharded.sd_loss(z, labels, axis_name="data", implementation="ring")

Each loss here is the one of the same name in `sdjax`, mapped over the rows of global arrays. It
takes the same arguments and returns the same value. Inside shard_map or pmap, use the loss itself
with `axis_name=`.

What is different:
  axis_name: mesh axis, or axes, along which the rows are sharded; must be given.
  mesh: the mesh; by default the one that `jax.set_mesh` has set.
  candidates_sharded: False keeps explicit candidates whole on every device, whatever their number;
    otherwise their rows are sharded along the axis like those of `z`.

Raises:
  ValueError: if there is no mesh, it lacks the axis, or a number of rows is not a multiple of the
    number of devices along it: pad the batch, and say so with `where`.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sdjax import losses
from sdjax._src import collectives
from sdjax._src.collectives import AxisName
from sdjax._src.pair_weight import PairWeight, as_pair_weight
from sdjax._src.problem import accumulation_dtype
from sdjax.labels import check_labels

Array = jax.Array
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

# Arguments with a row for each anchor, and for each explicit candidate.
_ANCHORS = ("z", "labels", "class_ids", "where", "positive_where", "ids")
_CANDIDATES = (
    *("candidates", "candidate_labels", "candidate_class_ids", "candidate_where", "candidate_ids"),
)
# Arrays, numbers, and functions that may hold arrays, which all devices share.
_SHARED = ("prototypes", "temperature", "threshold", "alpha", "beta", "weight")


def over_mesh(loss: Callable[..., Array]) -> Callable[..., Array]:
    """`loss`, which takes `axis_name`, as a function of global arrays; see the module."""
    signature = _with_mesh(inspect.signature(loss))

    @functools.wraps(loss)
    def sharded(*args: Any, **kwargs: Any) -> Array:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"sdjax.sharded.{loss.__name__}() {error}") from None
        bound.apply_defaults()
        return _evaluate(loss, bound.arguments)

    # What help() and completion show.
    sharded.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    sharded.__doc__ = f"{loss.__doc__}\n    Over a mesh (`sdjax.sharded`):{_MESH_DOC}"
    return sharded


_MESH_DOC = """
      axis_name: mesh axis, or axes, along which the rows are sharded; must be given.
      mesh: the mesh; by default the one that `jax.set_mesh` has set.
      candidates_sharded: False keeps explicit candidates whole on every device.
"""


def _with_mesh(signature: inspect.Signature) -> inspect.Signature:
    """`axis_name` without a default, and `mesh` after it."""
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name != "axis_name":
            parameters.append(parameter)
            continue
        parameters.append(parameter.replace(default=parameter.empty, annotation="AxisName"))
        parameters.append(parameter.replace(name="mesh", default=None, annotation="Mesh | None"))
    return signature.replace(parameters=parameters)


def _evaluate(loss: Callable[..., Array], arguments: dict[str, Any]) -> Array:
    axis_name = arguments.pop("axis_name")
    axes = collectives.names(axis_name)
    mesh = _checked_mesh(arguments.pop("mesh"), axes)
    for name in ("labels", "candidate_labels"):
        if arguments.get(name) is not None:
            # Here, since their values are not known inside.
            arguments[name] = _checked_labels(name, arguments)
    explicit = arguments.get("candidates") is not None
    if explicit and arguments["candidates_sharded"] is None:
        arguments["candidates_sharded"] = True
    if callable(arguments.get("weight")):
        embeddings = [arguments[k] for k in ("z", "candidates")[: 1 + explicit]]
        dtype = accumulation_dtype(*embeddings)
        arguments["weight"] = as_pair_weight(arguments["weight"], dtype)

    whole = explicit and not arguments["candidates_sharded"]
    specs, arrays, options = {}, {}, {}
    for name, value in arguments.items():
        if value is None:
            continue
        if name in _ANCHORS or name in _CANDIDATES:
            spec = P() if whole and name in _CANDIDATES else P(axis_name)
            arrays[name] = _placed(name, value, mesh, axes, spec)
        elif name in _SHARED and not _is_number(value) and not isinstance(value, str):
            spec = P()
            arrays[name] = _placed(name, value, mesh, axes, spec) if name == "prototypes" else value
        else:
            options[name] = value.item() if isinstance(value, np.generic | np.ndarray) else value
            continue
        specs[name] = spec
    static = tuple(sorted(options.items()))
    return _mapped(loss, mesh, axis_name, static, tuple(sorted(specs.items())), arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _mapped(
    loss: Callable[..., Array],
    mesh: Mesh,
    axis_name: AxisName,
    options: tuple[tuple[str, Any], ...],
    specs: tuple[tuple[str, P], ...],
    arrays: dict[str, Any],
) -> Array:
    """The loss of arrays with these specs; calls with equal options share a compiled program."""

    def local(arrays: dict[str, Any]) -> Array:
        return loss(**arrays, **dict(options), axis_name=axis_name)

    out = P(axis_name) if dict(options).get("reduction") == "none" else P()
    # A weight that was traced outside does not know along which axes its numbers vary.
    check_vma = not isinstance(arrays.get("weight"), PairWeight)
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(dict(specs),), out_specs=out, check_vma=check_vma
    )
    return run(arrays)


def _is_number(value: Any) -> bool:
    """Whether the value is known wherever it is traced, so that a program may depend on it."""
    return np.ndim(value) == 0 and not isinstance(value, jax.Array) and not callable(value)


def _checked_labels(name: str, arguments: dict[str, Any]) -> Any:
    labels = arguments[name]
    labels = np.asarray(labels) if isinstance(labels, list | tuple) else labels
    check_labels(name, labels, arguments[name.replace("labels", "where")])
    return labels


def _checked_mesh(mesh: Mesh | None, axes: tuple[str, ...]) -> Mesh:
    mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if not mesh.axis_names:
        raise ValueError("mesh must be given, or set by jax.set_mesh; there is none.")
    if not axes:
        raise ValueError(f"axis_name must be of the mesh {mesh.axis_names}, got none.")
    for name in axes:
        if name not in mesh.axis_names:
            raise ValueError(f"axis_name must be of the mesh {mesh.axis_names}, got {name!r}.")
    return mesh


def _placed(name: str, value: Any, mesh: Mesh, axes: tuple[str, ...], spec: P) -> Any:
    """`value` with its rows as `spec` says."""
    devices = math.prod(mesh.shape[axis] for axis in axes)
    explicit = all(kind == AxisType.Explicit for kind in mesh.axis_types)

    def place(x: Any) -> Array:
        x = jnp.asarray(x)
        if spec != P() and len(x) % devices:
            raise ValueError(
                f"the number of rows of {name} must be a multiple of the {devices} devices along "
                f"{', '.join(map(repr, axes))}, got {len(x)}: pad the batch, with where=False for "
                "padding."
            )
        # Explicit meshes want to be told; on others the compiler does it.
        return jax.reshard(x, spec) if explicit else x

    return jax.tree.map(place, value)


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
prototype_loss = LOSSES["prototype"]
msc_loss = LOSSES["msc"]
mscwrg_loss = LOSSES["mscwrg"]
mscrg_loss = LOSSES["mscrg"]
label_wise_loss = LOSSES["label_wise"]
herocon_loss = LOSSES["herocon"]
