"""What a study says as it goes: a line a run, and on a terminal a bar with the time left."""

import contextlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Forecast:
    """How long runs will take, from those of the same kind, else of the same group, else of all."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)

    def saw(self, group: str, kind: str, seconds: float) -> None:
        """A run took so long."""
        for key in ((group, kind), group, None):
            self._seconds[key].append(seconds)

    def seconds(self, runs: Iterable[tuple[str, str]]) -> float | None:
        """Of all of these (group, kind) together; None where nothing is known."""
        total = 0.0
        for group, kind in runs:
            found = self._seconds[(group, kind)] or self._seconds[group] or self._seconds[None]
            if not found:
                return None
            # The first of a kind compiles.
            total += statistics.fmean(found[1:] or found)
        return total


class StudyProgress(contextlib.AbstractContextManager):
    """Use as a context manager.

    Args:
      total: number of runs and trials.
      console: where to write; standard error by default.
    """

    def __init__(self, total: int, console: Console | None = None):
        self._console = console or Console(file=sys.stderr)
        self._total, self._done = total, 0
        self._bar = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            left = TextColumn("{task.fields[left]}")
            self._bar = Progress(*columns, TimeElapsedColumn(), left, console=self._console)
            self._task = self._bar.add_task("study", total=total, left="")

    def __enter__(self) -> "StudyProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begins(self, text: str) -> None:
        """A run begins."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def ended(self, text: str, left: float | None) -> None:
        """A run ended; `left` are the seconds that all the others will take."""
        self._done += 1
        time_left = "" if left is None else f"{duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, left=time_left)
            self.say(text)
        else:
            self.say(f"[{self._done}/{self._total}] {text}" + f"; {time_left}" * bool(time_left))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A block in which others write to the terminal."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """As 50 s, 12 min or 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def headline(entry: dict[str, Any]) -> str:
    """The figures of a run in a few words, or its error."""
    if "error" in entry:
        return f"failed: {entry['error'].splitlines()[0][:200]}"
    results = entry["results"]
    figures = {"mAP": results["test"]["mAP"], "micro-F1": results["test_tuned"]["micro_f1"]}
    neighbours = results.get("retrieval", {}).get("h", {})
    ndcg = next((name for name in neighbours if name.startswith("ndcg_at_")), None)
    if ndcg:
        figures["nDCG"] = neighbours[ndcg]
    return ", ".join(f"{k} {v:.4f}" for k, v in figures.items() if v is not None)
