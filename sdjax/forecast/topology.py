"""Devices by name: what "v5e:4x4" or "h100:16" is."""

from typing import Any

from sdjax.errors import InputError
from sdjax.forecast import gpu, tpu
from sdjax.forecast.chips import CHIPS, Chip

_DEVICES = {"tpu": tpu.devices, "cuda": gpu.devices}
# What is to be said of a forecast for such devices.
NOTES = {"tpu": tpu.NOTE, "cuda": gpu.NOTE}


def topology(name: str) -> tuple[Chip, list[Any]]:
    """The chip, and the devices, of a topology such as "v5e:4x4" or "h100:16".

    Raises:
      InputError: if there is none of that name, or no compiler for it is installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS or not shape:
        raise InputError(
            f"topology must be CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as v5e:4x4, "
            f"v5p:4x4x4, h100:8 or h100:16; got {name!r}."
        )
    chip = CHIPS[kind]
    return chip, _DEVICES[chip.platform](chip, shape)
