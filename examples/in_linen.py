"""The SD loss in Flax linen: an encoder with dropout, optax, one jitted step.

python examples/in_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import sdjax


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Dense(64)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(16)(x)


def make_data(key, rows=512, features=20, num_classes=6):
    """Vectors that are noisy sums of what their labels stand for."""
    of_labels, of_words, of_noise = jax.random.split(key, 3)
    labels = jax.random.bernoulli(of_labels, 0.3, (rows, num_classes))
    words = jax.random.normal(of_words, (num_classes, features))
    return labels @ words + 0.5 * jax.random.normal(of_noise, (rows, features)), labels


def main(steps=100):
    x, labels = make_data(jax.random.key(0))
    encoder, optimizer = Encoder(), optax.adam(1e-3)
    params = encoder.init(jax.random.key(1), x, train=False)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            # Two views by two dropout masks: each is the other's candidate.
            views = [
                encoder.apply(params, x, train=True, rngs={"dropout": each})
                for each in jax.random.split(key)
            ]
            return sdjax.sd_loss(jnp.concatenate(views), jnp.concatenate([labels, labels]))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for key in jax.random.split(jax.random.key(2), steps):
        params, state, value = step(params, state, key)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    found = main()
    print(f"SD loss {found[0]:.3f} at first, {found[-1]:.3f} at last")
