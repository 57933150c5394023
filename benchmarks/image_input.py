"""Whether reading images keeps up with a training step: time with the pipeline and without.

    python benchmarks/image_input.py [--images=96] [--batch_size=16] [--steps=6] [--size=224]

Writes JPEG files of 500x375 into a temporary folder, and trains a ResNet-18 of random weights on
them, with two views of each image: random-resized crop, mirror, RandAugment. "without input" takes
one batch, which lies on the device, again and again; "files" decodes every image anew, "kept" has
the decoded ones in memory, as every epoch but the first where they fit into a gigabyte. Prints wall
time a step, and time of CPU, which other work on the machine hardly adds to.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from PIL import Image

from sdjax.configs.image_folder import get_config
from sdjax.data import images as images_lib
from sdjax.data import random_view, training_batches
from sdjax.data.batches import to_device
from sdjax.training import make_setup
from sdjax.training.mesh import batch_sharding
from sdjax.training.step import make_train_step

IMAGES = flags.DEFINE_integer("images", 96, "Files, of which a fifth each is for validation, test.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images of a step, each in two views.")
STEPS = flags.DEFINE_integer("steps", 6, "Steps that are timed.")
SIZE = flags.DEFINE_integer("size", 224, "Side of the images that the network sees.")
RESNET_18 = {
    "layout": "torchvision",
    "embedding_size": 64,
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}


def write_files(folder: Path) -> None:
    """Smooth pictures with noise, whose files have the size of photographs', and their table."""
    random = np.random.default_rng(0)
    rows = ["image,a,b,c"]
    for number in range(IMAGES.value):
        coarse = random.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(picture, float) + random.normal(0, 8, (375, 500, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")
        rows.append(f"{number}.jpg," + ",".join(map(str, random.integers(0, 2, 3))))
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def seconds(function: Callable[[], Any], count: int) -> tuple[float, float]:
    """(wall, CPU) seconds of one of `count` calls."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        function()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        size = np.mean([path.stat().st_size for path in folder.glob("*.jpg")]) / 1000
        print(f"{IMAGES.value} files of {size:.0f} kB on average, {jax.devices()[0].device_kind}")
        measure(folder)


def measure(folder: Path) -> None:
    config = get_config()
    config.data.train, config.data.labels = str(folder / "table.csv"), "a,b,c"
    config.data.image_size = SIZE.value
    config.data.image_mean, config.data.image_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.model.encoder, config.model.architecture = "resnet", json.dumps(RESNET_18)
    config.batch_size, config.drop_remainder = BATCH_SIZE.value, True
    keep, images_lib.CACHE_BYTES = images_lib.CACHE_BYTES, 0
    setup = make_setup(config)
    images_lib.CACHE_BYTES = keep
    kept = make_setup(config)
    sharding, phase = batch_sharding(setup.mesh), setup.phases[0]
    step = make_train_step(setup.program, phase, setup.graph, setup.mesh)
    state = [setup.initial_state()]

    def one_step(batches: Iterator[Any]) -> None:
        state[0], metrics = step(state[0], to_device(next(batches), sharding))
        jax.block_until_ready(metrics)

    def of(source: Any) -> Iterator[Any]:
        return iter(training_batches(source, config.batch_size, seed=0, drop_remainder=True))

    rows = np.arange(config.batch_size)
    report(
        "decode and resize, an image", seconds(lambda: setup.dataset.train.inputs(rows), 2), rows
    )
    fixed = next(of(setup.dataset.train))
    view = jax.jit(lambda key, x: random_view(key, x, None, setup.config.augment, "image"))
    x, key = jax.numpy.asarray(fixed["x"]), jax.random.key(0)
    jax.block_until_ready(view(key, x))
    report("a view, an image", seconds(lambda: jax.block_until_ready(view(key, x)), 2), rows)
    one_step(iter([fixed]))
    kept.dataset.train.inputs(np.arange(len(kept.dataset.train)))
    sources = {
        "without input": iter(lambda: fixed, None),
        "files": of(setup.dataset.train),
        "kept": of(kept.dataset.train),
    }
    for name, batches in sources.items():
        one_step(batches)
        report(f"a step, {name}", seconds(lambda batches=batches: one_step(batches), STEPS.value))


def report(name: str, timed: tuple[float, float], rows: Any = (0,)) -> None:
    wall, cpu = (1000 * each / len(rows) for each in timed)
    print(f"{name:28} {wall:9.1f} ms wall {cpu:9.1f} ms CPU", flush=True)


if __name__ == "__main__":
    app.run(main)
