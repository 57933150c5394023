"""Test session set-up: eight CPU devices, chosen before jax starts."""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# The helpers beside this file are importable whatever pytest's import mode is.
sys.path.insert(0, os.path.dirname(__file__))

import garbage
import hypothesis
import jax
import pytest
from compilation import compile_quickly
from drawing import leave_figures_empty

# Deterministic runs: a failure seen once is seen again, and nothing is written to disk.
hypothesis.settings.register_profile("sdjax", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("sdjax")

garbage.collect_seldom()

LOSS_TESTS = ("test_relations", "test_losses_")
# Compiled as users compile; the others take the quick path through the compiler.
OPTIMIZED_TESTS = ("test_losses_transforms", "test_metrics", "test_forecast")
# Files that take half a minute of a core.
LONG_TESTS = ("test_losses_tiled", "test_losses_exchange")
# Nothing is set for these: jax is as users have it.
TESTS_OF_DEFAULTS = ("test_losses_float32",)


def is_quick(item):
    return not item.path.name.startswith((*OPTIMIZED_TESTS, *TESTS_OF_DEFAULTS))


def is_long(item):
    return "training" in item.path.parts or item.path.name.startswith(LONG_TESTS)


def pytest_xdist_auto_num_workers(config):
    """Three on two cores: some tests wait for other processes."""
    return max(3, os.cpu_count() or 1)


def pytest_collection_modifyitems(items):
    """The files that take longest go early, so that all workers end together.

    Before them go those that are compiled as users compile: all else is forgotten in between.
    """
    items.sort(key=lambda item: (is_quick(item), not is_long(item)))


def pytest_collection_finish():
    garbage.collect()


@pytest.fixture(scope="module", autouse=True)
def compilation(request):
    compile_quickly(is_quick(request))
    yield
    garbage.collect()


@pytest.fixture(scope="module")
def two_devices():
    """Runs on two of the eight devices: programs for more compile and run longer."""
    from sdjax.training.mesh import make_mesh

    def of_two(config=None, devices=None):
        return make_mesh(config, devices or jax.devices()[:2])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdjax.training.setup.make_mesh", of_two)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    leave_figures_empty(monkeypatch.setattr)


@pytest.fixture(autouse=True)
def strict_numerics(request):
    """Runs the loss tests in 64 bits, with implicit rank and dtype promotion forbidden."""
    name = request.path.name
    if not name.startswith(LOSS_TESTS) or name.startswith(TESTS_OF_DEFAULTS):
        yield
        return
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield
