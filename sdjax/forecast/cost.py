"""Operations that a traced program asks of one device."""

import functools
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

Program = ClosedJaxpr | Jaxpr
# What a device sends: by primitive, the pattern.
SENDS = {
    "ppermute": "ring",
    "all_gather": "gathered",
    "all_gather_invariant": "gathered",
    "reduce_scatter": "scattered",
    "psum_scatter": "scattered",
}


def counted(program: Program, unknown_rounds: float, share: float = 1.0) -> dict[str, float]:
    """Operations of products, and bytes that a device sends inside shard_map.

    Loops count as often as they run; of the branches of a condition, the largest counts.

    Args:
      program: a jaxpr, `jax.jit(f).trace(...).jaxpr`.
      unknown_rounds: of `while` loops, whose number of rounds the program does not tell.
      share: the part of the work outside shard_map that a device does, 1 / devices if it is spread
        evenly.

    Returns:
      {"flop", "ring", "gathered", "scattered"}: multiplications and additions of matrix products
      and convolutions; bytes by pattern.
    """
    count = functools.partial(counted, unknown_rounds=unknown_rounds)
    totals = dict.fromkeys(("flop", *SENDS.values()), 0.0)
    for equation in _jaxpr(program).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left: Any = equation.invars[0].aval
            depth = np.prod([left.shape[k] for k in contracted])
            totals["flop"] += 2 * share * _elements(equation.outvars[0].aval) * float(depth)
        elif name == "conv_general_dilated":
            totals["flop"] += share * _convolution_flop(equation)
        elif name in SENDS:
            # The larger side is what passes through a device's links, less its own part.
            sizes = [_bytes(v.aval) for v in (*equation.invars, *equation.outvars)]
            totals[SENDS[name]] += max(sizes)
        rounds = {"scan": params.get("length"), "while": unknown_rounds}.get(name, 1)
        within = 1.0 if name == "shard_map" else share
        branches = [count(inner, share=within) for inner in _programs(params)]
        for kind in totals:
            found = [branch[kind] for branch in branches]
            totals[kind] += rounds * (max(found, default=0) if name == "cond" else sum(found))
    return totals


def _convolution_flop(equation: Any) -> float:
    """Each output is a product over the window and the input channels of its group."""
    params, kernel = equation.params, equation.invars[1].aval
    spec = params["dimension_numbers"].rhs_spec
    window = [kernel.shape[k] for k in spec[1:]]
    flop = 2 * _elements(equation.outvars[0].aval) * float(np.prod(window))
    # Of a spread-out input, most of a window meets zeros.
    return flop / float(np.prod(params["lhs_dilation"]))


def _programs(params: dict[str, Any]) -> list[Program]:
    """The programs inside an operation."""
    flat = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Program))
    return [x for x in flat if isinstance(x, Program)]


def _jaxpr(program: Program) -> Jaxpr:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _elements(aval: Any) -> float:
    return float(np.prod(aval.shape))


def _bytes(aval: Any) -> float:
    return _elements(aval) * aval.dtype.itemsize
