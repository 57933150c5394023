"""What changes without a gradient (statistics, follower, queue), and what a loss learns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import pytest
from flax import nnx

from sdjax import LabelIndices
from sdjax.config import Config, LossConfig
from sdjax.data import ArraySource
from sdjax.models.model import LossParameters
from sdjax.training.evaluate import make_losses, make_validate
from sdjax.training.mesh import batch_sharding, evaluation_batch_size, make_mesh
from sdjax.training.recipes import make_phases, parameter_name
from sdjax.training.state import ExampleSpec, initializer, model_graph
from sdjax.training.step import make_train_step

FEATURES, WIDTH, DIM, CLASSES, BATCH = 5, 6, 4, 3, 8
PRESENT = 3  # rows of a padded batch
SLOTS, STEPS, MOMENTUM, RATE, TEMPERATURE = 3, 20, 0.9, 0.5, 0.3


def toy_config(**changes):
    """Plain gradient descent on examples as they are, so that a loop in NumPy can follow."""
    config = Config(recipe="probe", batch_size=BATCH, **changes)
    config.model.encoder, config.model.depth = "mlp", 1
    config.model.width, config.model.projection_dim, config.model.dropout = WIDTH, DIM, 0.0
    config.augment.feature_mask = 0.0
    config.loss.temperature = TEMPERATURE
    phase = config.pretrain
    phase.epochs, phase.optimizer, phase.learning_rate, phase.momentum = STEPS, "sgd", RATE, 0.0
    phase.weight_decay = phase.warmup = phase.clip_norm = 0.0
    return config


def batches(count=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        yield {
            "x": rng.normal(size=(BATCH, FEATURES)).astype(np.float32),
            "labels": (rng.random((BATCH, CLASSES)) < 0.4).astype(np.uint8),
            "where": np.arange(BATCH) < BATCH - number % 3,
        }


def as_lists(labels, length):
    """Multi-hot labels as lists of indices, padded to `length`."""
    indices = np.full((len(labels), length), -1, np.int32)
    for i, row in enumerate(labels):
        present = np.flatnonzero(row)
        indices[i, : len(present)] = present
    return LabelIndices(indices, CLASSES)


def start(config, devices=1, format="multi_hot"):
    labels = jax.ShapeDtypeStruct((CLASSES,), jnp.uint8)
    if format == "indices":
        labels = LabelIndices(jax.ShapeDtypeStruct((CLASSES,), jnp.int32), CLASSES)
    spec = ExampleSpec.of(jax.ShapeDtypeStruct((FEATURES,), jnp.float32), labels)
    mesh = make_mesh(devices=jax.devices()[:devices])
    phase, graph = make_phases(config, steps_per_epoch=1)[0], model_graph(config, spec)
    state = initializer(config, spec, phase, mesh)(jax.random.key(3), None)
    return state, make_train_step(config, phase, graph, mesh), (phase, graph, mesh)


def run(config, devices=1, format="multi_hot"):
    """The states after each step, on the host."""
    state, step, (*_, mesh) = start(config, devices, format)
    states, metrics = [jax.device_get(state)], []
    for batch in batches():
        if format == "indices":
            batch = {**batch, "labels": as_lists(batch["labels"], CLASSES)}
        state, values = step(state, jax.device_put(batch, batch_sharding(mesh)))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(values))
    return states, metrics


def named(params, member):
    """The parameters of a member by name, float64."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {parameter_name(path): np.asarray(x[member], np.float64) for path, x in leaves}


LAYER = "encoder.layers.0"


def embed(weights, x):
    """(activations, embeddings) of rows x."""
    inner = x @ weights[f"{LAYER}.kernel"] + weights[f"{LAYER}.bias"]
    h = np.maximum(inner, 0)
    return h, h @ weights["projection.out.kernel"] + weights["projection.out.bias"]


