import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdjax import LabelIndices
from sdjax.config import Config, LossConfig, MeshConfig, SupervisedConfig
from sdjax.losses import LOSSES, PROTOTYPE_LOSSES
from sdjax.training import objective as objective_lib
from sdjax.training.mesh import batch_sharding, evaluation_batch_size, make_mesh, state_sharding
from sdjax.training.microbatches import in_microbatches
from sdjax.training.objective import (
    Objective,
    make_contrastive_loss,
    mean_of_rows,
)
from sdjax.training.recipes import make_phases
from sdjax.training.state import (
    ExampleSpec,
    begin_phase,
    init_model,
    initializer,
    make_model,
    model_graph,
)
from sdjax.training.step import make_train_step

SHAPE, CLASSES, BATCH = (6,), 4, 16


def toy_config(recipe="joint", **changes):
    config = Config(recipe=recipe, **changes)
    config.model.encoder, config.model.width, config.model.projection_dim = "mlp", 16, 8
    config.pretrain.epochs = config.supervise.epochs = 5
    return config


def toy_batch(padding=0):
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(BATCH, *SHAPE)).astype(np.float32),
        "labels": (rng.random((BATCH, CLASSES)) < 0.4).astype(np.uint8),
        "where": np.arange(BATCH) < BATCH - padding,
    }


def spec_of(shape=SHAPE, num_classes=CLASSES):
    return ExampleSpec.of(
        jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((num_classes,), jnp.uint8)
    )


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def make(config, index=0, mesh=None, spec=None):
    """State and step of a phase."""
    phase, spec = make_phases(config, steps_per_epoch=4)[index], spec or spec_of()
    mesh = mesh or one_device()
    state = initializer(config, spec, phase, mesh)(jax.random.key(config.seed), None)
    return state, make_train_step(config, phase, model_graph(config, spec), mesh)


def objective_of(config, spec=None):
    """Parameters and aux of one member, and the objective as a function of them, batch and key."""
    (phase,), spec = make_phases(config, steps_per_epoch=4), spec or spec_of()
    state = initializer(config, spec, phase, one_device())(jax.random.key(config.seed), None)
    objective = Objective(config, phase, model_graph(config, spec), one_device())
    params, aux = jax.tree.map(lambda x: np.asarray(x[0]), (state.params, state.aux))
    return params, aux, lambda *given: objective(*given, True)


SLOWLY = (*("prototype", "mscwrg"), *("label_wise", "herocon"))


@pytest.mark.parametrize(
    "name",
    [
        *("sd", "mulsupcon", "jaccard", "supcon", "msc", "mscrg"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWLY),
    ],
)
def test_losses_train(name):
    config = toy_config(loss=LossConfig(name=name), contrastive_weight=1.0)
    config.supervise.learning_rate = 0.01
    batch = toy_batch(padding=3)
    if name == "supcon":
        batch["labels"] = np.eye(CLASSES, dtype=np.uint8)[np.arange(BATCH) % CLASSES]
    state, step = make(config)
    learned = jax.tree.map(np.asarray, state.params.get("loss"))
    history = []
    for _ in range(20):
        state, metrics = step(state, batch)
        history.append(metrics)
    assert all(np.isfinite(float(m["gradient_norm"])) for m in history)
    assert float(history[-1]["contrastive"]) < float(history[1]["contrastive"])
    assert float(history[-1]["bce"]) < float(history[1]["bce"])
    assert int(state.step) == 20
    for x, y in zip(jax.tree.leaves(learned), jax.tree.leaves(state.params.get("loss"))):
        assert np.abs(x - y).min() > 0
    assert bool(learned) == (name in PROTOTYPE_LOSSES)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_its_step(name):
    state, step = make(toy_config(loss=LossConfig(name=name), contrastive_weight=1.0))
    _, metrics = jax.eval_shape(step, state, toy_batch(padding=3))
    assert metrics.keys() >= {"loss", "contrastive", "bce", "gradient_norm"}


def test_padding_changes_nothing():
    params, aux, objective = objective_of(toy_config())
    batch, poisoned = toy_batch(padding=4), toy_batch(padding=4)
    poisoned["x"][-4:] = 1e6
    poisoned["labels"][-4:] = 1
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, _), grads = gradient(params, aux, batch, jax.random.key(1))
    (other, _), other_grads = gradient(params, aux, poisoned, jax.random.key(1))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), grads, other_grads
    )


