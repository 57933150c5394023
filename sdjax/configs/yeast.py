"""Yeast, 1,200 genes to train on, 14 labels; bundled.

    python train.py

2 CPU cores: under a minute, 1.3 GB. Test: mAP .5386 ± .0020, micro-F1 .6575 ± .0008 over 5 seeds;
one network (--config.model.members=1): .5310 ± .0015, .6556 ± .0024 (`python benchmarks/yeast.py`).
Hyperparameters are those of `own_data.py`, chosen on validation; the model that is tested is
trained anew on train and validation together.
"""

from sdjax.config import AugmentConfig, Config, LossConfig, ModelConfig, PhaseConfig


def get_config() -> Config:
    config = Config(recipe="joint", batch_size=120, contrastive_weight=0.1, refit=True)
    config.loss = LossConfig(name="sd", temperature=0.3)
    config.model = ModelConfig(
        encoder="mlp", width=512, depth=2, dropout=0.5, frequencies=2, members=4
    )
    config.augment = AugmentConfig(feature_mask=0.05, feature_noise=0.8)
    config.supervise = PhaseConfig(
        epochs=60, learning_rate=5e-3, weight_decay=1.25, clip_norm=0.07, ema_decay=0.95
    )
    config.evaluate_every = 10
    return config
