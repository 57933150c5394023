import dataclasses
import math

import jax
import numpy as np
import pytest

from sdjax.config import (
    Config,
    check,
    flat,
    from_dict,
    learning_rate_factors,
    overrides,
    replaced,
    sized,
    unused,
    without_unused,
)

VECTOR = jax.ShapeDtypeStruct((5,), np.float32)


def fields(config, prefix=""):
    """(config that holds it, field, dotted name) of every field."""
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{each.name}.")
        else:
            yield config, each, prefix + each.name


def numeric_names():
    kinds = {"int", "float", int, float}
    return [name for _, each, name in fields(Config()) if each.type in kinds]


def set_field(config, wanted, value):
    for holder, each, name in fields(config):
        if name == wanted:
            setattr(holder, each.name, value)


def test_the_default_is_valid():
    check(Config())
    assert len(numeric_names()) > 35


@pytest.mark.parametrize("name", numeric_names())
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "2", True])
def test_every_number_is_checked_by_name(name, value):
    config = Config()
    set_field(config, name, value)
    if name == "loss.alpha":
        config.loss.name = "msc"  # Others take any finite number.
    with pytest.raises(ValueError, match=rf"^{name} must be a (whole )?number.*, got {value!r}"):
        check(config)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("recipe", "prob", "Unknown recipe 'prob'. Did you mean 'probe'"),
        ("loss.name", "mulsup", "Unknown loss.name 'mulsup'. Did you mean 'mulsupcon'"),
        ("loss.form", "inside", "Unknown loss.form 'inside'"),
        ("loss.temperature", 0.0, "loss.temperature must be a number, above 0, got 0.0"),
        ("loss.normalizer", "labels", "loss.normalizer is for mulsupcon, not for 'sd'"),
        ("loss.beta", 0.5, "loss.beta is for msc, not for 'sd'"),
        ("loss.weighted", False, "loss.weighted is for jaccard, not for 'sd'"),
        ("loss.implementation", "tile", "Did you mean 'tiled'"),
        ("model.dropout", 1.0, "model.dropout must be a number, at least 0, below 1, got 1.0"),
        ("model.dtype", "bf16", "Unknown model.dtype 'bf16'"),
        ("model.norm", "bach", "Unknown model.norm 'bach'. Did you mean 'batch'"),
        ("supervise.epochs", 2.5, "supervise.epochs must be a whole number, at least 1, got 2.5"),
        ("supervise.optimizer", "adam", "optimizer 'adam'. Did you mean 'adamw'"),
        ("supervise.learning_rates", "encoder", "supervise.learning_rates must be PART=FACTOR"),
        ("pretrain.learning_rates", "encoder=-1", "pretrain.learning_rates must be PART=FACTOR"),
        ("augment.crop", 0.0, "augment.crop must be a number, at most 1, above 0, got 0.0"),
        ("augment.feature_fill", "mean", "Unknown augment.feature_fill 'mean'"),
        ("supervised.name", "focl", "Unknown supervised.name 'focl'. Did you mean 'focal'"),
        ("select_by", "asl", "select_by='asl' is another loss than supervised.name, 'bce'"),
        ("select_by", "map", "Unknown select_by 'map'.*Known: mAP, micro_f1"),
    ],
)
def test_values_that_no_run_can_have(name, value, text):
    config = Config()
    set_field(config, name, value)
    with pytest.raises(ValueError, match=text):
        check(config)


def test_options_that_exclude_each_other():
    config = Config()
    config.loss.learn_temperature, config.loss.temperature = True, 0.005
    with pytest.raises(ValueError, match=r"learn_temperature needs .* at least 0.01, got 0.005"):
        check(config)
    config = Config(recipe="bce")
    config.queue.size = 512
    with pytest.raises(ValueError, match=r"queue.size is for recipes with a contrastive loss"):
        check(config)
    config = Config()
    config.queue.size, config.loss.name = 512, "prototype"
    with pytest.raises(ValueError, match="queue.size is for losses with candidates, not for 'pro"):
        check(config)
    config = Config()
    config.loss.rows = "labels"
    with pytest.raises(ValueError, match="loss.rows='labels' needs loss.name=supcon, got 'sd'"):
        check(config)
    config.loss.name = "supcon"
    with pytest.raises(ValueError, match="loss.rows='labels' needs model.pooling=label_wise"):
        check(config)
    with pytest.raises(ValueError, match="select_by='contrastive' needs recipe 'joint'"):
        check(Config(recipe="finetune", select_by="contrastive"))
    with pytest.raises(ValueError, match="'contrastive' needs a contrastive_weight above 0"):
        check(Config(recipe="joint", contrastive_weight=0.0, select_by="contrastive"))


