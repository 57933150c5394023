"""Tables whose columns are features and labels: Parquet, and what else becomes a frame."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from sdjax.data.examples import Examples, check_binary, check_finite, listing
from sdjax.data.readers import image_files, label_lists
from sdjax.data.readers.options import ReadOptions, readable, select
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets

if TYPE_CHECKING:
    import pandas as pd

# A column of row names, or the index that pandas writes: never a feature.
ID_COLUMNS = ("id", "unnamed: 0")
TEXT = "If it is the text to learn from, name it in data.text; image files, in data.image."


def read_parquet(path: str, options: ReadOptions) -> Examples:
    """Reads a Parquet file."""
    import pyarrow.parquet

    with readable(path, "Parquet"):
        frame = pyarrow.parquet.read_table(path).to_pandas()
    return from_frame(path, frame, options)


def from_frame(path: str, frame: "pd.DataFrame", options: ReadOptions) -> Examples:
    """Examples from the columns of a frame: labels, ignored ones and row names; then features.

    Columns are matched by name: another split, or rows to predict, may have them in any order.
    """
    frame = frame.rename(columns=str)
    for field, column in (("text", options.text), ("image", options.image)):
        if column and column not in frame.columns:
            raise InputError(
                f"{path}: data.{field} {column!r} is no column. Columns: "
                f"{listing(list(frame.columns))}."
            )
    ids = [name for name in frame.columns if name.lower() in ID_COLUMNS]
    named = _column_of_names(path, frame, options)
    label_names = [named] if named else label_columns(path, list(frame.columns), options)
    if options.text:
        labels, label_names = _labels(path, frame, named, label_names, options)
        inputs = texts(path, frame[options.text].tolist(), options.text)
        names = tuple(map(str, frame[ids[0]])) if ids else None
        return Examples(path, inputs, labels, tuple(label_names), ids=names)
    if options.image:
        labels, label_names = _labels(path, frame, named, label_names, options)
        files = frame[options.image].tolist()
        images = image_files.named_in(path, files, options)
        names = tuple(map(str, frame[ids[0]] if ids else files))
        return Examples(path, images, labels, tuple(label_names), ids=names)
    # A label whose name stood in a column may be called like a feature.
    dropped = {*label_names, *ids}.difference(options.feature_names)
    if options.ignore:
        # What is ignored in training may be absent from other splits.
        first = not options.feature_names
        dropped.update(select(path, "data.ignore", options.ignore, list(frame.columns), first))
    features = [name for name in frame.columns if name not in dropped]
    features = _align(path, features, options)
    if not features:
        raise InputError(f"{path}: no feature column; columns: {listing(list(frame.columns))}.")
    categories = options.vocabulary
    if categories is None:
        categories = _find_categories(path, frame, features, options)
    names = _expanded(path, features, categories)
    inputs = _numbers(path, frame, features, categories, options)
    check_finite(
        path,
        inputs,
        names,
        missing_allowed=options.missing == "median",
        advice="Fill them in, set data.missing='median', or leave the column out with data.ignore.",
    )
    labels, label_names = _labels(path, frame, named, label_names, options)
    return Examples(
        origin=path,
        inputs=inputs,
        labels=labels,
        label_names=label_names,
        feature_names=names,
        ids=tuple(map(str, frame[ids[0]])) if ids else None,
        categories=categories,
    )


def _labels(
    path: str, frame: "pd.DataFrame", named: str | None, names: list[str], options: ReadOptions
) -> tuple[LabelSets | None, tuple[str, ...]]:
    """Label sets and their names, of the column of names or of columns of 0/1."""
    if not options.labelled:
        return None, ()
    if not named:
        return _binary(path, frame, names), tuple(names)
    separator, cells = options.label_separator, frame[named]
    cells = cells.astype(object).where(cells.notna(), None)
    lists = [label_lists.split_cell(value, separator) for value in cells]
    return label_lists.from_names(path, lists, options)


def texts(path: str, column: list[Any], name: str) -> np.ndarray:
    """A column of texts as strings [N].

    Raises:
      InputError: naming the row, where a text is missing, or is something else.
    """
    for row, value in enumerate(column):
        if not isinstance(value, str):
            missing = value is None or value != value
            raise InputError(
                f"{path}: the text {name!r} is {'missing' if missing else repr(value)[:60]} in row "
                f"{row} (the first row is 0); a string was expected, which may be empty."
            )
    return np.array(column, object)


def label_columns(path: str, columns: list[str], options: ReadOptions) -> list[str]:
    """The label columns: those of training where they are known, else by `options.labels`."""
    if options.label_names:
        here = set(columns)
        absent = [name for name in options.label_names if name not in here]
        if options.labelled and absent:
            raise InputError(
                f"{path}: label columns of training that are absent here: {listing(absent)}."
            )
        return [name for name in options.label_names if name in here]
    if not options.labels:
        raise InputError(
            f"{path}: set data.labels to the label columns, as comma-separated names or "
            f"patterns such as 'label_*'. Columns: {listing(columns)}."
        )
    return select(path, "data.labels", options.labels, columns)


def _column_of_names(path: str, frame: "pd.DataFrame", options: ReadOptions) -> str | None:
    """The one label column that holds the names of a row's labels; None for columns of 0/1."""
    if not options.labels:
        return None
    # Columns of 0/1 that are absent are reported all at once, by `label_columns`.
    required = options.labelled and bool(options.label_separator)
    columns = select(path, "data.labels", options.labels, list(frame.columns), required)
    if options.label_separator and len(columns) > 1:
        raise InputError(
            f"{path}: data.label_separator splits one column, and data.labels is "
            f"{len(columns)}: {listing(columns)}."
        )
    if len(columns) != 1:
        return None
    filled = frame[columns[0]].dropna()
    lists = len(filled) > 0 and label_lists.is_list(filled.iloc[0])
    return columns[0] if options.label_separator or lists else None


