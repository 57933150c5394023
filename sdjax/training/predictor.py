"""A trained model, ready to use."""

import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from sdjax.config import Config
from sdjax.data import Preprocess, steps_per_epoch
from sdjax.training import workdir as workdir_lib
from sdjax.training.checkpoint import Checkpoints, Position
from sdjax.training.evaluate import Forward, make_forward
from sdjax.training.phases import make_phases, phase_of_step
from sdjax.training.state import TrainState, init_state, model_graph

_BATCH = 256


class Predictor:
    """The model of a run.

    Attributes:
      config: of the run.
      preprocess: turns raw inputs into the model's; knows feature and label names.
      label_names: of the C labels.
    """

    def __init__(self, config: Config, preprocess: Preprocess, state: TrainState, forward: Forward):
        self.config = config
        self.preprocess = preprocess
        self.label_names = preprocess.label_names
        self._state = state
        self._forward = forward

    def embed(self, x: np.ndarray) -> np.ndarray:
        """Representations of the encoder, float32 [N, H], of raw inputs x [N, ...]."""
        return self.run(self.preprocess(x))[1]

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Probabilities of the labels, float32 [N, C], of raw inputs x [N, ...]."""
        return self.run(self.preprocess(x))[0]

    def run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities [N, C], representations [N, H]) of preprocessed inputs [N, ...]."""
        parts = []
        for start in range(0, max(len(x), 1), _BATCH):
            chunk = x[start : start + _BATCH]
            padding = [(0, _BATCH - len(chunk))] + [(0, 0)] * (x.ndim - 1)
            outputs = self._forward(
                self._state.best_params, self._state.variables, np.pad(chunk, padding)
            )
            parts.append([np.asarray(output)[: len(chunk)] for output in outputs])
        scores, embeddings = (np.concatenate(part) for part in zip(*parts, strict=True))
        return scores, embeddings


def load(workdir: str | Path) -> Predictor:
    """The model of the newest checkpoint in a run's workdir.

    Args:
      workdir: of a run of `train.py`.

    Returns:
      A `Predictor`, with `embed(x)` and `predict_proba(x)`.

    Raises:
      FileNotFoundError: if there is no run, or it has not saved a checkpoint yet.
    """
    workdir = Path(workdir)
    for name in (workdir_lib.CONFIG, workdir_lib.PREPROCESS, workdir_lib.CHECKPOINTS):
        if not (workdir / name).exists():
            raise FileNotFoundError(
                f"{workdir} is not the workdir of a run: it holds no {name}. A run is made by "
                "`python train.py --workdir=...`."
            )
    config = workdir_lib.read_config(workdir)
    preprocess = Preprocess.from_json(json.loads((workdir / workdir_lib.PREPROCESS).read_text()))
    shape, num_classes = preprocess.input_shape, len(preprocess.label_names)

    def abstract_state(position: Position) -> TrainState:
        num_examples = int(position["num_examples"])
        epoch = steps_per_epoch(num_examples, config.batch_size, config.drop_remainder)
        phase = phase_of_step(make_phases(config, epoch), int(position["step"]))
        shapes = jax.eval_shape(lambda: init_state(config, shape, num_classes, phase))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device), shapes
        )

    one_device = SingleDeviceSharding(jax.devices()[0])
    checkpoints = Checkpoints(workdir / workdir_lib.CHECKPOINTS, read_only=True)
    restored = checkpoints.restore_newest(abstract_state)
    checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"The run in {workdir} has not saved a checkpoint yet.")
    graph: nnx.GraphDef = model_graph(config, shape, num_classes)
    return Predictor(config, preprocess, restored[0], make_forward(graph))
