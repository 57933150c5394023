"""Writes the encoders of images in tests/models/published/: small random models, by PyTorch.

    python benchmarks/make_published_images.py

Made with torch 2.14.1, torchvision 0.29.1, transformers 5.24.0 and timm 1.0.31. Each folder is as
such models are published. Its `expected.npz` holds images, integers that stand for eighths; what
each layer makes of them, `states` or `state_0` ..., and the pooled output; and of vision
transformers the pooled output of larger images, whose positions are interpolated.
"""

import json
from pathlib import Path

import numpy as np
import timm.models.vision_transformer as timm_vit
import torch
import torchvision
import transformers
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "published"
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "image_size": 12,
    "patch_size": 4,
}
NORM = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3]}


def randomised(model):
    """`model` with every parameter and statistic drawn anew, so that each of them matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if not x.is_floating_point():
                continue
            noise = torch.randn(x.shape, generator=generator)
            if name.endswith("running_var"):
                x.copy_(1 + 0.5 * noise.abs())
            elif x.ndim == 4:
                x.copy_(noise * x[0].numel() ** -0.5)
            else:
                scale = x.ndim == 1 and not name.endswith(("bias", "running_mean", "embedding"))
                x.copy_(float(scale) + 0.3 * noise)
    return model.eval()


def images(*shape):
    return np.random.default_rng(0).integers(-16, 17, shape).astype(np.int8)


def tensor(x):
    """Images [N, channels, y, x] of the integers x [N, y, x, channels]."""
    return torch.tensor(x.astype(np.float32) / 8).permute(0, 3, 1, 2)


def write(name, **arrays):
    arrays = {key: x.detach().numpy() if torch.is_tensor(x) else x for key, x in arrays.items()}
    np.savez_compressed(FOLDER / name / "expected.npz", **arrays)


def write_config(name, file, fields):
    (FOLDER / name).mkdir(exist_ok=True)
    (FOLDER / name / file).write_text(json.dumps(fields, indent=2) + "\n")


def transformer(name, model, base):
    """A vision transformer by transformers."""
    randomised(model).save_pretrained(FOLDER / name)
    small, large = images(2, 12, 12, 3), images(1, 20, 16, 3)
    options = {} if name == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        found = base(tensor(small), output_hidden_states=True)
        resized = base(tensor(large), **options)
    pooled = [found.last_hidden_state[:, 0], resized.last_hidden_state[:, 0]]
    if name == "clip":
        pooled = [found.pooler_output, resized.pooler_output]
    states = torch.stack(found.hidden_states[:3])
    arrays = {"states": states, "pooled": pooled[0], "resized": pooled[1]}
    write(name, images=small, large=large, **arrays)


def transformer_of_timm():
    """With registers, layer scale, no position of the class token, and positions made fewer."""
    model = timm_vit.VisionTransformer(
        img_size=20, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=1.5, num_classes=3,
        init_values=1.0, reg_tokens=2, no_embed_class=True, dynamic_img_size=True,
    )  # fmt: skip
    randomised(model)
    fields = {"mean": NORM["image_mean"], "std": NORM["image_std"], "input_size": [3, 20, 20]}
    fields |= {"crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": "vit_tiny", "pretrained_cfg": fields, "model_args": {"num_heads": 2}}
    write_config("timm_vit", "config.json", config)
    save_file(model.state_dict(), FOLDER / "timm_vit" / "model.safetensors")
    small, large = images(2, 20, 20, 3), images(1, 12, 16, 3)
    states = []
    model.norm_pre.register_forward_hook(lambda module, x, y: states.append(y))
    for block in model.blocks:
        block.register_forward_hook(lambda module, x, y: states.append(y))
    with torch.no_grad():
        pooled = model.forward_features(tensor(small))[:, 0]
        resized = model.forward_features(tensor(large))[:, 0]
    arrays = {"states": torch.stack(states[:3]), "pooled": pooled, "resized": resized}
    write("timm_vit", images=small, large=large, **arrays)


def resnet():
    """By transformers, of basic blocks."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    randomised(model).save_pretrained(FOLDER / "resnet")
    write_config("resnet", "preprocessor_config.json", NORM | {"size": {"shortest_edge": 24}})
    given = images(2, 18, 22, 3)
    with torch.no_grad():
        found = model.resnet(tensor(given), output_hidden_states=True)
    states = {f"state_{number}": x for number, x in enumerate(found.hidden_states)}
    write("resnet", images=given, pooled=found.pooler_output.flatten(1), **states)


def resnet_of_torchvision():
    """Of bottlenecks, a file alone; narrower than any published one."""
    model = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=3, width_per_group=64
    )
    for module in model.modules():  # an eighth, or a file of megabytes would be written
        thin(module)
    randomised(model)
    (FOLDER / "torchvision_resnet").mkdir(exist_ok=True)
    save_file(model.state_dict(), FOLDER / "torchvision_resnet" / "model.safetensors")
    given = images(2, 33, 40, 3)
    states = []
    for module in (model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4):
        module.register_forward_hook(lambda module, x, y: states.append(y))
    with torch.no_grad():
        model(tensor(given))
    arrays = {f"state_{number}": x for number, x in enumerate(states)}
    write("torchvision_resnet", images=given, pooled=states[-1].mean((2, 3)), **arrays)


def thin(module, by=32):
    """Divides the channels of a convolution or a norm, but for the three of an image."""
    if isinstance(module, torch.nn.Conv2d):
        channels = module.in_channels if module.in_channels == 3 else module.in_channels // by
        shape = (module.out_channels // by, channels, *module.kernel_size)
        module.weight = torch.nn.Parameter(torch.zeros(shape))
    elif isinstance(module, torch.nn.BatchNorm2d):
        count = module.num_features // by
        for name in ("weight", "bias"):
            setattr(module, name, torch.nn.Parameter(torch.zeros(count)))
        module.running_mean, module.running_var = torch.zeros(count), torch.ones(count)
    elif isinstance(module, torch.nn.Linear):
        shape = (module.out_features, module.in_features // by)
        module.weight = torch.nn.Parameter(torch.zeros(shape))


def main():
    config = transformers.ViTConfig(num_labels=3, **SIZES)
    model = transformers.ViTForImageClassification(config)
    transformer("vit", model, model.vit)
    fields = NORM | {"size": {"height": 12, "width": 12}, "resample": 2}
    write_config("vit", "preprocessor_config.json", fields)
    sizes = {name: x for name, x in SIZES.items() if name != "intermediate_size"}
    model = transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=2, **sizes))
    transformer("dinov2", model, model)
    fields = {"size": {"shortest_edge": 16}, "crop_size": {"height": 12, "width": 12}}
    fields |= {"do_center_crop": True, "resample": 3}
    write_config("dinov2", "preprocessor_config.json", NORM | fields)
    vision = transformers.CLIPVisionConfig(projection_dim=4, **SIZES)
    model = transformers.CLIPVisionModelWithProjection(vision)
    transformer("clip", model, model.vision_model)
    transformer_of_timm()
    resnet()
    resnet_of_torchvision()


if __name__ == "__main__":
    main()
