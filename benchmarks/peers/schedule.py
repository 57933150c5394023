"""Order of measurements: subjects take turns, so that what slows the machine slows them all.

First each subject is prepared and called once, which gives its peak of memory. Those that together
fit in memory stay alive, asleep, and are asked for one turn each in every round; the others are
started anew for each of their turns.
"""

import dataclasses
import os
import statistics
from collections.abc import Iterator
from typing import Any

from absl import logging

from peers import load, pool
from peers.case import Case
from peers.subjects import Subject

SLOW_SECONDS = 20  # A call that is slower gets the turns of one that is started anew.
FEW_ROUNDS = 2
IMPORT_SECONDS = 60
SMALL_LABELS = 2**24  # Workers of a smaller batch are prepared side by side.


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
      memory_cap: most bytes a worker may hold.
      idle_memory: most bytes that workers may hold together while they wait.
      time_cap: most seconds for one call.
      turn_seconds: time that repeated calls fill in one turn.
      patience: most seconds that a turn waits for the machine to be quiet.
    """

    device: str
    rounds: int
    memory_cap: float
    idle_memory: float
    time_cap: float
    turn_seconds: float
    patience: float
    seed: int = 0


@dataclasses.dataclass
class Measurement:
    """What one subject gave on one case.

    Attributes:
      turns: seconds of each turn's calls.
      other_load: cores that other programs kept busy during each turn.
      facts: everything else that the worker said.
    """

    subject: str
    case: Case
    status: str = "ok"
    turns: list[list[float]] = dataclasses.field(default_factory=list)
    other_load: list[float] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def rounds(self) -> list[float]:
        """Median seconds of each turn."""
        return [statistics.median(turn) for turn in self.turns]

    @property
    def median_seconds(self) -> float | None:
        return statistics.median(self.rounds) if self.turns else None

    @property
    def min_seconds(self) -> float | None:
        return min(map(min, self.turns)) if self.turns else None

    @property
    def disturbed(self) -> bool:
        """Whether other programs took part of the machine in half of the turns."""
        return bool(self.turns) and statistics.median(self.other_load) > 2 * load.QUIET_CORES

    def record(self, reply: dict[str, Any]) -> bool:
        """Takes in a reply; whether it was a good one."""
        reply = dict(reply)
        status = reply.pop("status")
        if status != "ok" and not self.turns:
            self.status = status
        self.facts.update(reply)
        return status == "ok"

    def as_dict(self) -> dict[str, Any]:
        summary = {"median_seconds": self.median_seconds, "min_seconds": self.min_seconds}
        return dataclasses.asdict(self) | summary


class Runner:
    """Measures one case."""

    def __init__(self, case: Case, subjects: list[Subject], settings: Settings, check: bool):
        self.case, self.subjects, self.settings, self.check = case, subjects, settings, check
        self.time_cap = case.time_cap or settings.time_cap
        self.results = {subject.name: Measurement(subject.name, case) for subject in subjects}
        self.alive: dict[str, pool.Process] = {}

    def run(self) -> list[Measurement]:
        try:
            for subject, process in self._prepared():
                if self._first_call(subject, process):
                    self._keep_or_close(subject, process)
            for number in range(self.settings.rounds):
                for subject in self.subjects[:: -1 if number % 2 else 1]:
                    self._turn(subject, number)
        finally:
            for process in self.alive.values():
                process.close()
        return list(self.results.values())

    def _prepared(self) -> Iterator[tuple[Subject, pool.Process]]:
        """Workers that are ready; preparing is not timed, so several may do so at once."""
        small = self.case.batch * self.case.num_classes < SMALL_LABELS
        group = (os.cpu_count() or 1) if small else 1
        for start in range(0, len(self.subjects), group):
            started = [(subject, self._start(subject)) for subject in self.subjects[start:][:group]]
            for subject, process in started:
                if self._ready(subject, process):
                    yield subject, process

    def _start(self, subject: Subject) -> pool.Process:
        env = pool.environment(self.settings.device) | subject.env
        process = pool.Process(env, self.settings.memory_cap)
        case = dataclasses.asdict(self.case)
        process.send(do="prepare", subject=subject.name, case=case, seed=self.settings.seed)
        return process

    def _ready(self, subject: Subject, process: pool.Process) -> bool:
        result = self.results[subject.name]
        if not result.record(process.receive(self.time_cap + IMPORT_SECONDS)):
            return False
        planned = result.facts.get("compiled_bytes") or 0
        if self.settings.device == "cpu" and planned > self.settings.memory_cap:
            result.status = "out of memory"
            process.close()
            return False
        return True

    def _first_call(self, subject: Subject, process: pool.Process) -> bool:
        result = self.results[subject.name]
        logging.info("%s: %s", self.case, subject.name)
        if not result.record(process.ask(self.time_cap, do="first")):
            return False
        return not self.check or result.record(process.ask(self.time_cap, do="check"))

    def _keep_or_close(self, subject: Subject, process: pool.Process) -> None:
        idle = sum(other.resident() for other in self.alive.values()) + process.resident()
        if idle <= self.settings.idle_memory:
            self.alive[subject.name] = process
        else:
            process.close()

    def _turn(self, subject: Subject, number: int) -> None:
        result = self.results[subject.name]
        slow = result.facts.get("first_seconds", 0) > SLOW_SECONDS
        process = self.alive.get(subject.name)
        if result.status != "ok" or ((slow or process is None) and number >= FEW_ROUNDS):
            return
        once = process is None
        if process is None:
            process = self._start(subject)
            ready = process.receive(self.time_cap + IMPORT_SECONDS)["status"] == "ok"
            if not ready or process.ask(self.time_cap, do="first")["status"] != "ok":
                return
        load.wait_until_quiet(self.settings.patience)
        others = load.OtherLoad(process.pid)
        seconds = self.settings.turn_seconds
        reply = process.ask(2 * self.time_cap, do="time", seconds=seconds)
        if result.record(reply):
            result.turns.append(result.facts.pop("seconds"))
            result.other_load.append(others.cores())
        if once or reply["status"] != "ok":
            process.close()
            self.alive.pop(subject.name, None)