def simulate(weights):
    """MoCo by loops: (weights, follower, losses) after each step."""
    follower, queue = dict(weights), []
    steps = []
    for number, batch in enumerate(batches()):
        x, where = batch["x"].astype(np.float64), batch["where"]
        sets = reference.label_sets(batch["labels"])
        follower = {k: MOMENTUM * v + (1 - MOMENTUM) * weights[k] for k, v in follower.items()}
        keys = embed(follower, x)[1]
        new = [(keys[i], sets[i]) for i in range(BATCH) if where[i]]
        candidates = new + [pair for past in queue for pair in past]
        h, z = embed(weights, x)
        result = reference.loss(
            "sd",
            z,
            sets,
            np.array([pair[0] for pair in candidates]),
            [pair[1] for pair in candidates],
            where=where,
            temperature=TEMPERATURE,
        )
        into_z = result.gradient()[0]
        into_h = (into_z @ weights["projection.out.kernel"].T) * (h > 0)
        gradient = {
            f"{LAYER}.kernel": x.T @ into_h,
            f"{LAYER}.bias": into_h.sum(axis=0),
            "projection.out.kernel": h.T @ into_z,
            "projection.out.bias": into_z.sum(axis=0),
        }
        rate = RATE * (1 + math.cos(math.pi * number / STEPS)) / 2
        weights = {k: v - rate * gradient.get(k, 0) for k, v in weights.items()}
        queue = [new, *queue][:SLOTS]
        steps.append((weights, follower, result.mean))
    return steps


@pytest.mark.parametrize(
    ("devices", "members", "format"),
    [(1, 2, "multi_hot"), (4, 1, "multi_hot"), (4, 1, "indices")],
)
def test_momentum_queue_equals_a_simulation_in_numpy(devices, members, format):
    config = toy_config()
    config.queue.size, config.queue.momentum = SLOTS * BATCH, MOMENTUM
    config.model.members = members
    states, metrics = run(config, devices, format)
    losses = []
    for member in range(members):
        steps = simulate(named(states[0].params, member))
        losses.append([loss for _, _, loss in steps])
        for (weights, follower, _), state in zip(steps, states[1:]):
            found = named(state.params, member)
            followed = named(state.aux["follower"]["params"], member)
            for name in found:
                np.testing.assert_allclose(found[name], weights[name], rtol=2e-4, atol=2e-5)
            assert followed.keys() == {k for k in found if not k.startswith("classifier")}
            for name in followed:
                np.testing.assert_allclose(followed[name], follower[name], rtol=2e-4, atol=2e-5)
    found = [float(values["contrastive"]) for values in metrics]
    np.testing.assert_allclose(found, np.mean(losses, axis=0), rtol=1e-4)
    assert np.abs(found[-1] - found[0]) > 0.05


