"""`pretrained` of images: files, Pillow's images and arrays in, representations out."""

import json
from pathlib import Path

import numpy as np
import pytest
from image_tables import write_images
from PIL import Image
from published_models import FOLDER, RESNETS, VITS, copy

from sdjax.data.images import Resizing
from sdjax.errors import InputError
from sdjax.models import PretrainedImages, ResNet, ViT, image_inputs, pretrained

NORM = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.3)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    names, _ = write_images(folder, 5, 0)
    return [str(folder / name) for name in names]


@pytest.fixture(scope="module")
def model():
    return pretrained(str(FOLDER / "vit"))


def test_images_of_any_kind_come_back_in_their_order(model, paths):
    found = model.encode(paths, batch_size=2)
    assert found.shape == (5, 8) and found.dtype == np.float32
    x = [np.asarray(Image.open(path).resize((12, 12), 2), np.float32) / 255 for path in paths]
    x = (np.stack(x) - NORM["mean"]) / NORM["std"]
    np.testing.assert_allclose(model.pixels(paths), x, atol=1e-5)
    np.testing.assert_allclose(found, model.module(x.astype(np.float32)), atol=1e-5)
    pillow = [Image.open(path) for path in paths]
    assert np.array_equal(model.encode(pillow, batch_size=2), found)
    arrays = [np.asarray(image) for image in pillow]
    assert np.array_equal(model.encode(arrays, batch_size=2), found)
    unit = model.encode(paths[::-1], normalize=True, batch_size=2)[::-1]
    np.testing.assert_allclose(
        unit, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-5
    )
    assert model.encode([]).shape == (0, 8)


def test_grey_images_have_three_equal_channels(model):
    grey = np.arange(144, dtype=np.uint8).reshape(12, 12, 1)
    assert np.array_equal(model.pixels([grey]), model.pixels([np.repeat(grey, 3, axis=2)]))


@pytest.mark.parametrize("name", [*VITS, *RESNETS])
def test_the_family_is_found_by_the_files(name):
    model = pretrained(str(FOLDER / name))
    assert isinstance(model, PretrainedImages)
    assert isinstance(model.module, ResNet if name in RESNETS else ViT)
    inputs = {
        "vit": (Resizing(12), NORM),
        "dinov2": (Resizing(12, 16, "bicubic"), NORM),
        "clip": (Resizing(12, 13), image_inputs.CLIP),
        "timm_vit": (Resizing(20, 22, "bicubic"), NORM),
        "resnet": (Resizing(24, 24), NORM),
        "torchvision_resnet": (Resizing(224, 256), image_inputs.IMAGENET),
    }
    resizing, norm = inputs[name]
    assert model.inputs == image_inputs.ImageInputs(resizing, **norm)


@pytest.mark.parametrize(
    "change, resizing",
    [
        ({"size": 224, "crop_pct": 0.875, "resample": 3}, Resizing(224, 256, "bicubic")),
        ({"size": 224, "feature_extractor_type": "ViTFeatureExtractor"}, Resizing(224)),
        ({"size": {"shortest_edge": 384}, "image_processor_type": "ConvNextX"}, Resizing(384)),
        ({"size": 224, "crop_size": 224, "do_center_crop": True}, Resizing(224, 224)),
        ({"size": {"height": 8, "width": 9}}, r"size must be the side of a square, got \{'height'"),
        ({"image_mean": None}, "image_mean and image_std must be numbers of each channel"),
        ({"image_std": [0.1, 0.1, 0.0]}, "image_mean and image_std do not fit"),
        ({"resample": 9}, "resample 9 of preprocessor_config.json is not known"),
    ],
)
def test_preprocessors_as_they_were_published(tmp_path, change, resizing):
    origin = copy("vit", tmp_path / "model")
    path = tmp_path / "model" / "preprocessor_config.json"
    fields = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    if isinstance(resizing, str):
        with pytest.raises(InputError, match=resizing):
            image_inputs.read(origin)
    else:
        assert image_inputs.read(origin).resizing == resizing


def test_what_cannot_be_encoded(model, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(paths[0]).read_bytes()[:60])
    with pytest.raises(InputError, match=r"cannot decode .*broken\.png"):
        model.encode([str(broken)])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        model.encode([str(tmp_path / "nowhere.png")])
    with pytest.raises(InputError, match="must be a list, got one path"):
        model.encode(paths[0])
    with pytest.raises(InputError, match=r"got ndarray float64 \(4, 4, 3\) at 1"):
        model.encode([paths[0], np.zeros((4, 4, 3))])
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        model.encode(paths, batch_size=0)
    with pytest.raises(InputError, match="pooling of a ResNet is 'mean', got 'cls'"):
        pretrained(str(FOLDER / "resnet"), pooling="cls")
    swin = copy("vit", tmp_path / "swin", config={"model_type": "swin"})
    with pytest.raises(InputError, match="'swin'.* Known: bert, .*vit, dinov2.* resnet"):
        pretrained(swin)
