"""Neighbours of a trained model, and `python -m sdjax.embed`."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sdjax import LabelIndices, retrieval
from sdjax.config import Config
from sdjax.embed import embed
from sdjax.errors import InputError
from sdjax.training import Gallery, load, make_setup, predictor, score, train

pytestmark = pytest.mark.usefixtures("two_devices")

LABELS = ("l0", "l1", "l2")


def write(path, seed, count, ids=True):
    random = np.random.default_rng(seed)
    labels = random.random((count, 3)) < 0.5
    x = labels @ np.random.default_rng(9).normal(size=(3, 4)) + 0.1 * random.normal(size=(count, 4))
    frame = pd.DataFrame(x, columns=list("abcd")).assign(**dict(zip(LABELS, labels.astype(int).T)))
    if ids:
        frame.insert(0, "id", [f"{path.stem}-{row}" for row in range(count)])
    frame.to_csv(path, index=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, folder of the files) of a run whose validation split is drawn from train."""
    folder = tmp_path_factory.mktemp("neighbours")
    write(folder / "train.csv", 0, 60)
    write(folder / "test.csv", 1, 30, ids=False)
    config = Config(recipe="joint", batch_size=16, log_every=50, evaluate_every=50)
    config.data.name, config.data.labels = "files", "l*"
    config.data.train, config.data.test = (str(folder / f"{x}.csv") for x in ("train", "test"))
    config.model.width, config.model.projection_dim, config.model.members = 8, 4, 2
    config.supervise.epochs = 4
    config.report.baselines, config.report.neighbors = False, 3
    setup = make_setup(config)
    score(setup, train(setup, folder / "run"), folder / "run")
    return folder / "run", folder


def read(path):
    frame = pd.read_csv(path)
    return frame[list("abcd")], frame[list(LABELS)].to_numpy(bool), frame.get("id")


@pytest.mark.parametrize("space", ["h", "z"])
def test_neighbours_are_the_nearest_training_rows(run, space, monkeypatch):
    workdir, folder = run
    model = load(workdir)
    x, labels, ids = read(folder / "train.csv")
    queries, _, _ = read(folder / "test.csv")
    found = model.neighbors(queries, 4, space=space)
    assert model.embed(queries, space).shape == (30, 2 * (8 if space == "h" else 4))
    rows = pd.Index(ids).get_indexer(model.gallery(space).ids)
    assert len(rows) == 48 and (rows >= 0).all()  # a fifth is validation
    places, cosines = retrieval.neighbors(
        model.embed(queries, space), model.embed(x.iloc[rows], space), k=4
    )
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-5)
    np.testing.assert_array_equal(found.ids[:, 0], ids.to_numpy(str)[rows[places[:, 0]]])
    for row, names in zip(rows[found.rows[5]], found.labels[5]):
        assert names == tuple(np.array(LABELS)[labels[row]])

    # Kept: another process reads neither the data nor embeds them.
    monkeypatch.setattr(predictor.workdir_lib, "read_split", None)
    again = load(workdir).neighbors(queries, 4, space=space)
    np.testing.assert_array_equal(again.ids, found.ids)
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.neighbors(queries, 4, space=space).ids, found.ids)


def test_a_kept_gallery_of_another_step_is_made_anew(run):
    workdir, _ = run
    model = load(workdir)
    gallery = model.gallery()
    stale = Gallery(gallery.embeddings[:3], gallery.ids[:3], space="h", step=model.step - 1)
    stale.write(workdir / "gallery_h.npz")
    assert len(load(workdir).gallery().ids) == 48
    assert len(Gallery.read(workdir / "gallery_h.npz").ids) == 48


def test_a_gallery_that_cannot_be_kept_is_used(run, caplog):
    workdir, _ = run
    gallery = load(workdir).gallery()
    gallery.keep(workdir / "nowhere" / "gallery_h.npz")
    assert "is not kept: No such file or directory" in caplog.text


def test_embed_writes_splits_and_files(run, tmp_path):
    workdir, folder = run
    model = load(workdir)
    x, labels, ids = read(folder / "train.csv")
    test = embed(workdir, output=tmp_path / "test.npz", split="test", space="z")
    again = Gallery.read(tmp_path / "test.npz")
    np.testing.assert_array_equal(again.embeddings, test.embeddings)
    assert (again.space, again.step, again.label_names) == ("z", model.step, LABELS)
    assert again.ids.tolist() == list(range(30))  # no column of ids
    np.testing.assert_array_equal(again.labels, read(folder / "test.csv")[1])

    embed(workdir, folder / "train.csv", output=tmp_path / "a" / "train.parquet", labels=True)
    frame = pd.read_parquet(tmp_path / "a" / "train.parquet")
    assert frame["id"].tolist() == ids.tolist()
    vectors = np.stack(frame["embedding"].tolist())
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model.embed(x), atol=1e-5)
    assert tuple(frame["labels"][3]) == tuple(np.array(LABELS)[labels[3]])

    # A gallery of one's own.
    own = embed(workdir, folder / "train.csv", output=tmp_path / "own.npz")
    assert own.labels is None
    found = model.neighbors(x, 1, gallery=Gallery.read(tmp_path / "own.npz"))
    assert found.labels is None and found.ids[:, 0].tolist() == ids.tolist()
    np.testing.assert_allclose(found.similarities, 1, atol=1e-5)
    assert model.neighbors(x[:0], 2).ids.shape == (0, 2)


