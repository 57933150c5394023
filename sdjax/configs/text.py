"""Your own texts (.csv, .tsv, .parquet, .jsonl) on a published encoder, BERT or RoBERTa.

    pip install -e ".[train,text]"
    python train.py --config=configs/text.py \
      --config.data.train=mine.csv --config.data.text=text --config.data.labels='label_*' \
      --config.model.weights=FOLDER

FOLDER has config.json, model.safetensors and tokenizer.json; an id of the Hugging Face hub will do
as well. Labels are columns of 0/1, or names in one column (--config.data.label_separator=';').
Validation and test are split off train where there are no files of them. The encoder learns at
3e-5, for models as wide as BERT (768); a small one, such as MiniLM (384), wants 3e-4:
--config.supervise.learning_rates=encoder=0.1 (so does `benchmarks/goemotions.py`). With
--config.recipe=finetune, set pretrain.epochs, pretrain.learning_rate and pretrain.learning_rates
likewise.
"""

from sdjax.config import Config, DataConfig, LossConfig, ModelConfig, PhaseConfig


def get_config() -> Config:
    config = Config(recipe="joint", batch_size=0, contrastive_weight=0.01)
    config.data = DataConfig(name="files", train="", validation="", test="", text="text")
    config.loss = LossConfig(name="sd", temperature=0.3)
    config.model = ModelConfig(encoder="bert", dropout=0.1, prior_bias=True)
    config.supervise = PhaseConfig(
        epochs=3, learning_rate=3e-3, learning_rates="encoder=0.01", weight_decay=0.01
    )
    config.evaluate_every = 1
    return config
