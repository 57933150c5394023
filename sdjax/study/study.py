"""A whole study: trials, runs, and their table; the same call goes on where another was cut off."""

import contextlib
import fcntl
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from rich.console import Console

from sdjax.checks import one_of
from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.study import runs, table, tuning
from sdjax.study.plan import Method, Plan, command, folder_name, identity
from sdjax.study.progress import Forecast, StudyProgress, headline
from sdjax.training import Interrupted
from sdjax.training.interrupt import sigterm_raises
from sdjax.training.workdir import write_json

if TYPE_CHECKING:
    from sdjax.study import by_relation

RUNS, TRIALS, TUNED, RELATIONS = "runs", "trials", "tuned.json", "relations"
_TUNING_SHARE = 0.5  # of a budget
_STOPPED = "in a run of the study; the same command goes on with it."


class Job(NamedTuple):
    """A run that is planned.

    Attributes:
      data: name of its data set.
      method: of it.
      seed: of it.
      folder: for what it writes.
      config: of it; of a baseline that of the data set.
      tuned: FIELD=VALUE that tuning chose.
    """

    data: str
    method: Method
    seed: int
    folder: Path
    config: Config
    tuned: tuple[str, ...] = ()


def run(
    plan: Plan,
    workdir: Path,
    *,
    budget: float | None = None,
    keep_checkpoints: bool = False,
    retry_failed: bool = False,
    title: str = "Study",
    reference: str = "",
    told: str = "",
    console: Console | None = None,
) -> pd.DataFrame:
    """Makes the runs of `plan` that `workdir` does not hold yet; their table and their report.

    Each run is written to `workdir/runs/DATA/METHOD/SEED/run.json` when it has ended; one whose
    folder is removed is made again, others are not. A run that fails is a row with its error.

    Args:
      plan: of the study.
      workdir: of the study; made if need be.
      budget: seconds after which no other round of seeds is begun that would not end in time; half
        of it at most is for tuning. None makes all runs.
      keep_checkpoints: of runs that write any.
      retry_failed: make those runs again that failed.
      title: of the report.
      reference: method that the others are tested against; see `page.write_report`.
      told: the command of the study, for the report.
      console: for what is said; standard error by default.

    Returns:
      The table of `sdjax.study.table`, a row a run.

    Raises:
      InputError: if no run can be made as planned, or a data set has changed since earlier runs.
      Interrupted: after SIGTERM or Ctrl-C.
    """
    plan.check()
    _check_reference(plan, reference)
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir), sigterm_raises(_STOPPED):
        study = _Study(plan, workdir, budget, keep_checkpoints, console)
        try:
            study.tune()
            study.make_runs(retry_failed)
        finally:
            frame = study.write_table()
        if runs.DONE in set(frame["status"]):
            study.write_report(frame, title, reference, told)
    return frame


def _check_reference(plan: Plan, reference: str) -> None:
    known = dict.fromkeys(method.name for data in plan.data for method in plan.methods(data))
    if reference:
        one_of("reference", reference, known)


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """The study that is at work in `workdir`; a lock ends with the process that holds it."""
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another study is at work in {workdir}.") from None
        yield


