"""NVIDIA GPUs to compile for, without a GPU: by XLA's plugin for CUDA."""

import importlib.util
import logging
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from sdjax.errors import InputError
from sdjax.forecast.chips import Chip

NOTE = (
    "Bounds, not a forecast: times are lower bounds, at the card's published rates, and examples/s "
    "an upper bound. Kernels were not tuned, as that takes the card, and none was timed. A batch "
    "fits if its peak is at most .75 of the card's memory, which JAX takes by default "
    "(XLA_CLIENT_MEM_FRACTION). See docs/gpu.md."
)
GPUS_OF_A_HOST = 8
_PLUGINS = ("jax-cuda12-pjrt", "jax-cuda13-pjrt")
_INSTALL = 'pip install -e ".[train,gpu-forecast]"'


@dataclass(frozen=True)
class _Card:
    """What XLA's code generator has to know of a card, beside memory and cache."""

    description: str
    capability: int
    cores: int
    units: int  # for float32, in a core
    shared_memory: int  # bytes in a core; a block may ask for 1 KiB less
    gigahertz: float


# https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs:
# a100_sxm_80.txtpb, h100_sxm.txtpb, h200.txtpb, b200.txtpb.
_CARDS = {
    "a100": _Card("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167_936, 1.41),
    "h100": _Card("NVIDIA H100 80GB HBM3", 9, 132, 128, 233_472, 1.98),
    "h200": _Card("NVIDIA H200 141GB HBM3e", 9, 132, 128, 233_472, 1.98),
    "b200": _Card("NVIDIA B200", 10, 148, 128, 233_472, 1.965),
}


def devices(chip: Chip, shape: str) -> list[Any]:
    """The GPUs of one or more hosts: "8", "16" for two hosts of 8, "2x4" for two hosts of 4.

    Raises:
      InputError: if that many are not whole hosts, or there is no compiler for them.
    """
    from jax.experimental import topologies

    hosts, each = _hosts(chip, shape)
    _check_compiler()
    # Otherwise it tells that it has no kernels of JAX's own, which no program here calls.
    for name in ("xla_cuda12", "xla_cuda13"):
        logging.getLogger(f"jax_plugins.{name}").setLevel(logging.ERROR)
    try:
        description = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(chip), topology=f"1x{hosts}x{each}"
        )
    except Exception as error:  # The plugin's own types.
        reason = str(error).splitlines()[0][:300]
        raise InputError(f"topology '{chip.name}:{shape}': {reason}") from error
    return list(description.devices)


def target_config(chip: Chip) -> str:
    """The card as XLA's GpuTargetConfigProto, in text."""
    card = _CARDS[chip.name]
    # Instructions that only this generation has: matrix products of warp groups, for one.
    extension = "feature_extension: ACCELERATED_FEATURES" if card.capability >= 9 else ""
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {card.capability} {extension} }}
  core_count: {card.cores}
  fpus_per_core: {card.units}
  clock_rate_ghz: {card.gigahertz}
  device_memory_size: {chip.memory:.0f}
  memory_bandwidth: {chip.memory_bandwidth:.0f}
  l2_cache_size: {chip.cache:.0f}
  shared_memory_per_core: {card.shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {card.shared_memory - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{card.description}"
"""


def _hosts(chip: Chip, shape: str) -> tuple[int, int]:
    """Number of hosts, and of GPUs in each."""
    hosts = each = 0
    if re.fullmatch(r"\d+x\d+", shape):
        hosts, each = map(int, shape.split("x"))
    elif re.fullmatch(r"\d+", shape):
        count = int(shape)
        whole = count % GPUS_OF_A_HOST == 0
        hosts, each = (count // GPUS_OF_A_HOST, GPUS_OF_A_HOST) if whole else (1, count)
    if not hosts or not 0 < each <= GPUS_OF_A_HOST:
        raise InputError(
            f"topology must be {chip.name}:COUNT, up to {GPUS_OF_A_HOST} GPUs or a multiple of it, "
            f"or {chip.name}:HOSTSxCOUNT with up to {GPUS_OF_A_HOST} in each host; got "
            f"'{chip.name}:{shape}'."
        )
    return hosts, each


def _check_compiler() -> None:
    """Raises InputError unless the plugin of jaxlib's version is there, and CUDA's assembler."""
    found = {name: version for name in _PLUGINS if (version := _version(name))}
    if not found:
        raise InputError(f"XLA's compiler for NVIDIA GPUs is not installed: {_INSTALL}.")
    wanted = _version("jaxlib")
    if wanted not in found.values():
        name, version = next(iter(found.items()))
        parts = (name, name.replace("pjrt", "plugin"))
        exact = " ".join(f"{part}=={wanted}" for part in parts if _version(part))
        raise InputError(
            f"{name} {version} does not match jaxlib {wanted}: pip install --no-deps {exact}."
        )
    if not (_has("nvidia.cuda_nvcc") or _has("nvidia.cu13") or shutil.which("ptxas")):
        raise InputError(f"CUDA's assembler, ptxas, is not installed: {_INSTALL}.")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False
