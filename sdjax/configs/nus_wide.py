"""NUS-WIDE, photographs of Flickr, 81 concepts; official splits, from your own copy.

    pip install -e ".[train,images]"
    python -m sdjax.data.nus_wide --folder=NUS_WIDE --images=FLICKR --output=data/nus_wide
    python train.py --config=configs/nus_wide.py --config.data.images=FLICKR

NUS_WIDE holds the published lists (ImageList, Groundtruth/TrainTestLabels), FLICKR the images;
TFDS has no such set. 161,789 train and 107,859 test images are listed, a twentieth of train is
validation. Encoder and settings of configs/voc2007.py. Not measured here: the images must be asked
for, and there was no accelerator.
"""

from sdjax.config import Config, DataConfig
from sdjax.configs import voc2007


def get_config() -> Config:
    data = DataConfig(
        name="files",
        train="data/nus_wide/train.parquet",
        validation="",
        test="data/nus_wide/test.parquet",
        validation_fraction=0.05,
        image="image",
        labels="labels",
        label_names="data/nus_wide/concepts.txt",
    )
    return voc2007.of_photographs(data, batch_size=256)
