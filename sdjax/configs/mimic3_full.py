"""MIMIC-III discharge summaries, all ICD-9 codes (about 8,900), CAML's splits; from your own copy.

    python -m sdjax.data.mimic --set=mimic3_full --folder=MIMIC3 --splits=CAML \
      --output=data/mimic3_full
    python train.py --config=configs/mimic3_full.py --config.model.weights=FOLDER

MIMIC3 holds NOTEEVENTS, DIAGNOSES_ICD and PROCEDURES_ICD; CAML the files *_full_hadm_ids.csv;
FOLDER a RoBERTa or BERT of clinical text, with tokenizer.json. Hyperparameters of PLM-ICD (Huang et
al. 2022), with segments that overlap and the SD loss beside, for one accelerator. Not measured
here: the data need credentials.
"""

from sdjax.config import Config, DataConfig, LossConfig, ModelConfig, PhaseConfig


def get_config() -> Config:
    return of_folder("data/mimic3_full")


def of_folder(folder: str) -> Config:
    """For what `python -m sdjax.data.mimic` wrote into `folder`."""
    config = Config(recipe="joint", batch_size=16, microbatches=16, contrastive_weight=0.1)
    config.data = DataConfig(
        name="files",
        train=f"{folder}/train.parquet",
        validation=f"{folder}/validation.parquet",
        test=f"{folder}/test.parquet",
        text="text",
        labels="labels",
        label_names=f"{folder}/codes.txt",
        max_length=3072,
    )
    config.loss = LossConfig(name="sd", temperature=0.1)
    config.model = ModelConfig(
        encoder="bert",
        pooling="label_wise",
        segment_length=128,
        segment_overlap=32,
        dropout=0.1,
        dtype="bfloat16",
        remat=True,
    )
    config.supervise = PhaseConfig(epochs=20, learning_rate=5e-5, warmup=0.02, weight_decay=0.0)
    config.evaluate_every, config.select_by = 1, "mAP"
    return config
