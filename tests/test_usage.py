"""The page of `--help`: complete, read off the sources, and quick."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from imports import assert_not_loaded

from sdjax import LOSSES, usage
from sdjax.config import RECIPES, Config, DataConfig, PhaseConfig, flat
from sdjax.configs import FOLDER
from sdjax.models import ENCODERS

ROOT = Path(__file__).parents[1]


def help_of(*command, width=100):
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "COLUMNS": str(width)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def page():
    return help_of("train.py", "--help")


def names_in(page, title):
    section = page.partition(f"\n{title}")[2].partition("\n\n")[0]
    return [line.split()[0] for line in section.splitlines()[1:] if line[2:3] not in ("", " ")]


def test_the_page_names_all_that_can_be_asked_for(page):
    assert page.startswith("Trains and tests a model: `python -m sdjax.train")
    configs = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
    assert names_in(page, "Configs") == configs
    assert sorted(names_in(page, "Recipes")) == sorted(RECIPES)
    assert names_in(page, "Losses") == list(LOSSES)
    assert names_in(page, "Encoders") == list(ENCODERS)
    assert {"--workdir=", "--profile", "--coordinator="} <= set(names_in(page, "Flags"))


def test_every_field_is_there_with_its_value(page):
    words = page.split()
    for name in flat(Config()):
        assert any(word.startswith(f"{name}=") for word in words), name
    # Of the config that is named, the default one here.
    assert "batch_size=120" in words
    assert "supervise.epochs=60" in words
    other = help_of("-m", "sdjax.train", "--config=digits", "--help").split()
    assert "batch_size=64" in other
    assert "data.name=digits" in other
    assert "supervise.learning_rate=0.005" in other


def test_fields_have_the_text_of_their_comments(page):
    assert "  batch_size=120                0 suits the data; ≥ 0\n" in page
    lines = " ".join(page.split())
    assert "data.missing=error Tables (.csv, .parquet, .arff): missing values are an error" in lines
    assert "1 where it does; error | median" in lines
    assert "loss.form=out out | in" in lines
    assert "pretrain.dropout" not in lines


def test_lines_fit_the_terminal(page):
    assert max(map(len, page.splitlines())) <= 100
    assert max(map(len, help_of("train.py", "-h", width=70).splitlines())) <= 70


def test_other_commands_show_their_own_flags():
    page = help_of("-m", "sdjax.aot", "--help")
    assert page.startswith("Does my batch fit")
    assert "--topology=" in names_in(page, "Flags")
    assert "--workdir=" not in page
    assert "[v5e:4x4]" in page


def test_comments_stand_above_or_behind():
    @dataclasses.dataclass
    class Some:
        plain: int = 1
        behind: int = 2  # What it is, and
        # more. Of this
        # field alone.
        above: int = 3  # at its end

    assert usage.comments(Some) == {
        "plain": "",
        "behind": "What it is, and",
        "above": "more. Of this field alone; at its end",
    }
    assert usage.comments(PhaseConfig)["momentum"] == "sgd only"
    assert set(usage.comments(DataConfig)) == {f.name for f in dataclasses.fields(DataConfig)}


def test_it_imports_nothing_heavy():
    assert_not_loaded("sdjax.configs", ["flax", "optax", "orbax", "grain", "sklearn", "pandas"])
