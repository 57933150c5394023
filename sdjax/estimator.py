"""`SDClassifier`: one run of the library's training, as a scikit-learn estimator."""

import dataclasses
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from scipy import sparse
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from sdjax import config as config_lib
from sdjax import metrics
from sdjax.config import Config, DataConfig
from sdjax.configs import own_data, text
from sdjax.data import dataset as dataset_lib
from sdjax.data.examples import Examples
from sdjax.data.rows import SparseRows
from sdjax.data.splits import split_off
from sdjax.data.targets import Targets, are_label_sets, as_matrix
from sdjax.data.tokens import check_texts
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.training import Interrupted, Predictor, Setup, make_setup, train
from sdjax.training.mesh import make_mesh
from sdjax.training.setup import with_published_sizes

TUNED = ("global", "per_label")

# The arguments that are fields of the config, and which.
_FIELDS = {
    "loss": ("loss.name",),
    "recipe": ("recipe",),
    "temperature": ("loss.temperature",),
    "contrastive_weight": ("contrastive_weight",),
    "encoder": ("model.weights",),
    "width": ("model.width",),
    "depth": ("model.depth",),
    "members": ("model.members",),
    "epochs": ("supervise.epochs", "pretrain.epochs"),
    "batch_size": ("batch_size",),
    "learning_rate": ("supervise.learning_rate", "pretrain.learning_rate"),
}
# What has an argument of its own, or no use: there is one run, on the rows of `fit`, and no test.
_NOT_OURS = (
    *("seed", "candidates", "refit", "select_by", "patience", "thresholds", "evaluate_every"),
    *("mesh.", "report.", "data."),
)
_TWO_PHASES = ("probe", "finetune")
_OURS = ("data.scaling", "data.max_length")


