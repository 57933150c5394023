"""The losses under jit, grad, vmap, checkpoint and pytrees; and what importing them loads."""

import itertools
import subprocess
import sys
import textwrap

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np

import sdjax


def draw(name, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    matrix = cases.label_matrix("some_empty", rng)
    labels = jnp.asarray(cases.class_ids(matrix) if name == "supcon" else matrix)
    return jnp.asarray(cases.embeddings(rng, dtype=dtype)), labels


def assert_trees_close(actual, expected, rtol=1e-9, atol=1e-11):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=atol)


def family(z, labels, ids, where):
    """Value and gradient of every loss, compiled together when under jit."""
    out = {}
    for name, form in zip(cases.LOSS_NAMES, itertools.cycle(cases.FORMS)):
        targets = ids if name == "supcon" else labels
        loss = jax.value_and_grad(sdjax.LOSSES[name])
        out[f"{name}/{form}"] = loss(z, targets, form=form, where=where)
    return out


def draws(num):
    """[num, ...] embeddings, labels, class ids and masks."""
    z, labels = (jnp.stack(x) for x in zip(*[draw("sd", seed) for seed in range(num)]))
    ids = jnp.stack([draw("supcon", seed)[1] for seed in range(num)])
    where = jnp.asarray(np.random.default_rng(9).random((num, cases.BATCH)) < 0.7)
    return z, labels, ids, where


def test_jit_is_the_same_as_dispatch_op_by_op():
    args = [x[0] for x in draws(1)]
    assert_trees_close(jax.jit(family)(*args), family(*args))


def test_vmap_is_a_loop():
    args = draws(3)
    loop = [family(*(x[i] for x in args)) for i in range(3)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *loop)
    assert_trees_close(jax.jit(jax.vmap(family))(*args), expected)


def test_orders_of_jit_and_grad():
    z, labels = draw("sd")
    expected = jax.grad(sdjax.sd_loss)(z, labels)
    assert_trees_close(jax.grad(jax.jit(sdjax.sd_loss))(z, labels), expected)
    assert_trees_close(jax.jit(jax.grad(sdjax.sd_loss))(z, labels), expected)
    closed_over = jax.jit(lambda z: sdjax.sd_loss(z, labels))
    assert_trees_close(jax.grad(closed_over)(z), expected)


def test_reverse_and_forward_mode_agree():
    z, labels = draw("sd")

    def rows(z):
        return sdjax.sd_loss(z, labels, reduction="none")

    reverse, forward = jax.jit(lambda z: (jax.jacrev(rows)(z), jax.jacfwd(rows)(z)))(z)
    assert reverse.shape == (cases.BATCH, cases.BATCH, cases.DIM)
    assert_trees_close(forward, reverse)


def test_vmap_over_temperatures_and_over_embeddings_alone():
    z, labels = draw("sd")
    temperatures = jnp.asarray([0.05, 0.5, 5.0])
    expected = jnp.stack([sdjax.sd_loss(z, labels, temperature=float(t)) for t in temperatures])
    actual = jax.jit(jax.vmap(lambda t: sdjax.sd_loss(z, labels, temperature=t)))(temperatures)
    assert_trees_close(actual, expected)
    stack = jnp.stack([z, 2 * z[::-1]])
    expected = jnp.stack([sdjax.sd_loss(x, labels) for x in stack])
    actual = jax.jit(jax.vmap(sdjax.sd_loss, in_axes=(0, None)))(stack, labels)
    assert_trees_close(actual, expected)


def test_vmap_of_label_indices():
    rng = np.random.default_rng(0)
    matrices = [cases.label_matrix("random", rng) for _ in range(3)]
    rows = [cases.to_indices(matrix, rng, 10) for matrix in matrices]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    z = jnp.stack([jnp.asarray(cases.embeddings(rng)) for _ in range(3)])
    expected = jnp.stack([sdjax.sd_loss(x, matrix) for x, matrix in zip(z, matrices)])
    assert_trees_close(jax.jit(jax.vmap(sdjax.sd_loss))(z, stacked), expected)


