"""The subprocess in which one subject meets one case: requests and replies are lines of JSON.

{"do": "prepare", "subject": ..., "case": {...}, "seed": 0}
{"do": "first"}                  one call: its time and its peak of memory above the inputs
{"do": "check"}                  relative errors of value and gradient against float64
{"do": "time", "seconds": 0.1}   repeated calls
"""

import dataclasses
import importlib
import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np

from peers import case as case_lib
from peers import float64, memory
from peers.case import Case
from peers.step import Step, Unavailable, to_numpy, torch_device
from peers.subjects import BY_NAME, Subject

MAX_CALLS = 50
SHORT_SECONDS = 5
# Idle threads of OpenMP spin for up to .2 s before they sleep. Telling them not to would cost
# PyTorch half its speed on small batches, so the next subject's turn waits instead.
QUIET_SECONDS = 0.25
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory", "Out of memory")


@dataclasses.dataclass
class Worker:
    """One subject, prepared for one case."""

    subject: Subject
    z: np.ndarray
    labels: np.ndarray
    num_classes: int
    step: Step

    @classmethod
    def prepare(cls, subject: str, case: dict[str, Any], seed: int) -> "Worker":
        chosen, size = BY_NAME[subject], Case(**case)
        z, labels = case_lib.make_batch(size, seed)
        num_classes = size.num_classes
        if chosen.single_label:
            labels, num_classes = case_lib.single_label(labels, num_classes)
        try:
            module = importlib.import_module(f"peers.{chosen.module}")
        except ImportError as error:
            raise Unavailable(str(error)) from error
        batch = (z, labels, num_classes)
        step = module.prepare(*batch, case_lib.TEMPERATURE, **chosen.options)
        return cls(chosen, *batch, step)

    def first(self) -> dict[str, Any]:
        """The first call, and the peak of a call above what the process held before it.

        The first also loads code and starts threads: if it was short, the peak is the second's.
        """
        seconds, peak, (value, gradient) = self._peak_of_call()
        norm = float(np.linalg.norm(to_numpy(gradient)))
        facts = {"value": float(to_numpy(value)), "gradient_norm": norm}
        del value, gradient
        if seconds < SHORT_SECONDS:
            _, peak, _ = self._peak_of_call()
        return facts | {"first_seconds": seconds, "peak_bytes": peak}

    def _peak_of_call(self) -> tuple[float, int | None, Any]:
        memory.trim()
        before = memory.resident()
        known = memory.reset_peak()
        self.step.reset_peak()
        start = time.perf_counter()
        result = self.step.run()
        seconds = time.perf_counter() - start
        if torch_device() == "cpu":
            peak = max(0, memory.peak() - before) if known else None
        else:
            peak = self.step.peak()
        return seconds, peak, result

    def check(self) -> dict[str, Any]:
        """Errors against float64 at the embeddings as they are rounded for this subject."""
        if self.subject.loss is None:
            return {}
        import ml_dtypes

        rounded = self.z
        if self.subject.dtype == "bfloat16":
            rounded = self.z.astype(ml_dtypes.bfloat16).astype(np.float32)
        batch = (rounded, self.labels, self.num_classes)
        expected, expected_gradient = float64.value_and_gradient(
            *batch, case_lib.TEMPERATURE, self.subject.loss
        )
        value, gradient = (to_numpy(array) for array in self.step.run())
        difference = np.linalg.norm(gradient - expected_gradient)
        return {
            "value_error": float(abs(value - expected) / abs(expected)),
            "gradient_error": float(difference / np.linalg.norm(expected_gradient)),
        }

    def time(self, seconds: float) -> dict[str, Any]:
        """Calls for about `seconds`. A short call is made once more before, for the caches."""
        faults = _page_faults()
        times = [self._timed()]
        if times[0] < 0.5:
            faults = _page_faults()
            times = [self._timed()]
            while sum(times) < seconds and len(times) < MAX_CALLS:
                times.append(self._timed())
        faults = (_page_faults() - faults) // len(times)
        time.sleep(QUIET_SECONDS)
        return {"seconds": times, "page_faults": faults}

    def _timed(self) -> float:
        start = time.perf_counter()
        self.step.run()
        return time.perf_counter() - start


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def failure(error: Exception) -> str:
    """What a table says of an exception."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Unavailable):
        return f"not available: {error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY):
        return "out of memory"
    return f"error: {text.splitlines()[0][:200]}"


def main() -> None:
    # Replies have a pipe of their own; what libraries print joins stderr.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    memory.first_victim()
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        try:
            if action == "prepare":
                start = time.perf_counter()
                worker = Worker.prepare(**request)
                reply = {
                    "prepare_seconds": time.perf_counter() - start,
                    "compiled_bytes": worker.step.compiled_bytes(),
                }
            else:
                reply = getattr(worker, action)(**request)
            reply["status"] = "ok"
        except Exception as error:
            reply = {"status": failure(error)}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
