"""The table of what is measured."""

import dataclasses
import os
from typing import Any, get_args

from peers.float64 import Loss, Relative

# Memory that was freed stays with the process: no page faults in the next call.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
}
THREADS = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
TUNED = KEEP_MEMORY | THREADS


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
      name: as tables show it.
      module: in `peers`.
      options: keyword arguments of the module's `prepare`.
      loss: what it computes, None if that is no loss.
      env: environment variables of its process.
      single_label: takes the first label of each row alone.
      plotted: shown in the pictures.
    """

    name: str
    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    loss: Loss | None = dataclasses.field(default_factory=Loss)
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    single_label: bool = False
    plotted: bool = True

    @property
    def dtype(self) -> str:
        return self.options.get("dtype", "float32")


BASELINE = "sdjax auto"
ANY = Loss("any")
SUPCONTRAST_ANY = Loss("any", mean="all")
SUPCONTRAST_SD = Loss("sd", divisor="weights", mean="all")
MULSUPCON = Loss("mulsupcon", divisor="none", mean="labels", include_self=True)
NTXENT = Loss("ntxent")


RELATIVES: tuple[Relative, ...] = get_args(Relative)


def _sdjax() -> list[Subject]:
    subjects = []
    for implementation in ("auto", "tiled", "dense"):
        for dtype, suffix in (("float32", ""), ("bfloat16", ", bfloat16")):
            options = {"implementation": implementation, "dtype": dtype}
            name = f"sdjax {implementation}{suffix}"
            # The other dtype lies so close that a picture shows one line.
            subjects.append(Subject(name, "sdjax_losses", options, plotted=not suffix))
    for implementation in ("tiled", "dense"):
        options = {"implementation": implementation, "dense_labels": True}
        name = f"sdjax {implementation}, multi-hot labels"
        subjects.append(Subject(name, "sdjax_losses", options, plotted=False))
    mulsupcon = Loss("mulsupcon", divisor="none", mean="labels")
    subjects.append(
        Subject("sdjax MulSupCon", "sdjax_losses", {"loss": "mulsupcon"}, mulsupcon, plotted=False)
    )
    subjects += [
        Subject(f"sdjax {name}", "sdjax_losses", {"loss": name}, Loss(name), plotted=False)
        for name in RELATIVES
    ]
    return subjects


SUBJECTS = [
    *_sdjax(),
    Subject("plain JAX", "plain_jax"),
    Subject("plain JAX, tuned", "plain_jax", env=KEEP_MEMORY, plotted=False),
    Subject("optax ntxent (one label)", "optax_ntxent", loss=NTXENT, single_label=True),
    Subject("SupContrast form, any", "supcontrast", {"weight": "any"}, SUPCONTRAST_ANY),
    Subject("SupContrast form, SD", "supcontrast", {"weight": "sd"}, SUPCONTRAST_SD, plotted=False),
    Subject("SupContrast form, SD, tuned", "supcontrast", {"weight": "sd"}, SUPCONTRAST_SD, TUNED),
    Subject("MulSupCon form", "mulsupcon", loss=MULSUPCON, plotted=False),
    Subject("MulSupCon form, tuned", "mulsupcon", loss=MULSUPCON, env=TUNED),
    Subject("pytorch-metric-learning (one label)", "metric_learning", loss=ANY, single_label=True),
    Subject(
        "pytorch-metric-learning, overlap",
        "metric_learning",
        {"positives": "overlap"},
        ANY,
        plotted=False,
    ),
    Subject("products", "products", loss=None),
    Subject("products, bfloat16", "products", {"dtype": "bfloat16"}, loss=None, plotted=False),
]
# For the table of what fails alone.
CORES = [
    Subject(
        f"sdjax {name}, {core}", "sdjax_losses", {"loss": name, "implementation": core}, Loss(name)
    )
    for name in RELATIVES
    for core in ("dense", "tiled")
    if name != "herocon"
]
BY_NAME = {subject.name: subject for subject in (*SUBJECTS, *CORES)}
