"""What `prepare` of a subject gives, in its JAX and its PyTorch form."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], tuple[Any, Any]]


class Unavailable(Exception):  # noqa: N818  (a result to report, not a fault)
    """The subject does not exist here: a package or an implementation is missing."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A loss, ready to be computed.

    Attributes:
      run: computes and waits for (value, gradient), as arrays of its own library.
      compiled_bytes: temporaries and outputs that the compiler plans, None where none says.
      reset_peak, peak: the device's own peak of memory, where it keeps one.
    """

    run: Run
    compiled_bytes: Callable[[], int | None] = lambda: None
    reset_peak: Callable[[], None] = lambda: None
    peak: Callable[[], int | None] = lambda: None


def to_numpy(array: Any) -> np.ndarray:
    """An array of JAX or PyTorch in float64."""
    if hasattr(array, "detach"):
        array = array.detach().cpu().double().numpy()
    return np.asarray(array).astype(np.float64)


def jax_step(jitted: Any, *args: Any) -> Step:
    """Step of a jitted function that gives (value, gradient); compiles it."""
    import jax

    args = jax.block_until_ready(jax.tree.map(jax.numpy.asarray, args))
    # The call below finds this executable in jit's own cache.
    compiled = jitted.lower(*args).compile()

    def compiled_bytes() -> int | None:
        analysis = compiled.memory_analysis()
        if analysis is None:
            return None
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    before, old_peak = _device_bytes("bytes_in_use"), _device_bytes("peak_bytes_in_use")

    def peak() -> int | None:
        # Nothing resets it, so compiling may have set it; then only the compiler's plan is known.
        new_peak = _device_bytes("peak_bytes_in_use")
        if before is None or new_peak is None or new_peak == old_peak:
            return None
        return new_peak - before

    return Step(lambda: jax.block_until_ready(jitted(*args)), compiled_bytes, peak=peak)


def _device_bytes(key: str) -> int | None:
    import jax

    return (jax.devices()[0].memory_stats() or {}).get(key)


def torch_device() -> str:
    return os.environ.get("BENCHMARK_TORCH_DEVICE", "cpu")


def torch_step(loss: Callable[[Any], Any], z: np.ndarray, dtype: str) -> Step:
    """Step of a function from embeddings to a scalar, by PyTorch's autograd."""
    import torch

    device = torch_device()
    leaf = torch.tensor(z, dtype=getattr(torch, dtype), device=device, requires_grad=True)
    on_gpu = device != "cpu"

    def run() -> tuple[Any, Any]:
        leaf.grad = None
        value = loss(leaf)
        value.backward()
        if on_gpu:
            torch.cuda.synchronize()
        return value.detach(), leaf.grad

    if not on_gpu:
        # Thread pools and lazy libraries start here rather than in the measured call.
        with contextlib.suppress(RuntimeError):
            (torch.ones(512, 512) @ torch.ones(512, 512)).exp_().sum()
        return Step(run)
    before = torch.cuda.memory_allocated()
    return Step(
        run,
        reset_peak=torch.cuda.reset_peak_memory_stats,
        peak=lambda: torch.cuda.max_memory_allocated() - before,
    )
