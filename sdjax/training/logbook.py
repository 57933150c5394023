"""What a run says of itself as it goes: `metrics.jsonl`, TensorBoard events, a progress bar."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from sdjax.training.processes import is_main
from sdjax.writing import whole

Record = dict[str, Any]

RECORDS = "metrics.jsonl"
_SECONDS_BETWEEN_LINES = 5.0


class Logbook(contextlib.ExitStack):
    """Records and progress of a run on the main process, nothing elsewhere; a context manager.

    Args:
      workdir: folder of the run; None shows and writes nothing.
      step: where the run starts.
    """

    def __init__(self, workdir: Path | None, step: int):
        super().__init__()
        self._records = self._progress = None
        if workdir is not None and is_main():
            self._records = self.enter_context(contextlib.closing(Records(workdir, step)))
            self._progress = self.enter_context(TrainingProgress())

    def write(self, record: Record) -> None:
        """Adds a record to the learning curves."""
        if self._records is not None:
            self._records.write(record)

    def update(self, phase: str, done: int, total: int, values: Record) -> None:
        """Shows the state of `phase` after `done` of `total` steps.

        Args:
          phase: its name.
          done: steps of the phase so far.
          total: steps of the phase.
          values: "loss" and "examples_per_second"; "mAP" where it was validated.
        """
        if self._progress is not None:
            self._progress.update(phase, done, total, values)

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._progress is not None:
            self._progress.say(text)


class Records:
    """Appends records to `metrics.jsonl` and to TensorBoard event files.

    Args:
      workdir: folder of the run.
      step: where the run starts; records of later steps are from an attempt that was cut off,
        and go.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / RECORDS
        kept = [record for record in read_records(self.path) if record["step"] <= step]
        with whole(self.path) as rewritten:
            rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a")
        self._events = SummaryWriter(str(workdir / "events"), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        """Adds one record: its "step" and "split" say where its numbers belong."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_records(path: Path) -> list[Record]:
    """The records of a `metrics.jsonl`; a last line that was cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class TrainingProgress:
    """A bar on a terminal, plain lines elsewhere: phase, step, loss, rate and time left.

    Use as a context manager.

    Args:
      console: where to write; standard error by default, which leaves standard output to results.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(file=sys.stderr)
        self._bar = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
        self._tasks = {}
        self._validated = ""
        self._last_line = 0.0

    def __enter__(self) -> "TrainingProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, done: int, total: int, values: Record) -> None:
        """Shows the state of `phase` after `done` of `total` steps; see `Logbook.update`."""
        if values.get("mAP") is not None:
            self._validated = f"  validation mAP {values['mAP']:.4f}"
        rate = values["examples_per_second"]
        status = f"loss {values['loss']:.4f}  {rate:,.0f} examples/s{self._validated}"
        if self._bar is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total, status="")
            self._bar.update(self._tasks[phase], completed=done, status=status)
            return
        now = time.monotonic()
        if done == total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.say(f"{phase:>9}  step {done}/{total}  {status}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._console.print(text, highlight=False, soft_wrap=True)
