"""TFDS sets: the bundled ones, and which features of any other are inputs and labels."""

import collections
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tfds_test_builders  # noqa: F401 (registers the sets)
from PIL import Image
from published_models import FOLDER

from sdjax import data
from sdjax.config import DataConfig
from sdjax.data.builders import digits, yeast
from sdjax.data.rows import Subset


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def load_set(name, data_dir, **fields):
    return data.load(DataConfig(name=name, data_dir=data_dir, **fields))


def inputs_of(source):
    return np.stack([example["x"] for example in source])


def raw_of(loaded, source):
    """The inputs before standardisation."""
    x = inputs_of(source) * np.array(loaded.preprocess.std) + np.array(loaded.preprocess.mean)
    return x / loaded.preprocess.scale


# Yeast

YEAST_COUNTS = {
    "train": [384, 534, 485, 417, 364, 305, 195, 217, 79, 133, 157, 903, 892, 19],
    "validation": [92, 111, 113, 115, 77, 73, 66, 72, 19, 28, 41, 225, 224, 2],
    "test": [286, 393, 385, 330, 281, 219, 167, 191, 80, 92, 91, 688, 683, 13],
}


def test_yeast_is_the_published_split(data_dir):
    loaded = load_set("yeast", data_dir)
    assert loaded.label_names == tuple(f"Class{k}" for k in range(1, 15))
    assert (loaded.input_spec.shape, loaded.preprocess.kind) == ((103,), "vector")
    for split, size in (("train", 1200), ("validation", 300), ("test", 917)):
        source = getattr(loaded, split)
        assert len(source) == size
        assert source.labels.sum(0).tolist() == YEAST_COUNTS[split]
    # Of the first rows of the published validation and test files.
    raw = raw_of(loaded, loaded.validation)[0, :3]
    np.testing.assert_allclose(raw, [-0.022711, -0.050504, -0.035691], atol=1e-6)
    raw = raw_of(loaded, loaded.test)[0, :3]
    np.testing.assert_allclose(raw, [0.004168, -0.170975, -0.156748], atol=1e-6)


def test_yeast_rows_are_all_used_once():
    letters = yeast.split_letters()
    assert collections.Counter(letters) == {"T": 1200, "V": 300, "E": 917}
    assert yeast.read_rows(yeast.csv_path()).shape == (2417, 117)


