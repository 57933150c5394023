"""Lists of the admissions of each split, as those who publish splits of MIMIC hand them out."""

from pathlib import Path

from sdjax.data.examples import listing
from sdjax.data.readers.options import readable
from sdjax.errors import InputError

SPLITS = ("train", "validation", "test")
_CALLED = {"train": ("train",), "validation": ("dev", "val", "validation"), "test": ("test",)}
_TABLES = (".feather", ".parquet", ".csv")


def read_splits(path: Path, kind: str = "") -> dict[int, str]:
    """The split of each admission.

    Args:
      path: a folder with a file for each split, a number a line: train_KIND_hadm_ids.csv,
        dev_KIND_hadm_ids.csv (or val, validation) and test_KIND_hadm_ids.csv; or a table, .feather,
        .parquet or .csv, of two columns: _id or hadm_id, and split.
      kind: "full" or "50"; without it the files are called train_hadm_ids.csv and so on.

    Raises:
      InputError: if a file is missing or is of another form, or two splits share an admission.
    """
    lists = _of_folder(path, kind) if path.is_dir() else _of_table(path)
    found: dict[int, str] = {}
    for split, numbers in lists.items():
        shared = [str(each) for each in numbers if found.get(each, split) != split]
        if shared:
            raise InputError(
                f"{path}: {split} shares admissions with another split: {listing(shared, limit=5)}."
            )
        found |= dict.fromkeys(numbers, split)
    return found


def _of_folder(folder: Path, kind: str) -> dict[str, list[int]]:
    end = f"_{kind}_hadm_ids.csv" if kind else "_hadm_ids.csv"
    lists = {}
    for split, names in _CALLED.items():
        there = [folder / f"{name}{end}" for name in names if (folder / f"{name}{end}").exists()]
        if len(there) != 1:
            raise InputError(
                f"{folder}: one file of the split {split!r} is needed, "
                f"{' or '.join(f'{name}{end}' for name in names)}; there are {len(there)}."
            )
        lists[split] = _numbers(there[0])
    return lists


def _numbers(path: Path) -> list[int]:
    numbers = []
    for row, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        if not line.strip().isdigit():
            raise InputError(f"{path}: line {row} is no number of an admission: {line[:60]!r}.")
        numbers.append(int(line))
    return numbers


def _of_table(path: Path) -> dict[str, list[int]]:
    import pandas as pd

    if not path.exists() or path.suffix not in _TABLES:
        raise InputError(
            f"{path}: a folder of lists, or a table ({', '.join(_TABLES)}) of the columns _id and "
            "split, was expected."
        )
    with readable(str(path), path.suffix[1:]):
        read = {".feather": pd.read_feather, ".parquet": pd.read_parquet, ".csv": pd.read_csv}
        frame = read[path.suffix](path)
    key = next((name for name in ("_id", "hadm_id") if name in frame), None)
    if key is None or "split" not in frame:
        raise InputError(
            f"{path}: the columns _id (or hadm_id) and split are needed; columns: "
            f"{listing(list(map(str, frame.columns)))}."
        )
    lists = {}
    for split, names in _CALLED.items():
        lists[split] = frame[key][frame["split"].isin(names)].astype(int).tolist()
        if not lists[split]:
            raise InputError(f"{path}: no row of the split {split!r} ({' or '.join(names)}).")
    return lists