@pytest.mark.parametrize(
    ("num_examples", "num_devices", "microbatches", "batch_size"),
    [
        (1200, 1, 1, 128),
        (1200, 8, 1, 128),
        (100, 1, 1, 32),
        (20, 1, 1, 20),
        (10**6, 1, 1, 512),
        (1200, 1, 3, 126),
        (1200, 8, 3, 120),
        (10, 8, 3, 24),
    ],
)
def test_an_open_batch_fits_devices_and_microbatches(
    num_examples, num_devices, microbatches, batch_size
):
    config = Config(batch_size=0, microbatches=microbatches)
    assert sized(config, num_examples, VECTOR, num_devices).batch_size == batch_size


def test_sizes_follow_the_data():
    config = Config()
    assert sized(config, 100, VECTOR, 1).model.encoder == "mlp"
    assert sized(config, 100, VECTOR, 1).model.width == 256
    assert sized(config, 20_000, VECTOR, 1).model.width == 512
    image = sized(config, 100, jax.ShapeDtypeStruct((8, 8, 1), np.float32), 1)
    assert (image.model.encoder, image.model.width, image.batch_size) == ("convnet", 32, 256)
    assert config.model.encoder == "auto"
    with pytest.raises(ValueError, match=r"model.encoder must be named.*'ids'"):
        sized(config, 100, {"ids": VECTOR}, 1)


def test_configs_survive_json():
    config = Config(seed=3)
    config.model.width = 7
    assert from_dict(Config, dataclasses.asdict(config)) == config
    assert flat(config)["model.width"] == 7
    values = dataclasses.asdict(config)
    values["model"]["hidden"] = 3
    with pytest.raises(ValueError, match="Unknown config field 'hidden'"):
        from_dict(Config, values)
    del values["model"]["hidden"], values["queue"]
    assert from_dict(Config, values) == config


def test_overrides_that_there_are_not():
    overrides(["--config.model.width=3", "--workdir=x"], Config)
    with pytest.raises(ValueError, match=r"'model.with'. Did you mean 'model.width'"):
        overrides(["--config.model.with=3"], Config)


def test_factors_of_learning_rates():
    text = " encoder=0.1, encoder.layers.0 = 0 "
    assert learning_rate_factors("", text) == {"encoder": 0.1, "encoder.layers.0": 0.0}
    assert learning_rate_factors("", "") == {}
    layers = {f"encoder.layers.{layer}": 0.0 for layer in (2, 3, 4)}
    assert learning_rate_factors("", "encoder.layers.2-4=0") == layers


@pytest.mark.parametrize(
    "recipe, weight, wanted",
    [
        ("finetune", 0.1, []),
        ("probe", 0.0, []),
        ("joint", 0.1, ["pretrain.epochs"]),
        ("joint", 0.0, ["loss.learn_temperature", "queue.size", "pretrain.epochs"]),
        ("bce", 0.1, ["loss.learn_temperature", "pretrain.epochs"]),
    ],
)
def test_fields_without_a_use_are_named(recipe, weight, wanted):
    config = Config(recipe=recipe, contrastive_weight=weight)
    assert unused(config) == []
    config.loss.learn_temperature, config.pretrain.epochs = True, 3
    config.queue.size = 0 if recipe == "bce" else 512
    assert unused(config) == wanted
    assert without_unused(config) == replaced(
        config, {each: flat(Config())[each] for each in wanted}
    )


def test_options_of_other_supervised_losses_are_named():
    config = Config(recipe="finetune")
    config.supervised.name, config.supervised.clip, config.supervised.gamma = "asl", 0.1, 1.0
    assert unused(config) == ["supervised.gamma"]
    config.supervised.name = "focal"
    assert unused(config) == ["supervised.clip"]
