"""What a grid, data sets and flags make of a study."""

import copy
import dataclasses

import pytest
from absl import flags

from sdjax.config import Config, LossConfig
from sdjax.errors import InputError
from sdjax.study import __main__ as command_line
from sdjax.study import plan as plan_lib
from sdjax.study import space
from sdjax.study.plan import DataSet, Plan
from sdjax.study.tuning import Tuner


def names(grid, config=None, **more):
    plan = Plan({"d": DataSet(config or Config())}, grid, **more)
    plan.check()
    return [method.name for method in plan.methods("d")]


def test_methods_are_the_cells_of_the_grid_each_once():
    grid = {
        "loss.name": ("sd", "any"),
        "recipe": ("probe", "joint", "bce"),
        "loss.temperature": (".1", "0.2"),
        "contrastive_weight": ("0.5", "1"),
    }
    found = names(grid, baselines=("nearest_neighbors",))
    probe = [f"{loss} probe temperature={t}" for loss in ("sd", "any") for t in (0.1, 0.2)]
    joint = [
        f"{loss} joint temperature={t} contrastive_weight={w}"
        for loss in ("sd", "any")
        for t in (0.1, 0.2)
        for w in (0.5, 1.0)
    ]
    # A grid of 24 cells: the weight is for one recipe, and binary cross-entropy has no loss.
    assert set(found) == {*probe, *joint, "bce", "k nearest neighbours"}
    assert len(found) == len(set(found))


def test_fields_that_a_loss_has_no_use_for():
    grid = {"loss.name": ("sd", "jaccard"), "loss.threshold": ("0.3", "0.5")}
    assert names(grid) == ["sd", "jaccard threshold=0.3", "jaccard threshold=0.5"]
    assert names({}) == ["joint sd"]
    assert names({}, Config(candidates=("recipe=bce", "recipe=joint"))) == ["best candidate"]
    assert names({}, Config(candidates=("dense: seed=1", "dense: seed=2"))) == ["joint sd"]
    assert names({"pretrain.epochs": ("1", "2")}, Config(recipe="bce")) == ["bce"]
    grid = {"supervised.name": ("bce", "focal"), "supervised.gamma": ("1", "2")}
    assert names(grid) == ["bce", "focal gamma=1.0", "focal gamma=2.0"]
    both = {"pretrain.epochs": ("1", "2"), "supervise.epochs": ("1", "2")}
    assert names(both, Config(recipe="joint")) == ["epochs=1", "epochs=2"]
    # The short names are told apart by their order alone, which is no help to a reader.
    assert names({**both, "recipe": ("probe", "bce")})[0] == "epochs=1 epochs=1 probe"


def test_methods_beside_the_grid():
    grid = {"recipe": ("joint", "bce")}
    more = {"focal": ("recipe=bce", "supervised.name=focal"), "lower": ("model.dropout=0",)}
    assert names(grid, more=more, baselines=("extra_trees",))[2:] == [*more, "extra trees"]
    with pytest.raises(InputError, match="Two methods have the name 'bce'"):
        names(grid, more={"bce": ("recipe=bce", "supervised.name=focal")})
    with pytest.raises(InputError, match="of a grid 'supervised.nam'"):
        names(grid, more={"x": ("supervised.nam=asl",)})


def test_what_a_method_sets_is_not_tuned(tmp_path):
    spaces = (space.parse("model.dropout=0..0.5"), space.parse("supervise.learning_rate=0..1"))
    plan = Plan({"d": DataSet(Config())}, more={"a": ("model.dropout=0",)}, space=spaces)
    tuners = [Tuner(plan, "d", method, tmp_path) for method in plan.methods("d")]
    found = [[each.name for each in tuner.space] for tuner in tuners]
    rate = "supervise.learning_rate"
    assert found == [["model.dropout", rate], [rate]]


def test_a_value_of_the_grid_holds_for_every_candidate():
    base = Config(candidates=("recipe=bce model.width=8", "recipe=joint model.width=8"))
    (method, _) = Plan({"d": DataSet(base)}, {"recipe": ("probe", "bce")}).methods("d")
    config = method.config(base, "seed=3")
    assert (config.recipe, config.seed, config.candidates) == ("probe", 3, ("model.width=8",))


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ({"los.name": ("sd",)}, "Did you mean 'loss.name'"),
        ({"loss.name": ("sd", "sdd")}, "Unknown loss.name 'sdd'"),
        ({"model.width": ("8", "wide")}, "grid's model.width must be of type int, got 'wide'"),
        ({"recipe": ("joint",), "loss.temperature": ("0.1", "-1")}, "above 0, got -1"),
    ],
)
def test_a_value_that_no_run_can_have_ends_the_study_at_once(grid, text):
    with pytest.raises(InputError, match=text):
        names(grid)


def test_a_cell_that_cannot_run_is_left_to_fail_by_itself():
    grid = {"recipe": ("joint", "probe"), "select_by": ("", "contrastive")}
    with pytest.raises(InputError, match="must differ, and none be empty"):
        plan_lib.parse_axis("select_by=,contrastive")
    assert len(names(grid)) == 4


