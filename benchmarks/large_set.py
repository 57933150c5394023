"""Peak memory of training on a file that is large beside it: made here, mapped, one epoch.

    python benchmarks/large_set.py                # 2,000,000 x 100 float32, 20 labels: 840 MB
    python benchmarks/large_set.py --rows=200000
    python benchmarks/large_set.py --rows=20000 --labels=20000 --labels_per_row=8 --recipe=joint

With --labels_per_row, labels are lists of indices.
Prints the largest resident set of the run, mapped pages of the file included.
"""

import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parents[1]
BLOCK = 20_000
ROWS = flags.DEFINE_integer("rows", 2_000_000, "Rows of the train file.")
FEATURES = flags.DEFINE_integer("features", 100, "Features of a row.")
LABELS = flags.DEFINE_integer("labels", 20, "Labels.")
LABELS_PER_ROW = flags.DEFINE_integer("labels_per_row", 0, "Of index lists; 0 is multi-hot.")
RECIPE = flags.DEFINE_string("recipe", "bce", "Of the run.")
FOLDER = flags.DEFINE_string("folder", None, "For the files, removed at the end; /tmp by default.")


def write(path: Path, rows: int) -> None:
    """An .npz file as `np.savez` writes it, a block at a time.

    This process stays small: its memory would count as that of the run, which is its child.
    """
    labels = ("y", LABELS.value, np.uint8)
    if LABELS_PER_ROW.value:
        labels = ("y", LABELS_PER_ROW.value, np.int32)
    arrays = (("x", FEATURES.value, np.float32), labels)
    directions = np.random.default_rng(0).normal(size=(LABELS.value, FEATURES.value))
    with zipfile.ZipFile(path, "w") as archive:
        for name, width, dtype in arrays:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, width)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, rows, BLOCK):
                    random = np.random.default_rng([rows, start])
                    count = min(BLOCK, rows - start)
                    y, x = _labels_and_centres(random, count, directions)
                    x += random.standard_normal((count, FEATURES.value))
                    file.write((x if name == "x" else y).astype(dtype).tobytes())
        if LABELS_PER_ROW.value:
            with archive.open("num_classes.npy", "w") as file:
                np.lib.format.write_array(file, np.array(LABELS.value))


def _labels_and_centres(
    random: np.random.Generator, count: int, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Label sets of `count` rows, and the sums of their labels' directions."""
    if not LABELS_PER_ROW.value:
        y = random.random((count, LABELS.value)) < 0.1
        return y, y @ directions
    # Few of many, as popular as their rank tells; what is drawn twice is left out.
    y = (LABELS.value * random.random((count, LABELS_PER_ROW.value)) ** 3).astype(np.int32)
    y.sort(axis=1)
    y[:, 1:][y[:, 1:] == y[:, :-1]] = -1
    return y, np.where(y[..., None] >= 0, directions[y], 0).sum(axis=1)


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory(dir=FOLDER.value) as temporary:
        folder = Path(temporary)
        write(folder / "train.npz", ROWS.value)
        write(folder / "test.npz", max(ROWS.value // 100, 100))
        command = [sys.executable, str(ROOT / "train.py")]
        command += [f"--config={ROOT / 'configs' / 'own_data.py'}", f"--workdir={folder / 'run'}"]
        fields = {
            "data.name": "files",
            "data.train": folder / "train.npz",
            "data.test": folder / "test.npz",
            "data.validation_fraction": 0.01,
            "recipe": RECIPE.value,
            "batch_size": min(4096, ROWS.value // 40),
            "model.width": 64,
            "supervise.epochs": 1,
        }
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        started = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - started
        megabytes = (folder / "train.npz").stat().st_size / 1e6
    # Linux counts in kB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
    print(f"file {megabytes:,.0f} MB, {seconds:.0f} s, largest resident set {peak:.2f} GB")


if __name__ == "__main__":
    app.run(main)
