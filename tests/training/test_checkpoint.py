import shutil

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from sdjax.config import Config
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.phases import make_phases
from sdjax.training.state import init_state

CONFIG = Config(recipe="joint")
CONFIG.model.encoder, CONFIG.model.width, CONFIG.model.projection_dim = "mlp", 8, 4
CONFIG.supervise.ema_decay = 0.9
(PHASE,) = make_phases(CONFIG, 10)


def state_at(step):
    state = init_state(CONFIG, (5,), 3, PHASE)
    return state._replace(
        step=state.step + step, params=jax.tree.map(lambda x: x + step, state.params)
    )


def abstract(position):
    return jax.eval_shape(lambda: init_state(CONFIG, (5,), 3, PHASE))


def saved(folder, steps, keep=3):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, state_at(step), {"step": step, "phase": "joint"})
    checkpoints.close()


def restore(folder, **options):
    checkpoints = Checkpoints(folder, **options)
    try:
        return checkpoints.restore_newest(abstract, SingleDeviceSharding(jax.devices()[0]))
    finally:
        checkpoints.close()


def damage(folder, how):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if how == "truncate":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty state":
        shutil.rmtree(folder / "state" / "d")
        shutil.rmtree(folder / "state" / "ocdbt.process_0")
    elif how == "no position":
        shutil.rmtree(folder / "position")


def test_nothing_saved(tmp_path):
    assert restore(tmp_path / "c") is None


def test_restores_the_newest_exactly(tmp_path):
    saved(tmp_path / "c", [3, 5])
    state, position = restore(tmp_path / "c")
    assert position == {"step": 5, "phase": "joint"}
    jax.tree.map(np.testing.assert_array_equal, state, state_at(5))


def test_keeps_as_many_as_asked_for(tmp_path):
    saved(tmp_path / "c", [1, 2, 3, 4], keep=2)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["3", "4"]


# Threads of Orbax that read beside the one that failed complain of the loop it has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["truncate", "empty state", "no position"])
def test_a_broken_newest_checkpoint_is_set_aside(tmp_path, how):
    folder = tmp_path / "c"
    saved(folder, [3, 5])
    damage(folder / "5", how)
    state, position = restore(folder)
    assert position["step"] == 3
    jax.tree.map(np.testing.assert_array_equal, state, state_at(3))
    assert (tmp_path / "broken_checkpoints" / "5").exists()
    saved(folder, [5])
    assert restore(folder)[1]["step"] == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_reading_alone_leaves_a_broken_checkpoint_where_it_is(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3, 5])
    damage(folder / "5", "truncate")
    assert restore(folder, read_only=True)[1]["step"] == 3
    assert (folder / "5").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_all_broken(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3, 5])
    damage(folder / "3", "truncate")
    damage(folder / "5", "truncate")
    with pytest.raises(ValueError, match=r"None of the checkpoints .* can be read \(steps 5, 3\)"):
        restore(folder)


def test_leftovers_of_a_killed_write_are_ignored(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3])
    shutil.copytree(folder / "3", folder / "5.orbax-checkpoint-tmp")
    assert restore(folder)[1]["step"] == 3