def test_scan_and_checkpoint():
    z, labels = draw("sd")

    def scanned(z):
        body = jax.checkpoint(lambda carry, s: (carry + sdjax.sd_loss(s * z, labels), None))
        return jax.lax.scan(body, jnp.zeros(()), jnp.ones(4))[0] / 4

    losses = (lambda z: sdjax.sd_loss(z, labels), scanned)
    losses += (jax.checkpoint(losses[0]),)
    plain, *others = jax.jit(lambda z: [jax.value_and_grad(loss)(z) for loss in losses])(z)
    for other in others:
        assert_trees_close(other, plain)


def test_an_encoder_under_jit():
    """z comes from a jitted function; labels and masks are closed over."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(cases.BATCH, 3)), rng.normal(size=(3, cases.DIM))
    _, labels = draw("sd")
    encode = jax.jit(lambda w: jnp.tanh(x @ w))
    expected = np.asarray(jax.grad(sdjax.sd_loss)(encode(w), labels))
    expected = x.T @ (expected * (1 - np.asarray(encode(w)) ** 2))
    assert_trees_close(jax.grad(lambda w: sdjax.sd_loss(encode(w), labels))(w), expected)


# --- one trace a shape -------------------------------------------------------------------------


def test_new_values_do_not_trace_again():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(z, labels, where, temperature):
        return jax.value_and_grad(sdjax.sd_loss)(z, labels, where=where, temperature=temperature)

    results = []
    for seed in range(3):
        z, labels = draw("sd", seed)
        where = np.random.default_rng(seed).random(cases.BATCH) < 0.8
        results.append(step(z, labels, where, jnp.asarray(0.1 * (seed + 1)))[0])
    assert len({float(value) for value in results}) == 3
    chex.clear_trace_counter()


def test_new_label_indices_do_not_trace_again():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(z, labels):
        return sdjax.mulsupcon_loss(z, labels)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        matrix, z = cases.label_matrix("random", rng), jnp.asarray(cases.embeddings(rng))
        loss = step(z, cases.to_indices(matrix, rng, 10))
        np.testing.assert_allclose(loss, sdjax.mulsupcon_loss(z, matrix), rtol=1e-10)
    chex.clear_trace_counter()


# --- LabelIndices as a pytree ------------------------------------------------------------------


def test_label_indices_are_a_pytree():
    rows = sdjax.LabelIndices(jnp.asarray([[0, 2, -1], [1, -1, -1]], jnp.int32), 3)
    leaves, structure = jax.tree.flatten(rows)
    assert len(leaves) == 1 and leaves[0] is rows.indices
    again = jax.tree.map(lambda x: x, rows)
    assert isinstance(again, sdjax.LabelIndices) and again.num_classes == 3
    np.testing.assert_array_equal(again.indices, rows.indices)
    # What jax does with trees: leaves that are no arrays, comparison of structures.
    assert jax.tree.unflatten(structure, [None]).indices is None
    assert isinstance(jax.tree.map(lambda _: "spec", rows), sdjax.LabelIndices)
    assert structure == jax.tree.structure(again)
    assert structure != jax.tree.structure(sdjax.LabelIndices(rows.indices, 4))
    shape = jax.eval_shape(lambda r: r, rows)
    assert shape.num_classes == 3 and shape.indices.shape == (2, 3)


def test_label_indices_go_through_jit_and_back():
    rows = sdjax.LabelIndices(jnp.asarray([[0, 2, -1], [1, -1, -1]], jnp.int32), 3)
    out = jax.jit(lambda r: jax.tree.map(lambda x: x + 0, r))(rows)
    assert isinstance(out, sdjax.LabelIndices) and out.num_classes == 3
    np.testing.assert_array_equal(out.indices, rows.indices)


# --- imports -----------------------------------------------------------------------------------


def test_import_loads_nothing_of_the_upper_floors():
    heavy = [
        *("flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow"),
        *("sklearn", "matplotlib", "pandas", "ml_collections", "clu", "tensorboardX"),
    ]
    code = f"""
        import sys
        import sdjax
        loaded = sorted(name for name in {heavy} if name in sys.modules)
        sys.exit(f"loaded: {{loaded}}" if loaded else 0)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
