import copy
import errno
import functools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import garbage
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pods import free_port

from sdjax import LabelIndices
from sdjax.config import Config, MeshConfig
from sdjax.training import checkpoint as checkpoint_lib
from sdjax.training import state as state_lib
from sdjax.training.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    ForeignCheckpointError,
    UnreadableCheckpointError,
)
from sdjax.training.fingerprint import fingerprint
from sdjax.training.manifest import signed
from sdjax.training.mesh import make_mesh
from sdjax.training.recipes import make_phases
from sdjax.training.state import ExampleSpec, init_state

CONFIG = Config(recipe="joint")
CONFIG.model.encoder, CONFIG.model.width, CONFIG.model.projection_dim = "mlp", 8, 4
CONFIG.supervise.ema_decay = 0.9
(PHASE,) = make_phases(CONFIG, 10)
SPEC = ExampleSpec.of(
    jax.ShapeDtypeStruct((5,), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.uint8)
)


@functools.cache
def initial_state():
    return init_state(CONFIG, SPEC, PHASE, jax.random.key(0))


def state_at(step):
    state = initial_state()
    return state._replace(
        step=state.step + step, params=jax.tree.map(lambda x: x + step, state.params)
    )


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def abstract_of(config, mesh=None):
    return state_lib.abstract(config, SPEC, PHASE, mesh or one_device())


@functools.cache
def abstract_state():
    return abstract_of(CONFIG)


def abstract(position):
    return abstract_state()


def saved(folder, steps, keep=3):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, state_at(step), {"step": step, "phase": "joint"})
    checkpoints.close()


