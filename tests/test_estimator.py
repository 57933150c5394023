"""`SDClassifier`, as people who live in scikit-learn use it."""

import contextlib
import importlib
import os
import pickle
import signal
import unittest

import jax
import numpy as np
import pandas as pd
import pytest
from published_models import FOLDER
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import sdjax
from sdjax import SDClassifier, metrics
from sdjax.config import Config
from sdjax.configs.own_data import get_config
from sdjax.errors import InputError
from sdjax.training import load
from sdjax.training import run as run_module

NAMES = np.array(["apple", "bread", "cheese"])
# Fits of a tenth of a second once they are compiled.
OPTIONS = {"width": 16, "depth": 1, "epochs": 20, "batch_size": 32, "learning_rate": 0.02}
CONFIG = {"model.projection_dim": 4, "model.dropout": 0.0, "augment.feature_noise": 0.1}


def small(**changes):
    return SDClassifier(**{"random_state": 0, "config": CONFIG, **OPTIONS, **changes})


def make_rows(count, seed=0):
    """Rows whose labels are the signs of their first three numbers."""
    x = np.random.default_rng(seed).normal(size=(count, 4))
    return x, (x[:, :3] > 0).astype(int)


X, Y = make_rows(96)
NEW, TRUTH = make_rows(40, seed=1)
SETS = [set(NAMES[row == 1]) for row in Y]


@pytest.fixture(scope="module")
def fitted():
    return small().fit(X, Y)


def test_it_learns_and_has_what_scikit_learn_expects(fitted):
    probabilities = fitted.predict_proba(NEW)
    assert probabilities.shape == (40, 3)
    predicted = fitted.predict(NEW)
    np.testing.assert_array_equal(predicted, probabilities >= 0.5)
    np.testing.assert_array_equal(predicted, fitted.decision_function(NEW) >= 0)
    assert predicted.dtype == Y.dtype
    assert metrics.evaluate(TRUTH, probabilities)["mAP"] > 0.9
    assert fitted.score(NEW, TRUTH) == (predicted == TRUTH).all(axis=1).mean() > 0.5
    assert fitted.transform(NEW).shape == (40, 16)
    assert fitted.get_feature_names_out()[1] == "sdclassifier1"
    assert fitted.n_features_in_ == 4 and fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.config_.loss.name == "sd" and fitted.config_.recipe == "joint"


@pytest.mark.parametrize(
    ("y", "form"),
    [
        (Y.astype(bool), "same"),
        (sparse.csr_matrix(Y), "same"),
        (pd.DataFrame(Y, columns=NAMES), "same"),
        (SETS, "sets"),
        ([sorted(each) for each in SETS], "sets"),
    ],
)
def test_the_same_labels_in_another_form_give_the_same_model(fitted, y, form):
    model = small().fit(X, y)
    np.testing.assert_array_equal(model.predict_proba(NEW), fitted.predict_proba(NEW))
    predicted = model.predict(NEW)
    if form == "same":
        found = predicted.toarray() if sparse.issparse(predicted) else predicted
        truth = TRUTH
    else:
        found = np.array([[name in row for name in NAMES] for row in predicted])
        truth = [tuple(NAMES[row == 1]) for row in TRUTH]
    np.testing.assert_array_equal(found, fitted.predict(NEW))
    assert model.score(NEW, truth) == fitted.score(NEW, TRUTH)
    expected = [0, 1, 2] if form == "same" and not hasattr(y, "columns") else NAMES.tolist()
    assert model.classes_.tolist() == expected


def test_frames_and_sparse_inputs(fitted):
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = small().fit(frame, Y)
    assert model.feature_names_in_.tolist() == list("abcd")
    new = pd.DataFrame(NEW, columns=list("abcd"))
    np.testing.assert_array_equal(model.predict_proba(new), fitted.predict_proba(NEW))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(new[list("bacd")])
    for kind in (sparse.csr_matrix, sparse.coo_array):
        model = small().fit(kind(X), Y)
        assert model.predict_proba(kind(NEW)) == pytest.approx(model.predict_proba(NEW), abs=1e-6)
        assert model.predict_proba(NEW) == pytest.approx(fitted.predict_proba(NEW), abs=1e-3)
        assert model.transform(kind(NEW)).shape == (40, 16)


@pytest.mark.parametrize("loss", ["sd", "supcon"])
def test_classes(loss):
    classes = np.array(["x", "y", "z"])[np.argmax(X[:, :3], axis=1)]
    model = small(loss=loss).fit(X, classes)
    assert model.classes_.tolist() == ["x", "y", "z"]
    probabilities = model.predict_proba(NEW)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(model.predict(NEW), model.classes_[probabilities.argmax(axis=1)])
    assert model.score(NEW, np.array(["x", "y", "z"])[np.argmax(NEW[:, :3], axis=1)]) > 0.7


