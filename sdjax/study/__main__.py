"""Compares methods over data sets and seeds: `python -m sdjax.study --config=NAME --grid ...`.

With --grid recipe=joint,bce loss.name=sd,any loss.temperature=0.1,0.2 --seeds=10 every combination
is run with ten seeds, in one process. It writes `runs.parquet`, a row a run, and
`report/report.html`. The same command goes on where it was stopped; a run whose folder is removed
is made again, others are not.
"""

import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from sdjax import __version__
from sdjax import config as config_lib
from sdjax._src import stop
from sdjax.checks import one_of
from sdjax.config import Config
from sdjax.configs import run_with_config, typed_command, with_paths
from sdjax.errors import InputError, check_no_words
from sdjax.study import plan as plan_lib
from sdjax.study import space as space_lib

_BASELINES = ("extra_trees", "logistic_regression", "nearest_neighbors")
# Flags that take all the words behind them, and the words that they stand for without any.
_SEVERAL = {"grid": (), "methods": (), "data": (), "space": (), "baselines": _BASELINES}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "workdir", None, "Folder of the study; by default runs/study_CONFIG.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "grid",
        [],
        "FIELD=VALUE,VALUE,... of the config, several behind one flag; all combinations.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "methods",
        [],
        "'NAME: FIELD=VALUE ...', a method beside those of the grid.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "data",
        [],
        "'NAME: FIELD=VALUE ...', a data set by the fields in which it differs from --config; one "
        "of them may be config=NAME, for a config of its own.",
        flag_values=values,
    )
    flags.DEFINE_integer("seeds", 1, "Runs of each method on each data set.", flag_values=values)
    flags.DEFINE_string(
        "budget",
        None,
        "Time, as 30m or 1h30m: only as many whole rounds of seeds as it holds.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "baselines",
        [],
        f"Models of scikit-learn beside the methods, by name or all: {', '.join(_BASELINES)}.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tune",
        0,
        "Trials, judged on validation, that tune each method before it is run (Optuna).",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "space",
        [],
        "What is tuned: FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or FIELD=VALUE,VALUE,...; by default "
        "learning rates, dropout, temperature and contrastive weight.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "sampler", "tpe", ["tpe", "random"], "How trials are chosen.", flag_values=values
    )
    flags.DEFINE_enum(
        "tuned_by",
        "mAP",
        config_lib.VALIDATION_METRICS,
        "The metric of validation that judges them.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "reference",
        None,
        "Method that the others are tested against; bce, else the first, by default.",
        flag_values=values,
    )
    flags.DEFINE_bool("retry_failed", False, "Make the runs again that failed.", flag_values=values)
    flags.DEFINE_bool(
        "keep_checkpoints",
        False,
        "Leave the checkpoints of runs that have any.",
        flag_values=values,
    )
    flags.DEFINE_bool("debug", False, "Show the traceback of every error.", flag_values=values)


def run() -> None:
    """The command: reads `sys.argv`."""
    define_flags(flags.FLAGS)
    stop.with_a_line("The same command goes on with what is left.")
    sys.argv = spread(sys.argv)
    run_with_config(main)


def spread(argv: Sequence[str]) -> list[str]:
    """`argv` with a flag before each of the words behind --grid, --data and the like."""
    result, several = [], ""
    for argument, following in zip(argv, [*argv[1:], "-"], strict=True):
        if argument.startswith("-"):
            name, equals, _ = argument.lstrip("-").partition("=")
            several = name if name in _SEVERAL else ""
            if equals or not several:
                result.append(argument)
            elif following.startswith("-"):
                result.extend(f"--{several}={word}" for word in _SEVERAL[several])
        else:
            result.append(f"--{several}={argument}" if several else argument)
    return result


def main(argv: list[str]) -> None:
    check_no_words(argv)
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    name = Path(config_flags.get_config_filename(given["config"])).stem
    workdir = Path(given.workdir or Path("runs") / f"study_{name}")
    print(f"sdjax {__version__}: study of {name}, in {workdir}", file=sys.stderr, flush=True)
    # It takes seconds to import.
    from sdjax import training
    from sdjax.study import study

    with training.reported_errors(debug=given.debug):
        plan = make_plan(sys.argv[1:], given.config, name, given)
        frame = study.run(
            plan,
            workdir,
            budget=seconds(given.budget) if given.budget else None,
            keep_checkpoints=given.keep_checkpoints,
            retry_failed=given.retry_failed,
            title=f"Study of {', '.join(plan.data)}",
            reference=given.reference or "",
            told=typed_command(),
        )
        print(f"Runs     {workdir / 'runs.parquet'} ({len(frame)} rows)")
        print(f"Report   {workdir / 'report' / 'report.html'}")


