"""Random views of a batch, in pure JAX: they run on the device, inside the jitted step."""

import math

import jax
import jax.numpy as jnp

from sdjax.checks import one_of
from sdjax.config import MASK_FILLS, AugmentConfig
from sdjax.data import colours
from sdjax.data.randaugment import rand_augment
from sdjax.errors import InputError

Array = jax.Array
MODALITIES = ("vector", "image")


def random_view(
    key: Array, x: Array, where: Array | None, config: AugmentConfig, modality: str
) -> Array:
    """A random view of each example; every example draws its own.

    Vectors: a share of the features is replaced, by zero (the mean of standardised features)
    or by the same feature of another row (SCARF); Gaussian noise is added. Images: shifted,
    cropped and resized back, operations of RandAugment, colours changed, a rectangle erased to
    zero (the mean), mirrored.

    Args:
      key: a PRNG key; the view is a pure function of it.
      x: float [B, F] or [B, H, W, channels], standardised.
      where: bool [B]; rows that are False come back as they are, and are not drawn from.
        None is all True.
      config: the strengths, static under jit.
      modality: `vector` or `image`.

    Returns:
      float32, of the shape of `x`.

    Raises:
      ValueError: if a strength is out of range, or `x` does not have the modality's rank.

    References:
      Bahri et al. SCARF: self-supervised contrastive learning using random feature corruption.
      ICLR 2022. https://arxiv.org/abs/2106.15147
    """
    one_of("modality", modality, MODALITIES)
    rank = 2 if modality == "vector" else 4
    if x.ndim != rank:
        raise InputError(f"x must have rank {rank} for modality {modality!r}, got {x.shape}.")
    if where is None:
        where = jnp.ones(x.shape[0], bool)
    if where.shape != x.shape[:1]:
        raise InputError(f"where must be [{x.shape[0]}], got {where.shape}.")
    x = x.astype(jnp.float32)
    if modality == "vector":
        view = _vector_view(key, x, where, config)
    else:
        view = _image_view(key, x, config)
    return jnp.where(where.reshape(-1, *[1] * (rank - 1)), view, x)


def text_view(
    key: Array, x: dict[str, Array], where: Array, config: AugmentConfig
) -> dict[str, Array]:
    """A random view of each text: tokens are left out, but never the first one.

    Args:
      key: a PRNG key.
      x: {"ids" [B, T], "mask" bool [B, T]}, and what else there is of each token.
      where: bool [B]; rows that are False stay as they are.
      config: `token_drop` is the probability.

    Returns:
      x with another mask, which no encoder looks behind. Without `token_drop`, x itself.
    """
    _check_share("token_drop", config.token_drop)
    if not config.token_drop:
        return x
    dropped = jax.random.bernoulli(key, config.token_drop, x["mask"].shape)
    first = jnp.arange(x["mask"].shape[1]) == 0
    return {**x, "mask": x["mask"] & (first | ~dropped | ~where[:, None])}


def _vector_view(key: Array, x: Array, where: Array, config: AugmentConfig) -> Array:
    _check_share("feature_mask", config.feature_mask)
    one_of("augment.feature_fill", config.feature_fill, MASK_FILLS)
    if config.feature_noise < 0:
        raise InputError(f"augment.feature_noise must be >= 0, got {config.feature_noise}.")
    mask_key, fill_key, noise_key = jax.random.split(key, 3)
    if config.feature_mask:
        mask = jax.random.bernoulli(mask_key, config.feature_mask, x.shape)
        sample = config.feature_fill == "sample"
        x = jnp.where(mask, _sample_features(fill_key, x, where) if sample else 0.0, x)
    if config.feature_noise:
        x = x + config.feature_noise * jax.random.normal(noise_key, x.shape, x.dtype)
    return x


def _sample_features(key: Array, x: Array, where: Array) -> Array:
    """[B, F]: each entry is that feature of a valid row, drawn anew for each entry."""
    valid_first = jnp.argsort(~where, stable=True)
    count = jnp.maximum(jnp.sum(where), 1)
    ranks = jax.random.randint(key, x.shape, 0, count)
    return jnp.take_along_axis(x, valid_first[ranks], axis=0)


