"""What a study shows of the five relations: where each loss pulls and pushes, and maps of rows.

Gradients are taken at the same embedding for all losses, the inputs themselves: they tell of the
losses, not of runs. The maps are of the inputs and of a run of each method.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfTransformer

from sdjax import config as config_lib
from sdjax import label_sets
from sdjax.config import Config, LossConfig
from sdjax.data import Dataset, Source
from sdjax.data.tokens import are_tokens
from sdjax.label_sets import LabelSets
from sdjax.labels import multi_hot
from sdjax.losses import LOSSES, PROTOTYPE_LOSSES
from sdjax.report import embedding, gradients, pairs
from sdjax.report.embedding import Plane
from sdjax.report.gradients import Gradient
from sdjax.training.objective import class_ids
from sdjax.writing import whole

MAP = "map.json"  # of a run
MAPPED_ROWS = 500
MAPPED_METHODS = 11
MOST_LOSSES = 20
_IMAGE_SIDE = 32
# They have no pairs of examples, or no candidates.
_WITHOUT = ("prototype", "herocon")
_CIRCUMSTANCES = {"implementation": "auto", "learn_temperature": False}

Floats = NDArray[np.floating]


class Sample(NamedTuple):
    """As much of a data set as is looked at.

    Attributes:
      train: inputs of some rows of train, [B, D]; None where they are no vectors, images or tokens.
      train_labels: of these rows.
      test, test_labels: the same of some rows of test.
      label_names: of the C labels.
      kind: of the inputs, see `Dataset`.
    """

    train: Floats | None
    train_labels: LabelSets
    test: Floats | None
    test_labels: LabelSets
    label_names: tuple[str, ...]
    kind: str


class Seen(NamedTuple):
    """What the report shows of a data set.

    Attributes:
      rows: number of rows that the gradients are of.
      counts: number of their pairs in each relation, [5].
      losses: gradients of the losses, by name; none where the inputs are no vectors.
      left_out: names of losses without one.
      temperature: of all of them; None where they differ.
      anchor: the row that is looked from, among those of the maps; None if none has a label.
      anchor_labels: the names of its labels.
      codes: its relation to the rows, [N].
      before: inputs of the rows in a plane; None where all are alike, or no vectors.
      after: embeddings of the rows by a run of each method, by its name.
    """

    rows: int
    counts: NDArray[np.integer]
    losses: dict[str, Gradient]
    left_out: tuple[str, ...]
    temperature: float | None
    anchor: int | None
    anchor_labels: list[str]
    codes: NDArray[np.integer]
    before: Plane | None
    after: dict[str, Plane]


def sample(dataset: Dataset) -> Sample:
    """The rows of `dataset` that are looked at, the same at each call."""

    def taken(source: Source, most: int) -> tuple[Floats | None, LabelSets]:
        rows = pairs.sample_rows(len(source), most)
        return vectors(source, rows), label_sets.take(source.labels, rows)

    train, test = taken(dataset.train, gradients.MAX_ROWS), taken(dataset.test, MAPPED_ROWS)
    return Sample(*train, *test, dataset.label_names, dataset.kind)


def vectors(source: Source, rows: NDArray[np.intp]) -> Floats | None:
    """The inputs at `rows` as float32 [N, D]: images in small, texts as tf-idf of their tokens."""
    x = source.inputs(rows)
    if are_tokens(x):
        ids, columns = np.unique(x["ids"], return_inverse=True)
        row, place = np.nonzero(x["mask"])
        counts = np.zeros((len(rows), len(ids)), np.float32)
        np.add.at(counts, (row, columns.reshape(x["ids"].shape)[row, place]), 1)
        return np.asarray(TfidfTransformer().fit_transform(counts).todense(), np.float32)
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.number) or x.ndim < 2:
        return None
    if x.ndim == 4:
        steps = [max(1, -(-side // _IMAGE_SIDE)) for side in x.shape[1:3]]
        x = x[:, :: steps[0], :: steps[1]]
    return x.reshape(len(x), -1).astype(np.float32)


def save_map(folder: Path, embeddings: Floats) -> None:
    """Writes the places of the embeddings of test, [N, D], in a plane, of some of its rows."""
    rows = pairs.sample_rows(len(embeddings), MAPPED_ROWS)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MAP, _as_json(_plane(embeddings[rows])))


def read_map(folder: Path) -> Plane | None:
    """What `save_map` wrote; None where there is nothing, or all embeddings were alike."""
    path = folder / MAP
    return _from_json(json.loads(path.read_text())) if path.exists() else None


def _plane(embeddings: Floats | None) -> Plane | None:
    if embeddings is None or len(embeddings) < 2 or embedding.has_collapsed(embeddings):
        return None
    return embedding.plane(embeddings)


def _as_json(plane: Plane | None) -> dict[str, Any] | None:
    if plane is None:
        return None
    # A thousandth of the radius is less than a dot.
    return {"points": np.round(plane.points, 3).tolist(), "explained": list(plane.explained)}


def _from_json(found: dict[str, Any] | None) -> Plane | None:
    if found is None:
        return None
    return Plane(np.array(found["points"], np.float64), tuple(found["explained"]))


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_text(json.dumps(value))


class Run(NamedTuple):
    """A run that ended well.

    Attributes:
      method: its name.
      config: of it.
      chosen: which of the candidates of `config` it is.
      quality: on validation.
      after: of `save_map`.
    """

    method: str
    config: Config
    chosen: int
    quality: float
    after: Plane | None

    def loss(self, kind: str) -> LossConfig | None:
        """Its contrastive loss, on inputs of a kind; None without one."""
        made = list(config_lib.candidates(self.config, kind).values())
        config = config_lib.without_unused(made[self.chosen])
        contrasts = config.recipe != "bce" and config.loss.rows == "examples"
        return dataclasses.replace(config.loss, **_CIRCUMSTANCES) if contrasts else None


def named(losses: Iterable[LossConfig]) -> dict[str, LossConfig]:
    """The losses, each once, by names that tell them apart."""
    known = list(dict.fromkeys(losses))
    values = [dataclasses.asdict(each) for each in known]
    varied = [
        field for field in (values[0] if values else ())
        if field != "name" and len({each[field] for each in values}) > 1
    ]  # fmt: skip
    names = []
    for each in values:
        taken = config_lib.options_of(each["name"])
        options = [f"{k}={_short(each[k])}" for k in varied if k in taken]
        names.append(" ".join([each["name"], *options]))
    return dict(zip(names, known, strict=True))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def see(
    path: Path,
    checksums: dict[str, str],
    runs: Sequence[Run],
    get_sample: Callable[[], Sample],
) -> Seen:
    """What there is to show of a data set; what takes time is kept in the file `path`.

    Args:
      path: of the file.
      checksums: of the data set's content.
      runs: on it.
      get_sample: gives its sample, where that is needed.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    new = known.get("checksums") != checksums
    if new:
        known = {"checksums": checksums, **_of_data(get_sample()), "gradients": {}}
    losses = [run.loss(known["kind"]) for run in runs]
    by_name = named(each for each in losses if each is not None)
    looked_at = {n: each for n, each in by_name.items() if each.name not in _WITHOUT}
    looked_at = dict(list(looked_at.items())[:MOST_LOSSES])
    missing = [each for each in looked_at.values() if _key(each) not in known["gradients"]]
    if missing and known["has_vectors"]:
        given = get_sample()
        for each in missing:
            known["gradients"][_key(each)] = gradient(given, each)
    if missing or new:
        _write(path, known)
    found = {name: known["gradients"].get(_key(each)) for name, each in looked_at.items()}
    temperatures = {each.temperature for each in looked_at.values()}
    codes = np.array(known["codes"], np.int64)
    return Seen(
        rows=known["rows"],
        counts=np.array(known["counts"]),
        losses={n: Gradient(*map(np.array, each)) for n, each in found.items() if each is not None},
        left_out=tuple(name for name in by_name if name not in looked_at),
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
        anchor=known["anchor"],
        anchor_labels=known["anchor_labels"],
        codes=codes,
        before=_from_json(known["before"]),
        after=_mapped(runs, losses, len(codes)),
    )


