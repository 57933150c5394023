"""Operations of a compiled program: its matrix products and convolutions."""

import json
import math
import re

import numpy as np

from sdjax.forecast.hlo import Instruction, Program, elements, sizes, total


def flop(program: Program, unknown_rounds: float = 1.0) -> float:
    """Multiplications and additions in the matrix products and convolutions of a run.

    Args:
      program: on one device.
      unknown_rounds: of loops whose number of rounds the text does not tell.
    """
    return total(program.run(_flop, unknown_rounds))


def _flop(instruction: Instruction) -> float:
    (result, *_), types = elements(instruction.type) or ("",), instruction.operand_types
    if instruction.opcode == "dot":
        contracted = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        return _product_flop(result, types[0], contracted[0].split(","))
    if instruction.opcode == "convolution":
        return _convolution_flop(instruction.attributes, types[0], types[1], result)
    target = instruction.target
    if target.startswith("__cublas$"):
        return _product_flop(result, types[0], _contracted_by_library(instruction))
    # The attributes are those of the convolution of which it is the value or a gradient.
    if target == "__cudnn$convBackwardInput":
        return _convolution_flop(instruction.attributes, result, types[1], types[0])
    if target == "__cudnn$convBackwardFilter":
        return _convolution_flop(instruction.attributes, types[0], result, types[1])
    if target.startswith("__cudnn$conv"):
        return _convolution_flop(instruction.attributes, types[0], types[1], result)
    return 0.0


def _product_flop(result: str, left: str, contracted: list[str]) -> float:
    depth = math.prod(sizes(left)[int(axis)] for axis in contracted if axis)
    return 2.0 * math.prod(sizes(result)) * depth


def _contracted_by_library(call: Instruction) -> list[str]:
    """Axes of the left matrix that cuBLAS sums over."""
    text = call.attributes.partition("backend_config=")[2]
    config, _ = json.JSONDecoder().raw_decode(text)
    numbers = config.get("gemm_backend_config", config)["dot_dimension_numbers"]
    return numbers["lhs_contracting_dimensions"]


def _convolution_flop(attributes: str, left: str, kernel: str, out: str) -> float:
    """Twice the products of input and kernel, those with padding and dilation left out.

    On TPUs all matrix products are convolutions, whose window counts the axes of a batch.
    """
    labels = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)[0]
    inputs, weights, outputs = (
        dict(zip(names, sizes(each), strict=True))
        for names, each in zip(labels, (left, kernel, out), strict=True)
    )
    text = (re.findall(r"window=\{([^}]*)\}", attributes) or [""])[0]
    window = {name: value.split("x") for name, value in re.findall(r"(\w+)=(\S+)", text)}
    result = 2.0 * outputs["b"] * outputs["f"] * weights["i"]
    for place in filter(str.isdigit, weights):
        stride, dilation, spread = (
            int(window[name][int(place)]) if name in window else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(window["pad"][int(place)].split("_")[0]) if "pad" in window else 0
        end = (inputs[place] - 1) * dilation
        starts = stride * np.arange(outputs[place]) - before
        places = (starts + spread * k for k in range(weights[place]))
        result *= sum(int(((p >= 0) & (p <= end) & (p % dilation == 0)).sum()) for p in places)
    return result
