"""Seconds of a search for the ten nearest rows, by the size of the gallery.

    python benchmarks/neighbors.py

Random float32 embeddings of 256 numbers, 100 queries at once, the least of three calls: as
`Gallery.neighbors` searches, by scikit-learn, and beside it faiss, also exact, where it is there.
"""

import importlib.util
import time

import numpy as np

from sdjax.training import Gallery

WIDTH, QUERIES, K = 256, 100, 10
ROWS = (1_000, 10_000, 100_000, 1_000_000)


def seconds(function):
    """(result, least time of three calls)."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def main():
    random = np.random.default_rng(0)
    queries = unit(random.standard_normal((QUERIES, WIDTH), np.float32))
    for rows in ROWS:
        z = unit(random.standard_normal((rows, WIDTH), np.float32))
        gallery = Gallery(z, np.arange(rows))
        exact, spent = seconds(lambda gallery=gallery: gallery.neighbors(queries, K).rows)
        text = f"{rows:>9,} rows: scikit-learn {spent:.3f} s"
        if importlib.util.find_spec("faiss"):
            import faiss

            index = faiss.IndexFlatIP(WIDTH)
            index.add(z)
            (_, found), spent = seconds(lambda index=index: index.search(queries, K))
            text += f", faiss {spent:.3f} s, {(found == exact).mean():.1%} of them the same rows"
        print(text, flush=True)


if __name__ == "__main__":
    main()
