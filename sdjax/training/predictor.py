"""A trained model, ready to use, or to start another run from."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy import sparse

from sdjax.checks import one_of
from sdjax.config import Config
from sdjax.data import Preprocess, TextPreprocess, steps_per_epoch
from sdjax.data.dataset import read_preprocess
from sdjax.data.tokens import Tokens
from sdjax.errors import InputError
from sdjax.training import workdir as workdir_lib
from sdjax.training.checkpoint import Checkpoints, Position
from sdjax.training.evaluate import make_forward, run_model
from sdjax.training.gallery import SPACES, Gallery, Neighbors
from sdjax.training.mesh import make_mesh
from sdjax.training.recipes import Phase, make_phases, parameter_name, phase_of_step
from sdjax.training.state import (
    ExampleSpec,
    TrainState,
    Weights,
    abstract,
    model_graph,
    model_shapes,
)

AnyPreprocess = Preprocess | TextPreprocess
_BATCH = 256


class Predictor:
    """The model of a run.

    Attributes:
      config: of the run.
      preprocess: turns raw inputs into the model's, and knows feature names; None where the run was
        given a data set without.
      label_names: of the C labels.
      phase: that the run was in when it saved the model.
      step: after which it was saved.
      thresholds: float64 [C], tuned on the run's validation split; None before the run is tested.
      weights: parameters and variables of all members.
      workdir: of the run; None where it has none.
    """

    def __init__(
        self,
        config: Config,
        preprocess: AnyPreprocess | None,
        label_names: tuple[str, ...],
        spec: ExampleSpec,
        phase: Phase,
        state: TrainState,
    ):
        self.config = config
        self.spec = spec
        self.preprocess = preprocess
        self.label_names = label_names
        self.phase = phase
        self.step = int(state.step)
        self.thresholds: np.ndarray | None = None
        self.weights = state.best
        self.workdir: Path | None = None
        self._graph = model_graph(config, spec)
        self._galleries: dict[str, Gallery] = {}

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "_graph"}
        return {**kept, "weights": jax.device_get(self.weights)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._graph = model_graph(self.config, self.spec)

    def embed(self, x: Any, space: str = "h") -> np.ndarray:
        """Embeddings, float32 [N, D], of raw inputs x [N, ...].

        Args:
          x: raw inputs; vectors also as one of scipy's sparse matrices.
          space: "h", representations of the encoder, which the classifier reads; or "z", their
            projections of unit length, which the contrastive loss compares. Those of several
            members stand side by side.

        Raises:
          InputError: if the run has no contrastive loss, and so no z.
        """
        return self.embed_preprocessed(self._preprocessed(x), space)

    def embed_preprocessed(self, x: Any, space: str = "h") -> np.ndarray:
        """As `embed`, of preprocessed inputs [N, ...]."""
        self._check_space(space)
        return self._run(x, projects=space == "z")[1 if space == "h" else 2]

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities of the labels, float32 [N, C], of raw inputs x [N, ...].

        Raises:
          InputError: if the run stopped before it trained the classifier.
        """
        return self.run(self._preprocessed(x))[0]

    def predict(self, x: Any, threshold: float | None = None) -> np.ndarray:
        """Decisions, bool [N, C]: whether the probability is at or above the threshold.

        Args:
          x: raw inputs [N, ...].
          threshold: of all labels; None takes those that the run tuned on validation.

        Raises:
          InputError: if the run has not trained the classifier, or not been tested and no threshold
            is given.
        """
        return self.decide(self.predict_proba(x), threshold)

    def decide(self, scores: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """Decisions, bool [N, C], of probabilities [N, C]; see `predict`."""
        if threshold is None and self.thresholds is None:
            raise InputError(
                "The run has not been tested yet, and has no thresholds: give one, or let the run "
                "end."
            )
        return scores >= (self.thresholds if threshold is None else threshold)

    def run(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities [N, C], representations [N, H]) of preprocessed inputs [N, ...].

        Raises:
          InputError: if the run stopped before it trained the classifier.
        """
        self.check_classifies()
        scores, embeddings = self._run(x)
        return scores, embeddings

    def check_classifies(self) -> None:
        """Raises InputError if the run stopped before it trained the classifier."""
        if not self.phase.supervised:
            raise InputError(
                f"The run stopped in phase {self.phase.name!r}, after step {self.step}: its "
                "classifier is not trained yet, so that there are no probabilities. Resume the "
                "run, or take `embed`: the encoder is what was trained."
            )

    def forward(self, x: Any) -> tuple[jax.Array, jax.Array]:
        """As `run`, of one batch and under jit: nothing is checked, padded or moved to the host."""
        scores, embeddings = make_forward(self._graph)(jax.device_get(self.weights), x)
        return scores, embeddings

    def neighbors(
        self, x: Any, k: int = 10, *, gallery: Gallery | None = None, space: str = "h"
    ) -> Neighbors:
        """The k nearest rows of a gallery, by the cosine.

        Args:
          x: raw inputs [N, ...].
          k: at most as many as the gallery has.
          gallery: to search; None is `self.gallery(space)`, the rows that the run was trained on.
          space: "h" or "z", see `embed`; that of the gallery where one is given.

        Returns:
          `Neighbors` with similarities, ids and label sets, [N, k] each.

        Raises:
          InputError: if `gallery` does not fit the model, or None is given and the training rows
            are not at hand.
        """
        gallery = self.gallery(space) if gallery is None else gallery
        return gallery.neighbors(self.embed(x, gallery.space), k)

    def gallery(self, space: str = "h") -> Gallery:
        """The embedded training rows; made on first use, and kept in the workdir.

        Raises:
          InputError: if the data are no longer those of the run, or it was given them as arrays.
          FileNotFoundError: if a file of the data is missing.
        """
        self._check_space(space)
        if space not in self._galleries:
            path = self.workdir and self.workdir / f"gallery_{space}.npz"
            found = Gallery.read(path) if path and path.exists() else None
            if found is None or found.step != self.step:
                found = self.embed_split("train", space)
                if path:
                    found.keep(path)
            self._galleries[space] = found
        return self._galleries[space]

    def embed_split(self, split: str, space: str = "h") -> Gallery:
        """The embedded rows of a split of the run's data, which is read for that.

        Args:
          split: "train", what the run was trained on; "validation" or "test".
          space: "h" or "z", see `embed`.

        Raises: as `gallery`.
        """
        self._check_space(space)
        source = workdir_lib.read_split(self.workdir, self.config, split)
        mesh = make_mesh(devices=jax.local_devices()[:1])
        forward = make_forward(self._graph, mesh, projects=space == "z")
        given = run_model(forward, self.weights, source, _BATCH, mesh)
        vectors = given.embeddings if space == "h" else given.projections
        assert vectors is not None
        return Gallery(vectors, source.names, source.labels, self.label_names, space, self.step)

    def _check_space(self, space: str) -> None:
        one_of("space", space, SPACES)
        config = self.config
        contrasts = config.recipe != "bce" and (
            config.recipe != "joint" or config.contrastive_weight
        )
        if space == "z" and not contrasts:
            raise InputError(
                "space 'z' is what a contrastive loss compares, and the run has none "
                f"(recipe {config.recipe!r}); take 'h'."
            )

    def _preprocessed(self, x: Any) -> Any:
        if self.preprocess is None:
            return x
        if sparse.issparse(x) and isinstance(self.preprocess, Preprocess):
            return self.preprocess.of_sparse(x)
        return self.preprocess(x)

    def _run(self, x: Any, *, projects: bool = False) -> tuple[np.ndarray, ...]:
        forward = make_forward(self._graph, projects=projects)

        def padded(rows: np.ndarray) -> np.ndarray:
            return np.pad(rows, [(0, _BATCH - len(rows))] + [(0, 0)] * (rows.ndim - 1))

        places, parts = [], []
        for rows, chunk in _chunks(x):
            outputs = forward(self.weights, jax.tree.map(padded, chunk))
            places.append(rows)
            parts.append([np.asarray(output)[: len(rows)] for output in outputs])
        order = np.argsort(np.concatenate(places))
        return tuple(np.concatenate(part)[order] for part in zip(*parts, strict=True))


def _chunks(x: Any) -> Iterator[tuple[np.ndarray, Any]]:
    """(row numbers, their inputs), at most 256 at a time; one chunk of no rows where x has none."""
    if isinstance(x, Tokens):
        yield from x.by_length(_BATCH)
        return
    count = len(jax.tree.leaves(x)[0])  # a leaf may be rows that are computed when asked for
    for start in range(0, max(count, 1), _BATCH):
        rows = np.arange(start, min(start + _BATCH, count))
        yield rows, jax.tree.map(lambda array, a=start: array[a : a + _BATCH], x)


def load(workdir: str | Path) -> Predictor:
    """The model of a run: of its newest checkpoint, or of the best where the run selects one.

    Args:
      workdir: of a run of `train.py`.

    Returns:
      A `Predictor`, with `embed(x)`, `predict_proba(x)` and `neighbors(x, k)`.

    Raises:
      FileNotFoundError: if there is no run, or it has not saved a checkpoint yet.
      InputError: if another version of sdjax wrote it.
    """
    # Of the state, the optimizer's part and the queue are not kept.
    model = Predictor(*restored(Path(workdir)))
    model.workdir = Path(workdir)
    results = Path(workdir) / workdir_lib.RESULTS
    if results.exists():
        tuned = json.loads(results.read_text())["thresholds"]
        model.thresholds = np.array([tuned[name] for name in model.label_names])
    return model


def restored(
    workdir: Path,
) -> tuple[Config, AnyPreprocess | None, tuple[str, ...], ExampleSpec, Phase, TrainState]:
    """What `load` makes a `Predictor` of, the whole state last."""
    workdir_lib.check_is_run(workdir)
    config = workdir_lib.read_config(workdir)
    data = json.loads((workdir / workdir_lib.DATA).read_text())
    spec = workdir_lib.example_spec(data)
    path = workdir / workdir_lib.PREPROCESS
    preprocess = read_preprocess(json.loads(path.read_text())) if path.exists() else None
    per_epoch = steps_per_epoch(data["train"]["examples"], config.batch_size, config.drop_remainder)
    phases = make_phases(config, per_epoch)
    one_device = make_mesh(devices=jax.local_devices()[:1])

    def abstract_state(position: Position) -> TrainState:
        return abstract(config, spec, phase_of_step(phases, int(position["step"])), one_device)

    checkpoints = Checkpoints(
        workdir / workdir_lib.CHECKPOINTS, read_only=True, best_by=config.select_by
    )
    found = checkpoints.restore_best(abstract_state) if config.select_by else None
    found = found or checkpoints.restore_newest(abstract_state)
    checkpoints.close()
    if found is None:
        raise FileNotFoundError(f"The run in {workdir} has not saved a checkpoint yet.")
    state, position = found
    phase = phase_of_step(phases, int(position["step"]))
    return config, preprocess, tuple(data["label_names"]), spec, phase, state


def initial_weights(config: Config, spec: ExampleSpec, label_names: tuple[str, ...]) -> Weights:
    """The weights of the run in `config.model.init_from`, for a run of `config`.

    Encoder and projection are taken, and where the labels are the same ones the classifier. One
    network serves all members; of several, each member has its own.

    Raises:
      InputError: if the encoders are not alike; names what differs.
      FileNotFoundError: if there is no such run.
    """
    source = load(config.model.init_from)
    _, wanted = model_shapes(config, spec)
    parts = ["encoder", "adapters", "projection"]
    if source.label_names == label_names:
        parts.append("classifier")
    states = []
    for old, new in zip(source.weights, wanted, strict=True):
        state = nnx.State({})
        for name in parts:
            # New adapters start without a change; those that were trained are never left out.
            if name in (old if name == "adapters" else new):
                given, here = (each.get(name, nnx.State({})) for each in (old, new))
                state[name] = _fitted(name, given, here, config)
        states.append(state)
    return Weights(*states)


def _fitted(name: str, given: nnx.State, wanted: nnx.State, config: Config) -> nnx.State:
    """Arrays of part `name` of another run, for each member of this one."""

    def shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(state)
        return {f"{name}.{parameter_name(path)}": leaf.shape[1:] for path, leaf in leaves}

    there, here = shapes(given), shapes(wanted)
    differing = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise InputError(
            f"model.init_from {config.model.init_from}: its model is of another shape "
            f"({'; '.join(differing[:5])}{'; ...' if differing[5:] else ''})."
        )
    members = config.model.members

    def of_members(x: jax.Array) -> np.ndarray:
        array = np.asarray(x)
        if len(array) not in (1, members):
            raise InputError(
                f"model.init_from {config.model.init_from}: its {len(array)} members cannot "
                f"start {members}; set model.members={len(array)}."
            )
        return np.broadcast_to(array, (members, *array.shape[1:]))

    return jax.tree.map(of_members, given)
