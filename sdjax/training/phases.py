"""What a recipe trains, in which order, and for how long."""

from dataclasses import dataclass

from sdjax.checks import one_of
from sdjax.config import RECIPES, Config, PhaseConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one objective and one optimizer.

    Attributes:
      name: "pretrain", "probe", "finetune", "joint" or "bce".
      contrastive: weight of the contrastive loss.
      supervised: weight of the binary cross-entropy.
      trained: the parts of the model that learn.
      config: length and optimizer.
      start: first step, counted from the start of the run.
      stop: one past the last step.
    """

    name: str
    contrastive: float
    supervised: float
    trained: tuple[str, ...]
    config: PhaseConfig
    start: int
    stop: int

    @property
    def num_steps(self) -> int:
        return self.stop - self.start

    @property
    def trains_encoder(self) -> bool:
        return "encoder" in self.trained


_ALL = ("encoder", "projection", "classifier")


def make_phases(config: Config, steps_per_epoch: int) -> tuple[Phase, ...]:
    """The phases of `config.recipe`, one after the other."""
    objectives = {
        "pretrain": (1.0, 0.0, ("encoder", "projection"), config.pretrain),
        "probe": (0.0, 1.0, ("classifier",), config.supervise),
        "finetune": (0.0, 1.0, ("encoder", "classifier"), config.supervise),
        "joint": (config.contrastive_weight, 1.0, _ALL, config.supervise),
        "bce": (0.0, 1.0, ("encoder", "classifier"), config.supervise),
    }
    names = {
        "probe": ("pretrain", "probe"),
        "finetune": ("pretrain", "finetune"),
        "joint": ("joint",),
        "bce": ("bce",),
    }
    phases, start = [], 0
    for name in names[one_of("recipe", config.recipe, RECIPES)]:
        contrastive, supervised, trained, length = objectives[name]
        stop = start + length.epochs * steps_per_epoch
        phases.append(Phase(name, contrastive, supervised, trained, length, start, stop))
        start = stop
    return tuple(phases)


def phase_of_step(phases: tuple[Phase, ...], step: int) -> Phase:
    """The phase that a state belongs to after `step` steps of the run."""
    return next(phase for phase in phases if step <= phase.stop)
