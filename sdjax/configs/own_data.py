"""Your own files (.csv, .parquet, .arff, .npz, .h5, .jsonl, .svm), with no code to write.

    python train.py --config=configs/own_data.py \
      --config.data.train=a.arff --config.data.test=b.arff

A fifth of train is held out for validation unless --config.data.validation names a file, and a
fifth before that for test without --config.data.test. Validation chooses between binary
cross-entropy alone and with the SD loss; then the model is trained on train and validation together
(--config.refit=False keeps the one that validation saw). What you set yourself holds for every
candidate, as --config.recipe=bce does.

Measured (`python benchmarks/own_data.py --folder=DATA`, 2 cores): test mAP .538 on Yeast, .876
on scene, .615 on the eICU demo, .418 on bibtex, .471 on CMC 2007.
"""

from sdjax.config import Config, DataConfig

# Dense features want noise; sparse ones (words, codes) a single wide layer and masked words.
_DENSE = (
    "dense: model.width=512 model.frequencies=2 model.dropout=0.5 model.members=4 "
    "augment.feature_mask=0.05 augment.feature_noise=0.8 supervise.epochs=60 "
    "supervise.learning_rate=5e-3 supervise.weight_decay=1.25 supervise.clip_norm=0.07 "
    "supervise.ema_decay=0.95 loss.temperature=0.3"
)
_SPARSE = (
    "sparse: model.width=1024 model.depth=1 model.dropout=0.5 model.members=4 "
    "supervise.epochs=30 supervise.learning_rate=3e-3 supervise.weight_decay=1 "
    "supervise.ema_decay=0.95 loss.temperature=0.3"
)
_RECIPES = ("recipe=bce", "recipe=joint")


def get_config() -> Config:
    config = Config(recipe="joint", batch_size=0, contrastive_weight=0.1, refit=True)
    config.data = DataConfig(name="files", train="", validation="", test="")
    config.candidates = tuple(f"{base} {each}" for base in (_DENSE, _SPARSE) for each in _RECIPES)
    return config
