"""Random views: what they change, what they leave alone, and what they are a function of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.config import AugmentConfig
from sdjax.data import random_view
from sdjax.data.augment import text_view

KEY = jax.random.key(0)
VECTORS = jax.random.normal(jax.random.key(1), (64, 50)) + 5
IMAGES = jax.random.uniform(jax.random.key(2), (16, 12, 10, 2), minval=1.0, maxval=2.0)
STILL = {"feature_mask": 0.0, "shift": 0, "crop": 1.0, "erase": 0.0}
CONFIGS = {
    "zero": ("vector", {"feature_mask": 0.3}),
    "sample": ("vector", {"feature_mask": 0.3, "feature_fill": "sample"}),
    "noise": ("vector", {"feature_noise": 0.1}),
    "shift": ("image", {"shift": 3}),
    "crop": ("image", {"crop": 0.5}),
    "erase": ("image", {"erase": 0.6}),
    "flip": ("image", {"flip": True}),
    "all": ("image", {"shift": 3, "crop": 0.5, "erase": 0.6, "flip": True}),
}


@functools.cache
def compiled(name):
    """The view `name`, traced once for each shape."""
    modality, fields = CONFIGS[name]
    config = AugmentConfig(**{**STILL, **fields})
    return jax.jit(lambda key, x, where: random_view(key, x, where, config, modality))


def view(name, key=KEY, x=None, where=None):
    if x is None:
        x = VECTORS if CONFIGS[name][0] == "vector" else IMAGES
    if where is None:
        where = jnp.ones(len(x), bool)
    return compiled(name)(key, x, where), x


@pytest.mark.parametrize("name", CONFIGS)
def test_is_a_function_of_the_key(name):
    first, x = view(name)
    np.testing.assert_array_equal(first, view(name)[0])
    other = view(name, jax.random.key(9))[0]
    assert (first != other).any()
    assert first.shape == x.shape
    assert first.dtype == jnp.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_that_are_padding_stay(name):
    x = VECTORS if CONFIGS[name][0] == "vector" else IMAGES
    where = jnp.arange(len(x)) % 2 == 0
    out, _ = view(name, where=where)
    np.testing.assert_array_equal(out[1::2], x[1::2])
    assert (out[::2] != x[::2]).any()
    np.testing.assert_array_equal(view(name, where=jnp.zeros(len(x), bool))[0], x)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.uint8])
def test_result_is_float32(name, dtype):
    x = VECTORS if CONFIGS[name][0] == "vector" else IMAGES
    assert view(name, x=x.astype(dtype))[0].dtype == jnp.float32


@pytest.mark.parametrize("name", CONFIGS)
def test_examples_draw_their_own(name):
    """Equal examples get different views (a mirror image has but two)."""
    x = VECTORS if CONFIGS[name][0] == "vector" else IMAGES
    out, _ = view(name, x=jnp.broadcast_to(x[:1], x.shape) + jnp.zeros_like(x))
    if name == "sample":  # equal rows have nothing else to draw
        np.testing.assert_array_equal(out[0], out[1])
    else:
        assert len({row.tobytes() for row in np.asarray(out)}) > 1


@pytest.mark.parametrize("modality", ["vector", "image"])
def test_no_strength_changes_nothing(modality):
    x = VECTORS if modality == "vector" else IMAGES
    out = random_view(KEY, x, None, AugmentConfig(**STILL), modality)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("fill", ["zero", "sample"])
def test_share_of_masked_features(share, fill):
    x = VECTORS
    config = AugmentConfig(feature_mask=share, feature_fill=fill)
    changed = np.asarray(random_view(KEY, x, None, config, "vector") != x)
    # A sample may be the row itself, once in 64.
    expected = share * (63 / 64 if fill == "sample" else 1)
    assert abs(changed.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / x.size) + 1e-3


def test_masked_features_are_zero():
    out, x = view("zero")
    changed = np.asarray(out != x)
    np.testing.assert_array_equal(np.asarray(out)[changed], 0)


def test_samples_are_the_feature_of_valid_rows():
    where = jnp.arange(64) % 13 == 4
    x = jnp.where(where[:, None], VECTORS, 99.0)
    out = np.asarray(view("sample", x=x, where=where)[0])[np.asarray(where)]
    valid = np.asarray(x)[np.asarray(where)]
    drawn_from = set()
    for row, feature in np.ndindex(*out.shape):
        sources = np.flatnonzero(valid[:, feature] == out[row, feature])
        assert len(sources)  # never of a padding row, never of another feature
        drawn_from.update(sources.tolist())
    assert drawn_from == set(range(5))


def test_noise_has_its_deviation():
    out, x = view("noise")
    noise = np.asarray(out - x)
    assert abs(noise.std() - 0.1) < 0.01
    assert abs(noise.mean()) < 0.01


@pytest.mark.parametrize("name", ["shift", "crop", "erase", "flip", "all"])
def test_images_keep_their_range(name):
    out = np.asarray(view(name)[0])
    assert np.isfinite(out).all()
    assert out.min() >= -1e-6
    assert out.max() <= IMAGES.max() + 1e-5


def test_shift_moves_whole_pixels():
    out, x = view("shift")
    out, x = np.asarray(out), np.asarray(x)
    moves = set()
    for before, after in zip(x, out, strict=True):
        padded = np.pad(before, ((3, 3), (3, 3), (0, 0)))
        found = [
            (down - 3, right - 3)
            for down in range(7)
            for right in range(7)
            if np.allclose(padded[down : down + 12, right : right + 10], after, atol=1e-6)
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 5


def test_crop_magnifies_a_part():
    """On a ramp a crop is a ramp that is less steep, by the side's share."""
    ramp = jnp.broadcast_to(jnp.arange(12.0)[:, None, None], (64, 12, 10, 1))
    out = np.asarray(view("crop", x=ramp)[0])[..., 0]
    slopes = np.diff(out[:, 3:-3], axis=1)
    np.testing.assert_allclose(slopes, slopes[:, :1, :1] + 0 * slopes, atol=1e-4)
    sides = slopes[:, 0, 0]
    assert sides.min() >= 0.5 - 1e-4
    assert sides.max() <= 1 + 1e-4
    assert sides.std() > 0.1
    assert out[:, 6].std() > 0.3  # from different places


