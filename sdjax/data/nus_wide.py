"""NUS-WIDE as tables of images with their concepts, from your own copy.

    python -m sdjax.data.nus_wide --folder=NUS_WIDE --images=FLICKR --output=data/nus_wide

From the published lists, TrainImagelist.txt and TestImagelist.txt, and the truth of each concept,
Labels_CONCEPT_Train.txt and Labels_CONCEPT_Test.txt (of Groundtruth/TrainTestLabels), it writes
train.parquet and test.parquet with the columns image (a path seen from FLICKR) and labels, and
concepts.txt, which config nus_wide reads. Images that FLICKR lacks are left out, and counted.

References:
  Chua et al., NUS-WIDE: A Real-World Web Image Database from National University of Singapore, 2009
  (https://doi.org/10.1145/1646396.1646452).
"""

import os
from pathlib import Path

import numpy as np
from absl import app, flags

from sdjax import writing
from sdjax._src import stop
from sdjax.data.examples import listing
from sdjax.errors import InputError, check_no_words, ending_in_a_line

SPLITS = {"train": "Train", "test": "Test"}


def write(
    folder: Path, images: Path, output: Path, *, labelled_only: bool = False
) -> dict[str, int]:
    """Writes both splits into the folder `output`; returns how many of what there are.

    Args:
      folder: of the lists, or above them.
      images: the listed names are paths seen from it; or their last parts are, where all images lie
        in one folder.
      output: folder; it is made.
      labelled_only: leave images without a concept out, of both splits.

    Raises:
      InputError: if a list is missing, twice there or of another length, or no image is there.
    """
    lists = _lists(folder)
    names = _concepts(folder, lists)
    present = _present(images)
    sizes = {"concepts": len(names)}
    output.mkdir(parents=True, exist_ok=True)
    for split, suffix in SPLITS.items():
        # Published on Windows: "actor\0001_2124494179.jpg".
        listed = [line.replace("\\", "/") for line in _lines(lists[f"{suffix}Imagelist.txt"])]
        labels = np.stack(
            [_truth(lists[f"Labels_{name}_{suffix}.txt"], len(listed)) for name in names], axis=1
        )
        paths = [_found(name, present) for name in listed]
        there = np.array([path is not None for path in paths], bool)
        kept = there & labels.any(axis=1) if labelled_only else there
        if not kept.any():
            raise InputError(
                f"{images}: none of the {len(listed)} images of {split} is there, such as "
                f"{listed[0] if listed else ''}."
            )
        rows = np.flatnonzero(kept)
        _write(output / f"{split}.parquet", [str(paths[row]) for row in rows], labels[rows], names)
        sizes[f"{split} images"] = len(rows)
        sizes[f"{split} images that are not there"] = int((~there).sum())
        sizes[f"{split} images without a concept"] = int((there & ~labels.any(axis=1)).sum())
    (output / "concepts.txt").write_text("".join(f"{each}\n" for each in names), encoding="utf-8")
    return sizes


def _lists(folder: Path) -> dict[str, Path]:
    """The text files in `folder` or below, by name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.txt")):
        if path.name in found and path.name.endswith(("_Train.txt", "_Test.txt", "agelist.txt")):
            raise InputError(f"{path.name} is there twice: {found[path.name]} and {path}.")
        found[path.name] = path
    absent = [name for suffix in SPLITS.values() if (name := f"{suffix}Imagelist.txt") not in found]
    if absent:
        raise InputError(f"{folder}: no {' and no '.join(absent)} there, or below.")
    return found


def _concepts(folder: Path, lists: dict[str, Path]) -> list[str]:
    """The concepts, sorted; each has its truth for both splits."""
    known = {
        suffix: {
            name.removeprefix("Labels_").removesuffix(f"_{suffix}.txt")
            for name in lists
            if name.startswith("Labels_") and name.endswith(f"_{suffix}.txt")
        }
        for suffix in SPLITS.values()
    }
    train, test = known.values()
    if not train or train != test:
        raise InputError(
            f"{folder}: Labels_CONCEPT_Train.txt and Labels_CONCEPT_Test.txt are expected for each "
            f"concept; there are {len(train)} and {len(test)}, of one split alone: "
            f"{listing(sorted(train ^ test))}."
        )
    return sorted(train)


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in map(str.strip, lines) if line]


def _truth(path: Path, count: int) -> np.ndarray:
    """Whether each of `count` images has the concept, bool."""
    lines = _lines(path)
    if len(lines) != count or not {*lines} <= {"0", "1"}:
        raise InputError(
            f"{path}: {count} lines of 0 or 1 were expected, as many as images are listed; got "
            f"{len(lines)}, such as {lines[0] if lines else ''!r}."
        )
    return np.array(lines) == "1"


def _present(images: Path) -> set[str]:
    """The paths of all files under `images`, seen from there."""
    if not images.is_dir():
        raise InputError(f"{images}: no such folder.")
    return {
        os.path.relpath(os.path.join(folder, name), images).replace(os.sep, "/")
        for folder, _, names in os.walk(images)
        for name in names
    }


def _found(name: str, present: set[str]) -> str | None:
    last = name.rpartition("/")[2]
    return next((path for path in (name, last) if path in present), None)


def _write(path: Path, images: list[str], labels: np.ndarray, names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    concepts = [[names[place] for place in np.flatnonzero(row)] for row in labels]
    columns = {"image": pa.array(images), "labels": pa.array(concepts, pa.list_(pa.string()))}
    pq.write_table(pa.table(columns), path, compression="zstd")


def main(argv: list[str]) -> None:
    check_no_words(argv)
    given = flags.FLAGS
    with ending_in_a_line():
        sizes = write(
            Path(given.folder),
            Path(given.images),
            Path(given.output),
            labelled_only=given.labelled_only,
        )
    writing.tell(sizes, given.output)


if __name__ == "__main__":
    stop.with_a_line()
    flags.DEFINE_string("folder", None, "Folder of the published lists.", required=True)
    flags.DEFINE_string("images", None, "Folder of the images.", required=True)
    flags.DEFINE_string("output", None, "Folder to write into.", required=True)
    flags.DEFINE_bool("labelled_only", False, "Leave images without a concept out.")
    app.run(main)
