"""What a study is to run: data sets, the methods that a grid makes, seeds."""

import csv
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdjax import config as config_lib
from sdjax.config import Config
from sdjax.errors import InputError
from sdjax.losses import LOSSES
from sdjax.study.space import Parameter

# How a run is carried out and what it tells, not what it computes.
_NO_PART = ("seed", "log_every", "checkpoint_every", "keep_checkpoints", "mesh.", "report.")


@dataclass(frozen=True)
class DataSet:
    """A data set of a study, with the config that its runs start from.

    Attributes:
      config: of its runs, but for what the method and the seed change.
      base: name of the config file that `config` was made of, for the commands that are told.
      given: the content of that file.
    """

    config: Config
    base: str = ""
    given: Config | None = None


@dataclass(frozen=True)
class Method:
    """A cell of the grid, or a baseline.

    Attributes:
      name: for people.
      overrides: FIELD=VALUE that make it.
      baseline: one of `sdjax.report.baselines.ALL_NAMES`; "" for a config.
    """

    name: str
    overrides: tuple[str, ...] = ()
    baseline: str = ""

    def config(self, base: Config, *more: str) -> Config:
        """`base` with the method's overrides, and `more` of them; its candidates have them too."""
        words = [*self.overrides, *more]
        config = config_lib.without_overrides(base, [word.partition("=")[0] for word in words])
        for word in words:
            config = config_lib.overridden(config, word, "grid")
        return config


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
      data: the data sets, by name.
      grid: values of the fields that are varied, by field; a method is a cell of their product.
      more: FIELD=VALUE of methods beside those of the grid, by name.
      seeds: runs of each method on each data set; the first has the seed of the config.
      baselines: of `sdjax.report.baselines.ALL_NAMES`, beside the methods.
      trials: trainings by which the hyperparameters of each method are tuned; 0 leaves them.
      space: what is tuned.
      sampler: "tpe" or "random".
      tuned_by: validation metric that judges trials.
    """

    data: Mapping[str, DataSet]
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int = 1
    baselines: tuple[str, ...] = ()
    trials: int = 0
    space: tuple[Parameter, ...] = ()
    sampler: str = "tpe"
    tuned_by: str = "mAP"

    def methods(self, data: str) -> list[Method]:
        """The cells of the grid on a data set, each once, those beside it, and the baselines.

        Fields that a recipe or a loss has no use for are left out of its cells: binary
        cross-entropy alone is one method, whatever the losses and the temperatures of the grid.
        """
        base, made = self.data[data].config, dict[tuple[str, ...], str]()
        for cell in itertools.product(*(self._words(axis) for axis in self.grid)):
            idle = _idle(Method("", cell).config(base))
            words = tuple(w for w in cell if not w.startswith(idle))
            made.setdefault(words, self._name(base, words))
        short = len(set(made.values())) == len(made)
        cells = [Method(name if short else " ".join(words), words) for words, name in made.items()]
        more = [Method(name, words) for name, words in self.more.items()]
        return [*cells, *more, *self._baselines()]

    def _words(self, axis: str) -> list[str]:
        return [f"{axis}={value}" for value in self.grid[axis]]

    def _name(self, base: Config, words: Iterable[str]) -> str:
        config = Method("", tuple(words)).config(base)
        values, named = config_lib.flat(config), config_lib.choices(config)
        fields = [word.partition("=")[0] for word in words]
        parts = [
            str(values[each])
            if each in named and values[each]
            else f"{each.rpartition('.')[2]}={values[each]}"
            for each in fields
        ]
        return " ".join(parts) or _name_of(config)

    def _baselines(self) -> list[Method]:
        if not self.baselines:
            return []
        # scikit-learn is imported where it is used.
        from sdjax.report import baselines

        return [Method(baselines.ALL_NAMES[name], baseline=name) for name in self.baselines]

    def axis_values(self, data: str, method: Method) -> dict[str, Any]:
        """The values of `method` on the axes of the grid that it has a use for."""
        if method.baseline:
            return {}
        values = config_lib.flat(method.config(self.data[data].config))
        return {name: values[name] for name in (w.partition("=")[0] for w in method.overrides)}

    def check(self) -> None:
        """Raises InputError for what no run can have: an unknown field, a value that always fails.

        A cell that fails where others with the same values do not is left to fail by itself.
        """
        if not self.data:
            raise InputError("A study needs a data set.")
        if self.seeds < 1:
            raise InputError(f"seeds must be at least 1, got {self.seeds}.")
        for each in self.space:
            if each.name in self.grid:
                raise InputError(f"{each.name} is in the grid and in the space; choose one.")
        for name in self.data:
            names = [method.name for method in self.methods(name)]
            if twice := sorted({each for each in names if names.count(each) > 1}):
                raise InputError(f"Two methods have the name {twice[0]!r}.")
            self._check_values(name)

    def _check_values(self, data: str) -> None:
        base, failed, sound = self.data[data].config, {}, set()
        for method in self.methods(data):
            if method.baseline:
                continue
            words = method.overrides or ("",)
            try:
                config_lib.check(method.config(base))
                sound.update(words)
            except InputError as error:
                failed.update(dict.fromkeys(words, error))
        for word, error in failed.items():
            if word not in sound:
                raise error


def _idle(config: Config) -> tuple[str, ...]:
    """Beginnings of the FIELD=VALUE that change nothing in a run of `config`."""
    idle = [each if each.endswith(".") else f"{each}=" for each in config_lib.idle_fields(config)]
    if config.loss.name in LOSSES:  # else `check` tells of it
        taken = config_lib.options_of(config.loss.name)
        idle += [f"loss.{each}=" for each in config_lib.LOSS_OPTIONS if each not in taken]
    if config.recipe != "joint":
        idle.append("contrastive_weight=")
    if config.recipe == "bce":
        idle += ["loss.", "queue.", "model.projection_"]
    return tuple(idle)


def idle(config: Config, name: str) -> bool:
    """Whether the field `name` changes nothing in a run of `config`."""
    return f"{name}=".startswith(_idle(config))


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """("loss.name", ("sd", "any")) of "loss.name=sd,any"; a value with commas stands in quotes.

    Raises:
      InputError: if `text` is of another form, or names a value twice.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise InputError(f"An axis of the grid must be FIELD=VALUE,VALUE,..., got {text!r}.")
    parts = tuple(next(csv.reader([values])))
    if "" in parts or len(set(parts)) < len(parts):
        raise InputError(f"The values of an axis must differ, and none be empty, got {text!r}.")
    return name.strip(), parts