def test_members_learn_independently():
    """The first of three members takes the steps that it would take beside others."""
    config = toy_config()
    config.model.members = 3
    state, step = make(config)
    poisoned = jax.tree.map(lambda x: x.at[1:].multiply(3.0), make(config)[0].params)
    other = make(config)[0]._replace(params=poisoned)
    for _ in range(3):
        state, _ = step(state, toy_batch())
        other, _ = step(other, toy_batch())

    def member(tree, number):
        return jax.tree.map(lambda x: np.asarray(x[number]), tree)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        member(state.params, 0),
        member(other.params, 0),
    )
    kernels = [member(state.params, number)["classifier"]["kernel"] for number in (0, 1)]
    assert np.abs(kernels[0][...] - kernels[1][...]).max() > 1e-3


@pytest.mark.parametrize(
    ("fsdp", "implementation"),
    [(1, "auto"), (2, "ring"), pytest.param(8, "auto", marks=pytest.mark.slow)],
)
def test_eight_devices_equal_one(fsdp, implementation):
    config = toy_config(loss=LossConfig(implementation=implementation))
    config.augment.feature_fill = "sample"
    config.model.width = 64
    results = []
    for mesh in (one_device(), make_mesh(MeshConfig(fsdp=fsdp))):
        state, step = make(config, mesh=mesh)
        state = jax.device_put(state, state_sharding(state, mesh))
        batch = jax.device_put(toy_batch(padding=5), batch_sharding(mesh))
        for _ in range(3):
            state, metrics = step(state, batch)
        kernels = [state.params["encoder"]["layers"][1]["kernel"], *moments(state)]
        for kernel in kernels:
            assert kernel.sharding.shard_shape(kernel.shape)[1:] == (64 // mesh.shape["fsdp"], 64)
        results.append((jax.device_get(metrics), jax.device_get(state.params)))
    assert mesh.size == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), *results)


def moments(state):
    """Adam's, of the encoder's square kernel."""
    leaves = [x for x in jax.tree.leaves(state.opt_state) if x.shape[-2:] == (64, 64)]
    assert len(leaves) == 2
    return leaves


