"""The one configuration of a training run: `configs/*.py` fill it in, flags override it.

Every field has a default, so that `Config()` is a valid run and a config file states
only what makes it different. What a field may be stands beside its default, and `check` tells.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdjax._src.evaluate import IMPLEMENTATIONS
from sdjax.checks import one_of
from sdjax.errors import InputError
from sdjax.losses import LOSSES

RECIPES = ("probe", "finetune", "joint", "bce")
OPTIMIZERS = ("adamw", "sgd")
MASK_FILLS = ("zero", "sample")
DTYPES = ("float32", "bfloat16")
FORMS = ("out", "in")
WITHOUT_POSITIVES = ("skip", "push")
EMPTY_SETS = ("disjoint", "identical")
# Fields of the loss that are options of some losses alone.
LOSS_OPTIONS = (
    *("form", "normalizer", "without_positives", "threshold", "weighted", "empty_sets"),
    *("alpha", "beta", "implementation"),
)
NORMS = ("", "batch", "frozen", "group", "layer")
POOLINGS = ("mean", "cls")
TOKEN_POOLINGS = (*POOLINGS, "label_wise")
PUBLISHED = ("bert", "vit", "resnet")  # encoders whose networks come with their weights
CONTRASTED = ("examples", "labels")
SUPERVISED = ("bce", "asl", "focal", "class_balanced")
NORMALIZERS = ("", "batch_labels", "labels")
LEAST_TEMPERATURE = 0.01  # of those that are learned
MISSING = ("error", "median")
INPUT_KINDS = ("dense", "sparse", "image", "text")
SCALINGS = ("auto", "standard", "pareto")
VALIDATION_METRICS = ("mAP", "micro_f1", "macro_f1")
VALIDATION_LOSSES = ("loss", *SUPERVISED, "contrastive")


def number(
    default: float,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """A field that holds a finite number within bounds; a whole one where the default is whole."""
    bounds = {"at least": least, "at most": most, "above": above, "below": below}
    known = {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
    return field(default=default, metadata={"bounds": known})


def choice(default: str, known: Iterable[str]) -> Any:
    """A field that holds one of the `known` names."""
    return field(default=default, metadata={"known": tuple(known)})


def share(default: float) -> Any:
    """A number in [0, 1)."""
    return number(default, least=0, below=1)


def count(default: int) -> Any:
    """A whole number from 1 on."""
    return number(default, least=1)


@dataclass(unsafe_hash=True)
class DataConfig:
    """Where the examples come from.

    `name` is a TFDS data set: bundled (`yeast`, `digits`) or of the catalogue (`voc/2007`);
    `train`, `validation` and `test` are then TFDS split expressions. With `name="files"` they
    are paths of the user's own files (.npz, .h5, .csv, .tsv, .parquet, .arff, .jsonl, .svm; text
    also as .gz).
    """

    name: str = "yeast"
    train: str = "train"
    validation: str = "validation"  # "" or absent from the source: split off train
    test: str = "test"  # "": split off train, before validation
    validation_fraction: float = number(0.2, above=0, below=1)  # of train, without a split of it
    test_fraction: float = number(0.2, above=0, below=1)  # of train, where test is ""
    folds: int = number(0, least=0)  # where test is "": in place of the fraction, so many folds,
    fold: int = number(0, least=0)  # of which this one is test
    split_seed: int = number(0, least=0)  # draws those rows; seeds of a study share them
    # Few-example mode: of train, so many rows for each label, drawn by split_seed; 0: all rows. A
    # batch_size above what is left suits the data, see also the phases' `min_steps`; there is no
    # refit, since validation stays whole.
    examples_per_label: int = number(0, least=0)
    # Where TFDS keeps prepared data, "" being its own default; and where the tokens of texts are
    # kept, by content and tokenizer, for the next run: "" keeps none.
    data_dir: str = ""
    labels: str = ""  # files: label columns (comma-separated names or patterns), or a Mulan XML
    label_separator: str = ""  # files: what splits the one label column, as ";" does "a;b"
    # files: a text file that names all labels, one a line, where some do not occur in train.
    label_names: str = ""
    ignore: str = ""  # files: columns that are neither features nor labels
    # Tables (.csv, .parquet, .arff): missing values are an error, or train's median, with a feature
    # more for each feature that misses values in train, 1 where it does.
    missing: str = choice("error", MISSING)
    # Vectors are centred and divided by the standard deviation, or by its square root (Pareto: rare
    # words are not blown up). auto: pareto where fewer than a tenth of train's numbers is not 0.
    scaling: str = choice("auto", SCALINGS)
    # Tables: text columns of at most so many different values become one-hot; 0: text is an error.
    categories: int = number(0, least=0)
    input_key: str = ""  # TFDS, .npz, .h5, .jsonl: the input; "" finds it
    # TFDS, .npz, .h5, .jsonl: the labels; "" finds them. TFDS also "objects/label", of all objects.
    label_key: str = ""
    # TFDS: objects for which one of these bools is true give no label, as "is_crowd" (coco) or
    # "is_difficult" (voc); comma-separated.
    skip_objects: str = ""
    # Images are resized to this square; 0: that of model.weights, and without them they stay.
    image_size: int = number(0, least=0)
    # Of the channels, of values in [0, 1]; (): of model.weights, and without them of train.
    image_mean: tuple[float, ...] = ()
    image_std: tuple[float, ...] = ()
    image: str = ""  # files: the column or field of the images to learn from, names of files
    images: str = ""  # the folder of those files; "" is that of the table
    text: str = ""  # the column, field or TFDS feature of the texts to learn from
    # Texts: where their tokenizer.json lies (a folder, or an id of the Hugging Face hub); "" is
    # model.weights.
    tokenizer: str = ""
    max_length: int = number(0, least=0)  # texts: most tokens of one; 0: the model's positions


@dataclass(unsafe_hash=True)
class AugmentConfig:
    """The random views of an example.

    Vectors use the `feature_*` fields, texts `token_drop`, images the others.
    """

    feature_mask: float = share(0.2)  # probability that a feature is replaced
    feature_fill: str = choice("zero", MASK_FILLS)  # zero is the mean; sample of the batch
    feature_noise: float = number(0.0, least=0)  # standard deviation of added Gaussian noise
    shift: int = number(4, least=0)  # largest shift, in pixels, in each direction
    # Smallest side of a random-resized crop, of the image's: its area is between the square of that
    # and the whole. A side may be up to the root of `aspect` longer, the other as much shorter.
    crop: float = number(0.8, above=0, most=1)
    aspect: float = number(1.0, least=1)
    erase: float = number(0.25, least=0, most=1)  # largest side of the erased part
    flip: bool = False  # random left-right mirror images
    token_drop: float = share(0.0)  # probability that a token of a text is left out
    # Brightness, contrast and saturation, each times a number in [1 - jitter, 1 + jitter].
    jitter: float = number(0.0, least=0, most=1)
    hue: float = number(0.0, least=0, most=0.5)  # largest turn, of the circle of colours
    grey: float = share(0.0)  # probability that an image loses its colours
    randaugment: int = number(0, least=0)  # operations of RandAugment, one after the other
    magnitude: float = number(9.0, least=0, most=30)  # of those
    # Of the channels, which tell black and white; (): of the data, where colours are changed.
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()

    @property
    def changes_colours(self) -> bool:
        return bool(self.jitter or self.hue or self.grey or self.randaugment)


@dataclass(unsafe_hash=True)
class ModelConfig:
    """Encoder and projection head; sizes of 0 are read off the data."""

    # "auto": "mlp" for vectors, "convnet" for images, "bert" for texts; "vit" and "resnet" are for
    # images, with weights; see `sdjax.models.ENCODERS`.
    encoder: str = "auto"
    # "" is the encoder's own: none (mlp), "group" (convnet), "batch" (resnet). "frozen" (resnet) is
    # batch norm with the statistics of the weights, in training too.
    norm: str = choice("", NORMS)
    width: int = number(0, least=0)  # of the hidden layers (mlp), of the first stage (convnet)
    depth: int = count(2)  # layers (mlp), stages (convnet)
    dropout: float = share(0.1)
    # Of the states of tokens or patches; "" is the encoder's own: "mean" (bert), "cls" (vit). With
    # label_wise (bert, vit) each label attends to the tokens that it needs.
    pooling: str = choice("", ("", *TOKEN_POOLINGS))
    attention_width: int = number(0, least=0)  # label_wise: of queries and keys; 0: the encoder's
    label_chunk: int = count(512)  # label_wise: labels whose attention is held at once
    # bert: longer texts pass in segments of so many tokens, each sharing `segment_overlap` of them
    # with the next; data.max_length may then be any number. 0: a text is as long as the positions.
    segment_length: int = number(0, least=0)
    segment_overlap: int = number(0, least=0)
    frequencies: int = number(0, least=0)  # mlp: learned waves of each feature; 0 is none
    projection_width: int = number(0, least=0)  # of the head's hidden layer; 0: linear
    projection_dim: int = count(128)
    members: int = count(1)  # networks trained side by side, whose logits are averaged
    dtype: str = choice("float32", DTYPES)  # of the computation alone
    remat: bool = False  # compute activations anew in the backward pass, layer by layer
    # The classifier's bias starts at the log-odds of each label in train, not at 0: short
    # fine-tuning need not learn first that labels are rare.
    prior_bias: bool = False
    # bert, vit: the encoder learns by matrices of this rank that are added to its own (LoRA), which
    # stay as they are. 0: it learns as a whole.
    lora_rank: int = number(0, least=0)
    init_from: str = ""  # workdir of a run whose parameters this one starts from
    # Pretrained weights, for encoders that can load them: a safetensors file or a folder, with
    # config.json, or an id of the Hugging Face hub.
    weights: str = ""
    # bert, vit, resnet: the sizes of the network, as JSON with the names of a config.json; "": of
    # the weights.
    architecture: str = ""


@dataclass(unsafe_hash=True)
class LossConfig:
    """A loss of the family, by name (see `sdjax.LOSSES`)."""

    name: str = choice("sd", LOSSES)
    temperature: float = number(0.07, above=0)
    form: str = choice("out", FORMS)
    normalizer: str = choice("", NORMALIZERS)  # mulsupcon only; "" is its own
    # An anchor without a positive is left out, or pushed from all candidates.
    without_positives: str = choice("skip", WITHOUT_POSITIVES)
    threshold: float = number(0.5, least=0, most=1)  # jaccard only: the least overlap of a positive
    weighted: bool = True  # jaccard only: positives weigh as much as they overlap
    empty_sets: str = choice("disjoint", EMPTY_SETS)  # jaccard only: two sets without labels
    alpha: float = number(1.0)  # msc, mscwrg, mscrg only
    beta: float = number(0.1, above=0)  # msc only: weight of examples in the denominator
    # What is contrasted: examples; or, with supcon and model.pooling=label_wise, an embedding of
    # each example for each of its labels, where those of one label are positives (MulCon).
    rows: str = choice("examples", CONTRASTED)
    implementation: str = choice("auto", IMPLEMENTATIONS)
    learn_temperature: bool = False  # starting at `temperature`; see `learning_rates`


@dataclass(unsafe_hash=True)
class SupervisedConfig:
    """The supervised term: a loss of each logit, averaged over the labels.

    Binary cross-entropy ("bce"), asymmetric loss ("asl", Ridnik et al. 2021), focal loss ("focal",
    Lin et al. 2017), or binary cross-entropy whose labels are weighted by the effective number of
    their examples ("class_balanced", Cui et al. 2019).
    """

    name: str = choice("bce", SUPERVISED)
    # All of them: what the terms of present labels are multiplied by; 0 is, for each label, the
    # number of train's examples without it over that of those with it.
    pos_weight: float = number(1.0, least=0)
    gamma: float = number(2.0, least=0)  # focal: exponent of how wrong a probability is
    gamma_pos: float = number(0.0, least=0)  # asl: that exponent, of present labels
    gamma_neg: float = number(4.0, least=0)  # asl: that of absent labels
    clip: float = share(0.05)  # asl: what the probabilities of absent labels are lowered by
    beta: float = share(0.999)  # class_balanced: n examples count as (1 - beta^n) / (1 - beta)


@dataclass(unsafe_hash=True)
class QueueConfig:
    """A memory of past embeddings with their labels, as candidates besides the batch (MoCo).

    One view of an example is the anchor; the other, by an encoder that follows the trained one
    slowly, is a candidate, and is remembered.
    """

    size: int = number(0, least=0)  # embeddings that are remembered; 0 is no queue
    momentum: float = share(0.999)  # of the encoder that follows


@dataclass(unsafe_hash=True)
class PhaseConfig:
    """One phase of training: how long, and with which optimizer."""

    epochs: int = count(100)
    stop_after: int = number(0, least=0)  # epochs, where the schedule is cut off there; 0: nowhere
    # Few-example mode: fewer steps become so many by more epochs; validations are as much rarer.
    min_steps: int = number(200, least=0)
    optimizer: str = choice("adamw", OPTIMIZERS)
    learning_rate: float = number(1e-3, least=0)
    weight_decay: float = number(1e-4, least=0)
    momentum: float = share(0.9)  # sgd only
    warmup: float = share(0.1)  # share of the phase's steps
    clip_norm: float = number(1.0, least=0)  # global gradient norm; 0 is no clipping
    ema_decay: float = share(0.0)  # of the averaged parameters that evaluation uses; 0 is none
    # Factors of the learning rate by part of the model, as "encoder=0.1,encoder.layers.0=0"; the
    # longest name that fits counts, and 0 freezes. Parts: encoder, projection, classifier, loss;
    # the first four layers are encoder.layers.0-3.
    learning_rates: str = ""
    # Factor of the learning rate from each of the encoder's layers to the one below it, down to
    # its embeddings; 1: all learn at one rate.
    layer_decay: float = number(1.0, above=0, most=1)


@dataclass(unsafe_hash=True)
class MeshConfig:
    """How devices share the work. Results do not depend on it."""

    data: int = number(0, least=0)  # groups that each hold all parameters; 0: all
    fsdp: int = count(1)  # devices of a group, over which its parameters are spread


@dataclass(unsafe_hash=True)
class ReportConfig:
    """What the report sets beside the run's own figures."""

    # Vectors: extra trees and logistic regressions, fitted on all rows of train and validation.
    baselines: bool = True
    baseline_rows: int = number(20_000, least=0)  # of more rows none are fitted
    baseline_seconds: float = number(20.0, above=0)  # for all; what takes longer is left out
    # Neighbours of test rows among train's, by h and by z; none where train or test has more rows.
    retrieval_rows: int = number(10_000, least=0)
    neighbors: int = number(6, least=0)  # so many test rows are shown with their nearest of train


