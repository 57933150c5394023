"""Many processes: the same run as one, and the errors that only they can make."""

import itertools
import json
import signal

import jax
import pytest
from pods import STEPS, Pod, assert_same_run, free_port

from sdjax.training import make_setup, score, select, train
from sdjax.training.mesh import make_mesh
from sdjax.training.workdir import read_config

PER_EPOCH = 5
SHAPES = ("1x8", "2x4", "4x2")
PLANS = (
    (1, "SIGKILL@step:7"),
    (0, "SIGKILL@step:3"),
    (0, "SIGKILL@write:4"),
    (1, "SIGKILL@write:5"),
    (0, "SIGKILL@evaluation:3"),
    (1, "SIGKILL@evaluation:4"),
)


@pytest.fixture(scope="module")
def alone(toy_files, tmp_path_factory):
    """The run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    return Pod(toy_files, workdir, "1x1", checkpoint_every=10).finish()


@pytest.fixture(scope="module")
def pair(toy_files, tmp_path_factory):
    """The run of two processes with one device each."""
    return Pod(toy_files, tmp_path_factory.mktemp("pair") / "run", "2x1").finish()


def assert_each_row_once_an_epoch(batches):
    assert len(batches) == STEPS
    for start in range(0, STEPS, PER_EPOCH):
        rows = itertools.chain(*batches[start : start + PER_EPOCH])
        assert sorted(rows) == list(range(70))


def check(toy_files, alone, workdir, shape, **options):
    pod = Pod(toy_files, workdir, shape, **options).finish()
    assert_same_run(alone.workdir, workdir, rtol=1e-4)
    assert_each_row_once_an_epoch(pod.rows_read())
    return pod


@pytest.mark.slow
def test_two_processes_choose_as_one(toy_files, tmp_path):
    overrides = {
        "recipe": "bce", "supervise.epochs": 2, "supervise.learning_rate": 0.01, "refit": True,
        "candidates": "('seed=1', 'seed=2')",
    }  # fmt: skip
    workdirs = [tmp_path / "alone", tmp_path / "pair"]
    Pod(toy_files, workdirs[1], "2x1", **overrides).finish()
    one_device = make_mesh(devices=jax.devices()[:1])
    setup = make_setup(read_config(workdirs[1] / "selection"), mesh=one_device)
    setup = select(setup, workdirs[0])
    score(setup, train(setup, workdirs[0]), workdirs[0])
    assert_same_run(*workdirs, rtol=1e-4)
    one, two = (json.loads((workdir / "selection.json").read_text()) for workdir in workdirs)
    assert one["chosen"] == two["chosen"]
    assert one["candidates"][0]["validation"] != one["candidates"][1]["validation"]
    for here, there in zip(one["candidates"], two["candidates"], strict=True):
        assert here["validation"] == pytest.approx(there["validation"], rel=1e-4)


def test_two_processes_run_as_one(toy_files, alone, tmp_path):
    assert_each_row_once_an_epoch(alone.rows_read())
    overrides = {
        "mesh.fsdp": 2, "report.baselines": True, "report.baseline_seconds": 200,
        "checkpoint_every": 10,
    }  # fmt: skip
    pod = check(toy_files, alone, tmp_path / "run", "2x2", report=True, **overrides)
    # Each reads its share: of a batch of 16 with 2 rows of padding at its end, the last 8.
    lines = map(json.loads, pod.path(1, "diary").read_text().splitlines())
    assert {len(rows) for size, rows in lines if size == 70} == {6}
    # One writes and speaks, the other is silent.
    assert "Results" in pod.log(0) and "mAP" in pod.log(0)
    assert "step" not in pod.log(1) and "Results" not in pod.log(1)
    assert (tmp_path / "run" / "report" / "report.md").exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["baselines"]["extra_trees"]["mAP"] > 0.9
    assert "Baselines" not in pod.log(1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fsdp", [1, 4])
def test_any_number_of_processes_and_devices_runs_as_one(toy_files, alone, tmp_path, shape, fsdp):
    check(toy_files, alone, tmp_path / "run", shape, **{"mesh.fsdp": fsdp})


def chain(toy_files, workdir, links, **overrides):
    """Rows read by a run that is stopped at some batch, and goes on in another shape."""
    batches = []
    for shape, stop in links:
        for path in workdir.parent.glob("*.diary"):
            path.unlink()
        count = int(shape[0])
        plans = {count - 1: f"SIGTERM@step:{stop}"} if stop else {}
        pod = Pod(toy_files, workdir, shape, plans, **overrides)
        if stop:
            assert pod.wait() == [128 + signal.SIGTERM] * count, pod.log(0)[-2000:]
            assert "The same command resumes from there." in pod.log(count - 1)
        else:
            pod.finish()
        batches += pod.rows_read()
    return batches


def test_a_stopped_run_goes_on_with_other_processes_and_devices(toy_files, alone, tmp_path):
    """SIGTERM to one process stops all after the same step; no row is skipped or read twice."""
    links = [("2x1", 3), ("1x2", 0)]
    batches = chain(toy_files, tmp_path / "run", links, checkpoint_every=10)
    assert_same_run(alone.workdir, tmp_path / "run", rtol=1e-4)
    assert_each_row_once_an_epoch(batches)


@pytest.mark.slow
def test_a_run_goes_through_every_shape(toy_files, alone, tmp_path):
    links = [("1x8", 3), ("4x2", 4), ("2x4", 4), ("4x1", 3), ("1x1", 0)]
    batches = chain(toy_files, tmp_path / "run", links)
    assert_same_run(alone.workdir, tmp_path / "run", rtol=1e-4)
    assert_each_row_once_an_epoch(batches)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "plan"), PLANS)
def test_one_is_killed_and_all_end_and_resume(toy_files, pair, tmp_path, victim, plan):
    """To the bit: process 0 runs the coordinator too."""
    workdir = tmp_path / "run"
    pod = Pod(toy_files, workdir, "2x1", {victim: plan})
    statuses = pod.wait(120)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] != 0
    # In a computation, or by JAX where it notices first.
    texts = ("lost another process", "another task died")
    assert any(text in pod.log(1 - victim) for text in texts), pod.log(1 - victim)[-2000:]
    saved = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    pod = Pod(toy_files, workdir, "2x1").finish()
    assert ("Resuming after step" in pod.log(0)) == bool(saved)
    assert_same_run(pair.workdir, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["remove", "truncate", "flip"])
def test_a_pod_falls_back_from_a_damaged_checkpoint(toy_files, pair, tmp_path, how):
    """Also where the processes read other parts of it."""
    workdir = tmp_path / "run"
    pod = Pod(toy_files, workdir, "2x1", {0: "SIGTERM@step:8"}, **{"mesh.fsdp": 2})
    assert pod.wait() == [143, 143]
    folder = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    file = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if how == "flip" else content[: len(content) // 2])
    pod = Pod(toy_files, workdir, "2x1", **{"mesh.fsdp": 2}).finish()
    assert f"Checkpoint of step {folder.name} cannot be read" in pod.log(0)
    assert (workdir / "broken_checkpoints" / folder.name).exists()
    assert_same_run(pair.workdir, workdir, rtol=1e-4)


def test_a_process_that_never_starts(toy_files, tmp_path):
    pod = Pod(toy_files, tmp_path / "run", "3x1", flags={k: ["--start_timeout=8"] for k in (0, 2)})
    pod.processes[1].kill()
    assert pod.wait(60)[::2] == [1, 1]
    for number in (0, 2):
        text = "Error: process 1 of 3 did not start within 8 seconds."
        assert text in pod.log(number) and "Traceback" not in pod.log(number)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            {1: ["--config.supervise.epochs=3"]},
            "supervise.epochs: 2 in process 0, 3 in process 1",
        ),
        (
            {1: ["--config.data.test=nothing.npz"]},
            "nothing.npz: no such file",
        ),
        pytest.param(
            {1: ["--workdir={elsewhere}"]},
            "b is not shared: process 1 on",
            marks=pytest.mark.slow,
        ),
        (
            {k: ["--config.mesh.fsdp=3"] for k in (0, 1)},
            "mesh.fsdp=3 does not fit the 2 devices (2 processes)",
        ),
        (
            {k: ["--config.batch_size=15"] for k in (0, 1)},
            "must be a multiple of the 2 devices, got 15; the nearest are 14 and 16",
        ),
    ],
)
def test_mistakes_end_every_process_with_the_reason(toy_files, tmp_path, flags, text):
    flags = {k: [f.format(elsewhere=tmp_path / "b") for f in each] for k, each in flags.items()}
    pod = Pod(toy_files, tmp_path / "run", "2x1", flags=flags)
    assert pod.wait(120) == [1, 1]
    for number in (0, 1):
        assert text in pod.log(number)
        assert "Traceback" not in pod.log(number)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_slurm_tells_the_processes_who_they_are(toy_files, tmp_path):
    """As srun does, without flags."""
    job = {
        "SLURM_JOB_ID": str(free_port()), "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NODELIST": "localhost", "SLURM_STEP_NODELIST": "localhost", "SLURM_NNODES": "1",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    environments = {k: {**job, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)} for k in (0, 1)}
    pod = Pod(toy_files, tmp_path / "run", "2x1", environments=environments).finish()
    assert "Results" in pod.log(0) and "Results" not in pod.log(1)


def test_a_workdir_that_process_0_cannot_read_ends_every_process(toy_files, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text('{"breadth": 1}')
    pod = Pod(toy_files, workdir, "2x1", batch_size=0)
    assert pod.wait(120) == [1, 1]
    for number in (0, 1):
        assert "was written by another version of sdjax" in pod.log(number)
        assert "Traceback" not in pod.log(number)


@pytest.mark.slow
def test_a_pod_starts_from_another_run_and_selects_beside_a_queue(toy_files, alone, tmp_path):
    """Each process reads the weights to a device of its own."""
    changes = {"recipe": "joint", "model.init_from": alone.workdir, "seed": 1}
    changes |= {"queue.size": 32, "select_by": "mAP"}
    one = Pod(toy_files, tmp_path / "one", "1x1", **changes).finish()
    two = Pod(toy_files, tmp_path / "two", "2x1", **changes).finish()
    assert_same_run(one.workdir, two.workdir, rtol=1e-4)