def differences(config: Config, other: Config) -> Iterator[tuple[str, Any]]:
    """(field, value) where `config` is not as `other`; candidates are left out."""
    there = config_lib.flat(other)
    for name, value in config_lib.flat(config).items():
        if value != there[name] and not isinstance(value, tuple):
            yield name, value


def identity(config: Config) -> str:
    """Eight hex digits for what a run of `config` computes, whatever its seed.

    Only fields that differ from the defaults count: a new field of a later version changes none.
    """
    content = dict(differences(config, Config()))
    content = {k: v for k, v in content.items() if not k.startswith(_NO_PART)}
    text = json.dumps([content, list(config.candidates)], sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _name_of(config: Config) -> str:
    """Recipe and loss; those of candidates are known once validation has chosen one of them."""
    found = {
        "bce" if each.recipe == "bce" else f"{each.recipe} {each.loss.name}"
        for kind in config_lib.INPUT_KINDS
        for each in config_lib.candidates(config, kind).values()
    }
    return found.pop() if len(found) == 1 else "best candidate"


def folder_name(text: str) -> str:
    """`text` as the name of a folder."""
    return re.sub(r"[^\w.=+-]+", "_", text)[:60].strip("_") or "_"


def command(data: DataSet, config: Config) -> list[str]:
    """The arguments of `python -m sdjax.train` that make the run of `config` on `data`."""
    given = data.given or Config()
    base = [f"--config={data.base}"] if data.base else []
    return [*base, *(f"--config.{name}={value}" for name, value in differences(config, given))]
