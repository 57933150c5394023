import copy

import jax
import pytest
from drawing import leave_figures_empty
from pod_worker import FEW_TREES
from pods import write_toy_files

from sdjax.config import Config


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory, worker_id):
    """Runs compile the same programs again and again: once is enough, for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "compiled"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    yield folder
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def small_reports():
    """Runs are tested here, not what their reports show: no figures, and few trees."""
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_empty(patch.setattr)
        patch.setattr("sdjax.report.baselines.TREES", FEW_TREES)
        yield


@pytest.fixture(scope="session")
def toy_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_toy_files(folder)
    return folder


@pytest.fixture
def toy_config(toy_files):
    """2 epochs a phase of 5 steps each, each batch padded, saved at its end: a few seconds."""
    config = Config(recipe="joint", batch_size=16)
    config.data.name = "files"
    config.data.train = str(toy_files / "train.npz")
    config.data.validation = str(toy_files / "validation.npz")
    config.data.test = str(toy_files / "test.npz")
    config.model.width = 16
    config.model.projection_dim = 8
    config.pretrain.epochs = config.supervise.epochs = 2
    config.evaluate_every = 1
    config.log_every = 1
    config.checkpoint_every = 1000
    config.report.baselines = False
    return copy.deepcopy(config)
