"""Colours of random views: each operation as Pillow has it, and what the views are drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from sdjax.config import AugmentConfig
from sdjax.data import colours, randaugment, random_view
from sdjax.errors import InputError

STILL = {"feature_mask": 0.0, "shift": 0, "crop": 1.0, "erase": 0.0}
PIXELS = {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.25, 0.3)}
STRENGTH = 0.5
FILL = (0.2, 0.4, 0.6)


def picture(height=80, width=96):
    """A smooth picture with few grey pixels, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / height
    planes = [128 + 90 * np.sin(4 * x + 3 * y), 60 + 100 * x * y, 200 - 120 * y + 20 * x]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def by_pillow(name, sign):
    image, factor = Image.fromarray(picture()), 1 + sign * 0.9 * STRENGTH
    enhanced = {"saturation": "Color"}.get(name, name.capitalize())
    if name in ("brightness", "saturation", "contrast", "sharpness"):
        return getattr(ImageEnhance, enhanced)(image).enhance(factor)
    if name == "posterize":
        return ImageOps.posterize(image, 6)
    if name == "solarize":
        return ImageOps.solarize(image, 128)
    if name in ("autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    return moved(image, name, sign * STRENGTH) if name != "identity" else image


def moved(image, name, by):
    """By Pillow's affine maps, about the middle."""
    middle = np.array([image.width, image.height]) / 2
    matrix, shift = np.eye(2), np.zeros(2)
    if name == "rotate":
        angle = np.radians(30 * by)
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    elif name.startswith("shear"):
        matrix[(0, 1) if name == "shear_x" else (1, 0)] = 0.3 * by
    else:
        side = 0 if name == "translate_x" else 1
        shift[side] = 150 / 331 * by * image.size[side]
    offset = shift + middle - matrix @ middle
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    fill = tuple(round(255 * x) for x in FILL)
    return image.transform(image.size, Image.Transform.AFFINE, data, 2, fillcolor=fill)


def test_operations_are_those_of_pillow():
    names = [(name, sign) for name in randaugment.OPERATIONS for sign in (1, -1)]
    numbers = jnp.array([randaugment.OPERATIONS.index(name) for name, _ in names])
    apply = functools.partial(randaugment.operation, strength=STRENGTH, fill=jnp.array(FILL))
    x = jnp.asarray(picture(), jnp.float32) / 255
    signs = jnp.array([sign for _, sign in names], jnp.float32)
    found = 255 * np.asarray(jax.jit(jax.vmap(apply, (None, 0, 0)))(x, numbers, signs))
    for (name, sign), image in zip(names, found):
        wanted = np.asarray(by_pillow(name, sign), float)
        apart = np.abs(image - wanted)
        if name in randaugment.GEOMETRIC:
            # At the border of the image the two mix in the fill each in its own way.
            assert np.mean(apart > 2) < 0.05, (name, sign, np.mean(apart > 2))
            assert np.mean(np.abs(wanted - picture()) > 2) > 0.3
        else:
            inner = apart[1:-1, 1:-1]  # Pillow smooths no border
            assert inner.max() < (5 if name == "equalize" else 2.5), (name, sign, inner.max())


@functools.cache
def compiled(**fields):
    config = AugmentConfig(**{**STILL, **PIXELS, **fields})
    return jax.jit(lambda key, x: random_view(key, x, None, config, "image"))


def batch(count=4):
    x = jnp.asarray(picture(12, 16), jnp.float32) / 255
    return jnp.tile(x, (count, 1, 1, 1))


def standardised(x):
    return (x - jnp.array(PIXELS["pixel_mean"])) / jnp.array(PIXELS["pixel_std"])


def restored(x):
    return np.asarray(x) * PIXELS["pixel_std"] + PIXELS["pixel_mean"]


@pytest.mark.parametrize(
    "fields", [{"jitter": 0.4, "hue": 0.1, "grey": 0.2}, {"randaugment": 2, "magnitude": 20}]
)
def test_views_are_functions_of_the_key_and_differ_by_image(fields):
    x, view = standardised(batch(8)), compiled(**fields)
    first, again, other = (view(jax.random.key(seed), x) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and (first != other).any()
    assert len({image.tobytes() for image in np.asarray(first)}) > 4
    assert restored(first).min() > -1e-5 and restored(first).max() < 1 + 1e-5


def test_brightness_contrast_and_saturation_vary_as_said():
    x = standardised(batch(64))
    found = restored(compiled(jitter=0.3)(jax.random.key(0), x))
    ratios = found.mean(axis=(1, 2, 3)) / restored(x).mean()
    assert 0.6 < ratios.min() < 0.8 and 1.1 < ratios.max() < 1.4
    spread = np.ptp(found, axis=-1).mean(axis=(1, 2)) / np.ptp(restored(x), axis=-1).mean()
    assert spread.min() < 0.7 < 1.2 < spread.max()


def test_turned_hues_keep_luminance_and_come_back():
    x = 0.4 + 0.1 * jax.random.uniform(jax.random.key(0), (2, 5, 6, 3))  # no colour is clipped
    turned = colours.hue_turned(x, jnp.array([0.25, -0.1]))
    np.testing.assert_allclose(colours.luminance(turned), colours.luminance(x), atol=1e-3)
    assert np.abs(turned - x).max() > 0.02
    back = colours.hue_turned(turned, jnp.array([-0.25, 0.1]))
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_a_share_of_images_becomes_grey():
    found = restored(compiled(grey=0.3)(jax.random.key(0), standardised(batch(200))))
    grey = np.ptp(found, axis=-1).max(axis=(1, 2)) < 1e-3
    assert 35 < grey.sum() < 85


def test_crops_are_stretched_within_bounds():
    """On a plane, a crop is a plane whose two slopes are the crop's two sides."""
    y, x = np.mgrid[:20, :24].astype(np.float32)
    plane = jnp.tile(jnp.stack([y, x], axis=-1), (200, 1, 1, 1))
    config = AugmentConfig(**{**STILL, "crop": 0.5, "aspect": 2.0})
    found = np.asarray(random_view(jax.random.key(0), plane, None, config, "image"))[:, 5:-5, 5:-5]
    high, wide = np.diff(found[..., 0], axis=1), np.diff(found[..., 1], axis=2)
    high, wide = high.mean(axis=(1, 2)), wide.mean(axis=(1, 2))
    area, ratio = high * wide, high / wide
    assert 0.2 < area.min() < 0.35 and 0.8 < area.max() < 1.01
    assert 0.49 < ratio.min() < 0.7 and 1.4 < ratio.max() < 2.01


@pytest.mark.parametrize(
    "fields, channels, text",
    [
        ({"jitter": 0.1, "pixel_mean": (), "pixel_std": ()}, 3, "pixel_mean .*must be 3 numbers"),
        ({"hue": 0.1, "pixel_mean": (0.5,), "pixel_std": (0.5,)}, 1, "hue is for images of 3"),
        ({"jitter": 0.1, "pixel_mean": (8.0,), "pixel_std": (1.0,)}, 1, r"floats in \[0, 1\]"),
    ],
)
def test_images_whose_colours_are_not_known(fields, channels, text):
    config = AugmentConfig(**{**STILL, **PIXELS, **fields})
    with pytest.raises(InputError, match=text):
        random_view(jax.random.key(0), jnp.zeros((2, 8, 8, channels)), None, config, "image")