def _of_data(given: Sample) -> dict[str, Any]:
    """What does not depend on the losses."""
    anchors, codes, names = embedding.choose_anchors(given.test_labels, 1), [], []
    if anchors:
        chosen = label_sets.take(given.test_labels, np.array(anchors))
        codes = pairs.relation_codes(chosen, given.test_labels)[0].tolist()
        names = [given.label_names[i] for i in np.flatnonzero(label_sets.rows(chosen, 0, 1))]
    return {
        "kind": given.kind,
        "rows": label_sets.num_rows(given.train_labels),
        "counts": gradients.pair_counts(given.train_labels).tolist(),
        "has_vectors": given.train is not None,
        "anchor": anchors[0] if anchors else None,
        "anchor_labels": names,
        "codes": codes,
        "before": _as_json(_plane(given.test)),
    }


def _key(loss: LossConfig) -> str:
    """For what the loss computes: the fields that differ from the defaults, as of `identity`."""
    default = dataclasses.asdict(LossConfig())
    fields = dataclasses.asdict(loss).items()
    return json.dumps({k: v for k, v in fields if v != default[k]}, sort_keys=True)


def gradient(given: Sample, loss: LossConfig) -> list[list[float]]:
    """Attraction and repulsion by relation, as `json.dumps` takes them."""
    assert given.train is not None
    z = embedding.unit_rows(given.train)
    if z.shape[1] > len(z):
        # The same similarities of shorter vectors.
        z = np.transpose(np.linalg.qr(z.T, mode="r"))
    labels = given.train_labels
    found = gradients.by_relation(_function(loss), z, labels, loss.temperature)
    return [each.tolist() for each in found]


