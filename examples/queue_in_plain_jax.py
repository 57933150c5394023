"""A queue of past embeddings as candidates, in plain JAX: many candidates for a small batch.

python examples/queue_in_plain_jax.py

As in MoCo, an encoder that follows the trained one slowly makes what the queue remembers. Each
anchor's own second view is a candidate as well; places that were not written yet are masked.
"""

import jax
import jax.numpy as jnp
from in_linen import make_data

import sdjax

BATCH, QUEUE, MOMENTUM, RATE = 32, 256, 0.99, 0.05


def encode(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def noisy(x, key):
    return x + 0.1 * jax.random.normal(key, x.shape)


@jax.jit
def step(params, follower, queue, x, labels, key):
    views = [noisy(x, each) for each in jax.random.split(key)]
    candidates = encode(follower, views[1])

    def loss(params):
        return sdjax.sd_loss(
            encode(params, views[0]),
            labels,
            jnp.concatenate([candidates, queue["z"]]),
            jnp.concatenate([labels, queue["labels"]]),
            candidate_where=jnp.concatenate([jnp.ones(BATCH, bool), queue["written"]]),
        )

    value, gradient = jax.value_and_grad(loss)(params)
    params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    follower = jax.tree.map(lambda f, p: MOMENTUM * f + (1 - MOMENTUM) * p, follower, params)
    newest = {"z": candidates, "labels": labels, "written": jnp.ones(BATCH, bool)}
    queue = jax.tree.map(lambda new, old: jnp.concatenate([new, old])[:QUEUE], newest, queue)
    return params, follower, queue, value


def main(steps=100):
    x, labels = make_data(jax.random.key(0))
    of_hidden, of_out, of_steps = jax.random.split(jax.random.key(1), 3)
    params = {
        "hidden": jax.random.normal(of_hidden, (x.shape[1], 64)) / x.shape[1] ** 0.5,
        "out": jax.random.normal(of_out, (64, 16)) / 8,
    }
    follower = params
    queue = {
        "z": jnp.zeros((QUEUE, 16)),
        "labels": jnp.zeros((QUEUE, labels.shape[1]), bool),
        "written": jnp.zeros(QUEUE, bool),
    }
    losses = []
    for key in jax.random.split(of_steps, steps):
        rows = jax.random.choice(key, len(x), (BATCH,), replace=False)
        params, follower, queue, value = step(params, follower, queue, x[rows], labels[rows], key)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    found = main()
    print(f"SD loss {found[0]:.3f} at first, {found[-1]:.3f} at last")