def restore(folder, abstract=abstract, **options):
    checkpoints = Checkpoints(folder, **options)
    try:
        return checkpoints.restore_newest(abstract)
    finally:
        checkpoints.close()
        garbage.collect()  # what threads of Orbax leave behind belongs to this test


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two checkpoints that no test changes."""
    folder = tmp_path_factory.mktemp("sound") / "c"
    saved(folder, [3, 5])
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in files_of(folder)}


def damage(folder, how):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if how == "truncate":
        for path in files:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty state":
        shutil.rmtree(folder / "state" / "d")
        shutil.rmtree(folder / "state" / "ocdbt.process_0")
    elif how == "no manifest":
        shutil.rmtree(folder / "manifest")


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
@pytest.mark.parametrize("how", ["truncate", "empty state", "no manifest"])
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
    damage(folder / "5", how)
    assert restore(folder)[1]["step"] == 3
    assert (tmp_path / "broken_checkpoints" / "5_2").exists()


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
    text = r"All checkpoints in .*/c .* damaged \(step 5: .*metadata.*; step 3: .*\). .* left there"
    with pytest.raises(DamagedCheckpointError, match=text) as caught:
        restore(folder)
    assert not re.search("remove|delete", str(caught.value), re.IGNORECASE)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "5"]


def test_a_sound_checkpoint_is_not_blamed_where_a_broken_one_cannot_be_moved(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3, 5])
    damage(folder / "5", "no manifest")
    (tmp_path / "broken_checkpoints").write_text("in the way")
    with pytest.raises(FileExistsError):
        restore(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["3", "5"]


def test_a_checkpoint_of_another_version_is_left_where_it_is(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3, 5])
    path = folder / "5" / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    del manifest["format"], manifest["crc32"]
    path.write_text(json.dumps(signed(manifest)))
    with pytest.raises(ForeignCheckpointError, match="step 5 in .* another version of sdjax"):
        restore(folder)
    assert (folder / "5").exists()


TRANSIENT = (
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError("Individual parameter subdirectory not found"),  # Orbax, for any OSError
    MemoryError("cannot allocate"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ValueError('PERMISSION_DENIED: Error opening "zarr" driver: Permission denied'),
    ValueError("RESOURCE_EXHAUSTED: Error decoding b-tree node: Too many open files"),
    ValueError("ZSTD_decompressStream() failed: Allocation error : not enough memory"),
    KeyError("value_metadata"),
)


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
@pytest.mark.parametrize("reader", ["read_manifest", "read_alone", "verify"])
def test_an_error_that_may_pass_stops_the_run_and_touches_nothing(
    sound, monkeypatch, reader, error
):
    before = contents(sound)
    checkpoints = Checkpoints(sound, keep=3)
    monkeypatch.setattr(checkpoint_lib, reader, raising(error))
    text = rf"The checkpoint of step 5 in {sound} cannot be read: {type(error).__name__}: "
    with pytest.raises(UnreadableCheckpointError, match=text) as caught:
        checkpoints.restore_newest(abstract)
    assert isinstance(caught.value, OSError) and caught.value.__cause__ is error
    assert str(error)[:300] in str(caught.value)
    assert "Run the same command again once the cause is gone." in str(caught.value)
    monkeypatch.undo()
    assert checkpoints.restore_newest(abstract)[1]["step"] == 5
    checkpoints.close()
    assert contents(sound) == before and not sound.with_name("broken_checkpoints").exists()


def test_an_error_that_may_pass_is_not_skipped_behind_a_damaged_checkpoint(tmp_path, monkeypatch):
    """What is damaged stays too: nothing is moved before a sound one is found."""
    saved(tmp_path / "c", [3, 5])
    damage(tmp_path / "c" / "5", "no manifest")
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    monkeypatch.setattr(checkpoint_lib, "verify", raising(OSError(errno.EIO, "error")))
    with pytest.raises(UnreadableCheckpointError, match="step 3"):
        checkpoints.restore_newest(abstract)
    checkpoints.close()
    assert (tmp_path / "c" / "5").exists()


# Threads of Orbax that read beside the one that failed complain of the loop it has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["manifest/metadata", "state/_METADATA", "state/d/*"])
def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path, name):
    """Really so: a link to itself, which no right to read everything opens."""
    folder = tmp_path / "c"
    saved(folder, [3, 5])
    (path,) = (folder / "5").glob(name)
    path.rename(tmp_path / "content")
    path.symlink_to(path.name)
    with pytest.raises(UnreadableCheckpointError, match=rf"step 5 in {folder} ") as caught:
        restore(folder)
    assert "Too many levels of symbolic links" in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(each.name for each in folder.iterdir()) == ["3", "5"]
    path.unlink()
    (tmp_path / "content").rename(path)
    assert restore(folder)[1]["step"] == 5


def test_a_disk_that_goes_away_is_no_damage(tmp_path, monkeypatch):
    folder = tmp_path / "c"
    saved(folder, [3])

    def gone(*_):
        folder.rename(tmp_path / "elsewhere")
        raise ValueError('NOT_FOUND: Error reading local file "d/0"')

    checkpoints = Checkpoints(folder, keep=3)
    monkeypatch.setattr(checkpoint_lib, "read_alone", gone)
    with pytest.raises(UnreadableCheckpointError, match="FileNotFoundError"):
        checkpoints.restore_newest(abstract)
    (tmp_path / "elsewhere").rename(folder)
    checkpoints.close()
    monkeypatch.undo()
    assert restore(folder)[1]["step"] == 3


def test_leftovers_of_a_killed_write_are_ignored(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3])
    shutil.copytree(folder / "3", folder / "5.orbax-checkpoint-tmp")
    assert restore(folder)[1]["step"] == 3


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def harm(path, how, rng):
    if how == "remove":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    if how == "truncate":
        del content[int(rng.integers(len(content))) :]
    elif content:
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["remove", "truncate", "flip a bit"])
def test_damage_to_any_file_is_found_or_harmless(tmp_path, how):
    """What comes back is the state that was saved, or the one before."""
    saved(tmp_path / "sound", [3, 5])
    rng = np.random.default_rng(0)
    fell_back = 0
    number = len(files_of(tmp_path / "sound" / "5"))
    for index in range(number):
        folder = tmp_path / str(index) / "c"
        shutil.copytree(tmp_path / "sound", folder)
        harm(files_of(folder / "5")[index], how, rng)
        state, position = restore(folder)
        assert position == {"step": position["step"], "phase": "joint"}
        assert position["step"] in (3, 5)
        fell_back += position["step"] == 3
        jax.tree.map(np.testing.assert_array_equal, state, state_at(position["step"]))
    assert 0 < fell_back <= number


def test_flipped_bits_of_the_arrays_are_found(tmp_path):
    """Also where the file itself is in order: its own checksums do not help then."""
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    state = state_at(3)
    checkpoints.save(3, state, {"step": 3, "phase": "joint"})
    checkpoints.wait()
    manifest = tmp_path / "c" / "3" / "manifest" / "metadata"
    assert manifest.exists()
    text = manifest.read_text()
    sums = fingerprint(state)
    for one, other, sign, error in (
        (f'"checksum": {sums[3]}', '"checksum": 1', False, "its manifest is not what was saved"),
        (f'"checksum": {sums[3]}', '"checksum": 1', True, "the array .* is not what was saved"),
        ('"step": 3', '"step": 2', False, "its manifest is not what was saved"),
    ):
        assert one in text
        changed = json.loads(text.replace(one, other))
        content = {name: value for name, value in changed.items() if name != "crc32"}
        manifest.write_text(json.dumps(signed(content) if sign else changed))
        with pytest.raises(DamagedCheckpointError, match=error):
            restore(tmp_path / "c", read_only=True)
    checkpoints.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
def test_fingerprints_change_with_any_bit_and_order(dtype):
    rng = np.random.default_rng(0)
    x = np.asarray(rng.integers(0, 2, (4, 5, 3)) if dtype == "bool" else rng.random((4, 5, 3)) * 99)
    x = np.asarray(x.astype(jnp.dtype(dtype)))
    (whole,) = fingerprint(jnp.asarray(x))
    assert fingerprint([jnp.asarray(x)] * 2) == [whole] * 2
    bits = x.view(np.uint8).reshape(-1)
    for _ in range(30):
        place = int(rng.integers(bits.size))
        flipped = bits.copy()
        flipped[place] ^= 1 if dtype == "bool" else 1 << int(rng.integers(8))
        assert fingerprint(jnp.asarray(flipped.view(x.dtype).reshape(x.shape))) != [whole]
    for other in (x[::-1], x[:, ::-1], x[:, :, ::-1], x.transpose(1, 0, 2)):
        assert fingerprint(jnp.asarray(other)) != [whole]


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_fingerprints_of_64_bits(dtype):
    with jax.enable_x64(True):
        x = np.arange(1, 9).astype(dtype)
        (whole,) = fingerprint(jnp.asarray(x))
        for place in range(64):
            flipped = x.copy()
            flipped.view(np.uint64)[3] ^= np.uint64(1) << np.uint64(place)
            assert fingerprint(jnp.asarray(flipped)) != [whole]


def test_fingerprints_of_changes_that_could_cancel():
    """Values that differ by high bits alone, such as signs."""
    rng = np.random.default_rng(0)
    signs = np.where(rng.random(64) < 0.5, -1, 1).astype(np.float32)
    for x in (signs, np.zeros(64, np.float32), signs.astype(np.int32) << 30):
        (whole,) = fingerprint(jnp.asarray(x))
        for _ in range(30):
            permuted, negated = rng.permutation(x), x.copy()
            negated.view(np.uint32)[rng.choice(64, 2, replace=False)] ^= np.uint32(1 << 31)
            assert (fingerprint(jnp.asarray(permuted)) == [whole]) == np.array_equal(permuted, x)
            assert fingerprint(jnp.asarray(negated)) != [whole]
        assert fingerprint(jnp.asarray(x[:-1])) != [whole]


def test_fingerprints_of_scalars_and_empty_arrays():
    assert fingerprint(jnp.float32(1)) != fingerprint(jnp.float32(-1))
    assert fingerprint(jnp.zeros((0, 3))) == [0]
    assert fingerprint(()) == []


def test_fingerprints_are_compiled_once(caplog):
    state = state_at(3)
    other = jax.tree.map(lambda x: x + 1, state)
    first = fingerprint(state)
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        assert fingerprint(other) != first
    assert "ompil" not in caplog.text


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (4, 1), (4, 4), (8, 2)])
def test_restores_on_any_number_of_devices(tmp_path, devices, fsdp):
    config = copy.deepcopy(CONFIG)
    config.model.width = 64

    def make():
        return init_state(config, SPEC, PHASE, jax.random.key(0))

    state = state_lib.place(make, make_mesh(MeshConfig(fsdp=4)))
    sums = fingerprint(state)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {"step": 1})
    checkpoints.close()
    mesh = make_mesh(MeshConfig(fsdp=fsdp), jax.devices()[:devices])
    restored, _ = restore(tmp_path / "c", lambda position: abstract_of(config, mesh))
    kernel = restored.params["encoder"]["layers"][1]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 64 // fsdp, 64)
    assert len(kernel.sharding.device_set) == devices
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert fingerprint(restored) == sums == fingerprint(make())


def test_a_checkpoint_of_another_model_says_what_differs(tmp_path):
    folder = tmp_path / "c"
    saved(folder, [3])
    wider, averaged = copy.deepcopy(CONFIG), make_phases(Config(recipe="joint"), 10)[0]
    wider.model.width = 16
    text = r"another model .*kernel.*float32 \[1, 5, 8\] there, float32 \[1, 5, 16\] here.* more"
    with pytest.raises(ForeignCheckpointError, match=text):
        restore(folder, lambda position: abstract_of(wider))
    with pytest.raises(
        ForeignCheckpointError, match=r"average.*float32 \[1, 3\] there, absent here"
    ):
        restore(folder, lambda p: state_lib.abstract(CONFIG, SPEC, averaged, one_device()))
    assert restore(folder)[1]["step"] == 3


FULL_DISK = """
import sys
from pathlib import Path
from test_checkpoint import Checkpoints, jax, jnp, state_at

