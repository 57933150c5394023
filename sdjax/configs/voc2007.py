"""PASCAL VOC 2007, photographs, 20 kinds of objects; official splits, of TFDS.

    pip install -e ".[train,images]" tensorflow-cpu
    python train.py --config=configs/voc2007.py

TFDS fetches the photographs (0.9 GB) and needs TensorFlow to write them once; reading them does
not. 2,501 train, 2,510 validation and 4,952 test images. Objects marked as difficult are labels
too; --config.data.label_key=labels_no_difficult leaves out what is there as such alone.
ResNet-50 of the Hugging Face hub; --config.model.weights=FOLDER, --config.model.encoder=vit take
others. Not measured here: there was no network and no accelerator.
"""

from sdjax.config import Config, DataConfig
from sdjax.configs import image_folder


def get_config() -> Config:
    # One accelerator; batches hold several images of each kind.
    return of_photographs(
        DataConfig(name="voc/2007", label_key="labels"), batch_size=128, epochs=30
    )


def of_photographs(data: DataConfig, batch_size: int, epochs: int = 20) -> Config:
    """For one accelerator: a published ResNet-50, with the SD loss beside cross-entropy."""
    config = image_folder.get_config()
    config.data, config.batch_size = data, batch_size
    config.model.encoder, config.model.weights = "resnet", "microsoft/resnet-50"
    config.model.dtype = "bfloat16"
    # The new layers learn at 1e-3, the encoder at 1e-4, as is usual for multi-label fine-tuning.
    phase = config.supervise
    phase.epochs, phase.learning_rates, phase.weight_decay = epochs, "encoder=0.1", 1e-4
    config.select_by = "mAP"
    return config