@pytest.mark.parametrize(
    ("encoder", "changes"),
    [
        ("mlp", {"remat": True}),
        ("convnet", {"microbatches": 4}),
        pytest.param("mlp", {"microbatches": 4}, marks=pytest.mark.slow),
        pytest.param("convnet", {"remat": True}, marks=pytest.mark.slow),
    ],
)
def test_microbatches_and_remat_leave_the_gradient_of_the_whole_batch(encoder, changes):
    """Of the contrastive loss too, which sees pairs across microbatches."""
    results = []
    for change in ({}, changes):
        config = toy_config(contrastive_weight=1.0, microbatches=change.get("microbatches", 1))
        config.model.remat = change.get("remat", False)
        config.model.dropout = 0.0
        batch, shape = toy_batch(padding=3), SHAPE
        if encoder == "convnet":
            config.model.encoder, config.model.width, shape = "convnet", 4, (8, 8, 1)
            # Resampling, of which rounding differs from program to program, is not what is tested.
            config.augment.shift, config.augment.crop = 1, 1.0
            batch["x"] = np.random.default_rng(1).normal(size=(BATCH, *shape)).astype(np.float32)
        results.append(whole_gradient(config, shape, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def whole_gradient(config, shape, batch):
    params, aux, objective = objective_of(config, spec_of(shape))
    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (_, terms)), grads = gradient(params, aux, batch, jax.random.key(1))
    return loss, terms, grads


@pytest.mark.parametrize("how", ["microbatches", "remat"])
def test_less_is_held_for_the_backward_pass(how):
    """Counted in the program, since XLA's CPU compiler undoes what saves memory there."""
    x = jax.ShapeDtypeStruct((64, 32, 32, 1), jnp.float32)
    sizes = []
    for reduced in (False, True):
        config = toy_config()
        config.model.encoder, config.model.width, config.model.depth = "convnet", 8, 3
        config.model.remat = reduced and how == "remat"
        key = jax.random.key(0)
        graph = model_graph(config, spec_of(x.shape[1:]))
        params, variables = init_model(config, spec_of(x.shape[1:]), key)
        params, variables = jax.tree.map(lambda x: x[0], (params, variables))
        microbatches = 8 if reduced and how == "microbatches" else 1

        def encode(params, x):
            def of_rows(x, key, carry):
                model = nnx.merge(graph, params, variables)
                return model.encode(x, rngs=nnx.Rngs(dropout=key)), carry

            return in_microbatches(of_rows, microbatches, one_device())(x, key, None)[0]

        def backward(x):
            return jax.vjp(encode, params, x)[1]

        held = jax.tree.leaves(jax.eval_shape(backward, x))
        sizes.append(sum(array.size * array.dtype.itemsize for array in held))
    assert sizes[1] < 0.25 * sizes[0]


@pytest.mark.parametrize(
    ("batch_size", "microbatches", "num_examples", "wanted"),
    [(16, 1, 100, 16), (64, 1, 40, 40), (64, 4, 40, 64), (2**20, 2, 2**20, 2**13), (64, 1, 3, 8)],
)
def test_examples_evaluated_at_once(batch_size, microbatches, num_examples, wanted):
    config = toy_config(batch_size=batch_size, microbatches=microbatches)
    assert evaluation_batch_size(config, num_examples, make_mesh()) == wanted


def test_microbatches_hold_no_logits_of_the_whole_batch():
    num_classes, held = 3000, []
    batch = {**toy_batch(), "labels": jnp.zeros((BATCH, num_classes), jnp.uint8)}
    for microbatches in (1, 4):
        config = toy_config(contrastive_weight=1.0, microbatches=microbatches)
        params, aux, objective = objective_of(config, spec_of(num_classes=num_classes))

        def loss(params):
            return objective(params, aux, batch, jax.random.key(1))[0]

        arrays = jax.tree.leaves(jax.eval_shape(lambda: jax.vjp(loss, params)[1]))
        rows = [x.shape[:-1] for x in arrays if x.shape[-1:] == (num_classes,)]
        held.append(sum(int(np.prod(each)) for each in rows))
    # Two views of each example: labels, the classifier, and only in one batch logits.
    labels, classifier = 2 * BATCH, config.model.width + 1
    assert held[1] <= labels + classifier < held[0]


@pytest.mark.parametrize(
    "kind, name", [("multi-hot", "bce"), ("indices", "bce"), ("indices", "class_balanced")]
)
def test_labels_in_blocks_give_the_loss_and_gradient_of_all_at_once(monkeypatch, kind, name):
    num_classes, block = 8, 3  # the last block is smaller
    config = toy_config("bce", label_smoothing=0.1, supervised=SupervisedConfig(name=name))
    params, aux, objective = objective_of(config, spec_of(num_classes=num_classes))
    if name == "class_balanced":
        weights = np.linspace(0.2, 3, 2 * num_classes, dtype=np.float32).reshape(2, num_classes)
        aux = jax.tree.map(lambda _: weights, aux)
    batch = toy_batch(padding=3)
    hot = np.random.default_rng(1).random((BATCH, num_classes)) < 0.4
    hot[0] = False
    batch["labels"] = hot.astype(np.uint8)
    if kind == "indices":
        indices = np.where(hot, np.arange(num_classes), -1).astype(np.int32)
        batch["labels"] = LabelIndices(indices, num_classes)

    def loss(params):
        return objective(params, aux, batch, jax.random.key(1))[0]

    whole = jax.value_and_grad(loss)(params)
    monkeypatch.setattr(objective_lib, "LABEL_BLOCK", block)
    monkeypatch.setattr(objective_lib, "LOGITS_AT_ONCE", 0)

    def loss_by_blocks(params):  # another function, so that it is traced anew
        return loss(params)

    blocks = jax.value_and_grad(loss_by_blocks)(params)
    assert "scan" in str(jax.make_jaxpr(loss_by_blocks)(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, blocks)


@pytest.mark.parametrize("rows, devices, in_blocks", [(7, 1, False), (8, 1, True), (8, 2, False)])
def test_labels_go_in_blocks_where_a_device_would_hold_many_logits(
    monkeypatch, rows, devices, in_blocks
):
    num_classes = 10
    monkeypatch.setattr(objective_lib, "LABEL_BLOCK", 4)
    monkeypatch.setattr(objective_lib, "LOGITS_AT_ONCE", 70)
    config = toy_config("bce")
    model = make_model(config, spec_of(num_classes=num_classes), jax.random.key(0))
    h = jnp.zeros((rows, config.model.width))
    labels = jnp.zeros((rows, num_classes), jnp.uint8)
    traced = jax.make_jaxpr(
        lambda h: objective_lib.classifier_loss(
            model, h, labels, config.supervised, num_devices=devices
        )
    )(h)
    assert ("scan" in str(traced)) == in_blocks


def test_bfloat16_computes_narrow_and_keeps_parameters_and_losses_in_float32():
    config = toy_config()
    config.supervise.learning_rate = 0.01
    config.model.dtype = "bfloat16"
    state, step = make(config)
    weights = jax.tree.map(lambda x: x[0], state.best)
    model = nnx.merge(model_graph(config, spec_of()), *weights)
    h = model.encode(toy_batch()["x"])
    assert h.dtype == jnp.bfloat16
    assert model.project(h).dtype == model.classify(h).dtype == jnp.float32
    losses = []
    for _ in range(20):
        state, metrics = step(state, toy_batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[1]
    kinds = {x.dtype for x in jax.tree.leaves((state.params, state.opt_state))}
    assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}


def test_the_probe_leaves_encoder_and_projection_alone():
    state, step = make(toy_config("probe"), index=1)
    before = jax.device_get(state.params)
    for _ in range(3):
        state, _ = step(state, toy_batch())
    after = jax.device_get(state.params)
    for part in before:
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before[part], after[part])
        assert all(jax.tree.leaves(same)) == (part != "classifier"), part


def test_steps_draw_new_views_and_the_same_ones_again():
    config = toy_config()
    config.augment.feature_mask = 0.5
    losses = []
    for _ in range(2):
        state, step = make(config)
        # A learning rate of zero at the first step of the warm-up: only the views differ.
        state, first = step(state, toy_batch())
        _, second = step(state, toy_batch())
        losses.append((float(first["loss"]), float(second["loss"])))
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_average_follows_the_parameters_and_starts_the_next_phase():
    config = toy_config("finetune")
    config.pretrain.ema_decay = 0.9
    state, step = make(config)
    for _ in range(5):
        state, _ = step(state, toy_batch())
    average = jax.device_get(state.average.params)
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, average)
    assert max(jax.tree.leaves(gaps["encoder"])) > 0
    state = begin_phase(state, config, spec_of(), make_phases(config, 4)[1])
    assert state.average is None
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), average)