folder, grow = Path(sys.argv[1]), int(sys.argv[2])
checkpoints = Checkpoints(folder, keep=2)
try:
    for step in (1, 2):
        checkpoints.save(step, state_at(step), {"step": step})
    checkpoints.wait()
    key = jax.random.key(0)
    big = state_at(3)._replace(aux={"big": jax.random.normal(key, (grow, 2**18))})
    checkpoints.save(3, big, {"step": 3})
    checkpoints.wait()
except OSError as error:
    print("OSError:", error)
try:
    checkpoints.close()
except OSError as error:
    print("again:", error)
"""


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_saved(tmp_path):
    """A real one, of 4 MiB; there has to be the right to mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk cannot be mounted here")
    try:
        check_full_disk(disk / "c")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_file_that_may_not_grow_keeps_what_is_saved(tmp_path):
    """As a quota does it: files of more than 1 MiB cannot be written."""
    check_full_disk(tmp_path / "c", ["bash", "-c", 'ulimit -f 1024; trap "" XFSZ; exec "$@"', "-"])


FULL_DISK_OF_ONE = """
import resource, signal, sys
from pathlib import Path
from sdjax.training.processes import initialize

folder, port, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
initialize(f"localhost:{port}", 2, number, start_timeout=60, heartbeat_timeout=10)
from jax.sharding import NamedSharding, PartitionSpec as P
from sdjax.config import MeshConfig
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.errors import reported_errors
from sdjax.training.mesh import make_mesh
from sdjax.training.recipes import make_phases
import jax

sharding = NamedSharding(make_mesh(MeshConfig(fsdp=2)), P(None, "fsdp"))

def state(rows):
    make = lambda: jax.random.normal(jax.random.key(0), (rows, 1024))
    return {"x": jax.jit(make, out_shardings=sharding)()}

with reported_errors():
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state(8), {"step": 1})
    checkpoints.wait()
    if number == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    checkpoints.save(2, state(2048), {"step": 2})
    checkpoints.wait()
"""


