"""MIMIC-IV discharge summaries, ICD-10 codes of ten admissions and more; from your own copy.

    python -m sdjax.data.mimic --set=mimic4_icd10 --folder=MIMIC4,MIMIC4_NOTE --splits=SPLITS \
      --output=data/mimic4_icd10
    python train.py --config=configs/mimic4_icd10.py --config.model.weights=FOLDER

MIMIC4 holds diagnoses_icd and procedures_icd, MIMIC4_NOTE discharge; SPLITS is a table of _id (the
admission) and split. As configs/mimic3_full.py, with 4,000 tokens of a text as Edin et al. (2023)
have it. Not measured here: the data need credentials.
"""

from sdjax.config import Config
from sdjax.configs import mimic3_full


def get_config() -> Config:
    config = mimic3_full.of_folder("data/mimic4_icd10")
    config.data.max_length = 4000
    return config