def test_yeast_of_another_version_is_refused(tmp_path):
    import gzip

    content = gzip.decompress(yeast.csv_path().read_bytes()).replace(b"0.004168", b"0.004169")
    (tmp_path / "yeast.csv.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match="SHA-256"):
        yeast.read_rows(tmp_path / "yeast.csv.gz")


def test_yeast_without_river(monkeypatch, tmp_path):
    monkeypatch.setattr(yeast.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed: pip install 'river"):
        yeast.csv_path()
    with pytest.raises(ImportError, match="pip install 'river"):
        load_set("yeast", str(tmp_path))


def test_training_statistics_are_of_training_alone(data_dir):
    loaded = load_set("yeast", data_dir)
    x = inputs_of(loaded.train)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-4)
    assert np.abs(inputs_of(loaded.test).mean(0)).max() > 0.01


def test_read_inputs_for_a_set_without_feature_names(data_dir, tmp_path):
    loaded = load_set("yeast", data_dir)
    np.savez(tmp_path / "new.npz", x=raw_of(loaded, loaded.test)[:4])
    x, ids = data.read_inputs(str(tmp_path / "new.npz"), loaded.preprocess)
    np.testing.assert_allclose(x, inputs_of(loaded.test)[:4], rtol=1e-3, atol=1e-4)
    assert ids is None


# Digits


def test_digits(data_dir):
    loaded = load_set("digits", data_dir)
    assert loaded.label_names == tuple("0123456789")
    assert (loaded.input_spec.shape, loaded.preprocess.kind) == ((24, 24, 1), "image")
    for split, size in digits.SIZES.items():
        source = getattr(loaded, split)
        assert len(source) == size
        sizes = source.labels.sum(1)
        assert (sizes.min(), sizes.max()) == (1, 4)
        assert source.labels.mean(0).min() > 0.1
    # Canvases as they were drawn: through PNG, ArrayRecord and standardisation.
    raw = raw_of(loaded, loaded.test)
    for (canvas, _), image in zip(digits.canvases("test"), raw, strict=True):
        np.testing.assert_allclose(image[..., 0], canvas, atol=1e-3)


def test_digits_are_of_different_scans():
    indices = digits.scan_indices()
    assert sorted(np.concatenate(list(indices.values()))) == list(range(1797))
    for split, own in indices.items():
        used = {scan for _, scans in digits.canvases(split) for scan in scans}
        assert used <= set(own.tolist())


def test_digits_hold_their_scans_whole():
    import sklearn.datasets

    images = np.round(sklearn.datasets.load_digits().images * (255 / 16))
    for (canvas, scans), _ in zip(digits.canvases("train"), range(50), strict=False):
        assert canvas.sum() == images[scans].sum()  # none covers another
        windows = np.lib.stride_tricks.sliding_window_view(canvas, (8, 8))
        for scan in scans:
            assert (windows == images[scan]).all((2, 3)).any()


# Any other set


def test_voc_like(data_dir):
    with pytest.raises(ValueError, match=r"images differ in size; set data.image_size"):
        load_set("sdjax_voc", data_dir)
    loaded = load_set("sdjax_voc", data_dir, image_size=8)
    assert loaded.label_names == ("cat", "dog", "sofa")
    assert loaded.input_spec.shape == (8, 8, 3)
    labels = [[k >> label & 1 for label in range(3)] for k in range(12)]
    np.testing.assert_array_equal(loaded.train.labels, labels)
    raw = raw_of(loaded, loaded.train)
    for k in range(12):
        np.testing.assert_allclose(raw[k], 40 * (k % 6), atol=2)
    objects = load_set("sdjax_voc", data_dir, image_size=8, label_key="objects")
    assert objects.train.labels.argmax(1).tolist()[1:4] == [1, 2, 0]


def test_celeb_a_like(data_dir):
    loaded = load_set("sdjax_faces", data_dir)  # validation is split off train
    assert sorted(map(len, (loaded.train, loaded.validation, loaded.test))) == [2, 6, 8]
    assert sorted(loaded.label_names) == ["Bald", "Smiling", "Young"]
    columns = dict(zip(loaded.label_names, loaded.test.labels.T.tolist(), strict=True))
    assert columns == {"Smiling": [1, 0] * 3, "Young": [1, 0, 0] * 2, "Bald": [0] * 6}
    assert loaded.input_spec.shape == (6, 4, 3)
    batches = list(data.evaluation_batches(loaded.test, 4))
    np.testing.assert_array_equal(batches[1]["x"][:2], inputs_of(loaded.test)[4:])


def test_coco_like(data_dir):
    loaded = load_set("sdjax_objects", data_dir)
    expected = [[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]]
    np.testing.assert_array_equal(loaded.validation.labels, expected)


def test_goemotions_like(data_dir):
    with pytest.raises(ValueError, match=r"no input found.*named by data.text.*comment \(Text"):
        load_set("sdjax_comments", data_dir)
    loaded = load_set("sdjax_comments", data_dir, input_key="size_*")
    assert sorted(loaded.label_names) == ["anger", "joy"]
    assert loaded.preprocess.feature_names == ("size_a", "size_b")
    np.testing.assert_allclose(raw_of(loaded, loaded.test)[3], [1.5, -3], atol=1e-5)
    only = load_set("sdjax_comments", data_dir, input_key="size_a", label_key="joy")
    assert (only.label_names, only.input_spec.shape) == (("joy",), (1,))
    np.testing.assert_array_equal(only.test.labels[:, 0], [1, 0] * 3)
    with pytest.raises(ValueError, match="must name numbers; 'comment' are none"):
        load_set("sdjax_comments", data_dir, input_key="size_a,comment")


def test_texts(data_dir):
    model = {"tokenizer": str(FOLDER / "bert")}
    loaded = load_set("sdjax_comments", data_dir, text="comment", **model)
    assert (loaded.kind, sorted(loaded.label_names)) == ("text", ["anger", "joy"])
    assert loaded.test.contents(np.arange(2)).tolist() == ["the cat 0", "the cat 1"]
    ids = loaded.test.fetch(np.arange(2))["x"]["ids"]
    assert ids[0, :5].tolist() == loaded.preprocess(["the cat 0"]).ids.tolist()
    with pytest.raises(ValueError, match="data.text 'joy' is no text. Features: .*comment"):
        load_set("sdjax_comments", data_dir, text="joy", **model)


def test_tables(data_dir):
    with pytest.raises(ValueError, match=r"several inputs found.*Set data.input_key"):
        load_set("sdjax_table", data_dir)
    loaded = load_set("sdjax_table", data_dir, input_key="features")
    assert sorted(loaded.preprocess.feature_names) == ["p", "q"]
    np.testing.assert_array_equal(loaded.test.labels, np.eye(3)[[0, 1, 2, 0, 1, 2]])
    assert load_set("sdjax_table", data_dir, input_key="vector").input_spec.shape == (5,)


def test_many_labels_are_lists(data_dir):
    loaded = load_set("sdjax_tags", data_dir)
    assert loaded.test.labels.num_classes == loaded.num_classes == 3000
    expected = [[-1, -1], [2998, -1], [2, 2997], [-1, -1], [2995, -1], [5, 2994]]
    np.testing.assert_array_equal(loaded.test.labels.indices, expected)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"input_key": "nope"}, r"data.input_key 'nope' matches no column. Columns: 'features'"),
        ({"label_key": "nope"}, r"data.label_key 'nope' matches no column. Columns: 'features'"),
        ({"label_key": "vector"}, r"no labels found under data.label_key 'vector'.*vector \(Tens"),
    ],
)
def test_wrong_keys(fields, error, data_dir):
    with pytest.raises(ValueError, match=error):
        load_set("sdjax_table", data_dir, **{"input_key": "vector", **fields})


