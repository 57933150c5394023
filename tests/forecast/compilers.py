"""Marks of tests that need a compiler for devices that are not here."""

import importlib.util
from importlib import metadata

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
needs_cuda = pytest.mark.skipif(
    not {"jax-cuda12-pjrt", "jax-cuda13-pjrt"} & {each.name for each in metadata.distributions()},
    reason="XLA's compiler for NVIDIA GPUs is not installed",
)