class _Study:
    def __init__(
        self,
        plan: Plan,
        workdir: Path,
        budget: float | None,
        keep_checkpoints: bool,
        console: Console | None,
    ):
        self.plan, self.workdir, self.keep = plan, workdir, keep_checkpoints
        self.console, self.budget = console, budget
        self.start = time.monotonic()
        self.data, self.forecast = runs.Data(), Forecast()
        self._tuners: dict[tuple[str, Method], tuning.Tuner] = {}
        self.methods = {name: plan.methods(name) for name in plan.data}
        self._samples: dict[str, Any] = {}

    def tune(self) -> None:
        """Makes the trials of all methods, in rounds of one each."""
        if not self.plan.trials:
            return
        tuners = {each: self.tuner(*each) for each in self._tuned()}
        asked = self._settled() or self.plan.trials
        missing = sum(max(0, asked - len(tuner.trials)) for tuner in tuners.values())
        with StudyProgress(missing, self.console) as progress:
            for number in range(asked):
                todo = [each for each, tuner in tuners.items() if len(tuner.trials) <= number]
                keys = [(data, f"trial {method.name}") for data, method in todo]
                if todo and number and not self._in_time(keys, _TUNING_SHARE):
                    progress.say(f"Tuning ends with {number} trials of each method: half the time.")
                    break
                for place, (data, method) in enumerate(todo):
                    left = [*keys[place + 1 :], *keys * (asked - number - 1)]
                    self._trial(tuners[data, method], data, method, number, progress, left)
        # From now on their number is settled: runs are made by them.
        trials = min(asked, *(len(tuner.trials) for tuner in tuners.values()))
        settled = {"asked": self.plan.trials, "trials": trials}
        write_json(self.workdir / TUNED, settled)

    def _settled(self) -> int | None:
        """How many trials of each method there are, once tuning has ended."""
        path = self.workdir / TUNED
        settled = runs.read_json(path) if path.exists() else {}
        return settled["trials"] if settled.get("asked") == self.plan.trials else None

    def _tuned(self) -> list[tuple[str, Method]]:
        return [(data, m) for data in self.plan.data for m in self.methods[data] if not m.baseline]

    def tuner(self, data: str, method: Method) -> tuning.Tuner:
        """The trials of a method on a data set."""
        if (data, method) not in self._tuners:
            name = f"{folder_name(method.name)}-{self._identity(data, method)}"
            folder = self.workdir / TRIALS / folder_name(data) / name
            self._tuners[data, method] = tuning.Tuner(self.plan, data, method, folder)
        return self._tuners[data, method]

    def _identity(self, data: str, method: Method) -> str:
        return identity(method.config(self.plan.data[data].config))

    def _trial(
        self,
        tuner: tuning.Tuner,
        data: str,
        method: Method,
        number: int,
        progress: StudyProgress,
        left: list[tuple[str, str]],
    ) -> None:
        progress.begins(f"{data}, {method.name}, trial {number}")
        with self._told(progress, self.plan.data[data].config):
            entry = tuner.run_trial(self.data)
        self.forecast.saw(data, f"trial {method.name}", entry["seconds"])
        value, by = entry["value"], self.plan.tuned_by
        text = f"failed: {entry.get('error')}" if value is None else f"validation {by} {value:.4f}"
        found = [f"{k}={v:.3g}" if type(v) is float else f"{k}={v}" for k, v in
                 entry["parameters"].items()]  # fmt: skip
        changes = f" ({' '.join(found)})" if number else ""
        progress.ended(
            f"{data}, {method.name}, trial {number}: {text}{changes}", self.forecast.seconds(left)
        )

    def jobs(self) -> Iterator[Job]:
        """All runs of the study: in rounds of a seed where time is short, else a method at a time.

        The latter holds few programs and data sets at once.
        """
        pairs = [(data, method) for data in self.plan.data for method in self.methods[data]]
        numbers = range(self.plan.seeds)
        if self.budget is None:
            order = [(pair, number) for pair in pairs for number in numbers]
        else:
            order = [(pair, number) for number in numbers for pair in pairs]
        for (data, method), number in order:
            if number and method.baseline and not _is_drawn(method):
                continue
            yield self._job(data, method, number)

    def _job(self, data: str, method: Method, number: int) -> Job:
        base = self.plan.data[data].config
        seed, tuned = base.seed + number, tuple[str, ...]()
        if method.baseline:
            config, of = base, Config(data=base.data, refit=base.refit)
        else:
            if self.plan.trials:
                tuned = tuple(self.tuner(data, method).best(self._settled() or 0))
            config = of = method.config(base, *tuned, f"seed={seed}")
        name = f"{folder_name(method.name)}-{identity(of)}"
        folder = self.workdir / RUNS / folder_name(data) / name / str(seed)
        return Job(data, method, seed, folder, config, tuned)

    def make_runs(self, retry_failed: bool) -> None:
        """Makes the runs that are missing."""
        todo, known = [], []
        for job in self.jobs():
            entry = runs.read_record(job.folder)
            if entry is None or (retry_failed and entry["status"] == runs.FAILED):
                todo.append(job)
            else:
                known.append((job, entry))
                self.forecast.saw(job.data, job.method.name, entry["seconds"])
        self._check_data(todo, known)
        todo = self._without_impossible(todo)
        if known:
            self._say(f"{len(known)} of {len(known) + len(todo)} runs are there.")
        with StudyProgress(len(todo), self.console) as progress:
            seed = None
            for place, job in enumerate(todo):
                left = todo[place:]
                if job.seed != seed and not self._round_fits(left, begun=bool(place or known)):
                    progress.say(f"The time is spent; {len(left)} runs are left to be made.")
                    break
                seed = job.seed
                self._make(job, progress, _keys(left[1:]))
                if all(each.data != job.data for each in left[1:]):
                    self._sample(job.data)
                    self.data.forget(self.plan.data[job.data].config)

    def _round_fits(self, left: list[Job], begun: bool) -> bool:
        """Whether there is time for the runs of the next seed; the first round is always begun."""
        return not begun or self._in_time(_keys(j for j in left if j.seed == left[0].seed), 1.0)

    def _check_data(self, todo: list[Job], known: list[tuple[Job, dict[str, Any]]]) -> None:
        """Reads the data sets that are needed, so that a missing file ends the study at once."""
        for name in dict.fromkeys(job.data for job in todo):
            dataset = self.data.dataset(self.plan.data[name].config)
            runs.check_data(name, dataset, [entry for job, entry in known if job.data == name])

    def _without_impossible(self, todo: list[Job]) -> list[Job]:
        """`todo` without the baselines of data sets that they do not take."""
        from sdjax.report import baselines

        for name in dict.fromkeys(job.data for job in todo if job.method.baseline):
            inputs = self.data.dataset(self.plan.data[name].config).input_spec
            if not baselines.takes(inputs):
                self._say(f"No baselines on {name}: they take vectors, not {inputs}.")
                todo = [job for job in todo if job.data != name or not job.method.baseline]
        return todo

    def _sample(self, name: str) -> Any:
        """The rows of a data set that the report looks at, kept when the data set is let go."""
        from sdjax.study import by_relation

        if name not in self._samples:
            dataset = self.data.dataset(self.plan.data[name].config)
            self._samples[name] = by_relation.sample(dataset)
        return self._samples[name]

    def _make(self, job: Job, progress: StudyProgress, left: list[tuple[str, str]]) -> None:
        name = f"{job.data}, {job.method.name}, seed {job.seed}"
        progress.begins(name)
        data, method = self.plan.data[job.data], job.method
        about: dict[str, Any] = {
            "data": job.data,
            "method": method.name,
            "baseline": method.baseline,
            "seed": job.seed,
            "axes": self.plan.axis_values(job.data, method),
            "tuned": list(job.tuned),
            "run": job.folder.relative_to(self.workdir).as_posix(),
        }
        dataset = self.data.dataset(data.config)
        with self._told(progress, job.config):
            if method.baseline:
                refit = data.config.refit
                make = partial(runs.fit_baseline, dataset, method.baseline, job.seed, refit)
            else:
                about |= {"command": command(data, job.config), "config": runs.as_json(job.config)}
                mapped = job.seed == data.config.seed
                make = partial(runs.fit, self.data, job.config, job.folder, mapped)
            entry = runs.record(job.folder, about, dataset, make, self.keep)
        self.forecast.saw(job.data, method.name, entry["seconds"])
        took = f"{entry['seconds']:.1f} s"
        progress.ended(f"{name}: {headline(entry)}, {took}", self.forecast.seconds(left))

    @contextlib.contextmanager
    def _told(self, progress: StudyProgress, config: Config) -> Iterator[None]:
        """A run; what stops it is told in the words of a study."""
        speaks = progress.aside() if runs.needs_folder(config) else contextlib.nullcontext()
        with speaks:
            try:
                yield
            except Interrupted as stopped:
                raise Interrupted(stopped.signal, _STOPPED) from None

    def _in_time(self, keys: list[tuple[str, str]], share: float) -> bool:
        if self.budget is None:
            return True
        seconds = self.forecast.seconds(keys) or 0.0
        return time.monotonic() - self.start + seconds <= share * self.budget

    def _say(self, text: str) -> None:
        StudyProgress(0, self.console).say(text)

    def write_table(self) -> pd.DataFrame:
        """`runs.parquet`, of the runs of the plan that have ended."""
        ready = not self.plan.trials or self._settled() is not None
        found = [runs.read_record(job.folder) for job in (self.jobs() if ready else ())]
        frame = table.make([entry for entry in found if entry is not None])
        if len(frame):
            table.write(frame, self.workdir)
        return frame

    def _relations(self) -> "dict[str, by_relation.Seen]":
        """What the report shows of the five relations, by data set."""
        from sdjax.study import by_relation

        entries: dict[str, list[tuple[Job, dict[str, Any]]]] = {}
        for job in self.jobs():
            entry = runs.read_record(job.folder)
            if entry is not None and entry["status"] == runs.DONE and not job.method.baseline:
                entries.setdefault(job.data, []).append((job, entry))
        found = {}
        for name, of_data in entries.items():

            def get_sample(name: str = name, of_data: Any = of_data) -> by_relation.Sample:
                if name not in self._samples:
                    dataset = self.data.dataset(self.plan.data[name].config)
                    runs.check_data(name, dataset, [entry for _, entry in of_data])
                return self._sample(name)

            path = self.workdir / RELATIONS / f"{folder_name(name)}.json"
            made = [_as_run(job, entry) for job, entry in of_data]
            try:
                checksums = of_data[0][1]["data_checksums"]
                found[name] = by_relation.see(path, checksums, made, get_sample)
            except (InputError, OSError) as error:
                # Runs that are there need no data.
                self._say(f"{name}: its relations are left out of the report: {error}")
        return found

    def write_report(self, frame: pd.DataFrame, title: str, reference: str, told: str) -> Path:
        """`report/`, and the path of its page."""
        # Plotting is imported where it is used.
        from sdjax.study import page

        tuners = self._tuned() if self.plan.trials else []
        trials = [
            {"data": data, "method": method.name, "number": each["number"], "value": each["value"]}
            | {"overrides": " ".join(each["overrides"])}
            for data, method in tuners
            for each in self.tuner(data, method).trials[: self._settled()]
        ]
        return page.write_report(
            self.workdir,
            frame,
            title=title,
            axes=list(self.plan.grid),
            reference=reference,
            facts={"Command": told, **runs.circumstances()} if told else runs.circumstances(),
            trials=pd.DataFrame(trials) if trials else None,
            relations=self._relations(),
        )


def _as_run(job: Job, entry: dict[str, Any]) -> "by_relation.Run":
    from sdjax.study import by_relation

    chosen = entry.get("selection", {}).get("chosen", 0)
    quality = entry["results"]["validation"].get("mAP") or 0.0
    after = by_relation.read_map(job.folder)
    return by_relation.Run(job.method.name, job.config, chosen, quality, after)


def _keys(jobs: Iterable[Job]) -> list[tuple[str, str]]:
    """By which the forecast knows them."""
    return [(job.data, job.method.name) for job in jobs]


def _is_drawn(method: Method) -> bool:
    from sdjax.report import baselines

    return method.baseline in baselines.DRAWN
