"""Vision transformers: every layer as PyTorch's transformers and timm compute it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_models import FOLDER, VITS, copy
from safetensors.numpy import load_file

from sdjax.errors import InputError
from sdjax.models import vit


def published(name, origin=None, **options):
    origin = origin or str(FOLDER / name)
    module = vit.ViT(vit.read_sizes(origin), rngs=nnx.Rngs(0), **options)
    vit.load(module, origin)
    return module


def expected(name):
    with np.load(FOLDER / name / "expected.npz") as file:
        arrays = dict(file)
    for key in ("images", "large"):
        arrays[key] = jnp.asarray(arrays[key], jnp.float32) / 8
    return arrays


@nnx.jit
def run(module, x, seed=None):
    return module(x, rngs=None if seed is None else nnx.Rngs(dropout=seed))


@nnx.jit
def gradient(module, x, seed=None):
    """Of the sum of squares, as arrays."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def total(params):
        return jnp.sum(run(nnx.merge(graph, params, rest), x, seed) ** 2)

    return jax.tree.leaves(jax.grad(total)(params))


@pytest.mark.parametrize("name", VITS)
def test_every_layer_is_that_of_torch(name):
    """Of images of the published size, and the output of others, with interpolated positions."""
    module, wanted = published(name), expected(name)

    @nnx.jit
    def all_of(module, x):
        states = module.hidden_states(x)
        return states, module.pool(states[-1])

    states, pooled = all_of(module, wanted["images"])
    assert len(states) == len(wanted["states"]) == 3
    for found, state in zip(states, wanted["states"]):
        np.testing.assert_allclose(found, state, atol=1e-5)
    np.testing.assert_allclose(pooled, wanted["pooled"], atol=1e-5)
    np.testing.assert_allclose(run(module, wanted["large"]), wanted["resized"], atol=1e-5)


def test_mean_of_patches():
    wanted = expected("timm_vit")
    cls, mean = published("timm_vit"), published("timm_vit", pooling="mean")
    states = jnp.asarray(wanted["states"][-1])
    patches = np.mean(np.asarray(cls.norm(states))[:, 3:], axis=1)  # a class token, two registers
    np.testing.assert_allclose(mean.pool(states), patches, atol=1e-5)


def test_label_wise_pooling_leaves_the_states():
    wanted, module = expected("timm_vit"), published("timm_vit", pooling="label_wise")
    tokens = module.pool(jnp.asarray(wanted["states"][-1]))
    assert tokens.mask.shape == (2, 28) and tokens.mask.all()
    np.testing.assert_allclose(tokens.states[:, 0], wanted["pooled"], atol=1e-5)


def test_what_is_left_after_the_last_whole_patch_is_cut_off():
    module, x = published("vit"), expected("vit")["images"]
    wider = jnp.pad(x, ((0, 0), (0, 3), (0, 1), (0, 0)), constant_values=9)
    np.testing.assert_allclose(run(module, wider), run(module, x), atol=1e-6)
    with pytest.raises(InputError, match="3x12x3: the model takes 3 channels, and patches of 4x4"):
        module(x[:, :3])
    with pytest.raises(InputError, match="12x12x1: the model takes 3 channels"):
        module(x[..., :1])


def test_dropout_and_remat_and_bfloat16():
    x = expected("dinov2")["images"]
    plain = run(published("dinov2"), x)
    module = published("dinov2", dropout=0.2)
    dropped, again, other = (run(module, x, jax.random.key(seed)) for seed in (0, 0, 1))
    assert np.array_equal(dropped, again)
    assert np.abs(dropped - plain).max() > 0.01 and np.abs(dropped - other).max() > 0.01
    saving = published("dinov2", dropout=0.2, remat=True)
    key = jax.random.key(0)
    for a, b in zip(gradient(module, x, key), gradient(saving, x, key)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    half = published("dinov2", dtype="bfloat16")
    found = run(half, x)
    assert found.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.astype(np.float32), plain, atol=0.15)


def test_names_that_libraries_put_before(tmp_path):
    def renamed(tensors):
        return {name.replace("vit.", "model.", 1): x for name, x in tensors.items()}

    origin = copy("vit", tmp_path / "model", tensors=renamed)
    x = expected("vit")["images"]
    assert np.array_equal(run(published("vit", origin), x), run(published("vit"), x))


def test_clip_with_its_texts(tmp_path):
    """A whole CLIP, whose config is nested and leaves out what is usual."""
    fields = json.loads((FOLDER / "clip" / "config.json").read_text())
    nested = {k: v for k, v in fields.items() if k not in ("hidden_act", "layer_norm_eps")}
    config = {"model_type": "clip", "vision_config": nested, "image_size": None}

    def with_texts(tensors):
        texts = {"text_model.encoder.layers.0.mlp.fc1.weight": np.zeros((3, 2), np.float32)}
        return {**tensors, **texts, "logit_scale": np.zeros((), np.float32)}

    origin = copy("clip", tmp_path / "clip", config=config, tensors=with_texts)
    x = expected("clip")["images"]
    assert np.array_equal(run(published("clip", origin), x), run(published("clip"), x))


def test_a_file_of_timm_alone_has_heads_of_usual_width(tmp_path):
    origin = copy("timm_vit", tmp_path / "alone", drop=["config.json"])
    with pytest.raises(InputError, match="number of heads of a network of width 8 is not known"):
        vit.read_sizes(origin)
    wide = np.zeros((192, 3, 4, 4), np.float32)
    origin = copy(
        "timm_vit",
        tmp_path / "wide",
        drop=["config.json"],
        tensors=lambda given: {**given, "patch_embed.proj.weight": wide},
    )
    assert vit.read_sizes(origin).num_attention_heads == 3


@pytest.mark.parametrize(
    "name, change, text",
    [
        ("vit", {"model_type": "swin"}, "model_type of .* 'swin'.*Known: vit, dinov2"),
        ("vit", {"hidden_size": None}, "its config.json lacks hidden_size"),
        ("vit", {"num_attention_heads": 3}, "hidden_size 8 is no multiple of num_attention_heads"),
        ("vit", {"image_size": [12, 16]}, r"image_size must be the side of a square"),
        ("vit", {"hidden_act": "swish"}, "hidden_act of .* 'swish'"),
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn is not supported"),
    ],
)
def test_configs_that_no_such_network_has(tmp_path, name, change, text):
    origin = copy(name, tmp_path / "model", config=change)
    with pytest.raises(InputError, match=text):
        vit.read_sizes(origin)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    def spoilt(tensors):
        tensors = dict(tensors)
        scale = tensors.pop("encoder.layer.1.layer_scale1.lambda1")
        tensors["encoder.layer.1.layer_scale1.lambda"] = scale
        tensors["embeddings.position_embeddings"] = np.zeros((1, 17, 8), np.float32)
        return tensors

    assert "embeddings.mask_token" in load_file(FOLDER / "dinov2" / "model.safetensors")
    origin = copy("dinov2", tmp_path / "model", tensors=spoilt)
    missing = r"missing: encoder\.layer\.1\.layer_scale1\.lambda1 \[8\], near miss .*lambda \[8\]"
    shape = r"position_embeddings \[1, 10, 8\] wanted, \[1, 17, 8\] found"
    with pytest.raises(InputError, match=f"(?s){missing}.*{shape}"):
        published("dinov2", origin)
