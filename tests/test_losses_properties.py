"""What the mathematics promises of the losses, apart from their values."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sdjax

# With one label per example, all of these are SupCon.
REDUCE_TO_SUPCON = [name for name in cases.LOSS_NAMES if name not in ("supcon", "mulsupcon")]
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(cases.LABEL_KINDS)


def draw(kind, seed, rows=cases.BATCH):
    rng = np.random.default_rng(seed)
    return rng, jnp.asarray(cases.embeddings(rng, rows)), cases.label_matrix(kind, rng, rows)


def labels_of(name, matrix):
    return jnp.asarray(cases.class_ids(matrix) if name == "supcon" else matrix)


def similarities(z, temperature=0.07):
    unit = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    return unit @ unit.T / temperature


def log_softmax_over_others(s):
    return jax.nn.log_softmax(jnp.where(jnp.eye(len(s), dtype=bool), -jnp.inf, s), axis=1)


# --- where the weight stands ------------------------------------------------------------------


def weight_inside_each_log(z, labels, temperature=0.07):
    """-1/|P| sum_p log( w_ip e^{s_ip} / sum_a e^{s_ia} ): the form that METHOD rules out."""
    weight = sdjax.relations.similarity_dissimilarity(sdjax.relations.overlap(labels, labels))
    positive = (weight > 0) & ~jnp.eye(len(z), dtype=bool)
    log_q = log_softmax_over_others(similarities(z, temperature))
    log_w = jnp.log(jnp.where(positive, weight, 1)).astype(z.dtype)
    rows = -jnp.where(positive, log_w + log_q, 0).sum(axis=1)
    count = positive.sum(axis=1)
    rows = jnp.where(count > 0, rows / jnp.maximum(count, 1).astype(z.dtype), 0)
    return rows.sum() / jnp.maximum((count > 0).sum(), 1).astype(z.dtype)


@cases.jit
def inside_and_any(z, labels):
    losses = (weight_inside_each_log, sdjax.any_loss)
    return [jax.value_and_grad(loss)(z, labels) for loss in losses]


@given(seeds)
@settings(max_examples=10)
def test_inside_each_log_the_weight_leaves_the_gradient_of_any(seed):
    _, z, labels = draw("random", seed)
    (inside, gradient), (plain, plain_gradient) = inside_and_any(z, labels)
    np.testing.assert_allclose(gradient, plain_gradient, rtol=1e-8, atol=1e-10)
    assert inside >= plain  # by the constant mean of -log w


def test_the_weight_outside_the_log_changes_the_gradient():
    _, z, labels = draw("curated", 0)
    (_, inside), (_, plain) = inside_and_any(z, labels)
    np.testing.assert_allclose(inside, plain, rtol=1e-8, atol=1e-10)
    both = cases.jit(
        lambda z, form: [
            jax.grad(f)(z, labels, form=form) for f in (sdjax.sd_loss, sdjax.any_loss)
        ],
        static_argnums=1,
    )
    for form in cases.FORMS:
        weighted, unweighted = both(z, form)
        assert np.abs(weighted - unweighted).max() > 1e-2
        # Not even a multiple of it.
        cosine = np.vdot(weighted, plain) / np.linalg.norm(weighted) / np.linalg.norm(plain)
        assert abs(cosine) < 0.999


# --- one label per example --------------------------------------------------------------------


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", REDUCE_TO_SUPCON)
def test_one_label_each_is_supcon(name, form):
    for seed in range(4):
        _, z, labels = draw("one_hot", seed)
        ids = labels.argmax(axis=1)
        for reduction in cases.REDUCTIONS:
            actual = sdjax.LOSSES[name](z, labels, form=form, reduction=reduction)
            expected = sdjax.supcon_loss(z, ids, form=form, reduction=reduction)
            np.testing.assert_allclose(actual, expected, rtol=1e-12, err_msg=reduction)


@pytest.mark.parametrize("form", cases.FORMS)
def test_mulsupcon_with_one_label_each_is_supcon(form):
    for seed in range(4):
        _, z, labels = draw("one_hot", seed)
        ids = labels.argmax(axis=1)
        rows = sdjax.supcon_loss(z, ids, form=form, reduction="none")
        for normalizer in ("labels", "batch_labels"):
            actual = sdjax.mulsupcon_loss(
                z, labels, form=form, normalizer=normalizer, reduction="none"
            )
            np.testing.assert_allclose(actual, rows, rtol=1e-12, err_msg=normalizer)
        actual = sdjax.mulsupcon_loss(z, labels, form=form, normalizer="labels")
        np.testing.assert_allclose(actual, sdjax.supcon_loss(z, ids, form=form), rtol=1e-12)
        # The published denominator counts anchors without a positive too.
        actual = sdjax.mulsupcon_loss(z, labels, form=form)
        np.testing.assert_allclose(actual, rows.mean(), rtol=1e-12)


@pytest.mark.parametrize("form", cases.FORMS)
@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_two_views_of_distinct_examples_are_softmax_cross_entropy(name, form):
    """NT-Xent: 2n rows, the other view of the same example is the one positive."""
    n = cases.BATCH // 2
    z = jnp.asarray(cases.embeddings(np.random.default_rng(0), 2 * n))
    ids = jnp.tile(jnp.arange(n), 2)
    labels = ids if name == "supcon" else jax.nn.one_hot(ids, n)

    def cross_entropy(z):
        log_q = log_softmax_over_others(similarities(z))
        target = jnp.roll(jnp.arange(2 * n), n)
        return -jnp.take_along_axis(log_q, target[:, None], axis=1).mean()

    expected, expected_gradient = jax.value_and_grad(cross_entropy)(z)
    loss, gradient = jax.value_and_grad(sdjax.LOSSES[name])(z, labels, form=form)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_one_positive_among_explicit_candidates_is_info_nce(name):
    n = cases.BATCH
    rng = np.random.default_rng(1)
    z, keys = (jnp.asarray(cases.embeddings(rng, n)) for _ in range(2))
    ids = jnp.arange(n)
    labels = ids if name == "supcon" else jax.nn.one_hot(ids, n)
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (z, keys)]
    expected = -jnp.diag(jax.nn.log_softmax(unit[0] @ unit[1].T / 0.07, axis=1)).mean()
    loss = sdjax.LOSSES[name](z, labels, keys, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_a_weight_of_one_everywhere_is_any():
    _, z, labels = draw("curated", 0)
    own = sdjax.contrastive_loss(
        z, labels, weight=lambda o: jnp.where(o.shared > 0, jnp.ones_like(o.shared), 0)
    )
    np.testing.assert_allclose(own, sdjax.any_loss(z, labels), rtol=1e-12)


@pytest.mark.parametrize("form", cases.FORMS)
def test_a_constant_factor_on_the_weight(form):
    """It scales L_out, shifts L_in by its negative logarithm, and drops out of "weights"."""
    _, z, labels = draw("curated", 0)

    def rows(factor, normalizer):
        return sdjax.contrastive_loss(
            z,
            labels,
            weight=lambda o: factor * sdjax.relations.soft_jaccard(o),
            normalizer=normalizer,
            form=form,
            reduction="none",
        )

    once, thrice = rows(1, "positives"), rows(3, "positives")
    expected = 3 * once if form == "out" else jnp.where(once != 0, once - jnp.log(3), 0)
    np.testing.assert_allclose(thrice, expected, rtol=1e-10)
    np.testing.assert_allclose(rows(3, "weights"), rows(1, "weights"), rtol=1e-10)


# --- permutations and padding -----------------------------------------------------------------


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@given(kinds, seeds)
@settings(max_examples=5)
def test_permuting_rows(name, kind, seed):
    rng, z, matrix = draw(kind, seed)
    order = rng.permutation(cases.BATCH)
    loss = sdjax.LOSSES[name]
    rows = loss(z, labels_of(name, matrix), reduction="none")
    permuted = loss(z[order], labels_of(name, matrix[order]), reduction="none")
    np.testing.assert_allclose(permuted, rows[order], rtol=1e-10, atol=1e-12)
    mean = loss(z, labels_of(name, matrix))
    permuted = loss(z[order], labels_of(name, matrix[order]))
    np.testing.assert_allclose(permuted, mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@given(kinds, seeds)
@settings(max_examples=5)
def test_permuting_candidates_and_labels(name, kind, seed):
    rng, z, matrix = draw(kind, seed)
    queue, queue_matrix = jnp.asarray(cases.embeddings(rng)), matrix[rng.permutation(len(matrix))]
    rows, columns = rng.permutation(cases.BATCH), rng.permutation(cases.CLASSES)
    loss = sdjax.LOSSES[name]
    expected = loss(z, labels_of(name, matrix), queue, labels_of(name, queue_matrix))
    actual = loss(
        z,
        labels_of(name, matrix[:, columns]),
        queue[rows],
        labels_of(name, queue_matrix[rows][:, columns]),
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in cases.LOSS_NAMES if name != "supcon"])
def test_labels_that_nobody_has_change_nothing(name):
    _, z, matrix = draw("some_empty", 0)
    wider = np.insert(matrix, [0, 2, cases.CLASSES], False, axis=1)
    loss = sdjax.LOSSES[name]
    np.testing.assert_allclose(loss(z, wider), loss(z, matrix), rtol=1e-12)


@functools.cache
def family(form):
    """(value, gradient, rows) of every loss, compiled together."""

    @cases.jit
    def run(z, matrix, ids, where=None):
        out = {}
        for name in cases.LOSS_NAMES:
            args = (z, ids if name == "supcon" else matrix)
            kwargs = dict(form=form, where=where)
            value, gradient = jax.value_and_grad(sdjax.LOSSES[name])(*args, **kwargs)
            out[name] = value, gradient, sdjax.LOSSES[name](*args, reduction="none", **kwargs)
        return out

    return run


@pytest.mark.parametrize("form", cases.FORMS)
def test_padding_rows_change_nothing(form):
    """A batch padded to a larger one, labels of the padding included, against the batch alone."""
    keep = np.array([True, False, True, True, False, True, True, False])
    for kind in ("curated", "some_empty", "disjoint"):
        _, z, matrix = draw(kind, 1)
        ids = cases.class_ids(matrix)
        alone = family(form)(z[keep], matrix[keep], ids[keep])
        padded = family(form)(z, matrix, ids, keep)
        for name in cases.LOSS_NAMES:
            (value, gradient, rows), expected = padded[name], alone[name]
            what = f"{kind} {name}"
            np.testing.assert_allclose(value, expected[0], rtol=1e-10, atol=1e-13, err_msg=what)
            np.testing.assert_allclose(gradient[keep], expected[1], rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(rows[keep], expected[2], rtol=1e-10, atol=1e-13)
            assert not np.any(gradient[~keep]) and not np.any(rows[~keep]), what


@pytest.mark.parametrize("name", ["sd", "mulsupcon", "soft_jaccard"])
def test_masked_candidates_change_nothing(name):
    rng, z, matrix = draw("curated", 2)
    queue, queue_matrix = jnp.asarray(cases.embeddings(rng)), matrix[::-1]
    keep = np.array([True, False, True, True, False, True, True, False])
    loss, labels = sdjax.LOSSES[name], labels_of(name, matrix)
    queue_labels = labels_of(name, queue_matrix)
    both = cases.jit(jax.value_and_grad(loss, argnums=(0, 2)))
    few = both(z, labels, queue[keep], queue_labels[keep])
    all_ = both(z, labels, queue, queue_labels, candidate_where=keep)
    np.testing.assert_allclose(all_[0], few[0], rtol=1e-10)
    np.testing.assert_allclose(all_[1][0], few[1][0], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(all_[1][1][keep], few[1][1], rtol=1e-8, atol=1e-12)
    assert np.all(all_[1][1][~keep] == 0)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_self_contrast_is_explicit_candidates_without_the_row_itself(name):
    _, z, matrix = draw("curated", 3)
    loss, labels = sdjax.LOSSES[name], labels_of(name, matrix)
    rows = loss(z, labels, reduction="none")
    for i in range(3):
        others = np.arange(cases.BATCH) != i
        alone = loss(z, labels, z, labels, candidate_where=others, reduction="none")
        np.testing.assert_allclose(alone[i], rows[i], rtol=1e-10)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_explicit_candidates_exclude_nothing(name):
    """The same rows given as candidates: an anchor with labels is its own positive."""
    _, z, matrix = draw("disjoint", 4)
    loss, labels = sdjax.LOSSES[name], labels_of(name, matrix)
    # Equal (empty) sets share a class, so only the rows that carry a label are compared.
    rows = loss(z, labels, z, labels, reduction="none")[: cases.CLASSES]
    expected = -jnp.diag(jax.nn.log_softmax(similarities(z), axis=1))[: cases.CLASSES]
    np.testing.assert_allclose(rows, expected, rtol=1e-10)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
def test_mean_is_over_anchors_with_a_positive(name):
    _, z, matrix = draw("curated", 5)
    loss, labels = sdjax.LOSSES[name], labels_of(name, matrix)
    rows = np.asarray(loss(z, labels, reduction="none"))
    weight = (rows != 0).astype(float)
    if name == "mulsupcon":
        weight = matrix.sum(axis=1)
    np.testing.assert_allclose(loss(z, labels), np.average(rows, weights=weight), rtol=1e-12)


@pytest.mark.parametrize("name", cases.LOSS_NAMES)
@pytest.mark.parametrize("form", cases.FORMS)
def test_scale_of_embeddings_does_not_matter_when_normalized(name, form):
    rng, z, matrix = draw("curated", 6)
    loss, labels = sdjax.LOSSES[name], labels_of(name, matrix)
    scaled = z * jnp.asarray(rng.uniform(1e-3, 1e3, (cases.BATCH, 1)))
    np.testing.assert_allclose(
        loss(scaled, labels, form=form), loss(z, labels, form=form), rtol=1e-10
    )
    unit = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(
        loss(unit, labels, form=form, normalize=False), loss(z, labels, form=form), rtol=1e-10
    )
    gradient = jax.grad(loss)(z, labels, form=form)
    np.testing.assert_allclose(jnp.sum(gradient * z, axis=1), 0, atol=1e-10)


def test_similar_positives_lower_the_loss():
    """A step against the gradient does what the loss is for, for each member and form."""
    _, z, matrix = draw("curated", 7)
    for name in cases.LOSS_NAMES:
        for form in cases.FORMS:
            loss, labels = sdjax.LOSSES[name], labels_of(name, matrix)
            before, gradient = jax.value_and_grad(loss)(z, labels, form=form, temperature=0.5)
            after = loss(z - 0.05 * gradient, labels, form=form, temperature=0.5)
            assert after < before, f"{name} {form}"
