"""Retrieval metrics: how well the neighbours of an embedding share the labels of a query.

Conventions, the same in every function here:

  * Similarity is the cosine. Of equal similarities the earlier row of the gallery comes first.
  * Without a gallery the queries are their own, and no query is a neighbour of itself.
  * A query without labels is left out of every mean, and counted; one whose labels no row of the
    gallery shares has no ideal ranking, and is left out of nDCG and WAP.
  * A metric that nothing is left to define is None, never NaN.

Similarities and gains are computed for a block of queries at a time: memory grows with the
gallery, not with queries times gallery.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special

from sdjax import label_sets, metrics
from sdjax import labels as labels_lib
from sdjax.errors import InputError
from sdjax.label_sets import LabelSets
from sdjax.labels import LabelIndices

BLOCK_SIZE = 1 << 24  # pairs at a time: 64 MB of float32, some of them at once
UNIFORMITY_ROWS = 4096  # evenly spaced, beyond which pairs are no longer counted in full
RELATIONS = (1, 2, 3, 4, 5)
PENALTIES = tuple(10.0**power for power in range(-1, 6))  # of a linear probe

Floats = NDArray[np.floating]
Places = NDArray[np.integer]


def neighbors(
    queries: ArrayLike, gallery: ArrayLike | None = None, *, k: int
) -> tuple[Places, Floats]:
    """The k nearest rows of the gallery, by the cosine.

    Args:
      queries: [Q, D].
      gallery: [G, D]; None is the queries, each without itself.
      k: at most as many as there are.

    Returns:
      places: int64 [Q, k], rows of the gallery, the nearest first.
      similarities: float32 [Q, k].

    Raises:
      InputError: if a shape or a value is not as above.
    """
    z, g, own = _check_embeddings(queries, gallery)
    _check_k("k", k, len(g) - own)
    found = [_nearest(similarity, k) for _, similarity in _similarities(z, g, own)]
    places, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return places, values


def evaluate(
    queries: ArrayLike,
    query_labels: ArrayLike | LabelIndices,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | LabelIndices | None = None,
    *,
    k: int = 50,
    few: int = 10,
) -> dict[str, Any]:
    """All retrieval metrics, as a dict that `json.dumps` takes.

    With S the labels of a query, T_i those of its i-th neighbour, r_i = |S ∩ T_i| and the Jaccard
    gain g_i = |S ∩ T_i| / |S ∪ T_i|:

      nDCG@k = Σ_{i≤k} g_i / log2(1 + i), over the same sum of the k largest gains of the gallery
      ACG@k  = Σ_{i≤k} r_i / k
      WAP@k  = Σ_{i≤k} 1[r_i > 0] ACG@i, over the number of i ≤ k with r_i > 0

    Args:
      queries: [Q, D].
      query_labels: multi-hot [Q, C], or `LabelIndices` over C labels.
      gallery: [G, D]; None is the queries, each without itself.
      gallery_labels: likewise [G, C]; of the gallery.
      k: neighbours in a ranking; at most as many as there are.
      few: neighbours that a person would look at, and that vote; likewise.

    Returns:
      Metrics, each a float, or None where it is undefined, with the numbers in their names those
      of `k` and `few`:
        ndcg_at_50: with the Jaccard gain; ndcg_shared_at_50: with |S ∩ T|.
        acg_at_50, wap_at_50: as above.
        precision_at_10: share of the neighbours that share a label.
        exact_at_10: share of the neighbours that have just the labels of the query.
        knn_mAP, knn_micro_f1: of the share of the 10 neighbours with a label, as its score.
        uniformity: log of the mean of exp(-2 ‖x - y‖²) over pairs of queries of unit length.
      "alignment": mean ‖x - y‖² of query and gallery, by relation "R1" to "R5" (METHOD names).
      "counts": dict of int: queries, queries_without_label, gallery.

    Raises:
      InputError: if a shape or a value is not as above.

    References:
      Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002 (nDCG, CG).
      Zhao et al., Deep semantic ranking based hashing for multi-label image retrieval, CVPR 2015
      (ACG, WAP).
      Wang and Isola, Understanding contrastive representation learning through alignment and
      uniformity on the hypersphere, ICML 2020.
    """
    z, g, own = _check_embeddings(queries, gallery)
    if (gallery is None) != (gallery_labels is None):
        raise InputError("gallery and gallery_labels must be given together, or neither.")
    labels = _check_labels("query_labels", query_labels, len(z))
    others = labels if own else _check_labels("gallery_labels", gallery_labels, len(g))
    if label_sets.num_classes(labels) != label_sets.num_classes(others):
        raise InputError(
            f"query_labels and gallery_labels must be over the same labels, got "
            f"{label_sets.num_classes(labels)} and {label_sets.num_classes(others)}."
        )
    for name, number in (("k", k), ("few", few)):
        _check_k(name, number, len(g) - own)
    measures = _Measures(labels, others, k, few)
    for start, similarity in _similarities(z, g, own):
        measures.add(start, similarity, own)
    return {**measures.means(), "uniformity": _uniformity(z)}


def linear_probe(
    queries: ArrayLike,
    query_labels: ArrayLike | LabelIndices,
    gallery: ArrayLike,
    gallery_labels: ArrayLike | LabelIndices,
) -> float | None:
    """mAP on the queries of a linear classifier that is fitted on the gallery.

    It is ridge regression on the labels as 0 and 1, of standardised embeddings; the strength of its
    penalty is chosen by leave-one-out errors on the gallery.

    Args:
      queries: [Q, D].
      query_labels: multi-hot [Q, C], or `LabelIndices` over C labels.
      gallery: [G, D], at least two rows.
      gallery_labels: likewise [G, C].

    Returns:
      The mAP, or None where no query has a label that others lack.

    Raises:
      InputError: if a shape or a value is not as above.
    """
    z, g, own = _check_embeddings(queries, gallery)
    labels = _check_labels("query_labels", query_labels, len(z))
    others = _check_labels("gallery_labels", gallery_labels, len(g))
    if own or len(g) < 2:
        raise InputError("gallery must be two rows or more, other than the queries.")
    from sklearn.linear_model import RidgeCV  # takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES))
    model.fit(np.asarray(gallery, np.float64), _dense(_matrix(others)))
    scores = model.predict(np.asarray(queries, np.float64)).reshape(len(z), -1)
    # mAP only needs an order; the metrics want probabilities.
    return metrics.evaluate(labels, special.expit(scores), only=("mAP",))["mAP"]


class _Measures:
    """Sums over the queries that were seen, a block of them at a time."""

    def __init__(self, labels: LabelSets, others: LabelSets, k: int, few: int):
        self.labels, self.k, self.few = labels, k, few
        self.others = _matrix(others)
        self.sizes = label_sets.sizes(others).astype(np.float32)
        self.rows: dict[str, list[Floats]] = {}
        self.votes: list[Floats] = []
        self.distance, self.pairs = np.zeros(6), np.zeros(6, np.int64)

    def add(self, start: int, similarity: Floats, own: bool) -> None:
        """Takes the queries from `start` on, of which these are the similarities [B, G]."""
        stop = start + len(similarity)
        given = label_sets.take(self.labels, slice(start, stop))
        shared = _dense(_matrix(given) @ self.others.T)
        sizes = label_sets.sizes(given).astype(np.float32)
        if own:
            itself = np.arange(stop - start), np.arange(start, stop)
            shared[itself] = 0  # no neighbour, and no gain
        self._add_distances(similarity, shared, sizes)
        jaccard = shared / np.maximum(sizes[:, None] + self.sizes - shared, 1)
        places, _ = _nearest(similarity, max(self.k, self.few))
        found = np.take_along_axis(shared, places, axis=1)
        exact = (found == sizes[:, None]) & (found == self.sizes[places])
        ranks = 1 + np.arange(self.k)
        acg = np.cumsum(found[:, : self.k], axis=1) / ranks
        hits = found[:, : self.k] > 0
        few = slice(None, self.few)
        values = {
            f"ndcg_at_{self.k}": self._ndcg(jaccard, places),
            f"ndcg_shared_at_{self.k}": self._ndcg(shared, places),
            f"acg_at_{self.k}": acg[:, -1],
            f"wap_at_{self.k}": _ratio((acg * hits).sum(axis=1), hits.sum(axis=1)),
            f"precision_at_{self.few}": (found[:, few] > 0).mean(axis=1),
            f"exact_at_{self.few}": exact[:, few].mean(axis=1),
        }
        for name, each in values.items():
            self.rows.setdefault(name, []).append(np.where(sizes > 0, each, np.nan))
        self.votes.append(self._votes(places[:, few]))

    def _votes(self, places: Places) -> Floats:
        """Share of the neighbours [B, few] that have each label, [B, C]."""
        rows = np.repeat(np.arange(len(places)), self.few)
        weights = np.full(places.size, 1 / self.few, np.float32)
        shape = len(places), len(self.sizes)
        votes = sparse.csr_array((weights, (rows, places.ravel())), shape) @ self.others
        return np.minimum(_dense(votes), 1)  # rounding may end above

    def _ndcg(self, gains: Floats, places: Places) -> Floats:
        discounts = 1 / np.log2(2 + np.arange(self.k))
        number = gains.shape[1] - self.k
        ideal = -np.sort(-np.partition(gains, number, axis=1)[:, number:], axis=1)
        found = np.take_along_axis(gains, places[:, : self.k], axis=1)
        return _ratio(found @ discounts, ideal @ discounts)

    def _add_distances(self, similarity: Floats, shared: Floats, sizes: Floats) -> None:
        """Sums of squared distances, by relation; a query itself is at -inf, and no pair."""
        first, second = sizes[:, None], self.sizes
        inside, holds = shared == first, shared == second
        code = np.select(
            [shared == 0, inside & holds, holds, inside], [1, 2, 4, 5], default=3
        ).ravel()
        pairs = np.isfinite(similarity).ravel()
        squares = np.where(pairs, 2 - 2 * similarity.ravel(), 0)
        self.distance += np.bincount(code, squares, 6)
        self.pairs += np.bincount(code[pairs], minlength=6)

    def means(self) -> dict[str, Any]:
        """The metrics of all queries that were added."""
        results: dict[str, Any] = {}
        for name, parts in self.rows.items():
            each = np.concatenate(parts).astype(np.float64)
            known = each[np.isfinite(each)]
            results[name] = float(known.mean()) if len(known) else None
        votes = np.concatenate(self.votes)
        found = metrics.evaluate(self.labels, votes, only=("mAP", "micro_f1"))
        results |= {f"knn_{name}": found[name] for name in ("mAP", "micro_f1")}
        results["alignment"] = {
            f"R{code}": float(self.distance[code] / self.pairs[code]) if self.pairs[code] else None
            for code in RELATIONS
        }
        sizes = label_sets.sizes(self.labels)
        results["counts"] = {
            "queries": len(sizes),
            "queries_without_label": int((sizes == 0).sum()),
            "gallery": len(self.sizes),
        }
        return results


def _matrix(labels: LabelSets) -> Any:
    """Multi-hot float32 [N, C]: sparse where the labels are lists."""
    if isinstance(labels, LabelIndices):
        return label_sets.to_csr(labels).astype(np.float32)
    return labels.astype(np.float32)


def _dense(matrix: Any) -> Floats:
    return matrix.toarray() if sparse.issparse(matrix) else matrix


def _similarities(z: Floats, g: Floats, own: bool) -> Iterator[tuple[int, Floats]]:
    """(first query, cosines [B, G]) of the blocks of queries; -inf of a query and itself."""
    size = max(1, BLOCK_SIZE // len(g))
    for start in range(0, len(z), size):
        block = z[start : start + size]
        similarity = block @ g.T
        if own:
            similarity[np.arange(len(block)), start + np.arange(len(block))] = -np.inf
        yield start, similarity


def _nearest(similarity: Floats, k: int) -> tuple[Places, Floats]:
    """Places and values of the k largest of each row, in falling order; the first of equal ones."""
    least = np.partition(similarity, similarity.shape[1] - k, axis=1)[:, -k]
    rows, places = np.nonzero(similarity >= least[:, None])
    values = similarity[rows, places]
    order = np.lexsort((places, -values, rows))
    starts = np.searchsorted(rows, np.arange(len(similarity)))
    chosen = order[starts[:, None] + np.arange(k)]
    return places[chosen], values[chosen]


def _uniformity(z: Floats) -> float | None:
    chosen = np.unique(np.linspace(0, len(z) - 1, min(len(z), UNIFORMITY_ROWS)).astype(int))
    if len(chosen) < 2:
        return None
    z = z[chosen]
    squares = (2 - 2 * z @ z.T)[np.triu_indices(len(z), 1)]
    return float(np.log(np.exp(-2 * squares.astype(np.float64)).mean()))


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where nothing is below."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


def _check_embeddings(queries: ArrayLike, gallery: ArrayLike | None) -> tuple[Floats, Floats, bool]:
    """Both of unit length, float32, and whether the gallery is the queries."""
    z = _unit("queries", queries)
    if gallery is None:
        return z, z, True
    g = _unit("gallery", gallery)
    if g.shape[1] != z.shape[1]:
        raise InputError(
            f"queries and gallery must have the same width, got {z.shape} and {g.shape}."
        )
    return z, g, False


def _unit(name: str, given: ArrayLike) -> Floats:
    z = np.asarray(given)
    if z.ndim != 2 or not len(z) or z.dtype.kind not in "fiu":
        raise InputError(f"{name} must be numbers [N, D], got {z.dtype} {z.shape}.")
    z = z.astype(np.float32)
    if not np.isfinite(z).all():
        row, column = np.argwhere(~np.isfinite(z))[0]
        raise InputError(f"{name} must be finite; row {row}, column {column} is not.")
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def _check_labels(name: str, given: Any, rows: int) -> LabelSets:
    labels: Any = given
    if isinstance(given, LabelIndices):
        labels = LabelIndices(np.asarray(given.indices), given.num_classes)
        shape = label_sets.num_rows(labels), labels.num_classes
    else:
        labels = np.asarray(given)
        shape = labels.shape
    if len(shape) != 2 or shape[0] != rows:
        raise InputError(f"{name} must be label sets of {rows} rows, [{rows}, C]; got {shape}.")
    labels_lib.check_labels(name, labels)
    return labels


def _check_k(name: str, k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise InputError(f"{name} must be 1 to {most}, the neighbours that there are, got {k}.")