def _function(loss: LossConfig) -> gradients.Loss:
    """The loss as a function of embeddings, labels and candidates.

    Prototypes are the directions of the mean over the rows that have the label.
    """
    options = config_lib.loss_options(loss)
    function = functools.partial(LOSSES[loss.name], **options)

    def of_pairs(z: Any, labels: Any, candidates: Any, candidate_labels: Any, **options: Any):
        given = [z, labels, candidates, candidate_labels]
        if loss.name == "supcon":
            given[1::2] = class_ids(labels), class_ids(candidate_labels)
        if loss.name in PROTOTYPE_LOSSES:
            # The columns behind those of the rows are of the offset, and the prototypes' are 0.
            width = z.shape[1] - len(z)
            means = multi_hot(labels, z.dtype).T @ candidates[:, :width]
            means /= jnp.maximum(jnp.linalg.norm(means, axis=1, keepdims=True), 1e-12)
            given.insert(2, jnp.pad(means, ((0, 0), (0, len(z)))))
        return function(*given, **options)

    return of_pairs


def _mapped(
    runs: Sequence[Run], losses: Sequence[LossConfig | None], rows: int
) -> dict[str, Plane]:
    """The maps of the runs, by method; of many the best of each loss on validation."""
    found: dict[str, tuple[Run, Plane]] = {}
    with_map = [
        (run, run.after, loss) for run, loss in zip(runs, losses, strict=True)
        if run.after is not None and len(run.after.points) == rows
    ]  # fmt: skip
    many = len(with_map) > MAPPED_METHODS
    for run, plane, loss in with_map:
        group = (loss.name if loss else "") if many else run.method
        if group not in found or run.quality > found[group][0].quality:
            found[group] = run, plane
    shown = list(found.values())[:MAPPED_METHODS]
    return {run.method: plane for run, plane in shown}
