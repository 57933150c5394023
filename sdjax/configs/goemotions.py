"""GoEmotions, comments of Reddit, 28 emotions as labels; official splits, of TFDS.

    pip install -e ".[train,text]" tensorflow-cpu
    python train.py --config=configs/goemotions.py

TFDS fetches the texts (4 MB) and needs TensorFlow to write them once; reading them does not. 43,410
train, 5,426 validation and 5,427 test comments. BERT of the Hugging Face hub, for as many epochs
and at the learning rate of the authors of the data (Demszky et al. 2020), with the SD loss beside
cross-entropy; --config.model.weights=FOLDER takes another. Not measured here with this encoder:
there was no network and no accelerator (`python benchmarks/goemotions.py` trains a small one on
files: test mAP .517 after an epoch, see docs/evidence.md).
"""

from sdjax.config import Config, DataConfig
from sdjax.configs import text


def get_config() -> Config:
    config = text.get_config()
    config.data = DataConfig(name="goemotions", text="comment_text", max_length=64)
    config.model.weights = "google-bert/bert-base-cased"
    # The new layers learn at 3e-3, the encoder at 5e-5.
    config.supervise.epochs, config.supervise.learning_rates = 4, "encoder=0.0167"
    config.select_by = "mAP"
    return config
