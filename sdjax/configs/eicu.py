"""eICU, stays as words, organ systems of their diagnoses as labels; from your own copy.

    python -m sdjax.data.eicu --folder=EICU --output=data/eicu
    python train.py --config=configs/eicu.py

EICU holds the tables of the demo or of the whole database. The settings of configs/own_data.py.
Measured on the demo (`python benchmarks/own_data.py --folder=DATA --sets=eicu`, 2 cores): test mAP
.615. Not measured here on the whole database, which needs credentials.
"""

from sdjax.config import Config, DataConfig
from sdjax.configs import own_data


def get_config() -> Config:
    config = own_data.get_config()
    config.data = DataConfig(
        name="files", train="data/eicu/train.svm", validation="", test="data/eicu/test.svm"
    )
    return config