def test_the_identity_of_a_run_is_of_what_it_computes():
    config = Config(loss=LossConfig(name="any"))
    same = dataclasses.replace(config, seed=5, log_every=3)
    other = dataclasses.replace(config, batch_size=8)
    assert plan_lib.identity(config) == plan_lib.identity(same) != plan_lib.identity(other)
    listed = dataclasses.replace(config, candidates=("recipe=bce",))
    assert plan_lib.identity(config) != plan_lib.identity(listed)


def test_the_command_of_a_run_makes_its_config():
    config = copy.deepcopy(command_line._given("own_data"))
    config.recipe, config.data.train, config.seed = "bce", "a b.csv", 3
    told = plan_lib.command(DataSet(config, "own_data", command_line._given("own_data")), config)
    assert told == [
        "--config=own_data",
        "--config.recipe=bce",
        "--config.seed=3",
        "--config.data.train=a b.csv",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("loss.temperature=.03..1:log", space.Parameter("loss.temperature", 0.03, 1, True)),
        ("model.dropout=0...5", space.Parameter("model.dropout", 0, 0.5)),
        ("model.width=8,16", space.Parameter("model.width", values=("8", "16"))),
    ],
)
def test_spaces(text, expected):
    found = space.parse(text).checked(Config())
    assert found == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.width", "must be FIELD=LOW..HIGH"),
        ("model.dropout=.5..0", "must be FIELD=LOW..HIGH"),
        ("model.dropout=0..0.5:log", "must be FIELD=LOW..HIGH"),
        ("model.dropout=0..2", "model.dropout must be a number, at least 0, below 1, got 2"),
        ("model.drop=0..0.5", "Did you mean 'model.dropout'"),
        ("recipe=a,b", "Unknown recipe 'a'"),
    ],
)
def test_spaces_that_are_not(text, message):
    with pytest.raises(InputError, match=message):
        space.parse(text).checked(Config())


def test_flags_take_all_the_words_behind_them():
    argv = ["study", "--grid", "a=1,2", "b=3", "--seeds=2", "--data", "x: a=1", "--grid=c=4", "d=5"]
    argv += ["--methods", "y: b=1", "z: b=2"]
    assert command_line.spread(argv) == [
        *("study", "--grid=a=1,2", "--grid=b=3", "--seeds=2", "--data=x: a=1"),
        *("--grid=c=4", "--grid=d=5", "--methods=y: b=1", "--methods=z: b=2"),
    ]
    assert command_line.spread(["study", "--seeds", "2", "x"]) == ["study", "--seeds", "2", "x"]


def test_baselines_are_named_or_all():
    def found(*words):
        given = flags.FlagValues()
        command_line.define_flags(given)
        given(command_line.spread(["study", *words]))
        return command_line.make_plan(["--seeds=1"], Config(), "yeast", given).baselines

    assert found() == ()
    all_of_them = ("extra_trees", "logistic_regression", "nearest_neighbors")
    assert found("--baselines") == found("--baselines", "--seeds=2") == all_of_them
    two = ("extra_trees", "nearest_neighbors")
    assert found("--baselines", "nearest_neighbors", "extra_trees", "--seeds=2") == two
    assert found("--baselines=nearest_neighbors,extra_trees") == two
    with pytest.raises(InputError, match="baseline 'trees'. Did you mean 'extra_trees'. Known: "):
        found("--baselines=trees")


def test_times():
    assert [command_line.seconds(text) for text in ("90s", "1h30m", "1.5h")] == [90, 5400, 5400]
    with pytest.raises(InputError, match="as 90s, 30m or 1h30m, got '30'"):
        command_line.seconds("30")


def test_data_sets_from_flags():
    argv = ["study", "--config.model.width=7", "--data", "a: data.name=digits"]
    argv += ["b: config=own_data data.train='x y.csv' recipe=bce", "--seeds=3", "--tune=2"]
    argv += ["--methods", "wide: model.width=9 recipe=bce"]
    arguments = command_line.spread(argv)
    given = flags.FlagValues()
    command_line.define_flags(given)
    given(["study", *(each for each in arguments[1:] if "config." not in each)])
    plan = command_line.make_plan(arguments[1:], Config(), "yeast", given)
    first, second = plan.data["a"], plan.data["b"]
    assert (first.config.data.name, first.base) == ("digits", "yeast")
    assert (second.config.data.train, second.base) == ("x y.csv", "own_data")
    # What was typed holds for each, and for the candidates of each.
    assert second.config.model.width == 7 and second.config.recipe == "bce"
    assert all("model.width" not in each for each in second.config.candidates)
    assert (plan.seeds, plan.trials) == (3, 2)
    assert plan.more == {"wide": ("model.width=9", "recipe=bce")}
    assert "loss.temperature" in [each.name for each in plan.space]
