"""MS COCO 2017, photographs, 80 kinds of objects folded to labels; of TFDS.

    pip install -e ".[train,images]" tensorflow-cpu
    python train.py --config=configs/coco2017.py

TFDS fetches the photographs (25 GB) and needs TensorFlow to write them once; reading them does not.
The official test images have no labels: the 5,000 of validation are test, and a twentieth of the
118,287 of train is validation. Crowds are labels like other objects
(--config.data.skip_objects=is_crowd leaves them out); images without objects stay, without labels.
Encoder and settings of configs/voc2007.py. Not measured here: there was no network and no
accelerator.
"""

from sdjax.config import Config, DataConfig
from sdjax.configs import voc2007


def get_config() -> Config:
    data = DataConfig(
        name="coco/2017",
        validation="",
        test="validation",
        validation_fraction=0.05,
        label_key="objects/label",
    )
    return voc2007.of_photographs(data, batch_size=256)
