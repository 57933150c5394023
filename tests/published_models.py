"""The small models in models/published/, and copies of them that a test may spoil."""

import json
import shutil
from pathlib import Path

from safetensors.numpy import load_file, save_file

FOLDER = Path(__file__).parent / "models" / "published"
NAMES = ("bert", "roberta")
VITS = ("vit", "dinov2", "clip", "timm_vit")
RESNETS = ("resnet", "torchvision_resnet")


def copy(name, folder, *, drop=(), config=(), tensors=None):
    """A copy of a model; without the files `drop`, config and tensors changed."""
    shutil.copytree(FOLDER / name, folder)
    for each in drop:
        (folder / each).unlink()
    if config:
        path = folder / "config.json"
        changed = {**json.loads(path.read_text()), **dict(config)}
        path.write_text(json.dumps({k: v for k, v in changed.items() if v is not None}))
    if tensors is not None:
        path = folder / "model.safetensors"
        save_file(tensors(load_file(path)), path)
    return str(folder)
