import itertools

import pytest

from sdjax.config import Config
from sdjax.training.phases import make_phases, phase_of_step


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        ("probe", ["pretrain", "probe"]),
        ("finetune", ["pretrain", "finetune"]),
        ("joint", ["joint"]),
        ("bce", ["bce"]),
    ],
)
def test_recipes(recipe, names):
    config = Config(recipe=recipe)
    config.pretrain.epochs, config.supervise.epochs = 3, 5
    phases = make_phases(config, steps_per_epoch=7)
    assert [phase.name for phase in phases] == names
    lengths = [{"pretrain": 21}.get(name, 35) for name in names]
    assert [phase.num_steps for phase in phases] == lengths
    assert phases[0].start == 0
    for before, after in itertools.pairwise(phases):
        assert before.stop == after.start


def test_objectives():
    config = Config(recipe="joint", contrastive_weight=0.3)
    (joint,) = make_phases(config, 1)
    assert (joint.contrastive, joint.supervised) == (0.3, 1.0)
    config.recipe = "probe"
    pretrain, probe = make_phases(config, 1)
    assert (pretrain.contrastive, pretrain.supervised) == (1.0, 0.0)
    assert (probe.contrastive, probe.supervised) == (0.0, 1.0)
    assert probe.trained == ("classifier",)
    assert not probe.trains_encoder


def test_a_state_at_the_boundary_belongs_to_the_phase_that_ended():
    config = Config(recipe="probe")
    config.pretrain.epochs, config.supervise.epochs = 2, 3
    phases = make_phases(config, steps_per_epoch=5)
    names = [phase_of_step(phases, step).name for step in (0, 9, 10, 11, 25)]
    assert names == ["pretrain", "pretrain", "pretrain", "probe", "probe"]


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown recipe 'joined'. Did you mean 'joint'"):
        make_phases(Config(recipe="joined"), 1)