def test_label_lists_and_sparse_rows(run, tmp_path):
    indices = np.array([[2, 0], [1, -1], [-1, -1]], np.int32)
    gallery = Gallery(np.eye(3, dtype=np.float32), np.arange(3), LabelIndices(indices, 3), LABELS)
    gallery.write(tmp_path / "lists.npz")
    gallery.write(tmp_path / "lists.parquet")
    found = Gallery.read(tmp_path / "lists.npz").neighbors(np.eye(3)[:1], 3)
    assert found.labels[0][0] == ("l0", "l2") and set(found.labels[0][1:]) == {("l1",), ()}
    lists = pd.read_parquet(tmp_path / "lists.parquet")["labels"]
    assert [list(each) for each in lists] == [["l0", "l2"], ["l1"], []]
    model = load(run[0])
    x = read(run[1] / "test.csv")[0].to_numpy()
    x[x < 0] = 0
    np.testing.assert_allclose(
        model.predict_proba(sparse.csr_matrix(x)), model.predict_proba(x), atol=1e-6
    )
    with pytest.raises(InputError, match=r"shape \[N, 4\], got a sparse matrix \(30, 3\)"):
        model.predict_proba(sparse.csr_matrix(x[:, :3]))


def test_errors(run, tmp_path):
    workdir, folder = run
    model = load(workdir)
    x, _, _ = read(folder / "test.csv")
    with pytest.raises(InputError, match="k must be 1 to 48, the rows of the gallery, got 49"):
        model.neighbors(x, 49)
    with pytest.raises(InputError, match="Unknown space 'y'"):
        model.neighbors(x, space="y")
    narrow = Gallery(np.ones((2, 3), np.float32), np.arange(2))
    with pytest.raises(
        InputError, match=r"queries must be \[N, 3\] as the gallery is, got \(30, 1"
    ):
        model.neighbors(x, gallery=narrow)
    with pytest.raises(InputError, match="ids must be 2, one a row of embeddings, got 3"):
        Gallery(np.ones((2, 3)), np.arange(3))
    with pytest.raises(InputError, match=r"labels must be \[2, 0\], .* got \[3, 1\]"):
        Gallery(np.ones((2, 3)), np.arange(2), np.ones((3, 1)))
    np.savez(tmp_path / "other.npz", x=x)
    with pytest.raises(InputError, match="not a gallery, it holds no id and no embeddings and no"):
        Gallery.read(tmp_path / "other.npz")
    with pytest.raises(InputError, match="not an .npz file"):
        Gallery.read(folder / "train.csv")
    with pytest.raises(InputError, match="Unknown output format '.csv'. Known: .npz, .parquet"):
        embed(workdir, output=tmp_path / "out.csv")
    model.config.recipe = "bce"
    with pytest.raises(
        InputError, match="space 'z' is what a contrastive loss compares, and the r"
    ):
        model.embed(x, "z")


def test_data_that_are_no_longer_those_of_the_run(run, tmp_path):
    workdir, folder = run
    model = load(workdir)
    write(tmp_path / "train.csv", 5, 60)
    model.config.data.train = str(tmp_path / "train.csv")
    with pytest.raises(InputError, match="the train split of 'files' is not what the run had"):
        model.embed_split("train")
    command = [sys.executable, "-m", "sdjax.embed", f"--workdir={workdir}", "--split=test"]
    os.rename(folder / "test.csv", folder / "moved.csv")
    command += [f"--output={tmp_path / 'out.npz'}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    os.rename(folder / "moved.csv", folder / "test.csv")
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {folder / 'test.csv'}: no such file.")
    assert len(done.stderr.splitlines()) == 1


def test_the_report_shows_them(run):
    workdir, _ = run
    text = (workdir / "report" / "report.md").read_text()
    section = text.partition("### Nearest neighbours")[2].partition("## Configuration")[0]
    assert section.count("| test ") == 3 and "| train-" in section and "**l" in section
    assert not (workdir / "report" / "neighbors.png").exists()
