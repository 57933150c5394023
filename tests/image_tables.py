"""Small pictures in a folder, and tables that name them with their labels."""

import csv

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue")


def write_images(folder, count, seed, side=16, suffix=".png"):
    """Pictures that have a bright stripe of each colour they are labelled with, and their table."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    labels = (random.random((count, 3)) < 0.5).astype(int)
    names = [f"{seed}_{row}{suffix}" for row in range(count)]
    for name, there in zip(names, labels):
        pixels = random.integers(0, 60, (side, side + 4, 3)).astype(np.uint8)
        for channel in np.flatnonzero(there):
            start = random.integers(0, side - 4)
            pixels[start : start + 5, :, channel] = 255
        Image.fromarray(pixels).save(folder / name)
    return names, labels


def write_table(path, names, labels, column="image", extra=()):
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([column, *COLOURS, *extra])
        rows.writerows([name, *row, *extra] for name, row in zip(names, labels))