class SDClassifier(
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClassifierMixin,
    BaseEstimator,
):
    """Classifier of label sets or of classes, whose embedding a contrastive loss shapes.

    It minimises the binary cross-entropy of each label, and a loss of the family on the embeddings
    z of the batch, with weight λ (recipe "joint"):

      BCE(x, y) + λ · L(z, y)

    Arguments that are None take the value of `config`; without one that of `configs/own_data.py`
    for such inputs, dense or sparse, or with `encoder` that of `configs/text.py`.

    Args:
      loss: any of `sdjax.LOSSES`; "sd" by default, and for classes "supcon" as well.
      recipe: "joint"; "bce", without the contrastive loss; "finetune" or "probe", contrastive
        pretraining first.
      temperature: of the contrastive loss.
      contrastive_weight: λ.
      encoder: where X is texts: the folder of a published BERT or RoBERTa, or an id of the Hugging
        Face hub. None where X is vectors.
      width: of the hidden layers.
      depth: number of hidden layers.
      members: networks that are trained side by side and averaged; without `config` one, where
        own_data has four: they are better, and take as many times as long.
      epochs: of training, of each phase.
      batch_size: rows of a batch; 0 suits the data.
      learning_rate: the highest of the schedule.
      thresholds: from which probability on a row has a label: a number; or "global", one for all
        labels, or "per_label", each as it maximises F1 on rows that are held out of training. For
        label sets alone: of classes the most probable is predicted.
      validation_fraction: share of the rows that is held out; only where thresholds are tuned.
      config: a `Config`, whose `data` is not used but for `scaling` and `max_length`; or a dict
        of such fields as change, {"model.dropout": 0.2}.
      random_state: of initial parameters, batches, views and held-out rows.
      workdir: folder that the run is written into, and resumed from where it was cut off; None
        writes nothing. It shows progress, and `sdjax.training.load` reads it.

    Attributes:
      classes_: the C labels: in order, or numbers where Y is a multi-hot array, or its columns.
      thresholds_: float64 [C].
      config_: the `Config` of the run, with all sizes.
      model_: the trained `sdjax.training.Predictor`.
      n_features_in_, feature_names_in_: as scikit-learn has them; not with `encoder`.

    References:
      Similarity-Dissimilarity Loss for Multi-label Supervised Contrastive Learning, 2024
      (https://arxiv.org/abs/2410.13439).
    """

    def __init__(
        self,
        loss: str | None = None,
        *,
        recipe: str | None = None,
        temperature: float | None = None,
        contrastive_weight: float | None = None,
        encoder: str | None = None,
        width: int | None = None,
        depth: int | None = None,
        members: int | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        thresholds: float | Literal["global", "per_label"] = 0.5,
        validation_fraction: float = 0.2,
        config: Config | Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        workdir: str | Path | None = None,
    ):
        self.loss = loss
        self.recipe = recipe
        self.temperature = temperature
        self.contrastive_weight = contrastive_weight
        self.encoder = encoder
        self.width = width
        self.depth = depth
        self.members = members
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.thresholds = thresholds
        self.validation_fraction = validation_fraction
        self.config = config
        self.random_state = random_state
        self.workdir = workdir

    def fit(self, X: Any, y: Any) -> "SDClassifier":
        """Trains on rows X and their labels, on the first device.

        Args:
          X: numbers [N, F], an array, a sparse matrix or a frame; or with `encoder` N texts.
          y: label sets, as a multi-hot array, sparse matrix or frame [N, C], or as N lists or sets
            of names or whole numbers; or one class of each row, [N]. Lists of equal length that
            hold 0 and 1 alone are taken as multi-hot.

        Returns:
          The estimator.

        Raises:
          ValueError: if X or y is of another form, or an argument cannot be used.
        """
        inputs, targets, labels = self._checked(X, y)
        self._check_thresholds(targets)
        random = check_random_state(self.random_state)
        seed, split_seed = (int(each) for each in random.randint(2**31 - 1, size=2))
        examples = Examples(
            origin="X",
            inputs=SparseRows(inputs) if sparse.issparse(inputs) else inputs,
            labels=labels,
            label_names=tuple(map(str, targets.classes.tolist())),
            feature_names=() if self.encoder else tuple(getattr(self, "feature_names_in_", ())),
        )
        none = examples.take(np.arange(0))
        splits = {"train": examples, "validation": none, "test": none}
        if self.thresholds in TUNED:
            splits["train"], splits["validation"] = split_off(
                examples, "validation", self.validation_fraction, split_seed, stratified=True
            )
        setup = self._setup(splits, seed)
        try:
            state = train(setup, None if self.workdir is None else Path(self.workdir))
        except Interrupted as stop:
            if stop.signal == signal.SIGINT:  # ends the call, not the session
                raise KeyboardInterrupt(str(stop)) from None
            raise
        data, last = setup.dataset, setup.phases[-1]
        names = data.label_names
        self.config_ = setup.config
        self.model_ = Predictor(setup.config, data.preprocess, names, setup.spec, last, state)
        self.classes_, self._targets = targets.classes, targets
        held_out = splits["validation"]
        self.thresholds_ = self._tuned(inputs[held_out.names], held_out.labels)
        self.model_.thresholds = self.thresholds_
        embeddings = self.model_.embed(inputs)
        self._n_features_out = embeddings.shape[1]
        self._neighbors = NearestNeighbors(metric="cosine").fit(embeddings)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float32 [N, C]: of each label; of classes their sum is 1."""
        inputs = self._inputs(X)
        scores = self.model_.predict_proba(inputs)
        if self._targets.form == "classes":
            scores = np.maximum(scores, np.finfo(np.float32).tiny)
            scores /= scores.sum(axis=1, keepdims=True)
        return scores

    def decision_function(self, X: Any) -> np.ndarray:
        """Log-odds, float64 [N, C]: of each label, less that of its threshold.

        Of classes the logarithms of their probabilities; of two of them the log-odds of the second
        one, [N].
        """
        scores = self.predict_proba(X).astype(np.float64)
        if self._targets.form == "classes":
            logs = np.log(scores)
            return logs[:, 1] - logs[:, 0] if len(self.classes_) == 2 else logs
        return _log_odds(scores) - _log_odds(self.thresholds_)

    def predict(self, X: Any) -> Any:
        """Labels in the form of the y of `fit`; lists of label sets as an array of N tuples."""
        scores = self.predict_proba(X)
        if self._targets.form == "classes":
            return self.classes_[scores.argmax(axis=1)]
        return self._targets.decode(scores >= self.thresholds_)

    def transform(self, X: Any) -> np.ndarray:
        """Embeddings h of the encoder, float32 [N, H], which the classifier reads."""
        inputs = self._inputs(X)
        return self.model_.embed(inputs)

    def kneighbors(
        self, X: Any = None, n_neighbors: int = 5, return_distance: bool = True
    ) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """The nearest rows of the X of `fit`, by the embeddings h.

        Args:
          X: queries; None is the rows of `fit`, each without itself.
          n_neighbors: k.
          return_distance: whether to return distances too.

        Returns:
          Distances, 1 less the cosine, float [N, k], the nearest first; and rows, int64 [N, k].
        """
        check_is_fitted(self)
        queries = None if X is None else self.transform(X)
        return self._neighbors.kneighbors(queries, n_neighbors, return_distance)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Share of the rows whose labels are all right: accuracy; of label sets subset accuracy.

        scikit-learn's scorers, such as "f1_micro" and "average_precision", take the estimator too.
        """
        predicted = self.predict(X)
        if self._targets.form == "sets":
            y, predicted = (as_matrix(self._targets.encode(each)) for each in (y, predicted))
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.encoder is None
        tags.input_tags.two_d_array = self.encoder is None
        tags.input_tags.string = self.encoder is not None
        tags.classifier_tags.multi_label = True
        tags.transformer_tags.preserves_dtype = []  # float32, whatever came
        return tags

    def _checked(self, X: Any, y: Any) -> tuple[Any, Targets, LabelSets]:
        """The inputs, what kind of targets there are, and these as label sets."""
        if y is None:
            name = type(self).__name__
            raise InputError(f"{name} requires y to be passed, but the target y is None.")
        inputs = self._inputs(X, reset=True)
        if not are_label_sets(y):
            columns = getattr(y, "columns", None)
            options: dict[str, Any] = {"accept_sparse": "csr", "dtype": None, "input_name": "y"}
            y = check_array(y, ensure_2d=False, **options)
            if np.shape(y)[1:] == (1,) and not sparse.issparse(y):
                y = column_or_1d(y, warn=True)
            check_classification_targets(y)
            targets = Targets.of(y)
            if columns is not None and targets.form == "array":
                targets = dataclasses.replace(targets, classes=np.asarray(columns))
        else:
            targets = Targets.of(y)
        labels = targets.encode(y)
        check_consistent_length(inputs, y)
        return inputs, targets, labels

    def _inputs(self, X: Any, reset: bool = False) -> Any:
        """Numbers [N, F], dense or sparse, or strings [N]; of the width that `fit` saw."""
        if not reset:
            check_is_fitted(self)
        if self.encoder is not None:
            return _texts(X)
        _refuse_texts(X)
        x: Any = validate_data(self, X, accept_sparse="csr", reset=reset)
        with np.errstate(over="ignore"):  # an infinity is reported with its place
            return x.astype(np.float32)

    def _check_thresholds(self, targets: Targets) -> None:
        given = self.thresholds
        number = isinstance(given, int | float) and not isinstance(given, bool)
        if not (given in TUNED if isinstance(given, str) else number and 0 < given < 1):
            raise InputError(
                f"thresholds must be a number between 0 and 1, 'global' or 'per_label', got "
                f"{given!r}."
            )
        if targets.form == "classes" and given != 0.5:
            raise InputError(
                f"thresholds={given!r} is for label sets: of the classes [N] that y is, the most "
                "probable one is predicted."
            )

    def _setup(self, splits: dict[str, Examples], seed: int) -> Setup:
        """The run on these splits."""
        config = self._config(dataset_lib.kind_of(splits["train"]), seed)
        most = len(splits["train"])
        config = dataclasses.replace(config, batch_size=min(config.batch_size, most))
        dataset = dataset_lib.of_examples(type(self).__name__, splits, config.data)
        return make_setup(config, dataset=dataset, mesh=make_mesh(devices=jax.local_devices()[:1]))

    def _config(self, kind: str, seed: int) -> Config:
        """The config of a run on inputs of a kind."""
        config, values = self.config, {}
        if isinstance(config, Config):
            _check_single_run(config)
        elif config is None or isinstance(config, Mapping):
            values = dict(config or {})
            config = _defaults(kind, self.recipe or values.get("recipe") or "joint")
        else:
            raise InputError(
                "config must be a sdjax.config.Config or a dict such as {'model.dropout': 0.2}, "
                f"got {type(config).__name__}."
            )
        for name in values:
            if name.startswith(_NOT_OURS) and name not in _OURS:
                raise InputError(f"config: {name!r} is not for {type(self).__name__}.")
        recipe = self.recipe or values.get("recipe") or config.recipe
        for argument, fields in _FIELDS.items():
            if (value := getattr(self, argument)) is None:
                continue
            for field in fields:
                if field in values:
                    raise InputError(f"{argument}= and config[{field!r}] exclude each other.")
                if recipe in _TWO_PHASES or not field.startswith("pretrain."):
                    values[field] = value
        config = config_lib.replaced(config, values)
        data = DataConfig(
            *("files", "", "", ""),
            scaling=config.data.scaling,
            max_length=config.data.max_length,
            text="text" if kind == "text" else "",
        )
        return with_published_sizes(dataclasses.replace(config, data=data, seed=seed))

    def _tuned(self, inputs: Any, labels: LabelSets | None) -> np.ndarray:
        """The threshold of each label, by the rows that were held out."""
        if self.thresholds not in TUNED:
            return np.full(len(self.classes_), float(self.thresholds))
        assert labels is not None
        scores = self.model_.predict_proba(inputs)
        if self.thresholds == "per_label":
            return metrics.tune_thresholds(labels, scores)
        return np.full(len(self.classes_), metrics.tune_threshold(labels, scores))


