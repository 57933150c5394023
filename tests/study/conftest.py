import jax
import numpy as np
import pytest

from sdjax.config import Config


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Studies compile the same programs again and again: once is enough."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


def write_toy_files(folder, seed=0):
    """A small separable data set of four labels, one of them rare."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(4, 6))
    for name, size in (("train", 48), ("validation", 24), ("test", 32)):
        labels = rng.random((size, 4)) < [0.5, 0.5, 0.3, 0.1]
        x = labels @ directions + 0.3 * rng.normal(size=(size, 6))
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), labels=labels)


@pytest.fixture(scope="session")
def toy_config(tmp_path_factory):
    """A run of one epoch of three steps."""
    folder = tmp_path_factory.mktemp("toy")
    write_toy_files(folder)
    config = Config(recipe="joint", batch_size=16)
    config.data.name = "files"
    for split in ("train", "validation", "test"):
        setattr(config.data, split, str(folder / f"{split}.npz"))
    config.model.width, config.model.projection_dim = 8, 4
    config.supervise.epochs = 1
    return config