def test_the_queue_lies_on_the_devices_of_its_rows_and_holds_the_newest():
    config = toy_config()
    config.queue.size = SLOTS * BATCH
    state, step, (*_, mesh) = start(config, devices=4)
    given = list(batches(5))
    for batch in given:
        state, _ = step(state, jax.device_put(batch, batch_sharding(mesh)))
    queue = state.aux["queue"]
    assert queue["z"].sharding.shard_shape(queue["z"].shape) == (1, BATCH // 4, SLOTS, DIM)
    # Batches 2, 3, 4 are left: 3 and 4 took the places of 0 and 1.
    np.testing.assert_array_equal(np.asarray(queue["labels"])[0, :, 0], given[3]["labels"])
    np.testing.assert_array_equal(np.asarray(queue["labels"])[0, :, 1], given[4]["labels"])
    np.testing.assert_array_equal(np.asarray(queue["where"])[0, :, 2], given[2]["where"])
    assert np.asarray(queue["slot"]).tolist() == [2]


def test_batch_statistics_are_those_of_the_rows_that_are_there():
    config = toy_config()
    config.model.norm = "batch"
    batch = next(iter(batches()))
    batch["where"] = np.arange(BATCH) < PRESENT
    batch["x"][PRESENT:] = 1e3
    found = {}
    # Two of eight microbatches hold padding alone.
    for devices, microbatches in ((1, 1), (4, 1), (1, 2), (1, 8)):
        config.microbatches = microbatches
        state, step, (*_, mesh) = start(config, devices)
        weights = named(jax.device_get(state.params), 0)
        state, _ = step(state, jax.device_put(batch, batch_sharding(mesh)))
        found[devices, microbatches] = jax.tree.map(np.asarray, state.aux["variables"])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    inner = batch["x"].astype(np.float64) @ weights[f"{LAYER}.kernel"] + weights[f"{LAYER}.bias"]
    for (_, microbatches), variables in found.items():
        mean, variance = np.zeros(WIDTH), np.ones(WIDTH)
        # Both views are the examples as they are, side by side.
        views = np.repeat(np.arange(BATCH), 2)
        for number in range(microbatches):
            rows = [row for row in views[number::microbatches] if row < PRESENT]
            if rows:
                mean = 0.9 * mean + 0.1 * inner[rows].mean(axis=0)
                variance = 0.9 * variance + 0.1 * inner[rows].var(axis=0)
        norm = variables["encoder"]["norms"][0]
        np.testing.assert_allclose(norm["mean"][...][0], mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(norm["var"][...][0], variance, rtol=1e-4)


def test_statistics_of_microbatches_beside_a_queue_do_not_depend_on_the_devices():
    config = toy_config()
    config.model.norm, config.microbatches = "batch", 2
    config.queue.size = SLOTS * BATCH
    one, four = (run(config, devices)[0][-1] for devices in (1, 4))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (one.params, one.aux),
        (four.params, four.aux),
    )
    model, follower = (
        aux["encoder"]["norms"][0]["mean"][...]
        for aux in (one.aux["variables"], one.aux["follower"]["variables"])
    )
    assert np.abs(model - follower).max() > 1e-3


@pytest.mark.parametrize("length", [2, CLASSES + 2])
def test_lists_of_another_length_meet_the_queue(length):
    """As those of the validation split may."""
    config = toy_config()
    config.queue.size = SLOTS * BATCH
    found = []
    for shape in (CLASSES, length):
        state, step, (phase, graph, mesh) = start(config, format="indices")
        batch, other = (
            {**each, "labels": as_lists(np.minimum(each["labels"], [1, 1, 0]), size)}
            for each, size in zip(batches(2), (CLASSES, shape))
        )
        state, _ = step(state, batch)
        losses = make_losses(config, phase, graph, mesh)
        found.append(float(losses(state.best, state.aux, other)["contrastive"]))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_evaluation_takes_running_statistics_and_changes_nothing():
    config = toy_config()
    config.model.norm = "batch"
    config.queue.size = SLOTS * BATCH
    state, step, (phase, graph, mesh) = start(config)
    first, second = batches(2)
    state, _ = step(state, first)
    losses = make_losses(config, phase, graph, mesh)
    before = jax.device_get(state)
    alone = losses(state.best, state.aux, second)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    moved = {**state.aux, "variables": jax.tree.map(lambda x: x + 1, state.aux["variables"])}
    other = losses(state.best._replace(variables=moved["variables"]), moved, second)
    assert abs(float(alone["contrastive"]) - float(other["contrastive"])) > 1e-4


def test_validation_meets_as_many_candidates_as_training():
    """Without dropout and augmentation, the losses of a batch are the same number."""
    for size in (0, SLOTS * BATCH):
        config = toy_config()
        config.queue.size, config.queue.momentum = size, 0.0
        state, step, (phase, graph, mesh) = start(config)
        given = list(batches(4))
        for batch in given[:3]:
            state, _ = step(state, batch)
        losses = make_losses(config, phase, graph, mesh)
        # At momentum 0 the follower is the model once a step has begun.
        aux = state.aux
        if size:
            followed = {k: state.params[k] for k in ("encoder", "projection")}
            params = type(state.params)(followed)
            aux = {**aux, "follower": {**aux["follower"], "params": params}}
        validated = losses(state.best, aux, given[3])
        _, trained = step(state, given[3])
        np.testing.assert_allclose(validated["contrastive"], trained["contrastive"], rtol=1e-5)


def test_validation_of_fewer_rows_than_a_batch_beside_a_queue():
    """Padding is neither anchor nor candidate, against NumPy."""
    config = toy_config()
    config.queue.size, config.queue.momentum = SLOTS * BATCH, MOMENTUM
    config.augment.feature_mask = 0.0
    state, step, (phase, graph, mesh) = start(config, devices=4)
    given = list(batches(3))
    for batch in given[:2]:
        state, _ = step(state, jax.device_put(batch, batch_sharding(mesh)))
    x, labels = given[2]["x"][:5], given[2]["labels"][:5]
    source = ArraySource(x, labels)
    size = evaluation_batch_size(config, len(source), mesh)
    found = make_validate(config, phase, graph, mesh, source, size)(state)
    follower = state.aux["follower"]["params"]
    weights, candidates = named(state.params, 0), embed(named(follower, 0), x)[1]
    queue = jax.tree.map(lambda x: np.asarray(x)[0], state.aux["queue"])
    kept = queue["where"]
    sets = reference.label_sets(np.concatenate([labels, queue["labels"][kept]]))
    result = reference.loss(
        "sd",
        embed(weights, x)[1],
        sets[:5],
        np.concatenate([candidates, queue["z"][kept]]),
        sets,
        temperature=TEMPERATURE,
    )
    assert found["contrastive"] == pytest.approx(result.mean, rel=1e-5)
    assert kept.sum() == sum(batch["where"].sum() for batch in given[:2])


def test_a_learned_temperature_returns_from_its_bound():
    """Below 0.01 it counts as 0.01, and still learns to rise, not to fall further."""

    def slope(temperature, sign):
        def objective(value):
            model = LossParameters(LossConfig(learn_temperature=True), 1, 1, rngs=nnx.Rngs(0))
            model.log_temperature[...] = value
            return sign * model.temperature

        return float(jax.grad(objective)(jnp.log(jnp.float32(temperature))))

    assert slope(0.004, 1.0) == 0
    assert slope(0.004, -1.0) == pytest.approx(-0.01)
    assert slope(0.05, 1.0) == pytest.approx(0.05)


def test_a_learned_temperature_moves_at_its_own_rate():
    moved = {}
    for rates in ("", "loss=3", "loss=0"):
        config = toy_config()
        config.loss.learn_temperature = True
        config.pretrain.learning_rates = rates
        state, step, _ = start(config)
        np.testing.assert_allclose(jax.tree.leaves(state.params["loss"])[0], np.log(TEMPERATURE))
        state, metrics = step(state, next(iter(batches())))
        assert float(metrics["temperature"]) == pytest.approx(TEMPERATURE)
        moved[rates] = float(jax.tree.leaves(state.params["loss"])[0][0] - np.log(TEMPERATURE))
    assert moved[""] != 0
    np.testing.assert_allclose(moved["loss=3"], 3 * moved[""], rtol=1e-3)
    assert abs(moved["loss=0"]) < 1e-7


def test_prototypes_learn_at_their_own_rate_on_any_number_of_devices():
    """A queue and prototypes are candidates side by side."""
    moved = {}
    for rates, devices in (("", 1), ("", 4), ("loss.prototypes=3", 1)):
        config = toy_config(loss=LossConfig(name="msc", alpha=0.5))
        config.queue.size, config.loss.temperature = 2 * BATCH, TEMPERATURE
        config.pretrain.learning_rates = rates
        state, step, (*_, mesh) = start(config, devices)
        before = np.asarray(state.params["loss"]["prototypes"][...])
        assert before.shape == (1, CLASSES, DIM)
        state, _ = step(state, jax.device_put(next(batches()), batch_sharding(mesh)))
        moved[rates, devices] = np.asarray(state.params["loss"]["prototypes"][...]) - before
    assert np.abs(moved["", 1]).min() > 0
    np.testing.assert_allclose(moved["", 4], moved["", 1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        moved["loss.prototypes=3", 1], 3 * moved["", 1], rtol=1e-3, atol=1e-6
    )


def test_seeds_share_compiled_steps():
    config, other = toy_config(), toy_config()
    assert start(config)[1] is start(other)[1]
    other.loss.temperature = 0.1
    assert start(config)[1] is not start(other)[1]
