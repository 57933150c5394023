"""CelebA, 202,599 faces, 40 attributes as labels; official splits, of TFDS.

    pip install -e ".[train,images]"
    python train.py --config=configs/celeb_a.py

162,770 train, 19,867 validation and 19,962 test images, aligned and cropped (1.4 GB, which Google
Drive may refuse on a busy day). --config.data.label_key=attributes/Smiling,attributes/Young takes
some of the attributes. Encoder and settings of configs/voc2007.py. Not measured here: there was no
network and no accelerator.
"""

from sdjax.config import Config, DataConfig
from sdjax.configs import voc2007


def get_config() -> Config:
    data = DataConfig(name="celeb_a", label_key="attributes")
    config = voc2007.of_photographs(data, batch_size=256, epochs=10)
    config.augment.crop = 0.9  # What is cut off a cropped face may be an attribute.
    return config
