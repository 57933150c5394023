"""The parent's side of a worker: starts it, asks it, and ends it over a cap."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import memory

BENCHMARKS = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.02


def environment(device: str) -> dict[str, str]:
    """Variables that every worker on `device` gets."""
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    on_gpu = {"JAX_PLATFORMS": "cuda,cpu", "BENCHMARK_TORCH_DEVICE": "cuda"}
    on_cpu = {"JAX_PLATFORMS": "cpu", "BENCHMARK_TORCH_DEVICE": "cpu"}
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **(on_gpu if device == "gpu" else on_cpu),
    }


class Process:
    """A worker. A status other than "ok" ends it."""

    def __init__(self, env: dict[str, str], memory_cap: float):
        self.memory_cap = memory_cap
        self._stderr = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (closed with it)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "peers.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | env,
            text=True,
        )

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Reply to one request, at most `limit` seconds later."""
        self.send(**request)
        return self.receive(limit)

    def send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # It has died, which `receive` reports.

    def receive(self, limit: float) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        deadline = time.monotonic() + limit
        while not select.select([pipe], [], [], POLL_SECONDS)[0]:
            if time.monotonic() > deadline:
                return self._end(f"over time ({limit:.0f} s)")
            if self.resident() > self.memory_cap:
                return self._end("out of memory")
        line = pipe.readline()
        if not line:
            return self._end(self._death())
        reply = json.loads(line)
        if reply["status"] != "ok":
            self.close()
        return reply

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident(self) -> int:
        try:
            return memory.resident(self.pid)
        except (OSError, IndexError):
            return 0

    def close(self) -> None:
        self._process.kill()
        for file in (self._process.stdin, self._process.stdout, self._stderr):
            assert file is not None
            try:
                file.close()
            except BrokenPipeError:
                continue
        self._process.wait()

    def _end(self, status: str) -> dict[str, Any]:
        self.close()
        return {"status": status}

    def _death(self) -> str:
        code = self._process.wait()
        if code == -9:
            return "out of memory"  # The kernel's doing: nobody else sends this signal.
        self._stderr.seek(0)
        lines = self._stderr.read().strip().splitlines() or [f"exit status {code}"]
        return f"error: {lines[-1][:200]}"
