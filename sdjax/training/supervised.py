"""The supervised term: a loss of each logit by itself, for labels that are often rare.

References:
  Ridnik et al., Asymmetric Loss For Multi-Label Classification, 2021
  (https://arxiv.org/abs/2009.14119). Lin et al., Focal Loss for Dense Object Detection, 2017
  (https://arxiv.org/abs/1708.02002). Cui et al., Class-Balanced Loss Based on Effective Number of
  Samples, 2019 (https://arxiv.org/abs/1901.05555).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax.config import SupervisedConfig

Array = jax.Array


def elementwise_loss(
    logits: Array,
    labels: Array,
    config: SupervisedConfig,
    smoothing: float = 0.0,
    weights: Array | None = None,
) -> Array:
    """The loss that `config` names, of each logit.

        y · u · ℓ(x, 1) + (1 − y) · v · ℓ(x, 0),  y the label after smoothing, p = σ(x)

    ℓ(x, 1) is −log p for "bce" and "class_balanced", (1 − p)^γ · −log p for "focal" and "asl";
    ℓ(x, 0) is −log(1 − p), q^γ · −log(1 − q) with q = p for "focal" and max(p − clip, 0) for "asl".
    Gradients flow through the factors as well.

    Args:
      logits: x, float [..., C].
      labels: multi-hot [..., C].
      config: the loss, and its options.
      smoothing: labels become s/2 and 1 - s/2.
      weights: u and v, float [2, C], see `label_weights`; None is `config.pos_weight` and 1.

    Returns:
      [..., C], of the logits' dtype.
    """
    targets = (1 - smoothing) * labels.astype(logits.dtype) + smoothing / 2
    if weights is None and config.pos_weight == 1 and config.name == "bce":
        return optax.sigmoid_binary_cross_entropy(logits, targets)
    present, absent = _halves(logits, config)
    u, v = (config.pos_weight, 1.0) if weights is None else weights
    return targets * u * present + (1 - targets) * v * absent


def _halves(logits: Array, config: SupervisedConfig) -> tuple[Array, Array]:
    """What a logit costs where its label is present, and where it is absent."""
    if config.name == "focal":
        ones = jnp.ones_like(logits)
        present = optax.losses.sigmoid_focal_loss(logits, ones, gamma=config.gamma)
        return present, optax.losses.sigmoid_focal_loss(logits, 0 * ones, gamma=config.gamma)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    if config.name != "asl":
        return -log_p, -log_not_p
    # Powers of probabilities by their logarithms: finite, also of 0, with finite gradients.
    present = jnp.exp(config.gamma_pos * log_not_p) * -log_p
    if not config.clip:
        return present, jnp.exp(config.gamma_neg * log_p) * -log_not_p
    lowered = jnp.exp(log_p) - config.clip
    inside = lowered > 0
    q = jnp.where(inside, lowered, 0.5)
    return present, jnp.where(inside, q**config.gamma_neg * -jnp.log1p(-q), 0)


def needs_counts(config: SupervisedConfig) -> bool:
    """Whether the loss depends on how many examples of train carry each label."""
    return config.name == "class_balanced" or config.pos_weight == 0


def label_weights(counts: np.ndarray, num_examples: int, config: SupervisedConfig) -> np.ndarray:
    """Weights of present and of absent labels, float32 [2, C].

    "class_balanced" weighs a label that n examples carry by (1 − β) / (1 − βⁿ), divided by the mean
    of that over the labels; `pos_weight=0` weighs present labels by (N − n) / n. A label that no
    example carries counts as one that one example carries.

    Args:
      counts: n, examples that carry each label, [C].
      num_examples: N.
      config: of the loss.
    """
    present = np.maximum(np.asarray(counts, np.float64), 1)
    weights = np.ones_like(present)
    if config.name == "class_balanced":
        weights = (1 - config.beta) / (1 - config.beta**present)
        weights /= weights.mean()
    ratio = config.pos_weight or (num_examples - present) / present
    return np.stack([weights * ratio, weights]).astype(np.float32)
