"""Retrieval metrics against their definitions, written as loops."""

import json

import numpy as np
import pytest
from sklearn.metrics import ndcg_score
from sklearn.neighbors import NearestNeighbors

from sdjax import LabelIndices, retrieval
from sdjax.metrics import evaluate as label_metrics


def make(seed, queries=23, gallery=41, classes=6, width=5):
    rng = np.random.default_rng(seed)
    sets = [rng.random((n, classes)) < 0.3 for n in (queries, gallery)]
    z = [rng.normal(size=(n, width)) for n in (queries, gallery)]
    return z[0], sets[0], z[1], sets[1]


def expected(queries, labels, gallery, others, k, few):
    """The definitions, a query at a time."""
    own = gallery is None
    gallery, others = (queries, labels) if own else (gallery, others)

    def unit(x):
        return x / np.linalg.norm(x)

    values, votes, distances = {}, [], {code: [] for code in range(1, 6)}
    for q, (x, s) in enumerate(zip(queries, labels)):
        s = set(np.flatnonzero(s))
        rows = [i for i in range(len(gallery)) if not (own and i == q)]
        sets = {i: set(np.flatnonzero(others[i])) for i in rows}
        cosine = {i: unit(x) @ unit(gallery[i]) for i in rows}
        for i in rows:
            t = sets[i]
            code = 1 if not s & t else 2 if s == t else 4 if t < s else 5 if s < t else 3
            distances[code].append(np.sum((unit(x) - unit(gallery[i])) ** 2))
        order = sorted(rows, key=lambda i: -cosine[i])
        votes.append(np.mean([others[i] for i in order[:few]], axis=0))
        if not s:
            continue
        shared = {i: len(s & sets[i]) for i in rows}
        jaccard = {i: len(s & sets[i]) / len(s | sets[i]) for i in rows}
        for name, gain in (("ndcg", jaccard), ("ndcg_shared", shared)):
            dcg = sum(gain[i] / np.log2(2 + n) for n, i in enumerate(order[:k]))
            best = sorted(gain.values(), reverse=True)[:k]
            ideal = sum(each / np.log2(2 + n) for n, each in enumerate(best))
            if ideal:
                values.setdefault(f"{name}_at_{k}", []).append(dcg / ideal)
        acg = [np.mean([shared[i] for i in order[: n + 1]]) for n in range(k)]
        values.setdefault(f"acg_at_{k}", []).append(acg[-1])
        hits = [acg[n] for n, i in enumerate(order[:k]) if shared[i]]
        if hits:
            values.setdefault(f"wap_at_{k}", []).append(np.mean(hits))
        near = order[:few]
        values.setdefault(f"precision_at_{few}", []).append(np.mean([shared[i] > 0 for i in near]))
        values.setdefault(f"exact_at_{few}", []).append(np.mean([sets[i] == s for i in near]))
    results = {name: np.mean(each) for name, each in values.items()}
    knn = label_metrics(labels, np.array(votes), only=("mAP", "micro_f1"))
    results |= {f"knn_{name}": value for name, value in knn.items()}
    results["alignment"] = {
        f"R{code}": np.mean(each) if each else None for code, each in distances.items()
    }
    pairs = [
        np.exp(-2 * np.sum((unit(a) - unit(b)) ** 2))
        for i, a in enumerate(queries)
        for b in queries[:i]
    ]
    return results | {"uniformity": np.log(np.mean(pairs))}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("block", [retrieval.BLOCK_SIZE, 90])
def test_all_metrics_are_their_definitions(own, listed, block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_SIZE", block)
    for seed in range(3):
        z, labels, g, others = make(seed)
        assert not labels.any(axis=1).all()
        if own:
            g = others = None
        given = [labels, others]
        if listed:
            given = [x if x is None else LabelIndices.from_multi_hot(x) for x in given]
        found = retrieval.evaluate(z, given[0], g, given[1], k=12, few=4)
        counts = found.pop("counts")
        assert counts["queries_without_label"] == (~labels.any(axis=1)).sum()
        assert (counts["queries"], counts["gallery"]) == (23, 23 if own else 41)
        json.dumps(found)
        wanted = expected(z, labels, g, others, 12, 4)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_ndcg_is_that_of_scikit_learn():
    z, labels, g, others = make(5)
    kept = labels.any(axis=1)
    z, labels = z[kept], labels[kept]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, g)]
    shared = labels.astype(float) @ others.T
    expected = ndcg_score(shared, unit[0] @ unit[1].T, k=7)
    found = retrieval.evaluate(z, labels, g, others, k=7, few=3)["ndcg_shared_at_7"]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("block", [retrieval.BLOCK_SIZE, 50])
