"""Which checkpoints are kept: the newest, and the best by a validation metric."""

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from orbax.checkpoint import checkpoint_managers as ocp_managers

from sdjax.config import VALIDATION_LOSSES
from sdjax.errors import InputError
from sdjax.metrics import LOWER_IS_BETTER


@dataclasses.dataclass
class _Ranked:
    step: int
    time: datetime.datetime
    metrics: Any


class BestStep(ocp_managers.PreservationPolicy):
    """Orbax's policy that keeps the best, by metrics that are given here.

    Orbax would read them from a file without a checksum, before a damaged one can be set aside.

    Args:
      name: of the metric; larger is better, unless it is a loss; "" for none.
    """

    def __init__(self, name: str):
        self._name = name
        self._sign = -1 if name in (*LOWER_IS_BETTER, *VALIDATION_LOSSES) else 1
        self._ranks: dict[int, tuple[float, int]] = {}
        self._best = ocp_managers.BestN(
            n=1, get_metric_fn=lambda rank: rank, keep_checkpoints_without_metrics=False
        )

    def check(self, metrics: Mapping[str, float | None]) -> None:
        """Raises InputError if there are metrics, and not the one of the policy."""
        if self._name and metrics and self._name not in metrics:
            raise InputError(
                f"best_by must be one of the validation metrics ({', '.join(sorted(metrics))}), "
                f"got {self._name!r}."
            )

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """That of the metric; None without a finite one."""
        value = float(metrics.get(self._name, math.nan))
        return value if math.isfinite(value) else None

    def add(self, step: int, value: float | None) -> None:
        """Ranks the checkpoint of a step; it has no rank without a value."""
        if value is not None:
            self._ranks[step] = (self._sign * value, -step)  # of equal ones the first is better

    def best_first(self, steps: Sequence[int]) -> list[int]:
        """Those of `steps` that have a rank."""
        ranked = [step for step in steps if step in self._ranks]
        return sorted(ranked, key=self._ranks.__getitem__, reverse=True)

    def should_preserve(
        self,
        checkpoints: Sequence[ocp_managers.PolicyCheckpointInfo],
        *,
        context: ocp_managers.PreservationContext,
    ) -> Sequence[bool]:
        """As Orbax asks for it: one answer a checkpoint."""
        ranked = [_Ranked(each.step, each.time, self._ranks.get(each.step)) for each in checkpoints]
        return self._best.should_preserve(ranked, context=context)
