"""Your own files (.csv, .parquet, .arff, .npz, .h5, .jsonl, .svm), with no code to write.

    python train.py --config=configs/own_data.py \
      --config.data.train=a.arff --config.data.test=b.arff

The network and the batch are read off the data; a fifth of train is held out for validation
unless --config.data.validation names a file, and a fifth before that for test without
--config.data.test.
"""

from sdjax.config import Config, DataConfig


def get_config() -> Config:
    config = Config(recipe="joint", batch_size=0)
    config.data = DataConfig(name="files", train="", validation="", test="")
    return config
