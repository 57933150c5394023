"""Encoders of images against PyTorch's libraries, of random weights in their published layouts.

pip install torch torchvision transformers timm
python -m pytest -m slow tests/models/test_torch_images.py
"""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from sdjax.models import pretrained

pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "image_size": 64,
    "patch_size": 8,
}
# Grids of 8x8 patches as published; more, fewer, and of other shapes.
SHAPES = [(64, 64), (96, 72), (40, 48)]


def images(height, width):
    x = np.random.default_rng(height).standard_normal((2, height, width, 3))
    return x.astype(np.float32)


def assert_close(found, wanted):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * max(np.abs(wanted).max(), 1))


def tensor(x):
    import torch

    return torch.tensor(x).permute(0, 3, 1, 2)


@nnx.jit
def states_and_pooled(module, x):
    states = module.hidden_states(x)
    return states, module(x)


def stirred(model):
    """`model` with every parameter and statistic a little off, so that none is 0 or 1."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point():
                noise = 0.02 * torch.randn(x.shape, generator=generator)
                x.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Dinov2WithRegisters", "CLIPVision"])
def test_transformers(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**SIZES)
    model = stirred(getattr(transformers, f"{name}Model")(config))
    model.save_pretrained(tmp_path)
    module = pretrained(str(tmp_path)).module
    options = {} if name.startswith("Dino") else {"interpolate_pos_encoding": True}
    for height, width in SHAPES:
        x = images(height, width)
        with torch.no_grad():
            wanted = model(tensor(x), output_hidden_states=True, **options)
        states, pooled = states_and_pooled(module, jnp.asarray(x))
        assert len(states) == 6
        for found, state in zip(states, wanted.hidden_states[:6]):
            assert_close(found, state)
        last = wanted.pooler_output if name == "CLIPVision" else wanted.last_hidden_state[:, 0]
        assert_close(pooled, last)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnet_of_transformers(kind, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    depths = [2, 2, 2, 2] if kind == "basic" else [3, 4, 6, 3]
    config = transformers.ResNetConfig(hidden_sizes=sizes, depths=depths, layer_type=kind)
    model = stirred(transformers.ResNetModel(config))
    model.save_pretrained(tmp_path)
    module, x = pretrained(str(tmp_path)).module, images(65, 80)
    with torch.no_grad():
        wanted = model(tensor(x), output_hidden_states=True)
    states, pooled = states_and_pooled(module, jnp.asarray(x))
    for found, state in zip(states, wanted.hidden_states, strict=True):
        assert_close(found, state.permute(0, 2, 3, 1))
    assert_close(pooled, wanted.pooler_output.flatten(1))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_of_torchvision(name, tmp_path):
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    model = stirred(getattr(torchvision.models, name)())
    path = tmp_path / "weights.safetensors"
    save_file({key: x.numpy() for key, x in model.state_dict().items()}, path)
    model.fc = torch.nn.Identity()
    x = images(65, 80)
    with torch.no_grad():
        wanted = model(tensor(x))
    _, pooled = states_and_pooled(pretrained(str(path)).module, jnp.asarray(x))
    assert_close(pooled, wanted)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch32_clip_224"],
)
def test_timm(name, tmp_path):
    """Of real widths, with the number of heads by the width; layers by timm's own interface."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    model = stirred(timm.create_model(name, img_size=112, depth=3, dynamic_img_size=True))
    save_file(
        {key: x.contiguous().numpy() for key, x in model.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(f'{{"architecture": "{name}"}}')
    module = pretrained(str(tmp_path)).module
    for height, width in [(112, 112), (140, 160)]:
        x = images(height, width)
        x = x[:, : height // 32 * 32] if "32" in name else x
        side = module.sizes.patch_size
        x = x[:, : x.shape[1] // side * side, : x.shape[2] // side * side]
        with torch.no_grad():
            wanted = model.forward_features(tensor(x))[:, 0]
        assert_close(states_and_pooled(module, jnp.asarray(x))[1], wanted)