def test_neighbours_are_the_nearest_rows_of_fit(fitted):
    distances, rows = fitted.kneighbors(NEW, 4)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in map(fitted.transform, (NEW, X))]
    cosine = unit[0] @ unit[1].T
    np.testing.assert_allclose(distances, 1 - np.sort(cosine)[:, :-5:-1], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, rows, axis=1), 1 - distances, atol=1e-5)
    own = fitted.kneighbors(n_neighbors=3, return_distance=False)
    assert own.shape == (96, 3) and not (own == np.arange(96)[:, None]).any()


def test_copies_and_seeds(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(NEW), fitted.predict_proba(NEW))
    np.testing.assert_array_equal(again.kneighbors(NEW)[1], fitted.kneighbors(NEW)[1])
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params() and not hasattr(copied, "model_")
    same = copied.fit(X, Y).predict_proba(NEW)
    np.testing.assert_array_equal(same, fitted.predict_proba(NEW))
    other = copied.set_params(random_state=np.random.RandomState(1)).fit(X, Y).predict_proba(NEW)
    assert np.abs(other - same).max() > 1e-3


def test_fits_of_equal_shapes_are_compiled_once(fitted):
    events = []

    def note(name, seconds, **_):
        events.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    small(random_state=5).fit(X[::-1], 1 - Y).predict(NEW)
    assert not [name for name in events if "backend_compile" in name]
    jax.jit(lambda x: x + 41)(1)
    assert [name for name in events if "backend_compile" in name]
    jax.monitoring.unregister_event_duration_listener(note)


def test_searches_pipelines_and_scorers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = make_pipeline(StandardScaler(), small())
    grid = {"sdclassifier__random_state": [0, 1]}
    search = GridSearchCV(
        pipeline, grid, cv=2, scoring=["f1_micro", "average_precision"], refit="f1_micro"
    )
    search.fit(X, Y)
    assert search.best_score_ > 0.6
    assert (search.cv_results_["mean_test_average_precision"] > 0.8).all()
    assert search.predict(NEW).shape == (40, 3)
    assert (cross_val_score(small(), X, SETS, cv=KFold(2)) > 0.3).all()
    # Two labels are not two classes.
    assert (cross_val_score(small(), X, Y[:, :2], cv=2, scoring="roc_auc") > 0.8).all()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("thresholds", ["global", "per_label"])
def test_thresholds_are_tuned_on_rows_that_are_held_out(thresholds, monkeypatch):
    seen = {}
    for name in ("tune_threshold", "tune_thresholds"):
        tune = getattr(metrics, name)

        def noted(labels, scores, tune=tune, name=name):
            seen.update(labels=labels, scores=scores, by=name)
            return tune(labels, scores)

        monkeypatch.setattr(metrics, name, noted)
    model = small(thresholds=thresholds, validation_fraction=0.25).fit(X, Y)
    assert seen["by"] == ("tune_thresholds" if thresholds == "per_label" else "tune_threshold")
    assert 20 <= len(seen["labels"]) <= 28  # stratified
    expected = np.broadcast_to(getattr(metrics, seen["by"])(seen["labels"], seen["scores"]), 3)
    np.testing.assert_array_equal(model.thresholds_, expected)
    assert (model.thresholds_ != 0.5).any()
    np.testing.assert_array_equal(model.predict(NEW), model.predict_proba(NEW) >= expected)
    np.testing.assert_array_equal(model.predict(NEW), model.decision_function(NEW) >= 0)
    assert model.kneighbors(X[:1], 96)[1].shape == (1, 96)  # of all rows of fit


def test_texts(tmp_path):
    random = np.random.default_rng(0)
    words = np.array(["cat", "dog", "hat"])
    labels = random.random((48, 3)) < 0.5
    texts = [" ".join([*words[row], "the", "big"]) for row in labels]
    model = SDClassifier(encoder=str(FOLDER / "bert"), epochs=1, batch_size=16, random_state=0)
    model.fit(texts, [set(words[row]) for row in labels])
    column = pd.DataFrame({"text": texts})
    assert model.predict_proba(texts).shape == (48, 3)
    np.testing.assert_array_equal(model.transform(column), model.transform(texts))
    assert not hasattr(model, "n_features_in_")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(texts[:3]), model.predict(texts[:3]))
    assert model.kneighbors(texts[:2], 1)[1].shape == (2, 1)
    with pytest.raises(InputError, match="texts must be strings, got float at 1"):
        model.predict(["a", 1.0])
    with pytest.raises(InputError, match="with encoder=, X must be N texts, got ndarray of shape"):
        model.predict(X)


def test_a_workdir_holds_the_run_and_resumes_it(fitted, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    model = small(workdir=workdir).fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(NEW), fitted.predict_proba(NEW))
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= set(os.listdir(workdir))
    loaded = load(workdir)
    np.testing.assert_array_equal(loaded.predict_proba(NEW), fitted.predict_proba(NEW))
    with pytest.raises(InputError, match="its run was given its data as arrays"):
        loaded.neighbors(NEW)
    monkeypatch.setattr(run_module._Running, "train_phase", None)  # nothing is left to train
    again = small(workdir=str(workdir)).fit(X, Y)
    np.testing.assert_array_equal(again.predict_proba(NEW), fitted.predict_proba(NEW))
    with pytest.raises(InputError, match="holds a run on other data: changed since then: train"):
        small(workdir=workdir).fit(X[::-1], Y)


