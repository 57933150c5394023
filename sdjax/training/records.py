"""What a run says of itself as it goes: `metrics.jsonl` and TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

Record = dict[str, Any]


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


class Recorder:
    """Appends records to `metrics.jsonl` and to TensorBoard event files.

    Args:
      workdir: folder of the run.
      step: where the run starts; records of later steps are from an attempt that was cut off,
        and go.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        kept = [record for record in read_records(self.path) if record["step"] <= step]
        rewritten = self.path.with_suffix(".tmp")
        rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept))
        rewritten.replace(self.path)
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