def run_pair(command, folder):
    """Exit statuses and logs of two processes, each of which gets its number as last argument."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    logs = [folder / f"{number}.log" for number in (0, 1)]
    processes = []
    for number, path in enumerate(logs):
        with path.open("wb") as log:
            processes.append(
                subprocess.Popen([*command, str(number)], env=environment, stdout=log, stderr=log)
            )
    try:
        statuses = [process.wait(90) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return statuses, [path.read_text(errors="replace") for path in logs]


@pytest.mark.slow
def test_one_of_two_processes_cannot_write_and_both_end_soon(tmp_path):
    """Orbax alone would have them wait for each other for 20 minutes."""
    command = [sys.executable, "-c", FULL_DISK_OF_ONE, str(tmp_path / "c"), str(free_port())]
    statuses, texts = run_pair(command, tmp_path)
    assert all(statuses), texts
    failed = f"Error: The checkpoint of step 2 could not be written to {tmp_path / 'c'}: "
    assert failed in texts[1] and "Kept: those of steps 1." in texts[1], texts[1][-3000:]
    reasons = ("another process could not write its part", "another task died", "lost another")
    assert any(reason in texts[0] for reason in reasons), texts[0][-3000:]
    assert (tmp_path / "c" / "1").exists() and not (tmp_path / "c" / "2").exists()


def check_full_disk(folder, prefix=()):
    folders = [str(each) for each in Path(__file__).parents[:2]]
    code = f"import sys; sys.path[:0] = {folders}\n{FULL_DISK}"
    command = [*prefix, sys.executable, "-c", code, str(folder), "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    text = f"OSError: The checkpoint of step 3 could not be written to {folder}: "
    assert text in done.stdout, done.stdout + done.stderr
    assert "Kept: those of steps 1, 2. The same command resumes from the last." in done.stdout
    assert restore(folder, keep=2)[1]["step"] == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    saved(folder, [3], keep=2)
    assert restore(folder)[1]["step"] == 3


def tiny(step):
    return {"x": jnp.arange(4.0) + step}


def of_tiny(position):
    return jax.eval_shape(lambda: tiny(0))


def save_tiny(folder, values, **options):
    """Saves steps with a value of the metric each; None where there was no validation."""
    name = options.setdefault("best_by", "mAP")
    checkpoints = Checkpoints(folder, **options)
    for step, value in values.items():
        metrics = None if value is None else {name or "mAP": value, "other": 1.0}
        checkpoints.save(step, tiny(step), {"step": step}, metrics)
    checkpoints.close()
    return steps_in(folder)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept_beside_the_newest_also_by_the_next_process(tmp_path, keep):
    folder = tmp_path / "c"
    assert save_tiny(folder, {1: 0.1, 2: 0.5, 3: 0.2}, keep=keep) == [2, 3]
    kept = save_tiny(folder, {4: 0.3, 5: 0.3, 6: 0.4}, keep=keep)
    assert kept == [2, *range(7 - keep, 7)]
    checkpoints = Checkpoints(folder, keep=keep, best_by="mAP")
    assert (checkpoints.steps(), checkpoints.best_step()) == (kept, 2)
    state, position = checkpoints.restore_best(of_tiny)
    assert position == {"step": 2}
    np.testing.assert_array_equal(state["x"], tiny(2)["x"])
    assert checkpoints.restore_newest(of_tiny)[1] == {"step": 6}
    checkpoints.save(7, tiny(7), {"step": 7}, {"mAP": 0.6})
    checkpoints.close()
    assert (checkpoints.steps(), checkpoints.best_step()) == ([6, 7] if keep == 2 else [7], 7)
    assert steps_in(folder) == checkpoints.steps()


@pytest.mark.parametrize(
    ("best_by", "values", "best"),
    [
        ("mAP", {1: 0.2, 2: 0.7, 3: 0.7, 4: 0.3}, 2),  # of equal ones the earlier
        ("mAP", {1: 0.2, 2: float("nan"), 3: float("inf"), 4: 0.1}, 1),
        ("mAP", {1: None, 2: 0.1, 3: None, 4: None}, 2),
        ("mAP", {1: None, 2: None}, None),
        ("mAP", {1: -0.5, 2: -0.2, 3: -0.3}, 2),
        ("loss", {1: 3.0, 2: 1.0, 3: 1.0, 4: 2.0}, 2),
        ("bce", {1: 0.1, 2: 0.2}, 1),
        ("contrastive", {1: 5.0, 2: 0.2, 3: 3.0}, 2),
        ("ranking_loss", {1: 0.3, 2: 0.2, 3: 0.25}, 2),
        ("", {1: 0.3, 2: 0.2}, None),
    ],
)
def test_which_is_the_best(tmp_path, best_by, values, best):
    last = max(values)
    kept = save_tiny(tmp_path / "c", values, best_by=best_by)
    assert kept == sorted({best or last, last})
    checkpoints = Checkpoints(tmp_path / "c", best_by=best_by, read_only=True)
    assert (checkpoints.steps(), checkpoints.best_step()) == (kept, best)
    restored = checkpoints.restore_best(of_tiny)
    assert restored is None if best is None else restored[1] == {"step": best}
    checkpoints.close()


def test_a_damaged_best_gives_way_to_the_next_best(tmp_path):
    folder = tmp_path / "c"
    save_tiny(folder, {1: 0.4, 2: 0.5, 3: 0.1, 4: None}, keep=4)
    damage(folder / "2", "no manifest")
    checkpoints = Checkpoints(folder, keep=4, best_by="mAP")
    assert checkpoints.best_step() == 1  # a value whose manifest is damaged does not count
    checkpoints.close()
    shutil.rmtree(folder)
    save_tiny(folder, {1: 0.4, 2: 0.5, 3: 0.1, 4: None}, keep=4)
    (folder / "2" / "state" / "_METADATA").unlink()
    checkpoints = Checkpoints(folder, keep=4, best_by="other")
    assert checkpoints.best_step() == 1
    checkpoints.close()
    shutil.rmtree(folder)
    save_tiny(folder, {1: 0.4, 2: 0.5, 3: 0.1, 4: None}, keep=4)
    for path in (folder / "2" / "state").glob("d/*"):
        path.write_bytes(b"")
    checkpoints = Checkpoints(folder, keep=4, best_by="mAP")
    assert checkpoints.best_step() == 2
    assert checkpoints.restore_best(of_tiny)[1] == {"step": 1}
    assert (checkpoints.steps(), checkpoints.best_step()) == ([1, 3, 4], 1)
    assert (tmp_path / "broken_checkpoints" / "2").exists()
    checkpoints.save(5, tiny(5), {"step": 5}, {"mAP": 0.2})
    checkpoints.close()
    assert steps_in(folder) == [1, 3, 4, 5]


def test_metrics_that_cannot_be_read_stop_the_run(tmp_path, monkeypatch):
    """Else the best one would be deleted, as if it had none."""
    save_tiny(tmp_path / "c", {1: 0.4, 2: 0.5})
    monkeypatch.setattr(checkpoint_lib, "read_manifest", raising(OSError(errno.EIO, "error")))
    with pytest.raises(UnreadableCheckpointError, match=r"step 2 .* \[Errno 5\] error"):
        Checkpoints(tmp_path / "c", best_by="mAP")
    garbage.collect()


def test_a_metric_that_is_not_there(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", best_by="map")
    with pytest.raises(ValueError, match=r"best_by .* \(loss, mAP\), got 'map'"):
        checkpoints.save(1, tiny(1), {"step": 1}, {"mAP": 0.1, "loss": 1.0})
    checkpoints.close()


def test_steps_are_saved_in_order(tmp_path):
    """Orbax alone passes over an earlier step in silence."""
    checkpoints = Checkpoints(tmp_path / "c", keep=3, best_by="mAP")
    checkpoints.save(4, tiny(4), {"step": 4}, {"mAP": 0.5})
    checkpoints.save(4, tiny(9), {"step": 4}, {"mAP": 0.9})
    with pytest.raises(ValueError, match=r"order of their steps: got step 3, .* of step 4"):
        checkpoints.save(3, tiny(3), {"step": 3})
    np.testing.assert_array_equal(checkpoints.restore_best(of_tiny)[0]["x"], tiny(4)["x"])
    checkpoints.close()


class OddState(NamedTuple):
    """A state with other fields than those of `TrainState`."""

    count: jax.Array
    model: nnx.State
    aux: dict[str, Any]
    nothing: Any


def odd_state():
    with jax.default_device(jax.devices()[0]):
        model = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
        labels = LabelIndices(jnp.array([[0, 2], [1, -1]], jnp.int32), 5)
        queue = {"z": jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16), "labels": labels}
        return OddState(jnp.int32(3), model, {"memory": queue, "flags": jnp.array([True])}, None)


def test_any_pytree_is_restored(tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=4))
    state = state_lib.place(odd_state, mesh)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {"step": 1})
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    restored, _ = checkpoints.restore_newest(lambda position: wanted)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert isinstance(restored, OddState) and restored.nothing is None
    assert restored.aux["memory"]["labels"].num_classes == 5
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
        assert one.dtype == other.dtype and one.sharding == other.sharding
        np.testing.assert_array_equal(one, other)


def test_a_subtree_more_or_less_is_another_model(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, odd_state(), {"step": 1})
    checkpoints.wait()
    fewer = jax.eval_shape(lambda: odd_state()._replace(aux=None))
    more = jax.eval_shape(lambda: odd_state()._replace(nothing=jnp.zeros(2)))
    with pytest.raises(ForeignCheckpointError, match=r"aux\['flags'\]: bool \[1\] there, absent"):
        checkpoints.restore_newest(lambda position: fewer)
    with pytest.raises(ForeignCheckpointError, match=r"nothing: absent there, float32 \[2\] here"):
        checkpoints.restore_newest(lambda position: more)
    checkpoints.close()


POD = """
import errno, sys
from pathlib import Path
from sdjax.training.processes import initialize

