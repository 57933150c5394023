"""Batches from a PyTorch DataLoader, handed to JAX by DLPack without a copy.

pip install torch
python examples/torch_data_loop.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from in_linen import make_data
from torch.utils.data import DataLoader, TensorDataset

import sdjax


@jax.jit
def step(weights, x, labels):
    value, gradient = jax.value_and_grad(lambda w: sdjax.sd_loss(x @ w, labels))(weights)
    return weights - 0.1 * gradient, value


def main(epochs=10):
    x, labels = (torch.from_numpy(np.array(each)) for each in make_data(jax.random.key(0)))
    # DLPack has no bool in older versions of torch; any integer other than 0 is a label.
    data = TensorDataset(x, labels.to(torch.uint8))
    batches = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    weights = jax.random.normal(jax.random.key(1), (x.shape[1], 16)) / x.shape[1] ** 0.5
    losses = []
    for _ in range(epochs):
        for batch in batches:
            weights, value = step(weights, *(jnp.from_dlpack(each) for each in batch))
            losses.append(float(value))
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    found = main()
    print(f"SD loss {found[0]:.3f} at first, {found[-1]:.3f} at last")
