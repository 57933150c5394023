"""Which relations a loss pulls together and pushes apart."""

import functools

import jax
import numpy as np
import pytest

import sdjax
from sdjax import relations
from sdjax.report import gradients

RNG = np.random.default_rng(0)
LABELS = (RNG.random((12, 4)) < 0.4).astype(np.uint8)
Z = RNG.normal(size=(12, 5)).astype(np.float32)
Z /= np.linalg.norm(Z, axis=1, keepdims=True)
TEMPERATURE = 0.3


@pytest.mark.parametrize("options", [{"form": "in"}, {"weight": "mulsupcon"}], ids=str)
def test_the_gradient_is_that_of_the_loss(options):
    loss = functools.partial(sdjax.contrastive_loss, **options)
    slope = jax.jit(functools.partial(gradients.similarity_gradient, loss))(Z, LABELS, TEMPERATURE)
    slope = np.asarray(slope)
    assert (np.diag(slope) == 0).all() and np.abs(slope).sum() > 0.1
    # In self-contrast s_ij = z_i·z_j / τ moves with both of its rows.
    plain = functools.partial(loss, temperature=TEMPERATURE, normalize=False)
    expected = jax.grad(plain)(Z, LABELS)
    np.testing.assert_allclose((slope + slope.T) @ Z / TEMPERATURE, expected, atol=1e-5)
    found = gradients.by_relation(loss, Z, LABELS, TEMPERATURE)
    codes = np.asarray(relations.relation(LABELS, LABELS))
    for code in range(1, 6):
        values = slope[codes == code]
        np.testing.assert_allclose(found.attraction[code - 1], -values.clip(max=0).sum(), atol=1e-6)
        np.testing.assert_allclose(found.repulsion[code - 1], values.clip(min=0).sum(), atol=1e-6)
    assert found.attraction[0] == 0 < found.repulsion[0]


def test_bars_are_the_shares():
    loss = gradients.Gradient(np.array([0, 6.0, 0, 2, 0]), np.zeros(5))
    figure = gradients.gradient_shares(np.array([50, 0, 25, 15, 10]), {"a $ b": loss})
    for axes, expected in zip(
        figure.axes, [[[0, 0, 50, 30, 20], [0, 75, 0, 25, 0]], [[50, 0, 25, 15, 10], [0] * 5]]
    ):
        widths = [[round(100 * bar.get_width(), 3) for bar in each] for each in axes.containers]
        assert np.transpose(widths).tolist() == expected
    assert [each.get_text() for each in figure.axes[0].get_yticklabels()] == ["pairs", "a $ b"]