folder, port, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
initialize(f"localhost:{port}", 2, number, start_timeout=60, heartbeat_timeout=10)
from jax.sharding import NamedSharding, PartitionSpec as P
from sdjax.config import MeshConfig
from sdjax.training import checkpoint
from sdjax.training.mesh import make_mesh
from sdjax.training.recipes import make_phases
from sdjax.training.processes import gather_texts
import jax

sharding = NamedSharding(make_mesh(MeshConfig(fsdp=2)), P("fsdp"))
make = lambda: {"x": jax.random.normal(jax.random.key(0), (512,))}
abstract = lambda position: {"x": jax.ShapeDtypeStruct((512,), "float32", sharding=sharding)}
checkpoints = checkpoint.Checkpoints(folder, keep=2, best_by="mAP")
for step, value in ((1, 0.5), (2, 0.1), (3, 0.2), (4, 0.3)):
    # What process 0 says counts.
    metrics = {"mAP": value if number == 0 else step}
    state = jax.jit(make, out_shardings={"x": sharding})()
    checkpoints.save(step, state, {"step": step}, metrics)
checkpoints.wait()
print("kept", checkpoints.steps(), checkpoints.best_step())

read, damaged = checkpoint.read_alone, checkpoint.DamagedCheckpointError("by test")
def attempt(errors):
    def reading(path, target):
        error = errors.get(number) if path.parent.name == "4" else None
        if error is not None:
            raise error
        return read(path, target)
    checkpoint.read_alone = reading
    try:
        print("restored", checkpoints.restore_newest(abstract)[1])
    except OSError as error:
        print(type(error).__name__, error)
    print("there", checkpoints.steps())
