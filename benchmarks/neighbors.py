"""Seconds of a search for the ten nearest rows, by the size of the gallery.

    python benchmarks/neighbors.py

Random float32 embeddings of 256 numbers, 100 queries at once; scikit-learn's exact search, as
`Gallery.neighbors` does it, and beside it faiss and usearch where they are installed, exact (flat)
and by a graph (HNSW, whose building is timed too; recall is of its ten nearest).
"""

import importlib.util
import time

import numpy as np

from sdjax.training import Gallery

WIDTH, QUERIES, K = 256, 100, 10
ROWS = (10_000, 100_000, 1_000_000)
GRAPH_ROWS = 100_000  # most of them in a graph, which takes minutes to build


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


def recall(found, wanted):
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(found, wanted, strict=True)])


def main():
    random = np.random.default_rng(0)
    queries = unit(random.normal(size=(QUERIES, WIDTH)).astype(np.float32))
    for rows in ROWS:
        z = random.standard_normal((rows, WIDTH), np.float32)
        z = unit(z)
        gallery = Gallery(z, np.arange(rows))
        exact, spent = seconds(lambda gallery=gallery: gallery.neighbors(queries, K).rows)
        print(f"{rows:>9,} rows: scikit-learn {spent:.3f} s", flush=True)
        if importlib.util.find_spec("faiss"):
            import faiss

            index = faiss.IndexFlatIP(WIDTH)
            index.add(z)
            (_, found), spent = seconds(lambda index=index: index.search(queries, K))
            print(f"{'':>14} faiss flat {spent:.3f} s, recall {recall(found, exact):.3f}")
        if importlib.util.find_spec("usearch") and rows <= GRAPH_ROWS:
            from usearch.index import Index

            index = Index(ndim=WIDTH, metric="cos", dtype="f32")
            start = time.perf_counter()
            index.add(np.arange(rows), z)
            built = time.perf_counter() - start
            found, spent = seconds(lambda index=index: index.search(queries, K).keys)
            print(
                f"{'':>14} usearch HNSW {spent:.4f} s, built in {built:.1f} s, "
                f"recall {recall(found, exact):.3f}"
            )


if __name__ == "__main__":
    main()
