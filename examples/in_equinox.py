"""The SD loss in Equinox, with binary cross-entropy beside it (the recipe "joint").

pip install equinox
python examples/in_equinox.py
"""

import equinox as eqx
import jax
import optax
from in_linen import make_data

import sdjax


class Model(eqx.Module):
    encoder: eqx.nn.MLP
    classifier: eqx.nn.Linear

    def __init__(self, features, num_classes, key):
        of_encoder, of_classifier = jax.random.split(key)
        self.encoder = eqx.nn.MLP(features, 16, width_size=64, depth=1, key=of_encoder)
        self.classifier = eqx.nn.Linear(16, num_classes, key=of_classifier)

    def __call__(self, x):
        h = self.encoder(x)
        return h, self.classifier(h)


def main(steps=100):
    x, labels = make_data(jax.random.key(0))
    model = Model(x.shape[1], labels.shape[1], jax.random.key(1))
    optimizer = optax.adam(1e-3)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        def loss(model):
            h, logits = jax.vmap(model)(x)
            supervised = optax.sigmoid_binary_cross_entropy(logits, labels).mean()
            return supervised + 0.1 * sdjax.sd_loss(h, labels)

        value, gradient = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(gradient, state)
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(steps):
        model, state, value = step(model, state)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    found = main()
    print(f"Loss {found[0]:.3f} at first, {found[-1]:.3f} at last")