def _log_odds(p: np.ndarray) -> np.ndarray:
    eps = np.finfo(np.float32).eps / 2  # what float32 tells from 1
    p = np.clip(p, np.finfo(np.float32).tiny, 1 - eps)
    return np.log(p) - np.log1p(-p)


def _defaults(kind: str, recipe: str) -> Config:
    """What a run on inputs of a kind has where nothing is said."""
    if kind == "text":
        config = text.get_config()
    else:
        made = list(config_lib.candidates(own_data.get_config(), kind).values())
        config = next((each for each in made if each.recipe == recipe), made[0])
        # Several members are better, and take as many times as long; they can be asked for.
        config = config_lib.replaced(config, {"model.members": 1})
    config = dataclasses.replace(config, recipe=recipe, refit=False)
    if recipe in _TWO_PHASES:
        config = dataclasses.replace(config, pretrain=config.supervise)
    return config


def _check_single_run(config: Config) -> None:
    for name in ("candidates", "refit", "select_by"):
        if getattr(config, name):
            raise InputError(
                f"config.{name} is for `python -m sdjax.train`: the estimator trains one run, on "
                "all rows. GridSearchCV searches."
            )


def _refuse_texts(X: Any) -> None:
    first = X[0] if isinstance(X, list | tuple) and X else None
    if isinstance(first, str) or (getattr(X, "ndim", 0) == 1 and _holds_texts(X)):
        raise InputError(
            "X is texts: name a published encoder for them, encoder=FOLDER or an id of the hub."
        )


def _holds_texts(X: Any) -> bool:
    return len(X) > 0 and isinstance(np.asarray(X, object)[0], str)


def _texts(X: Any) -> np.ndarray:
    """Texts [N], of a list, an array, a column of a frame, or a frame of one column."""
    if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:
        X = X.iloc[:, 0] if hasattr(X, "iloc") else np.asarray(X, object)[:, 0]
    if sparse.issparse(X) or getattr(X, "ndim", 1) != 1:
        raise InputError(
            f"with encoder=, X must be N texts, got {type(X).__name__} of shape {X.shape}."
        )
    check_texts(X)
    array = np.empty(len(X), object)
    array[:] = list(X)
    return array
