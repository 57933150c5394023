"""MIMIC-III discharge summaries, 50 most frequent ICD-9 codes, CAML's splits; from your own copy.

    python -m sdjax.data.mimic --set=mimic3_50 --folder=MIMIC3 --splits=CAML --output=data/mimic3_50
    python train.py --config=configs/mimic3_50.py --config.model.weights=FOLDER

As configs/mimic3_full.py; CAML holds the files *_50_hadm_ids.csv. Not measured here: the data need
credentials.
"""

from sdjax.config import Config
from sdjax.configs import mimic3_full


def get_config() -> Config:
    return mimic3_full.of_folder("data/mimic3_50")
