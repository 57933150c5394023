"""Tables whose columns are features and labels: Parquet, and what else becomes a frame."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sdjax.data.examples import Examples, check_binary, check_finite, listing
from sdjax.data.readers import label_lists
from sdjax.data.readers.options import ReadOptions, readable, select
from sdjax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

# A column of row names, or the index that pandas writes: never a feature.
ID_COLUMNS = ("id", "unnamed: 0")
TEXT = "Text needs an encoder of tokens, which is not there yet."


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
    ids = [name for name in frame.columns if name.lower() in ID_COLUMNS]
    named = _column_of_names(path, frame, options)
    label_names = [named] if named else label_columns(path, list(frame.columns), options)
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
    inputs = _numbers(path, frame, features)
    check_finite(path, inputs, features)
    labels = None
    if options.labelled and named:
        separator, cells = options.label_separator, frame[named]
        cells = cells.astype(object).where(cells.notna(), None)
        lists = [label_lists.split_cell(value, separator) for value in cells]
        labels, label_names = label_lists.from_names(path, lists, options)
    elif options.labelled:
        labels = _binary(path, frame, label_names)
    return Examples(
        origin=path,
        inputs=inputs,
        labels=labels,
        label_names=tuple(label_names) if options.labelled else (),
        feature_names=tuple(features),
        ids=tuple(map(str, frame[ids[0]])) if ids else None,
    )


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
    """`features` in the order of training."""
    expected = options.feature_names
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


def _numbers(path: str, frame: "pd.DataFrame", features: list[str]) -> np.ndarray:
    """The feature columns as float32 [N, F]; text and dates are not numbers."""
    import pandas as pd

    inputs = np.empty((len(frame), len(features)), np.float32)
    places = {name: place for place, name in enumerate(features)}
    # One pass over the columns as they lie: to take some by name may cost their number squared.
    for name, column in frame.items():
        place = places.get(str(name))
        if place is None:
            continue
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "buif":
            values = column.to_numpy()
        elif pd.api.types.is_numeric_dtype(column):
            values = column.to_numpy(np.float64, na_value=np.nan)
        else:
            values = _parsed(path, str(name), column)
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
            "data.ignore."
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