def _image_view(key: Array, x: Array, config: AugmentConfig) -> Array:
    _check_share("crop", config.crop)
    _check_share("erase", config.erase)
    if not config.crop:
        raise InputError("augment.crop must be more than 0; 1 is no cropping.")
    if not 0 <= config.shift < min(x.shape[1:3]):
        raise InputError(
            f"augment.shift must lie in [0, {min(x.shape[1:3])}) for images of "
            f"{x.shape[1]}x{x.shape[2]}, got {config.shift}."
        )
    move_key, erase_key, flip_key = jax.random.split(key, 3)
    if config.shift or config.crop < 1 or config.aspect > 1:
        x = _shift_and_crop(move_key, x, config.shift, config.crop, config.aspect)
    if config.changes_colours:
        x = _recoloured(jax.random.fold_in(key, 3), x, config)
    if config.erase:
        x = jnp.where(_rectangles(erase_key, x.shape, config.erase), 0.0, x)
    if config.flip:
        flip = jax.random.bernoulli(flip_key, 0.5, (x.shape[0], 1, 1, 1))
        x = jnp.where(flip, x[:, :, ::-1], x)
    return x


def _recoloured(key: Array, x: Array, config: AugmentConfig) -> Array:
    """RandAugment and other changes of colours, of images that are standardised."""
    channels = x.shape[-1]
    if not len(config.pixel_mean) == len(config.pixel_std) == channels:
        raise InputError(
            f"augment.pixel_mean and augment.pixel_std must be {channels} numbers each, one of "
            f"each channel, got {config.pixel_mean} and {config.pixel_std}."
        )
    if min(config.pixel_mean) < 0 or max(config.pixel_mean) > 1:
        raise InputError(
            "augment.jitter, hue, grey and randaugment are for images of uint8, or of floats in "
            f"[0, 1]; the mean is {config.pixel_mean}."
        )
    for name in ("hue", "grey"):
        if getattr(config, name) and channels != 3:
            raise InputError(f"augment.{name} is for images of 3 channels, got {channels}.")
    mean, std = (jnp.asarray(each, x.dtype) for each in (config.pixel_mean, config.pixel_std))
    operation_key, jitter_key, grey_key = jax.random.split(key, 3)
    x = jnp.clip(x * std + mean, 0, 1)
    if config.randaugment:
        x = rand_augment(operation_key, x, config.randaugment, config.magnitude, mean)
    if config.jitter or config.hue:
        x = colours.jittered(jitter_key, x, config.jitter, config.hue)
    if config.grey:
        x = colours.greyed(grey_key, x, config.grey)
    return (x - mean) / std


def _shift_and_crop(key: Array, x: Array, shift: int, crop: float, aspect: float) -> Array:
    """Shifts by whole pixels, zeros moving in; then resizes a random part to the whole."""
    batch, height, width, _ = x.shape
    shift_key, side_key, place_key = jax.random.split(key, 3)
    moved = jax.random.randint(shift_key, (batch, 2), -shift, shift + 1)
    side = jnp.sqrt(jax.random.uniform(side_key, (batch, 1), minval=crop**2, maxval=1.0))
    if aspect > 1:
        most = math.log(aspect) / 2
        draw = jax.random.uniform(jax.random.fold_in(key, 3), (batch, 1), minval=-most, maxval=most)
        side = jnp.minimum(side * jnp.exp(jnp.concatenate([draw, -draw], axis=1)), 1)
    place = jax.random.uniform(place_key, (batch, 2)) * (1 - side) * jnp.array([height, width])

    def resample(image: Array, scale: Array, translation: Array) -> Array:
        return jax.image.scale_and_translate(
            *(image, image.shape, (0, 1), scale, translation),
            method="linear",
            antialias=False,
            precision=jax.lax.Precision.HIGHEST,
        )

    scale = jnp.broadcast_to(1 / side, (batch, 2))
    return jax.vmap(resample)(x, scale, (moved - place) / side)


def _rectangles(key: Array, shape: tuple[int, ...], largest: float) -> Array:
    """Bool [B, H, W, 1]: True inside a random rectangle of each image."""
    batch, height, width, _ = shape
    side_key, place_key = jax.random.split(key)
    sides = jax.random.uniform(side_key, (2, batch, 1), maxval=largest)
    starts = jax.random.uniform(place_key, (2, batch, 1)) * (1 - sides)

    def inside(size: int, start: Array, side: Array) -> Array:
        centres = (jnp.arange(size) + 0.5) / size
        return (centres >= start) & (centres < start + side)

    rows = inside(height, starts[0], sides[0])
    columns = inside(width, starts[1], sides[1])
    return rows[:, :, None, None] & columns[:, None, :, None]


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise InputError(f"augment.{name} must lie between 0 and 1, got {share}.")