def _align(path: str, features: list[str], options: ReadOptions) -> list[str]:
    """`features`, which are columns, in the order of training."""
    vocabulary = options.vocabulary or {}
    column = {f"{name}={value}": name for name, values in vocabulary.items() for value in values}
    expected = dict.fromkeys(column.get(name, name) for name in options.feature_names)
    if not expected:
        return features
    here, known = set(features), set(expected)
    absent = [name for name in expected if name not in here]
    new = [name for name in features if name not in known]
    if absent or (new and options.labelled):
        raise InputError(
            f"{path}: the feature columns are not those of training. Absent here: "
            f"{listing(absent)}; only here: {listing(new)} (data.ignore leaves columns out)."
        )
    return list(expected)


def _find_categories(
    path: str, frame: "pd.DataFrame", features: list[str], options: ReadOptions
) -> dict[str, tuple[str, ...]]:
    """The sorted values of the text columns among `features`; a missing one is ""."""
    if not options.categories:
        return {}
    chosen, found = set(features), {}
    for name, column in frame.items():
        if name not in chosen or not _is_text(column):
            continue
        values = set(_texts(column.dropna()))
        if len(values) > options.categories:
            raise InputError(
                f"{path}: text column {name!r} has {len(values)} different values, more than "
                f"data.categories={options.categories}. Allow more, or leave the column out with "
                "data.ignore."
            )
        found[str(name)] = tuple(sorted(values | ({""} if column.isna().any() else set())))
    return found


def _is_text(column: "pd.Series") -> bool:
    """Whether the values that are there are strings, and not all of them numbers."""
    import pandas as pd

    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "buifmM":
        return False
    present = column.dropna().astype(object)
    if not present.map(lambda value: isinstance(value, str)).all():
        return False
    numbers: Any = pd.to_numeric(present, errors="coerce")
    return bool(numbers.isna().any())


def _texts(column: "pd.Series") -> "pd.Series":
    """The values as strings; missing ones are ""."""
    values = column.astype(object)
    return values.map(str, na_action="ignore").where(column.notna(), "")


