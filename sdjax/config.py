"""The one configuration of a training run: `configs/*.py` fill it in, flags override it.

Every field has a default, so that `Config()` is a valid run and a config file states
only what makes it different.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sdjax.checks import one_of

ENCODERS = ("auto", "mlp", "convnet")
RECIPES = ("probe", "finetune", "joint", "bce")
OPTIMIZERS = ("adamw", "sgd")
MASK_FILLS = ("zero", "sample")
DTYPES = ("float32", "bfloat16")


@dataclass
class DataConfig:
    """Where the examples come from.

    `name` is a TFDS data set: bundled (`yeast`, `digits`) or of the catalogue (`voc/2007`);
    `train`, `validation` and `test` are then TFDS split expressions. With `name="files"` they
    are paths of the user's own files (.npz, .h5, .csv, .parquet, .arff, .jsonl).
    """

    name: str = "yeast"
    train: str = "train"
    validation: str = "validation"  # "" or absent from the source: split off train
    test: str = "test"
    validation_fraction: float = 0.2  # of train, where there is no validation split
    data_dir: str = ""  # where TFDS keeps prepared data; "" is TFDS's own default
    labels: str = ""  # files: label columns (comma-separated names or patterns), or a Mulan XML
    ignore: str = ""  # files: columns that are neither features nor labels
    input_key: str = ""  # TFDS, .npz, .h5, .jsonl: the input; "" finds it
    label_key: str = ""  # TFDS, .npz, .h5, .jsonl: the labels; "" finds them
    image_size: int = 0  # images are resized to this square; 0 keeps their size


@dataclass
class AugmentConfig:
    """The random views of an example. Vectors use the `feature_*` fields, images the others."""

    feature_mask: float = 0.2  # probability that a feature is replaced
    feature_fill: str = "zero"  # by "zero" (the mean), or by a "sample" of the batch
    feature_noise: float = 0.0  # standard deviation of added Gaussian noise
    shift: int = 4  # largest shift, in pixels, in each direction
    crop: float = 0.8  # smallest side of a random crop, as a share of the image's
    erase: float = 0.25  # largest side of the erased rectangle, as a share of the image's
    flip: bool = False  # random left-right mirror images


@dataclass
class ModelConfig:
    """Encoder and projection head; sizes of 0 are read off the data."""

    encoder: str = "auto"  # "mlp" for vectors, "convnet" for images
    width: int = 0  # of the hidden layers (mlp), of the first stage (convnet)
    depth: int = 2  # layers (mlp), stages (convnet)
    dropout: float = 0.1
    frequencies: int = 0  # mlp: learned sines and cosines of each feature; 0 is none
    projection_width: int = 0  # of the projection head's hidden layer; 0 makes it linear
    projection_dim: int = 128
    members: int = 1  # networks trained side by side, whose logits are averaged
    dtype: str = "float32"  # of the computation; parameters and losses are float32 anyway
    remat: bool = False  # compute activations anew in the backward pass, layer by layer


@dataclass
class LossConfig:
    """A loss of the family, by name (see `sdjax.LOSSES`)."""

    name: str = "sd"
    temperature: float = 0.07
    form: str = "out"
    normalizer: str = ""  # "" is the loss's own
    threshold: float = 0.5  # jaccard only: the least overlap of a positive
    implementation: str = "auto"  # or "dense", "tiled", "ring"


@dataclass
class PhaseConfig:
    """One phase of training: how long, and with which optimizer."""

    epochs: int = 100
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9  # sgd only
    warmup: float = 0.1  # share of the phase's steps
    clip_norm: float = 1.0  # global gradient norm; 0 is no clipping
    ema_decay: float = 0.0  # of the averaged parameters that evaluation uses; 0 is none


@dataclass
class MeshConfig:
    """How devices share the work. Results do not depend on it."""

    data: int = 0  # groups of devices that each hold all parameters; 0 is as many as there are
    fsdp: int = 1  # devices of a group, over which parameters and optimizer state are spread


@dataclass
class Config:
    """A training run.

    `recipe` is one of
      "probe"     contrastive pretraining, then a linear classifier on the frozen encoder;
      "finetune"  contrastive pretraining, then all parameters with binary cross-entropy;
      "joint"     binary cross-entropy + `contrastive_weight` * contrastive loss;
      "bce"       binary cross-entropy alone.
    """

    recipe: str = "joint"
    seed: int = 0
    batch_size: int = 256
    drop_remainder: bool = False  # False pads an epoch's last batch; True leaves the rest out
    microbatches: int = 1  # parts of a batch that pass the network one after another
    contrastive_weight: float = 0.1  # recipe "joint"
    label_smoothing: float = 0.0  # of binary cross-entropy: labels become s/2 and 1 - s/2
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    pretrain: PhaseConfig = field(default_factory=PhaseConfig)  # recipes "probe", "finetune"
    supervise: PhaseConfig = field(default_factory=PhaseConfig)  # every recipe's last phase
    mesh: MeshConfig = field(default_factory=MeshConfig)
    log_every: int = 20  # steps
    evaluate_every: int = 10  # epochs between validations
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2


def check_overrides(arguments: Iterable[str], kind: type) -> None:
    """Raises ValueError for a `--config.NAME=VALUE` whose name `kind` lacks, with the nearest."""
    known = list(_field_names(kind))
    for argument in arguments:
        name = argument.partition("=")[0].lstrip("-")
        if name.startswith("config."):
            one_of("config key", name.removeprefix("config."), known)


def _field_names(kind: Any, prefix: str = "") -> Iterable[str]:
    for each in dataclasses.fields(kind):
        if dataclasses.is_dataclass(each.type):
            yield from _field_names(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name
