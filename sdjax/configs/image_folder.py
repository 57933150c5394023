"""Your own images: a folder of files and a table (.csv, .tsv, .parquet, .jsonl) that names them.

    pip install -e ".[train,images]"
    python train.py --config=configs/image_folder.py \
      --config.data.train=mine.csv --config.data.image=image --config.data.images=FOLDER \
      --config.data.labels='label_*' --config.model.encoder=vit --config.model.weights=WEIGHTS

WEIGHTS is a folder with config.json and model.safetensors, or an id of the Hugging Face hub: ViT,
DINOv2 and CLIP with encoder=vit, ResNet with encoder=resnet. Size, mean and standard deviation of
the images are those of the weights. Labels are columns of 0/1, or names in one column
(--config.data.label_separator=';'). Validation and test are split off train where there are no
files of them. With --config.model.encoder=convnet --config.data.image_size=64 no weights are
needed. Accuracy: not measured here.
"""

from sdjax.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, PhaseConfig


def get_config() -> Config:
    config = Config(recipe="joint", batch_size=0, contrastive_weight=0.01)
    config.data = DataConfig(name="files", train="", validation="", test="", image="image")
    config.loss = LossConfig(name="sd", temperature=0.3)
    config.model = ModelConfig(encoder="vit", dropout=0.0)
    # As timm and torchvision fine-tune, but for crops, which keep most of what labels are of.
    config.augment = AugmentConfig(
        shift=0, crop=0.7, aspect=4 / 3, erase=0.0, flip=True, randaugment=2, magnitude=9
    )
    # The new layers learn at 1e-3, the encoder at 2e-5.
    config.supervise = PhaseConfig(
        epochs=10, learning_rate=1e-3, learning_rates="encoder=0.02", weight_decay=0.05
    )
    config.evaluate_every = 1
    return config
