"""What images a published encoder was made for: their size, and how numbers stand for colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdjax import hub
from sdjax.data.images import FILTERS, Resizing
from sdjax.errors import InputError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
# Of files that do not tell; of all other families ImageNet's.
_USUAL = {"vit": HALF, "clip": CLIP, "clip_vision_model": CLIP}
_USUAL_SIZE = 224
# Where smaller images are cut out of larger ones: ImageNet's 224 of 256.
_CROP_SHARE = 224 / 256
_LEAST_UNCROPPED = 384


@dataclass(frozen=True)
class ImageInputs:
    """Images as an encoder wants them: resized, and (x / 255 - mean) / std of each channel.

    Attributes:
      resizing: to a square.
      mean: of each channel, of values in [0, 1].
      std: likewise.
    """

    resizing: Resizing
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(origin: str) -> ImageInputs:
    """What images the published model at `origin` takes; see `sdjax.hub.local`.

    From preprocessor_config.json as transformers writes it, or from config.json as timm does;
    without either, what is usual for the family.

    Raises:
      InputError: if a file is there and says nothing that can be followed.
    """
    config = hub.read_config_if_any(origin)
    if hub.has(origin, hub.IMAGES):
        return _of_transformers(origin, hub.read_json(origin, hub.IMAGES))
    if "pretrained_cfg" in config:
        return _of_timm(origin, config["pretrained_cfg"])
    usual = _USUAL.get(config.get("model_type", ""), IMAGENET)
    size = config.get("vision_config", config).get("image_size", _USUAL_SIZE)
    size = side(origin, "image_size", size)
    whole = usual is HALF
    return ImageInputs(Resizing(size, 0 if whole else _around(size, _CROP_SHARE)), **usual)


def _of_transformers(origin: str, fields: Mapping[str, Any]) -> ImageInputs:
    given = fields.get("size", _USUAL_SIZE)
    size = side(origin, "size", given)
    shorter = size if isinstance(given, dict) and "shortest_edge" in given else 0
    kind = fields.get("image_processor_type", fields.get("feature_extractor_type", ""))
    if fields.get("do_center_crop") and fields.get("crop_size"):
        shorter, size = size, side(origin, "crop_size", fields["crop_size"])
    elif fields.get("crop_pct") or kind.startswith("ConvNext"):
        small = size < _LEAST_UNCROPPED
        shorter = _around(size, fields.get("crop_pct") or _CROP_SHARE) if small else 0
    number = fields.get("resample", 2)
    names = {value: name for name, value in FILTERS.items()}
    if number not in names:
        raise InputError(f"{origin}: resample {number!r} of {hub.IMAGES} is not known: {names}.")
    resizing = Resizing(size, shorter, names[number])
    if not fields.get("do_normalize", True):
        return ImageInputs(resizing, (0.0,) * 3, (1.0,) * 3)
    return ImageInputs(resizing, *_statistics(origin, fields, "image_mean", "image_std"))


def _of_timm(origin: str, fields: Mapping[str, Any]) -> ImageInputs:
    size = side(origin, "input_size", list(fields.get("input_size", (3, 224, 224)))[1:])
    share = fields.get("crop_pct", _CROP_SHARE)
    shorter = 0 if fields.get("crop_mode") == "squash" else _around(size, share)
    name = fields.get("interpolation", "bicubic")
    resizing = Resizing(size, shorter, name if name in FILTERS else "bicubic")
    return ImageInputs(resizing, *_statistics(origin, fields, "mean", "std"))


def _around(size: int, share: float) -> int:
    """The side of which a square of `size` is such a share."""
    return int(size / share)


def side(origin: str, name: str, value: Any) -> int:
    """The side of a square, which is given once, or for height and width."""
    sides = value
    if isinstance(value, dict):
        keys = ("shortest_edge",) if "shortest_edge" in value else ("height", "width")
        sides = [value.get(key) for key in keys]
    sides = {*sides} if isinstance(sides, list) else {sides}
    side = sides.pop() if len(sides) == 1 else None
    if not isinstance(side, int) or side < 1:
        raise InputError(f"{origin}: {name} must be the side of a square, got {value!r}.")
    return side


def _statistics(
    origin: str, fields: Mapping[str, Any], *names: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(x) for x in fields[name]) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        text = f"{origin}: {' and '.join(names)} must be numbers of each channel ({error!r})."
        raise InputError(text) from error
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise InputError(f"{origin}: {' and '.join(names)} do not fit: {mean} and {std}.")
    return mean, std