attempt({1: OSError(errno.ESTALE, "Stale file handle")})
attempt({0: ValueError("DATA_LOSS: by test"), 1: MemoryError("none left")})
attempt({1: ValueError("DATA_LOSS: by test")})
gather_texts("")  # none goes before all are here
checkpoints.close()
"""


def test_two_processes_come_to_one_verdict(tmp_path):
    command = [sys.executable, "-c", POD, str(tmp_path / "c"), str(free_port())]
    statuses, texts = run_pair(command, tmp_path)
    assert statuses == [0, 0], texts
    for number, text in enumerate(texts):
        stale, full, fell_back = text.split("kept [1, 3, 4] 1\n")[1].split("there ")[:3]
        assert "UnreadableCheckpointError" in stale and "OSError: [Errno 116]" in stale
        assert ("Process 1: The checkpoint of step 4" in stale) == (number == 0)
        assert full.startswith("[1, 3, 4]\n")
        assert "UnreadableCheckpointError" in full and "MemoryError: none left" in full
        assert fell_back.startswith("[1, 3, 4]\n") and "restored {'step': 3}" in fell_back
        assert text.rstrip().endswith("there [1, 3]")
    assert steps_in(tmp_path / "c") == [1, 3]
    assert (tmp_path / "broken_checkpoints" / "4").exists()