def test_neighbors_are_those_of_scikit_learn(block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK_SIZE", block)
    z, _, g, _ = make(1)
    places, similarities = retrieval.neighbors(z, g, k=9)
    distances, wanted = NearestNeighbors(n_neighbors=9, metric="cosine").fit(g).kneighbors(z)
    np.testing.assert_array_equal(places, wanted)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)
    own, _ = retrieval.neighbors(z, k=5)
    assert not (own == np.arange(len(z))[:, None]).any()


def test_of_equal_similarities_the_first_comes_first():
    z = np.ones((3, 2))
    places, _ = retrieval.neighbors(z, np.ones((9, 2)), k=4)
    assert places.tolist() == [[0, 1, 2, 3]] * 3
    own, _ = retrieval.neighbors(z, k=2)
    assert own.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_votes_of_all_are_no_more_than_1():
    for few in range(1, 12):
        retrieval.evaluate(np.eye(12), np.ones((12, 1), bool), k=1, few=few)


def test_perfect_and_undefined():
    labels = np.repeat(np.eye(3, dtype=bool), 4, axis=0)
    found = retrieval.evaluate(labels.astype(float), labels, k=3, few=3)
    for name in ("ndcg_at_3", "wap_at_3", "precision_at_3", "exact_at_3", "knn_mAP"):
        assert found[name] == pytest.approx(1), name
    assert found["alignment"]["R2"] == pytest.approx(0, abs=1e-6)
    assert found["alignment"]["R3"] is None
    none = retrieval.evaluate(np.eye(3), np.zeros((3, 2), bool), k=1, few=1)
    assert none["ndcg_at_1"] is None and none["exact_at_1"] is None
    apart = retrieval.evaluate(
        np.eye(2), np.array([[1, 0], [1, 0]]), np.eye(2), np.array([[0, 1], [0, 0]]), k=1, few=1
    )
    assert apart["ndcg_at_1"] is None and apart["precision_at_1"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.ones(3)}, r"queries must be numbers \[N, D\], got float64 \(3,\)"),
        ({"queries": np.full((23, 5), np.nan)}, "queries must be finite; row 0, column 0"),
        ({"gallery": np.ones((41, 4))}, r"same width, got \(23, 5\) and \(41, 4\)"),
        ({"gallery": None}, "gallery and gallery_labels must be given together"),
        ({"query_labels": np.ones((3, 6))}, r"query_labels must be label sets of 23 rows"),
        ({"gallery_labels": np.ones((41, 7))}, "over the same labels, got 6 and 7"),
        ({"gallery_labels": np.full((41, 6), 2)}, "gallery_labels"),
        ({"k": 42}, "k must be 1 to 41, the neighbours that there are, got 42"),
        ({"few": 0}, "few must be 1 to 41"),
    ],
)
def test_errors(change, message):
    names = ("queries", "query_labels", "gallery", "gallery_labels")
    given = dict(zip(names, make(0)))
    with pytest.raises(ValueError, match=message):
        retrieval.evaluate(**{**given, "k": 5, "few": 5, **change})


def test_a_linear_probe_is_ridge_regression():
    queries, labels, gallery, others = make(3)
    mean, scale = gallery.mean(axis=0), gallery.std(axis=0)
    x, new = ((each - mean) / scale for each in (gallery, queries))
    y = others.astype(float)

    def fitted(rows, penalty):
        mean_x, mean_y = x[rows].mean(axis=0), y[rows].mean(axis=0)
        a, b = x[rows] - mean_x, y[rows] - mean_y
        weights = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ b)
        return lambda inputs: (inputs - mean_x) @ weights + mean_y

    def left_out(penalty):
        rows = np.arange(len(x))
        return sum(
            np.sum((fitted(rows != row, penalty)(x[row : row + 1]) - y[row]) ** 2) for row in rows
        )

    best = min(retrieval.PENALTIES, key=left_out)
    scores = fitted(np.full(len(x), True), best)(new)
    expected = label_metrics(labels, 1 / (1 + np.exp(-scores)), only=("mAP",))["mAP"]
    found = retrieval.linear_probe(queries, labels, gallery, others)
    assert found == pytest.approx(expected, rel=1e-9)
    lists = [LabelIndices.from_multi_hot(each) for each in (labels, others)]
    assert retrieval.linear_probe(queries, lists[0], gallery, lists[1]) == found
    with pytest.raises(ValueError, match="gallery must be two rows or more"):
        retrieval.linear_probe(queries, labels, gallery[:1], others[:1])