def make_plan(
    arguments: Sequence[str], config: Config, name: str, given: flags.FlagValues
) -> plan_lib.Plan:
    """The plan that the flags make.

    Args:
      arguments: of the command, of which those that set a field of the config hold for each data
        set.
      config: of `--config`, with these fields set.
      name: of its file.
      given: the other flags.
    """
    typed = typed_overrides(arguments)
    config = config_lib.without_overrides(config, [word.partition("=")[0] for word in typed])
    first = plan_lib.DataSet(config, name, _given(name))
    data = dict(_data_set(text, first, typed) for text in given.data)
    grid = [plan_lib.parse_axis(text) for text in given.grid]
    if len(dict(grid)) < len(grid):
        raise InputError(f"--grid names a field twice: {', '.join(axis for axis, _ in grid)}.")
    more = [_named(text, "methods") for text in given.methods]
    if len(dict(more)) < len(more):
        raise InputError(f"--methods has a name twice: {', '.join(name for name, _ in more)}.")
    space = tuple(space_lib.parse(text).checked(config) for text in given.space)
    if not space and given.tune:
        space = tuple(e for e in space_lib.default(config) if e.name not in dict(grid))
    return plan_lib.Plan(
        data=data or {_data_name(config): first},
        grid=dict(grid),
        more={name: tuple(words) for name, words in more},
        seeds=given.seeds,
        baselines=_baselines(given.baselines),
        trials=given.tune,
        space=space,
        sampler=given.sampler,
        tuned_by=given.tuned_by,
    )


def _given(name: str) -> Config:
    """The content of the config file `name`, a name or a path."""
    (argument,) = with_paths([f"--config={name}"])
    return runpy.run_path(argument.partition("=")[2])["get_config"]()


def typed_overrides(arguments: Sequence[str]) -> list[str]:
    """FIELD=VALUE of each `--config.FIELD=VALUE` or `--config.FIELD VALUE`."""
    words = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith("config."):
            if not equals:
                value = "True" if following[:1] in ("", "-") else following
            words.append(f"{name.removeprefix('config.')}={value}")
    return words


def _data_set(text: str, first: plan_lib.DataSet, typed: list[str]) -> tuple[str, plan_lib.DataSet]:
    """The data set of "NAME: FIELD=VALUE ...", and its name."""
    name, words = _named(text, "data")
    own = [word.partition("=")[2] for word in words if word.startswith("config=")]
    words = [word for word in words if not word.startswith("config=")]
    base, given, config = first.base, first.given, first.config
    if own:
        base, given = own[-1], _given(own[-1])
        config, words = given, [*typed, *words]
    config = config_lib.without_overrides(config, [word.partition("=")[0] for word in words])
    for word in words:
        config = config_lib.overridden(config, word, "data set")
    return name, plan_lib.DataSet(config, base, given)


def _named(text: str, flag: str) -> tuple[str, list[str]]:
    """The name and the words of "NAME: FIELD=VALUE ..."."""
    name, colon, rest = text.partition(":")
    if not (name.strip() and colon):
        raise InputError(f"--{flag} must be 'NAME: FIELD=VALUE ...', got {text!r}.")
    return name.strip(), shlex.split(rest)


def _baselines(words: Sequence[str]) -> tuple[str, ...]:
    """The names in words as "extra_trees,nearest_neighbors", each once, in one order."""
    names = [one_of("baseline", n.strip(), _BASELINES) for word in words for n in word.split(",")]
    return tuple(name for name in _BASELINES if name in names)


def _data_name(config: Config) -> str:
    return Path(config.data.train).stem if config.data.name == "files" else config.data.name


def seconds(text: str) -> float:
    """Of "90s", "30m" or "1h30m"."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise InputError(f"A time must be as 90s, 30m or 1h30m, got {text!r}.")
    return sum(float(n) * units[unit] for n, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms])", text))


if __name__ == "__main__":
    run()