def test_erase_clears_one_rectangle():
    out, x = view("erase")
    erased = np.asarray(out != x).any(-1)
    np.testing.assert_array_equal(np.asarray(out)[erased], 0)
    for image in erased:
        rows, columns = image.any(1), image.any(0)
        np.testing.assert_array_equal(image, rows[:, None] & columns[None])
        assert rows.sum() <= np.ceil(0.6 * 12)
        assert columns.sum() <= np.ceil(0.6 * 10)
    assert erased.any()


def test_flip_mirrors_half_of_the_images():
    x = jnp.concatenate([IMAGES] * 8)
    out, _ = view("flip", x=x)
    mirrored = np.asarray((out == x[:, :, ::-1]).all((1, 2, 3)))
    same = np.asarray((out == x).all((1, 2, 3)))
    assert (mirrored ^ same).all()
    assert 0.35 < mirrored.mean() < 0.65


@pytest.mark.parametrize(
    ("modality", "fields", "error"),
    [
        ("vector", {"feature_mask": 1.5}, "feature_mask must lie between 0 and 1, got 1.5"),
        ("vector", {"feature_fill": "sampel"}, "Did you mean 'sample'"),
        ("vector", {"feature_noise": -1.0}, "feature_noise must be >= 0"),
        ("image", {"crop": 0.0}, "crop must be more than 0"),
        ("image", {"crop": 1.2}, "crop must lie between 0 and 1"),
        ("image", {"erase": -0.1}, "erase must lie between 0 and 1"),
        ("image", {"shift": 10}, r"shift must lie in \[0, 10\) for images of 12x10, got 10"),
        ("text", {}, "Unknown modality 'text'"),
    ],
)
def test_wrong_strengths(modality, fields, error):
    x = VECTORS if modality == "vector" else IMAGES
    with pytest.raises(ValueError, match=error):
        random_view(KEY, x, None, AugmentConfig(**fields), modality)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"rank 4 for modality 'image', got \(64, 50\)"):
        random_view(KEY, VECTORS, None, AugmentConfig(), "image")
    with pytest.raises(ValueError, match=r"where must be \[64\], got \(3,\)"):
        random_view(KEY, VECTORS, jnp.ones(3, bool), AugmentConfig(), "vector")


def test_tokens_are_left_out():
    lengths = jnp.arange(1, 65)
    texts = {"ids": jnp.arange(64 * 40).reshape(64, 40), "mask": jnp.arange(40) < lengths[:, None]}
    where = jnp.arange(64) < 60
    view = text_view(KEY, texts, where, AugmentConfig(token_drop=0.3))
    before, after = texts["mask"], view["mask"]
    assert (view["ids"] == texts["ids"]).all()
    assert not (after & ~before).any() and after[:, 0].all()
    assert (after[60:] == before[60:]).all()
    kept = float(after[:60, 1:].sum() / before[:60, 1:].sum())
    assert abs(kept - 0.7) < 0.05
    assert (
        text_view(jax.random.key(9), texts, where, AugmentConfig(token_drop=0.3))["mask"] != after
    ).any()
    assert text_view(KEY, texts, where, AugmentConfig()) is texts