def test_splits(data_dir):
    part = load_set("sdjax_faces", data_dir, train="train[:80%]", validation="train[80%:]")
    assert (len(part.train), len(part.validation)) == (8, 2)
    for field in ("train", "validation", "test"):
        with pytest.raises(ValueError, match=rf"data.{field} 'dev' is no split.*'train', 'test'"):
            load_set("sdjax_faces", data_dir, **{field: "dev"})
    with pytest.raises(ValueError, match=r"data.test 'test\[:x\]' is no split"):
        load_set("sdjax_faces", data_dir, test="test[:x]")


def test_features_that_are_not_finite(data_dir):
    with pytest.raises(ValueError, match=r"sdjax_nan train: input \(1,\) is nan in row 3"):
        load_set("sdjax_nan", data_dir)


def test_sets_that_cannot_be_prepared(data_dir):
    with pytest.raises(ValueError, match="needs TensorFlow to be prepared: pip install tensorfl"):
        load_set("sdjax_tensorflow", data_dir)
    with pytest.raises(ValueError, match="download by hand"):
        load_set("sdjax_manual", data_dir)


def test_unknown_sets(data_dir):
    with pytest.raises(ValueError, match=r"Unknown data.name 'yaest'. Did you mean 'yeast'\?"):
        load_set("yaest", data_dir)


def test_a_set_prepared_without_random_access(data_dir):
    load_set("sdjax_objects", data_dir)
    path = pathlib.Path(data_dir, "sdjax_objects", "1.0.0", "dataset_info.json")
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "fileFormat": "tfrecord"}))
    try:
        with pytest.raises(ValueError, match="data.data_dir"):
            load_set("sdjax_objects", data_dir)
    finally:
        path.write_text(before)


def test_preparing_says_nothing(tmp_path, capfd):
    load_set("yeast", str(tmp_path))
    out, err = capfd.readouterr()
    assert out == ""
    assert "it/s" not in err
    assert "examples" not in err


def test_two_processes_may_prepare_one_set(tmp_path):
    code = (
        "import random, sys; random.seed(0)\n"
        "from sdjax import data; from sdjax.config import DataConfig\n"
        "d = data.load(DataConfig(name='yeast', data_dir=sys.argv[1]))\n"
        "print(len(d.train), int(d.train.labels.sum()), random.random())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    total = sum(YEAST_COUNTS["train"])
    assert outputs == [f"1200 {total} 0.8444218515250481\n"] * 2
    assert not list(tmp_path.rglob("incomplete*"))


def test_images_are_decoded_once_where_they_fit(monkeypatch):
    from sdjax.data import images

    reads = []

    def read(row):
        reads.append(row)
        file = io.BytesIO()
        Image.fromarray(np.full((3, 3), row, np.uint8)).save(file, "PNG")
        return file.getvalue()

    options = {"channels": 1, "image_size": 3, "origin": "test"}
    rows = np.array([4, 1, 4, 0])
    kept = images.EncodedImages(read, 5, **options)
    for _ in range(2):
        assert kept[rows][:, 0, 0, 0].tolist() == [4, 1, 4, 0]
    assert sorted(reads) == [0, 1, 4]
    taken = Subset(kept, np.array([3, 2]))
    assert taken[np.array([1, 0])][:, 0, 0, 0].tolist() == [2, 3]
    reads.clear()
    monkeypatch.setattr(images, "CACHE_BYTES", 10)
    fresh = images.EncodedImages(read, 5, **options)
    for _ in range(2):
        assert fresh[rows][:, 0, 0, 0].tolist() == [4, 1, 4, 0]
    assert len(reads) == 8


@pytest.mark.parametrize(
    ("splits", "text"),
    [
        ({"train": "train+validation"}, r"data.validation 'validation' shares 300 examples"),
        ({"train": "train+test[:5]"}, r"data.test 'test' shares 5 examples with data.train"),
        ({"train": "train[:60%]", "validation": "train[50%:]"}, "shares 120 examples"),
    ],
)
def test_splits_that_share_examples(data_dir, splits, text):
    with pytest.raises(ValueError, match=text):
        load_set("yeast", data_dir, **splits)


def test_parts_of_one_split_may_be_used_side_by_side(data_dir):
    loaded = load_set("yeast", data_dir, train="train[:50%]", validation="train[50%:]")
    assert (len(loaded.train), len(loaded.validation)) == (600, 600)