def test_ctrl_c_ends_the_call_alone(monkeypatch):
    finite_means = run_module.finite_means

    def and_signal(pending, step, phase):
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return finite_means(pending, step, phase)

    monkeypatch.setattr(run_module, "finite_means", and_signal)
    with pytest.raises(
        KeyboardInterrupt, match="Stopped by SIGINT after step 21; nothing is saved"
    ):
        small().fit(X, Y)


def test_a_config_in_place_of_the_defaults():
    config = Config(recipe="bce", batch_size=32)
    config.model.width, config.supervise.epochs = 8, 1
    made = SDClassifier(config=config, depth=1)._config("dense", seed=7)
    assert (made.recipe, made.model.width, made.supervise.epochs) == ("bce", 8, 1)
    assert made.model.depth == 1 and config.model.depth == 2
    assert (made.seed, made.data.name, made.data.train) == (7, "files", "")
    finetuned = small(recipe="finetune", epochs=1)._config("sparse", seed=7)
    assert (finetuned.pretrain.epochs, finetuned.supervise.epochs) == (1, 1)
    assert finetuned.pretrain.weight_decay == finetuned.supervise.weight_decay


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "sdd"}, "Unknown loss.name 'sdd'. Did you mean 'sd'"),
        ({"epochs": 2.5}, "supervise.epochs must be of type int, got 2.5"),
        ({"width": -1}, "model.width must be a whole number, at least 0, got -1"),
        ({"thresholds": "globl"}, "thresholds must be a number between 0 and 1, 'global' or 'per"),
        ({"thresholds": 1.5}, "thresholds must be .* got 1.5"),
        ({"config": {"model.widht": 3}}, "Unknown config field 'model.widht'. Did you mean"),
        ({"config": {"supervise.epochs": 3}}, "epochs= and config.'supervise.epochs'. exclude"),
        ({"config": {"seed": 3}}, "config: 'seed' is not for SDClassifier"),
        ({"config": "yeast"}, "config must be a sdjax.config.Config or a dict .* got str"),
        ({"config": get_config()}, "config.candidates is for .* GridSearchCV searches"),
        ({"encoder": "/nowhere/at all"}, "no such file or folder, and not an id of the hub"),
    ],
)
def test_what_cannot_be_used_is_named(changes, message):
    x = [str(row) for row in X] if "encoder" in changes else X
    with pytest.raises(InputError, match=message):
        small(**changes).fit(x, Y)


def test_rows_that_cannot_be_used():
    with pytest.raises(InputError, match="X is texts: name a published encoder"):
        small().fit(["some text", "another"], Y[:2])
    with pytest.raises(InputError, match="X is texts"):
        small().fit(pd.Series(["some text", "another"]), Y[:2])
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[96, 95\]"):
        small().fit(X, SETS[:-1])
    with pytest.raises(InputError, match="thresholds='global' is for label sets"):
        small(thresholds="global").fit(X, Y[:, 0])
    with pytest.raises(InputError, match="'supcon' needs exactly one label an example"):
        small(loss="supcon").fit(X, Y)
    with pytest.raises(InputError, match="input .* is inf in row 1"):
        small().fit(np.where(np.arange(96)[:, None] == 1, 1e300, X), Y)


def test_it_is_loaded_when_it_is_asked_for(monkeypatch):
    assert "SDClassifier" in dir(sdjax)
    with pytest.raises(AttributeError, match="module 'sdjax' has no attribute 'SDClasifier'"):
        sdjax.SDClasifier  # noqa: B018

    def without(name):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=r"needs the package sklearn: pip install 'sdjax\[train"):
        sdjax.SDClassifier  # noqa: B018


# Those that fit models compile some fifty programs.
FEW = {
    "check_estimator_cloneable",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_mixin_order",
    "check_valid_tag_types",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimators_unfitted",
    "check_requires_y_none",
    "check_classifiers_regression_target",
    "check_estimators_empty_data_messages",
    "check_estimators_nan_inf",
    "check_supervised_y_no_nan",
    "check_classifiers_multilabel_output_format_predict_proba",
}


def run_checks(names):
    options = {"width": 16, "depth": 1, "epochs": 20, "batch_size": 32}
    model = SDClassifier(**options, config={"model.projection_dim": 8})
    seen = set()
    for estimator, check in estimator_checks_generator(model):
        name = getattr(check, "func", check).__name__
        if names is None or name in names:
            with contextlib.suppress(unittest.SkipTest):  # such as of an array API that is off
                check(estimator)
                seen.add(name)
    return seen


def test_some_of_scikit_learns_checks():
    assert run_checks(FEW) == FEW


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_all_of_scikit_learns_checks():
    """None is excluded."""
    assert len(run_checks(None)) > 50
