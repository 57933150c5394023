"""Test session set-up: eight CPU devices, chosen before jax starts."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# The helpers beside this file are importable whatever pytest's import mode is.
sys.path.insert(0, os.path.dirname(__file__))

import hypothesis
import jax
import pytest

# Deterministic runs: a failure seen once is seen again, and nothing is written to disk.
hypothesis.settings.register_profile("sdjax", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("sdjax")

LOSS_TESTS = ("test_relations", "test_losses_")
# Compiled as users compile; the others take the quick path through the compiler.
OPTIMIZATION = "jax_disable_most_optimizations"
OPTIMIZED_TESTS = ("test_losses_transforms",)
# Nothing is set for these: jax is as users have it.
TESTS_OF_DEFAULTS = ("test_losses_float32",)


@pytest.fixture(autouse=True)
def strict_numerics(request):
    """Runs the loss tests in 64 bits, with implicit rank and dtype promotion forbidden."""
    name = request.path.name
    if not name.startswith(LOSS_TESTS) or name.startswith(TESTS_OF_DEFAULTS):
        yield
        return
    quick = not name.startswith(OPTIMIZED_TESTS)
    before = jax.config.read(OPTIMIZATION)
    jax.config.update(OPTIMIZATION, quick)
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield
    jax.config.update(OPTIMIZATION, before)
