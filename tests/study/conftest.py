import jax
import pytest
from toys import write_toy_files

from sdjax.config import Config


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Studies compile the same programs again and again: once is enough."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    yield
    jax.config.update("jax_compilation_cache_dir", None)


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
