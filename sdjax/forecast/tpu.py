"""TPU chips to compile for, without a TPU: by libtpu."""

import os
import re
from typing import Any

from sdjax.errors import InputError
from sdjax.forecast.chips import Chip

NOTE = (
    "Times are lower bounds, at the chip's published rates, and examples/s an upper bound: the "
    "slowest resource, as if it hid the others. See docs/tpu.md."
)
# libtpu looks for a TPU otherwise, and complains at length.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(chip: Chip, shape: str) -> list[Any]:
    """The chips of a slice, such as "4x4".

    Raises:
      InputError: if there is no slice of that shape, or libtpu is not installed.
    """
    from jax.experimental import topologies

    name = f"{chip.name}:{shape}"
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise InputError(f"topology {name!r}: a slice of TPUs has 2 or 3 sizes, such as 4x4.")
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError('libtpu is not installed: pip install -e ".[train,tpu]".') from error
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu's own types.
        raise InputError(f"topology {name!r}: {str(error).splitlines()[0][:300]}") from error
    return list(description.devices)
