"""What was read, in a few lines, with warnings of what often turns out to be a mistake."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from string import digits

import jax
import numpy as np
from scipy import sparse

from sdjax import label_sets
from sdjax.data.dataset import Dataset
from sdjax.data.examples import listing
from sdjax.data.rows import BLOCK_ELEMENTS, blocks
from sdjax.data.sources import ArraySource, Source
from sdjax.data.texts import TextPreprocess, TextSource
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices

MOST_ROWS = 10_000  # that features are judged by
MOST_ONE_HOT = 50  # values of a nominal attribute
_MOST_ELEMENTS = 1 << 24  # of those rows: 128 MB of float64
_FEWEST_ROWS = 10  # in fewer, numbers are all different and rising by chance
_FEWEST_POSITIVES = 3  # with fewer, a label is equal to some feature by chance
_CORRELATION = 0.99
_SHOWN = 5  # names in a warning
_ID_NAME = re.compile(r"(?:^|[^a-z])(?:id|index|idx|key|uuid|number)(?:[^a-z]|$)")


def summarise(dataset: Dataset, details: Mapping[str, object] | None = None) -> list[str]:
    """The lines that say what `dataset` is, `details` of the run, and warnings.

    Features are judged by at most 10,000 rows of the train split, evenly spaced; labels by all.

    Args:
      dataset: of the run.
      details: further lines, such as {"Devices": "8 TPU v5e"}.

    Returns:
      Lines; those of warnings are last, and begin with "Warning:".
    """
    counts, rows, empty = _label_counts(dataset.train.labels)
    sizes = {name: len(getattr(dataset, name)) for name in ("train", "validation", "test")}
    lines = {
        "Data": f"{dataset.name}; "
        + ", ".join(f"{size:,} {name}" for name, size in sizes.items())
        + " rows",
        **({} if dataset.few is None else {"Train": str(dataset.few)}),
        "Inputs": _inputs(dataset),
        "Labels": _labels(dataset.label_names, counts, rows, empty),
        **(details or {}),
    }
    width = max(map(len, lines)) + 2
    warnings = [*_feature_warnings(dataset), *_label_warnings(dataset.label_names, counts)]
    return [
        *(f"{title:<{width}}{text}" for title, text in lines.items()),
        *(f"Warning: {text}" for text in warnings),
    ]


def _inputs(dataset: Dataset) -> str:
    preprocess = dataset.preprocess
    if isinstance(preprocess, TextPreprocess):
        return _texts(dataset.train, preprocess)
    specs = jax.tree.leaves(dataset.input_spec)
    if len(specs) > 1 or preprocess is None:
        return ", ".join(f"{spec.dtype} {tuple(spec.shape)}" for spec in specs)
    if preprocess.kind == "image":
        return f"images {' x '.join(map(str, preprocess.input_shape))}"
    names = preprocess.feature_names
    text = f"{preprocess.input_shape[0]:,} features" + f": {listing(names, 6)}" * bool(names)
    if preprocess.categories:
        columns = [f"{name} ({len(each)} values)" for name, each in preprocess.categories.items()]
        text += f"; one-hot: {listing(columns, 4)}"
    if preprocess.medians:
        text += f"; {len(preprocess.indicators)} with missing values, filled in by their medians"
    return text


def _texts(train: Source, preprocess: TextPreprocess) -> str:
    text = f"texts of column {preprocess.column!r}"
    if isinstance(train, TextSource):
        tokens = train.tokens
        least, median, most = np.quantile(tokens.lengths, (0, 0.5, 1), method="nearest")
        text += f": {least} to {most} tokens, {median} in the median"
        if tokens.num_cut:
            text += f"; {tokens.num_cut:,} cut to {tokens.max_length}"
    return text


def _labels(names: Sequence[str], counts: np.ndarray, rows: int, empty: int) -> str:
    rarest, most = int(counts.argmin()), int(counts.argmax())
    return (
        f"{len(names):,}, {counts.sum() / max(rows, 1):.2f} a row, {empty:,} rows without; "
        f"rarest {names[rarest]!r} ({counts[rarest]:,} rows), "
        f"most frequent {names[most]!r} ({counts[most]:,})"
    )


def _label_counts(labels: LabelSets) -> tuple[np.ndarray, int, int]:
    """Rows of each label [C], rows, and rows without a label; a block of rows at a time."""
    array = np.asarray(labels.indices) if isinstance(labels, LabelIndices) else labels
    counts, empty = np.zeros(label_sets.num_classes(labels), np.int64), 0
    for block in blocks(array):
        part = label_sets.take(labels, block)
        counts += label_sets.counts(part)
        empty += int((label_sets.sizes(part) == 0).sum())
    return counts, len(array), empty


def _label_warnings(names: Sequence[str], counts: np.ndarray) -> Iterator[str]:
    absent = [names[k] for k in np.flatnonzero(counts == 0).tolist()]
    if absent:
        yield f"labels without a positive in train: {len(absent):,}: {listing(absent, _SHOWN)}."


def _feature_warnings(dataset: Dataset) -> Iterator[str]:
    """Warnings that sampled rows of vectors give cause for."""
    spec = dataset.input_spec
    if not isinstance(spec, jax.ShapeDtypeStruct) or len(spec.shape) != 1:
        return
    train = dataset.train
    most = min(MOST_ROWS, max(_MOST_ELEMENTS // spec.shape[0], 100), len(train))
    rows = np.linspace(0, len(train) - 1, most).astype(int)
    x = train.raw_inputs(rows) if isinstance(train, ArraySource) else train.inputs(rows)
    x = np.asarray(x, np.float32)
    known = getattr(dataset.preprocess, "feature_names", ())
    names = list(known) or [str(k) for k in range(x.shape[1])]
    identifiers = [names[k] for k in _identifiers(x, known)]
    if identifiers:
        yield (
            f"features that look like row numbers or identifiers: {listing(identifiers, _SHOWN)}; "
            "data.ignore leaves them out."
        )
    for feature, label in _leaks(x, label_sets.take(train.labels, rows)):
        yield (
            f"feature {names[feature]!r} nearly determines label {dataset.label_names[label]!r} "
            f"(|correlation| above {_CORRELATION:g} in {len(rows):,} rows): is it a label itself?"
        )
    alike = _named_like(known, dataset.label_names)
    if alike:
        yield f"features that are named like the labels: {listing(alike, _SHOWN)}."
    for name, count in _huge_one_hots(x, known):
        yield f"{name!r} is one-hot of {count:,} values; is it a name of rows?"
    # Whatever is NaN or not the same in all rows is no constant.
    constant = int((x == x[:1]).all(axis=0).sum())
    if constant:
        yield f"constant features, in the {len(rows):,} rows looked at: {constant:,}."


def _identifiers(x: np.ndarray, names: Sequence[str]) -> Iterator[int]:
    """Places of features of whole numbers, all different, that are sorted or named like keys."""
    if len(x) < _FEWEST_ROWS:
        return
    whole = (x == np.floor(x)).all(axis=0)  # False for NaN
    for place in np.flatnonzero(whole).tolist():
        column = x[:, place]
        steps = np.diff(column)
        is_sorted = (steps > 0).all() or (steps < 0).all()
        is_key = bool(names) and _named_like_a_key(names[place])
        if is_sorted or (is_key and len(np.unique(column)) == len(column)):
            yield place


def _named_like_a_key(name: str) -> bool:
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    return _ID_NAME.search(words.lower()) is not None


def _leaks(x: np.ndarray, labels: LabelSets) -> list[tuple[int, int]]:
    """(feature, label) of which |correlation| is above .99, at most 5, highest first.

    Correlations are a sparse product: the label sets [n, C] are never made multi-hot as a whole.
    """
    x = x - np.nanmean(np.where(np.isnan(x).all(axis=0), 0, x), axis=0, dtype=np.float64)
    x = np.nan_to_num(x)
    norm = np.sqrt(np.square(x).sum(axis=0))
    x = (x / np.where(norm > 0, norm, np.inf)).astype(np.float32)
    y = label_sets.to_csr(labels) if isinstance(labels, LabelIndices) else sparse.csr_array(labels)
    y = y.astype(np.float32).T.tocsr()  # [C, n]
    positives = np.diff(y.indptr)
    rows = len(x)
    chosen = np.flatnonzero(
        (positives >= _FEWEST_POSITIVES) & (rows - positives >= _FEWEST_POSITIVES)
    )
    deviation = np.sqrt(positives * (1 - positives / rows))
    found: list[tuple[float, int, int]] = []
    step = max(1, BLOCK_ELEMENTS // x.shape[1])
    for start in range(0, len(chosen), step):
        part = chosen[start : start + step]
        # Centred features need no centred labels.
        correlation = np.abs(y[part] @ x) / deviation[part, None]
        for label, feature in np.argwhere(correlation > _CORRELATION):
            found.append((-float(correlation[label, feature]), int(feature), int(part[label])))
    return [(feature, label) for _, feature, label in sorted(found)[:_SHOWN]]


def _named_like(features: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Features whose names are those of all labels but for a number at the end."""
    prefixes = {name.rstrip(digits) for name in labels}
    prefix = prefixes.pop()
    if prefixes or len(prefix) < 2:
        return []
    return [name for name in features if name.startswith(prefix) and name[len(prefix) :].isdigit()]


def _huge_one_hots(x: np.ndarray, names: Sequence[str]) -> list[tuple[str, int]]:
    """Attributes of more than 50 features `attribute=value` that are 0 or 1, and how many."""
    groups: Counter[str] = Counter()
    for place, name in enumerate(names):
        attribute, equals, _ = name.partition("=")
        if equals and ((x[:, place] == 0) | (x[:, place] == 1) | np.isnan(x[:, place])).all():
            groups[attribute] += 1
    return [(name, count) for name, count in groups.items() if count > MOST_ONE_HOT]