def _expanded(
    path: str, features: list[str], categories: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The names of the features that columns become."""
    names = []
    for name in features:
        names += [f"{name}={value}" for value in categories[name]] if name in categories else [name]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(
            f"{path}: features of the same name, of a column and of a value of a text column: "
            f"{listing(repeated)}."
        )
    return tuple(names)


def _one_hot(
    path: str, column: "pd.Series", values: tuple[str, ...], options: ReadOptions
) -> np.ndarray:
    """A text column as one-hot float32 [N, len(values)]; zeros for values that are not known."""
    import pandas as pd

    missing = column.isna().to_numpy()
    if missing.any() and options.missing == "error":
        raise InputError(
            f"{path}: feature {column.name!r} is missing in row {int(np.argmax(missing))} (the "
            f"first row is 0); {int(missing.sum())} of its values are. Fill them in, set "
            "data.missing='median' to make that a value of its own, or leave the column out with "
            "data.ignore."
        )
    texts = _texts(column)
    codes = pd.Index(values, dtype=object).get_indexer(pd.Index(texts, dtype=object))
    unknown = codes < 0
    if unknown.any():
        logging.warning(
            "%s: %d values of %r that training does not have are encoded as zeros: %s.",
            *(path, int(unknown.sum()), str(column.name)),
            listing(sorted(set(texts[unknown])), limit=5),
        )
    return (codes[:, None] == np.arange(len(values))).astype(np.float32)


def _numbers(
    path: str,
    frame: "pd.DataFrame",
    features: list[str],
    categories: Mapping[str, tuple[str, ...]],
    options: ReadOptions,
) -> np.ndarray:
    """The feature columns as float32 [N, F]; those of `categories` one-hot.

    Other text, and dates, are not numbers.
    """
    import pandas as pd

    widths = [len(categories.get(name, (name,))) for name in features]
    inputs = np.empty((len(frame), sum(widths)), np.float32)
    places = dict(zip(features, np.cumsum([0, *widths]).tolist(), strict=False))
    # One pass over the columns as they lie: to take some by name may cost their number squared.
    for name, column in frame.items():
        name = str(name)
        place = places.get(name)
        if place is None:
            continue
        if name in categories:
            one_hot = _one_hot(path, column, categories[name], options)
            inputs[:, place : place + one_hot.shape[1]] = one_hot
            continue
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "buif":
            values = column.to_numpy()
        elif pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(np.float64, na_value=np.nan)
        else:
            values = _parsed(path, name, column)
        with np.errstate(over="ignore"):  # an infinity is reported with its place
            inputs[:, place] = values.astype(np.float64, copy=False)
    return inputs


def _parsed(path: str, name: str, column: "pd.Series") -> np.ndarray:
    """A column of objects or strings as float64 [N]."""
    import pandas as pd

    numbers: Any = pd.Series(np.nan, column.index)
    if pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce")
    text = (numbers.isna() & column.notna()).to_numpy()
    if text.any():
        row = int(np.argmax(text))
        raise InputError(
            f"{path}: feature {name!r} is not a number: {str(column.iloc[row])[:60]!r} in row "
            f"{row} (the first row is 0). {TEXT} Encode it as numbers, or leave it out with "
            "data.ignore; data.categories=K makes text of at most K values one-hot."
        )
    return numbers.to_numpy(np.float64, na_value=np.nan)


def _binary(path: str, frame: "pd.DataFrame", names: list[str]) -> np.ndarray:
    """The label columns as multi-hot uint8 [N, C]."""
    values = frame[names].to_numpy(object)
    missing = frame[names].isna().to_numpy()
    if missing.any():
        row, column = np.argwhere(missing)[0]
        raise InputError(
            f"{path}: label {names[column]!r} is missing in row {row} (the first row is 0); "
            "labels must be 0 or 1."
        )
    try:
        return check_binary(path, values, names)
    except InputError as error:
        if len(names) > 1:
            raise
        raise InputError(
            f"{error} If one column names all labels of a row, data.label_separator is what "
            "stands between the names."
        ) from error