@dataclass(unsafe_hash=True)
class Config:
    """A training run.

    `recipe` is one of
      "probe"     contrastive pretraining, then a linear classifier on the frozen encoder;
      "finetune"  contrastive pretraining, then all parameters with the supervised term;
      "joint"     the supervised term + `contrastive_weight` * contrastive loss;
      "bce"       the supervised term alone.
    That term is binary cross-entropy, or what `supervised.name` names.
    """

    recipe: str = choice("joint", RECIPES)
    seed: int = number(0, least=0)
    batch_size: int = number(256, least=0)  # 0 suits the data
    drop_remainder: bool = False  # False spreads rows evenly, padded; True drops some
    # Parts of a batch that pass the network one after another; 0: one, of long texts more.
    microbatches: int = number(0, least=0)
    contrastive_weight: float = number(0.1, least=0)  # recipe "joint"
    label_smoothing: float = share(0.0)  # of the supervised term: labels become s/2 and 1 - s/2
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    pretrain: PhaseConfig = field(default_factory=PhaseConfig)  # recipes "probe", "finetune"
    supervise: PhaseConfig = field(default_factory=PhaseConfig)  # every recipe's last phase
    mesh: MeshConfig = field(default_factory=MeshConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    log_every: int = count(20)  # steps
    evaluate_every: int = count(10)  # epochs between validations
    checkpoint_every: int = count(200)  # steps
    keep_checkpoints: int = count(2)
    # The validation metric whose best checkpoint is kept and tested; "" tests the last one.
    select_by: str = choice("", ("", *VALIDATION_METRICS, *VALIDATION_LOSSES))
    # The last phase ends after so many validations without a better one by select_by; 0: never.
    patience: int = number(0, least=0)
    # Overrides such as "recipe=bce supervise.epochs=30". A run of each is trained, and the best on
    # validation goes on, by select_by, or by the mAP of the last checkpoint without it. Those that
    # begin with "dense:", "sparse:", "image:" or "text:" are for such inputs.
    candidates: tuple[str, ...] = ()
    # At last, train anew on train and validation, for as many epochs as the checkpoint that would
    # be tested; thresholds are still tuned on validation by the model that had not seen it.
    refit: bool = False
    # What is tuned on validation for the decisions on test: one threshold, or one for each label.
    thresholds: str = choice("global", ("global", "per_label"))

    @property
    def least_microbatches(self) -> int:
        """Parts that every batch must divide into: `microbatches`, or 1 where that is open."""
        return max(self.microbatches, 1)


def check(config: Config) -> None:
    """Raises InputError, naming the field, for a value that no run can have."""
    for name, (value, each) in _fields(config).items():
        known = each.metadata.get("known")
        if known and (value or "" not in known):
            one_of(name, value, filter(None, known))
        elif "bounds" in each.metadata:
            _check_number(name, value, each)
    for name, phase in (("pretrain", config.pretrain), ("supervise", config.supervise)):
        learning_rate_factors(f"{name}.learning_rates", phase.learning_rates)
        if phase.stop_after > phase.epochs:
            raise InputError(
                f"{name}.stop_after must be at most {name}.epochs, {phase.epochs}, got "
                f"{phase.stop_after}."
            )
    if config.patience and not config.select_by:
        raise InputError("patience needs select_by, the metric that judges; such as 'mAP'.")
    candidates(config, "")
    loss_options(config.loss)
    if config.loss.learn_temperature and config.loss.temperature < LEAST_TEMPERATURE:
        raise InputError(
            f"loss.learn_temperature needs a loss.temperature of at least {LEAST_TEMPERATURE}, got "
            f"{config.loss.temperature}."
        )
    if config.select_by in SUPERVISED and config.select_by != config.supervised.name:
        raise InputError(
            f"select_by={config.select_by!r} is another loss than supervised.name, "
            f"{config.supervised.name!r}."
        )
    if config.model.segment_length and config.model.segment_overlap >= config.model.segment_length:
        raise InputError(
            f"model.segment_overlap must be below model.segment_length, "
            f"{config.model.segment_length}, got {config.model.segment_overlap}."
        )
    if config.loss.rows == "labels":
        _check_label_rows(config)
    if config.queue.size and config.recipe == "bce":
        raise InputError("queue.size is for recipes with a contrastive loss, not for 'bce'.")
    if config.queue.size and "candidates" not in options_of(config.loss.name):
        raise InputError(f"queue.size is for losses with candidates, not for {config.loss.name!r}.")
    if config.select_by == "contrastive":
        if config.recipe != "joint":
            raise InputError(
                f"select_by='contrastive' needs recipe 'joint': the last phase of "
                f"{config.recipe!r} has no contrastive loss."
            )
        if not config.contrastive_weight:
            raise InputError("select_by='contrastive' needs a contrastive_weight above 0.")


def loss_options(config: LossConfig) -> dict[str, Any]:
    """The options of its loss, with their values; those that are the loss's own are left out.

    Raises:
      InputError: if an option of other losses is set, or one is out of the loss's range.
    """
    options, default = {}, LossConfig()
    for name in LOSS_OPTIONS:
        value = getattr(config, name)
        if name in options_of(config.name):
            options[name] = value
        elif value != getattr(default, name):
            takers = ", ".join(each for each in LOSSES if name in options_of(each))
            raise InputError(f"loss.{name} is for {takers}, not for {config.name!r}.")
    if config.name == "msc" and config.alpha < 0:
        raise InputError(f"loss.alpha must be a number, at least 0 for msc, got {config.alpha}.")
    return {name: value for name, value in options.items() if value != ""}


def options_of(loss: str) -> frozenset[str]:
    """The names of the arguments of a loss."""
    return frozenset(inspect.signature(LOSSES[loss]).parameters)


def _check_label_rows(config: Config) -> None:
    for name, value, needed in (
        ("loss.name", config.loss.name, "supcon"),
        ("model.pooling", config.model.pooling, "label_wise"),
        ("queue.size", config.queue.size, 0),
    ):
        if value != needed:
            raise InputError(f"loss.rows='labels' needs {name}={needed}, got {value!r}.")


def unused(config: Config) -> list[str]:
    """Fields that were changed from their defaults, and do nothing in a run of this recipe."""
    idle, default = idle_fields(config), flat(Config())
    sections = tuple(each for each in idle if each.endswith("."))
    return [
        name
        for name, value in flat(config).items()
        if (name in idle or name.startswith(sections)) and value != default[name]
    ]


def without_unused(config: Config) -> Config:
    """`config` with the defaults of the fields that do nothing in a run of it."""
    default = flat(Config())
    return replaced(config, {name: default[name] for name in unused(config)})


def idle_fields(config: Config) -> list[str]:
    """Fields, and sections as "pretrain.", that do nothing in a run of `config`."""
    options = {"asl": ("gamma_pos", "gamma_neg", "clip"), "focal": ("gamma",)}
    options["class_balanced"] = ("beta",)
    idle = [
        f"supervised.{option}"
        for name, each in options.items()
        for option in each
        if name != config.supervised.name
    ]
    if config.model.pooling != "label_wise":
        idle += ["model.attention_width", "model.label_chunk"]
    if not config.model.segment_length:
        idle.append("model.segment_overlap")
    if not config.data.examples_per_label:
        idle += ["pretrain.min_steps", "supervise.min_steps"]
    if config.recipe in ("joint", "bce"):
        idle.append("pretrain.")
    if config.recipe == "bce":
        idle.append("loss.learn_temperature")
    if config.recipe == "joint" and not config.contrastive_weight:
        idle += ["queue.", "loss.learn_temperature"]
    return idle


def candidates(config: Config, kind: str) -> dict[str, Config]:
    """The configs that `config.candidates` make of `config` for inputs of a kind, by their text.

    Without any that is meant for such inputs it is `config` itself, under "".

    Args:
      config: of the run.
      kind: "dense", "sparse", "image", "text" or "", see `Dataset.kind`.

    Raises:
      InputError: if a candidate is no list of FIELD=VALUE.
    """
    base = dataclasses.replace(config, candidates=())
    made = {}
    for candidate in config.candidates:
        head, colon, rest = candidate.partition(":")
        meant_for = head.strip() if colon else ""
        if colon:
            one_of(f"kind of inputs in the candidate {candidate!r}", meant_for, INPUT_KINDS)
        overrides = (rest if colon else candidate).split()
        changed = base
        for override in overrides:
            changed = overridden(changed, override)
        if not meant_for or meant_for == kind:
            made[" ".join(overrides)] = changed
    return made or {"": base}


def replaced(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with other values of some fields, such as {"supervise.epochs": 30}.

    Raises:
      InputError: if there is no field of a name; with the nearest one.
    """
    for name, value in values.items():
        known = _fields(config)
        old, _ = known[one_of("config field", name, known)]
        if isinstance(value, np.generic):  # of a grid
            value = value.item()
        if not isinstance(value, (int, float) if isinstance(old, float) else type(old)):
            raise InputError(
                f"config field {name} must be of type {type(old).__name__}, got {value!r}."
            )
        config = _with(config, name.split("."), value)
    return config


def without_overrides(config: Config, names: Iterable[str]) -> Config:
    """`config`, whose candidates leave the fields `names` as they are in it."""
    names = set(names)
    kept = []
    for candidate in config.candidates:
        words = [word for word in candidate.split() if word.partition("=")[0] not in names]
        kept.append(" ".join(words))
    return dataclasses.replace(config, candidates=tuple(dict.fromkeys(kept)))


def overridden(config: Config, override: str, kind: str = "candidate") -> Config:
    """`config` with one FIELD=VALUE, such as "supervise.epochs=30".

    Raises:
      InputError: naming the `kind` of thing that says so, if there is no such field, or VALUE is
        not of its type.
    """
    name, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"A {kind} must be FIELD=VALUE ..., got {override!r}.")
    value, _ = _fields(config)[one_of(f"field of a {kind}", name, _fields(config))]
    if isinstance(value, tuple):
        raise InputError(f"A {kind} cannot set {name}.")
    try:
        if isinstance(value, bool):
            new: Any = {"True": True, "False": False}[text]
        else:
            new = type(value)(text)
    except (KeyError, ValueError):
        raise InputError(
            f"A {kind}'s {name} must be of type {type(value).__name__}, got {text!r}."
        ) from None
    return _with(config, name.split("."), new)


def _with(config: Any, path: list[str], value: Any) -> Any:
    if path[1:]:
        value = _with(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})


def sized(config: Config, num_examples: int, input_spec: Any, num_devices: int) -> Config:
    """`config` with a network and a batch that suit the data where it names none.

    Batches are the power of two nearest below an eighth of the train split, from 32 to 512 (64 for
    encoders with published weights), and a multiple of devices × microbatches; also where
    few-example mode leaves fewer rows than the batch that is named. Vectors get an MLP, images a
    ConvNet; its width is 32, that of all other encoders 256 (512 from 20,000 examples on).

    Args:
      config: checked.
      num_examples: of the train split.
      input_spec: of an example, a pytree of `jax.ShapeDtypeStruct`.
      num_devices: that share a batch.

    Raises:
      InputError: if there is no encoder that is taken for such inputs.
    """
    encoder = config.model.encoder
    if encoder == "auto":
        shape = getattr(input_spec, "shape", ())
        encoder = {1: "mlp", 3: "convnet"}.get(len(shape), "")
    if not encoder:
        raise InputError(
            "model.encoder must be named: 'auto' is for vectors and images, got inputs "
            f"{input_spec}."
        )
    width = config.model.width
    if not width:
        width = 32 if encoder == "convnet" else 256 if num_examples < 20_000 else 512
    batch_size = config.batch_size
    if config.data.examples_per_label and batch_size > num_examples:
        batch_size = 0
    if not batch_size:
        parts = num_devices * config.least_microbatches
        most = 64 if encoder in PUBLISHED else 512
        batch_size = min(max(_power_of_two_below(num_examples // 8), 32), most, num_examples)
        batch_size = max(batch_size - batch_size % parts, parts)
    model = dataclasses.replace(config.model, encoder=encoder, width=width)
    return dataclasses.replace(config, model=model, batch_size=batch_size)


def learning_rate_factors(name: str, text: str) -> dict[str, float]:
    """{"encoder": 0.1, ...} of "encoder=0.1,..."; "layers.0-1" becomes "layers.0" and "layers.1".

    Raises:
      InputError: naming the field `name`, if `text` is of another form.
    """
    factors = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        prefix, _, number = part.partition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not 0 <= factor < math.inf:
            raise InputError(
                f"{name} must be PART=FACTOR, separated by commas, with factors of at least 0, "
                f"such as 'encoder=0.1'; got {part!r}."
            )
        factors.update(dict.fromkeys(_parts(prefix.strip()), factor))
    return factors


def _parts(prefix: str) -> list[str]:
    """The names that a range of layers stands for, else the name itself."""
    found = re.fullmatch(r"(.*\.)(\d+)-(\d+)", prefix)
    if not found:
        return [prefix]
    stem, first, last = found[1], int(found[2]), int(found[3])
    return [f"{stem}{layer}" for layer in range(first, last + 1)] or [prefix]


def choices(config: Any) -> dict[str, tuple[str, ...]]:
    """What the fields may be that hold one of some names, by field."""
    fields = _fields(config).items()
    return {name: each.metadata["known"] for name, (_, each) in fields if "known" in each.metadata}


def flat(config: Any) -> dict[str, Any]:
    """The fields of a config as {"model.width": 256, ...}."""
    return {name: value for name, (value, _) in _fields(config).items()}


def from_dict(kind: Any, values: dict[str, Any]) -> Any:
    """The config of class `kind` that `dataclasses.asdict` made `values` of.

    Raises:
      InputError: if there is a field that `kind` lacks; absent fields have their defaults.
    """
    kinds = {each.name: each.type for each in dataclasses.fields(kind)}
    for name in values:
        one_of("config field", name, kinds)
    nested = {name: from_dict(kinds[name], v) for name, v in values.items() if type(v) is dict}
    # JSON has lists alone.
    lists = {name: tuple(v) for name, v in values.items() if type(v) is list}
    return kind(**{**values, **nested, **lists})


def overrides(arguments: Iterable[str], kind: type) -> list[str]:
    """The NAME of each `--config.NAME=VALUE`.

    Raises:
      InputError: if `kind` has no such field; with the nearest one, and those of its section.
    """
    known = list(_fields(kind()))
    flags = [argument.partition("=")[0].lstrip("-") for argument in arguments]
    names = [flag.removeprefix("config.") for flag in flags if flag.startswith("config.")]
    for name in names:
        section = name.partition(".")[0] + "."
        fields = [each for each in known if each.startswith(section)]
        if f"{name}." == section and fields:
            raise InputError(f"config.{name} is a section: set a field of it, {', '.join(fields)}.")
        one_of("config key", name, fields or known)
    return names


def _fields(config: Any, prefix: str = "") -> dict[str, tuple[Any, dataclasses.Field]]:
    """Value and field by dotted name."""
    found: dict[str, tuple[Any, dataclasses.Field]] = {}
    for each in dataclasses.fields(config):
        value, name = getattr(config, each.name), prefix + each.name
        if dataclasses.is_dataclass(value):
            found |= _fields(value, f"{name}.")
        else:
            found[name] = value, each
    return found


def _check_number(name: str, value: Any, each: dataclasses.Field) -> None:
    bounds: dict[str, float] = each.metadata["bounds"]
    whole = isinstance(each.default, int)
    kinds = (int,) if whole else (int, float)
    ok = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    holds = {
        "at least": lambda bound: value >= bound,
        "at most": lambda bound: value <= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
    }
    if not (ok and all(holds[kind](bound) for kind, bound in bounds.items())):
        noun = "a whole number" if whole else "a number"
        limits = "".join(f", {kind} {bound:g}" for kind, bound in bounds.items())
        raise InputError(f"{name} must be {noun}{limits}, got {value!r}.")


def _power_of_two_below(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)