def test_the_mean_leaves_padding_out():
    values, where = np.arange(5.0), np.array([True, False, True, True, False])
    mean = mean_of_rows(jnp.asarray(values), jnp.asarray(where))
    np.testing.assert_allclose(mean, values[where].mean(), rtol=1e-6)
    assert float(mean_of_rows(values, jnp.zeros(5, bool))) == 0


def test_loss_options_are_passed_on():
    z = jax.random.normal(jax.random.key(0), (BATCH, 4))
    labels, where = toy_batch()["labels"], jnp.ones(BATCH, bool)

    labels[0] = labels[1] = 0
    labels[2] = (1, 0, 0, 0)
    labels[3:, 0] = 0

    def value(given=(), **options):
        config = LossConfig(**options)
        loss = make_contrastive_loss(config, one_device())
        return float(loss(z, labels, *given, where=where, temperature=config.temperature))

    base = value()
    assert value(temperature=0.5) != base
    assert value(form="in") != base
    assert value(name="jaccard", threshold=0.1) != value(name="jaccard", threshold=0.9)
    assert value(name="mulsupcon", normalizer="labels") != value(name="mulsupcon")
    assert value(name="jaccard", weighted=False) != value(name="jaccard")
    assert value(name="jaccard", empty_sets="identical") != value(name="jaccard")
    assert value(without_positives="push") != base
    prototypes = [jax.random.normal(jax.random.key(1), (CLASSES, 4))]
    msc = value(prototypes, name="msc")
    assert value(prototypes, name="msc", alpha=0.5) != msc != value(prototypes, name="msc", beta=1)
    assert dataclasses.asdict(LossConfig())["name"] == "sd"


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_compiled_gradients_of_a_convnet_are_those_of_its_operations_one_by_one(norm):
    """A compiler may compute an activation twice, with another rounding each time."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 16, 16, 1)).astype(np.float32)
    config = toy_config("bce")
    config.model.encoder, config.model.width, config.model.norm = "convnet", 8, norm
    spec = spec_of(x.shape[1:])
    weights = jax.tree.map(lambda x: x[0], init_model(config, spec, jax.random.key(0)))
    # Scales of one and shifts of zero round alike.
    params = jax.tree.map(
        lambda x: x + 0.05 * rng.normal(size=x.shape).astype(np.float32), weights.params
    )

    def objective(params):
        variables = jax.tree.map(lambda x: x, weights.variables)
        model = nnx.merge(model_graph(config, spec), params, variables)
        h = model.encode(x, rngs=nnx.Rngs(dropout=0), where=np.ones(32, bool))
        return (model.classify(h) ** 2).mean()

    config.model.dropout = 0.0
    wanted, found = jax.grad(objective)(params), jax.jit(jax.grad(objective))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)
