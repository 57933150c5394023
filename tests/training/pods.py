"""Pods of real processes on one machine."""

import functools
import itertools
import json
import multiprocessing
import os
import socket
import time
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pod_worker

from sdjax.training.logbook import read_records
from sdjax.training.predictor import restored

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = 20  # two phases of two epochs of five batches
SECONDS = 240
SPLITS = ("train", "validation", "test")


def write_toy_files(folder: Path) -> None:
    """A small separable data set: three labels, each with a direction of its own."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 6))
    for name, size in (("train", 70), ("validation", 24), ("test", 40)):
        labels = rng.random((size, 3)) < 0.5
        x = labels @ directions + 0.1 * rng.normal(size=(size, 6))
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), labels=labels)


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@functools.cache
def fork_context() -> multiprocessing.context.ForkServerContext:
    """Processes of it start with all libraries imported, and with no trace of jax in this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pod_worker"])
    path = map(str, (HERE, HERE.parent, ROOT, os.environ.get("PYTHONPATH", "")))
    variables = {
        "PYTHONPATH": os.pathsep.join(path),
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    with mock.patch.dict(os.environ, variables):
        forkserver.ensure_running()
    return context


def forked_command(folder: Path, arguments: list[str]) -> tuple[int | None, str]:
    """Exit status and standard error of `train.py` with these arguments; files go to `folder`."""
    files = folder / "out", folder / "errors"
    process = fork_context().Process(target=pod_worker.command, args=(*files, arguments))
    process.start()
    process.join(SECONDS)
    return process.exitcode, files[1].read_text()


class Pod:
    """The processes of a run of `train.py` on the toy data.

    Args:
      folder: of the toy data.
      workdir: of the run; logs and diaries lie beside it.
      shape: "PxD": P processes with D devices each.
      plans: what process k is to do to itself (see `pod_worker`), by k.
      flags: further arguments of process k, by k.
      environments: by k; of a scheduler that tells processes who they are.
      cache: folder of compiled programs.
      report: whether the run writes its report, which takes long.
      overrides: fields of the config.
    """

    def __init__(
        self,
        folder,
        workdir,
        shape,
        plans=None,
        flags=None,
        environments=None,
        cache="",
        report=False,
        **overrides,
    ):
        self.workdir = Path(workdir)
        self.count, devices = map(int, shape.split("x"))
        port = free_port()
        config = {
            "recipe": "finetune", "batch_size": 16, "model.width": 64, "model.projection_dim": 8,
            "model.dropout": 0.0, "pretrain.epochs": 2, "supervise.epochs": 2,
            "pretrain.ema_decay": 0.9, "checkpoint_every": 2, "log_every": 1, "evaluate_every": 1,
            "report.baselines": False, "candidates": "()", "refit": False,
            "report.retrieval_rows": 0,
            **{f"data.{split}": folder / f"{split}.npz" for split in SPLITS}, **overrides,
        }  # fmt: skip
        arguments = [f"--workdir={workdir}", f"--config={ROOT / 'configs' / 'own_data.py'}"]
        arguments += [f"--config.{name}={value}" for name, value in config.items()]
        settings = {
            "jax_platforms": "cpu",
            "jax_num_cpu_devices": devices,
            "jax_compilation_cache_dir": str(cache or jax.config.jax_compilation_cache_dir or "")
            or None,
            "jax_persistent_cache_min_compile_time_secs": 0.05,
        }
        self.processes: list[BaseProcess] = []
        for number in range(self.count):
            of_pod = []
            if self.count > 1 and not environments:
                of_pod = [f"--coordinator=localhost:{port}", f"--num_processes={self.count}"]
                of_pod += [f"--process_id={number}", "--heartbeat_timeout=10", "--start_timeout=90"]
            given = (
                self.path(number, "log"),
                self.path(number, "diary"),
                (plans or {}).get(number, ""),
                report,
                [*arguments, *of_pod, *(flags or {}).get(number, [])],
                (environments or {}).get(number, {}),
                settings,
            )
            self.processes.append(fork_context().Process(target=pod_worker.work, args=given))
            self.processes[-1].start()

    def path(self, number, kind):
        return self.workdir.with_name(f"{self.workdir.name}.{number}.{kind}")

    def log(self, number):
        return self.path(number, "log").read_text(errors="replace")

    def wait(self, seconds=SECONDS):
        """Exit statuses of all processes, the rest of which are killed when the time is up."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(deadline - time.monotonic(), 0.01))
            if process.exitcode is None:
                self.kill()
                raise TimeoutError(f"A process has not ended in {seconds} seconds.")
        return [process.exitcode for process in self.processes]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.join()

    def finish(self):
        statuses = self.wait()
        tails = [self.log(number)[-2000:] for number in range(self.count)]
        assert statuses == [0] * self.count, "\n".join(tails)
        return self

    def rows_read(self):
        """Rows of the training split that the processes read, by batch, over all attempts."""
        by_process = []
        for number in range(self.count):
            lines = map(json.loads, self.path(number, "diary").read_text().splitlines())
            by_process.append([rows for size, rows in lines if size == 70])
        return [list(itertools.chain(*parts)) for parts in zip(*by_process, strict=True)]


def curve(workdir):
    """Losses of training and validation, by step."""
    records = read_records(Path(workdir) / "metrics.jsonl")
    return {(r["step"], r["split"], r["phase"]): r["loss"] for r in records}


def final_state(workdir):
    return jax.tree.map(np.asarray, jax.tree.leaves(restored(Path(workdir))[-1]))


def assert_same_run(one, other, rtol=0.0):
    """The same curves, final state and results; to the bit without `rtol`."""
    curves = curve(one), curve(other)
    assert curves[0].keys() == curves[1].keys()
    for key, loss in curves[0].items():
        np.testing.assert_allclose(curves[1][key], loss, rtol=rtol, err_msg=str(key))
    for x, y in zip(final_state(one), final_state(other), strict=True):
        np.testing.assert_allclose(y, x, rtol=20 * rtol, atol=rtol)
    results = [json.loads((Path(w) / "results.json").read_text())["test"] for w in (one, other)]
    assert abs(results[0]["mAP"] - results[1]["mAP"]) <= 20 * rtol
