"""The shipped configs of catalogue sets: inputs, labels and splits, on the features that TFDS has.

The files of TFDS that describe a set are written here from its own builder; its records are made
up.
"""

import dataclasses
import io
import types

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from published_models import FOLDER

from sdjax import data
from sdjax.config import check, replaced
from sdjax.configs import celeb_a, coco2017, goemotions, nus_wide, voc2007
from sdjax.data import nus_wide as nus_wide_lists
from sdjax.errors import InputError
from sdjax.training import make_setup, train
from sdjax.training.mesh import make_mesh

SPLITS = {"train": 20, "validation": 6, "test": 5}
COCO = [f"kind {k}" for k in range(80)]
DTYPES = types.SimpleNamespace(int64=np.int64, bool=np.bool_)


def picture(k, size=(20, 16)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), 12 * k % 256, np.uint8)).save(file, "JPEG")
    file.seek(0)
    return file


def thing(label, **bools):
    return {"label": label, "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), **bools}


def voc(k):
    labels = ["cat", "dog"][: k % 3] + ["sofa"] * (k % 2)
    objects = [
        thing(each, pose="left", is_truncated=False, is_difficult=each == "dog") for each in labels
    ]
    easy = [each for each in labels if each != "dog"]
    names = {"image/filename": f"{k}.jpg", "labels": labels, "labels_no_difficult": easy}
    return {"image": picture(k, (20 + k, 16)), "objects": objects, **names}


def coco(k):
    found = [COCO[k], COCO[k], COCO[79]][: k % 4]
    objects = [thing(each, id=k, area=k, is_crowd=place == 2) for place, each in enumerate(found)]
    return {"image": picture(k), "image/filename": f"{k}.jpg", "image/id": k, "objects": objects}


def faces(features, k):
    names = list(features["attributes"])
    others = {each: dict.fromkeys(features[each], k) for each in ("landmarks", "identity")}
    attributes = {name: (k + place) % 3 == 0 for place, name in enumerate(names)}
    return {"image": picture(k, (218, 178)), "attributes": attributes, **others}


def comment(features, k):
    emotions = sorted(each for each in features if each != "comment_text")
    return {
        "comment_text": f"the cat {k}",
        **{each: emotions.index(each) == k for each in emotions},
    }


def described(name, folder, monkeypatch):
    """Writes what TFDS writes beside the records of a set; its features."""
    if name in ("coco/2017", "goemotions"):  # whose builders ask TensorFlow for the names of dtypes
        place = {"coco/2017": "object_detection.coco", "goemotions": "text.goemotions"}[name]
        monkeypatch.setattr(f"tensorflow_datasets.{place}.tf", DTYPES)
    builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    if name == "coco/2017":
        builder.info.features["objects"]["label"].names = COCO
    infos = [
        tfds.core.SplitInfo(name=split, shard_lengths=[size], num_bytes=1)
        for split, size in SPLITS.items()
    ]
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_path)
    monkeypatch.undo()
    return builder.info.features


class Records:
    """Those of a split, or of a part of it."""

    def __init__(self, features, example, count):
        self.features, self.example, self.count = features, example, count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        encoded = self.features.encode_example(self.example(int(row)))
        return self.features.serialize_example(encoded)


def load_set(config, folder, monkeypatch, make, **fields):
    """The data set of a config, of records that `make` gives for (features, row)."""
    features = described(config.data.name, folder, monkeypatch)

    def records(self, split, **options):
        del self, options
        return Records(features, lambda row: make(features, row), SPLITS[split])

    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))
    mocked = tfds.testing.mock_data(
        policy=tfds.testing.MockPolicy.USE_FILES, data_dir=str(folder), as_data_source_fn=records
    )
    return config, mocked


def sets_of(loaded, split):
    labels = getattr(loaded, split).labels
    return [[loaded.label_names[place] for place in np.flatnonzero(row)] for row in labels]


def sizes_of(loaded):
    return [len(getattr(loaded, split)) for split in ("train", "validation", "test")]


def test_voc2007_trains_a_step(tmp_path, monkeypatch):
    size = {"image_size": 12}
    config, mocked = load_set(
        voc2007.get_config(), tmp_path, monkeypatch, lambda _, k: voc(k), **size
    )
    config = replaced(
        config,
        {
            "batch_size": 20,
            "supervise.epochs": 1,
            "select_by": "",
            "model.weights": str(FOLDER / "resnet"),
            "model.projection_dim": 4,
            "augment.randaugment": 0,
        },
    )
    with mocked:
        setup = make_setup(config, mesh=make_mesh(devices=jax.devices()[:1]))
        easy = data.load(dataclasses.replace(setup.config.data, label_key="labels_no_difficult"))
        skipped = {"label_key": "", "skip_objects": "is_difficult"}
        same = data.load(dataclasses.replace(setup.config.data, **skipped))
        loaded = setup.dataset
        assert sizes_of(loaded) == list(SPLITS.values())
        assert len(loaded.label_names) == 20 and loaded.label_names[0] == "aeroplane"
        assert sets_of(loaded, "test") == [[], ["cat", "sofa"], ["cat", "dog"], ["sofa"], ["cat"]]
        assert sets_of(easy, "test") == [[], ["cat", "sofa"], ["cat"], ["sofa"], ["cat"]]
        assert sets_of(same, "test") == sets_of(easy, "test")
        assert loaded.train.inputs(np.arange(3)).shape == (3, 12, 12, 3)
        state = train(setup)
    assert int(state.step) == 1


def test_coco2017(tmp_path, monkeypatch):
    config, mocked = load_set(
        coco2017.get_config(), tmp_path, monkeypatch, lambda _, k: coco(k), image_size=8
    )
    with mocked:
        loaded = data.load(config.data)  # read without TensorFlow, which its builder needs
        quiet = data.load(dataclasses.replace(config.data, skip_objects="is_crowd"))
        with pytest.raises(InputError, match="'is_big': no bools of objects; known: 'is_crowd'"):
            data.load(dataclasses.replace(config.data, skip_objects="is_big"))
        with pytest.raises(InputError, match="data.label_key 'objects/nope' matches no column"):
            data.load(dataclasses.replace(config.data, label_key="objects/nope"))
    assert sizes_of(loaded) == [19, 1, SPLITS["validation"]]  # a twentieth is held out
    assert loaded.label_names == tuple(COCO)
    expected = [[], [COCO[1]], [COCO[2]], [COCO[3], COCO[79]], [], [COCO[5]]]
    assert sets_of(loaded, "test") == expected
    assert sets_of(quiet, "test") == [*expected[:3], [COCO[3]], *expected[4:]]
    assert loaded.input_spec.shape == (8, 8, 3)


def test_celeb_a(tmp_path, monkeypatch):
    config, mocked = load_set(celeb_a.get_config(), tmp_path, monkeypatch, faces, image_size=8)
    with mocked:
        loaded = data.load(config.data)
        some = "attributes/Young,attributes/B*"
        chosen = data.load(dataclasses.replace(config.data, label_key=some))
    assert (sizes_of(loaded), len(loaded.label_names)) == (list(SPLITS.values()), 40)
    columns = dict(zip(loaded.label_names, loaded.test.labels.T.tolist()))
    assert columns["5_o_Clock_Shadow"] == [1, 0, 0, 1, 0]
    names = ("Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose", "Black_Hair")
    names += ("Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Young")
    assert sorted(chosen.label_names) == sorted(names)
    found = dict(zip(chosen.label_names, chosen.test.labels.T.tolist()))
    assert found == {name: columns[name] for name in names}


def test_goemotions(tmp_path, monkeypatch):
    config, mocked = load_set(
        goemotions.get_config(), tmp_path, monkeypatch, comment, tokenizer=str(FOLDER / "bert")
    )
    with mocked:
        loaded = data.load(config.data)
        few = data.load(dataclasses.replace(config.data, examples_per_label=1))
    assert sets_of(few, "train") == sets_of(loaded, "train")[:20]  # each has a label of its own
    assert (sizes_of(loaded), len(loaded.label_names)) == (list(SPLITS.values()), 28)
    # TFDS gives those that it reads off files in another order in each process.
    assert list(loaded.label_names) == sorted(loaded.label_names)
    assert sets_of(loaded, "test") == [[loaded.label_names[k]] for k in range(5)]
    assert loaded.test.contents(np.arange(2)).tolist() == ["the cat 0", "the cat 1"]


def test_a_set_that_needs_tensorflow_and_is_not_there(tmp_path):
    fields = {"data_dir": str(tmp_path), "image_size": 8}
    with pytest.raises(InputError, match="needs TensorFlow to be prepared: pip install tensorfl"):
        data.load(dataclasses.replace(coco2017.get_config().data, **fields))


@pytest.fixture
def flickr(tmp_path):
    """The published lists, of six images of which one is missing, in folders of two forms."""
    lists, truth = tmp_path / "lists" / "ImageList", tmp_path / "lists" / "Groundtruth"
    for folder in (lists, truth, tmp_path / "images" / "actor"):
        folder.mkdir(parents=True)
    truths = {"Train": {"sky": "1001", "cat": "0101"}, "Test": {"sky": "01", "cat": "00"}}
    for split, labels in truths.items():
        names = [f"actor\\{split}_{k}.jpg" for k in range(len(labels["sky"]))]
        (lists / f"{split}Imagelist.txt").write_text("\r\n".join(names) + "\n")
        for concept, column in labels.items():
            (truth / f"Labels_{concept}_{split}.txt").write_text("\n".join(column) + "\n")
        for k, name in enumerate(names):
            if k != 1 or split == "Test":
                place = name.replace("\\", "/") if split == "Train" else name.partition("\\")[2]
                (tmp_path / "images" / place).write_bytes(picture(k).read())
    return tmp_path


def test_nus_wide(flickr, monkeypatch):
    monkeypatch.chdir(flickr)
    given = (flickr / "lists", flickr / "images", flickr / "data" / "nus_wide")
    sizes = nus_wide_lists.write(*given)
    assert sizes == {
        "concepts": 2,
        "train images": 3,
        "train images that are not there": 1,
        "train images without a concept": 1,
        "test images": 2,
        "test images that are not there": 0,
        "test images without a concept": 1,
    }
    config = nus_wide.get_config()
    loaded = data.load(dataclasses.replace(config.data, images="images", image_size=8))
    assert loaded.label_names == ("cat", "sky")
    assert sizes_of(loaded) == [2, 1, 2]
    rows = dict(zip(loaded.test.names.tolist(), sets_of(loaded, "test")))
    assert rows == {"Test_0.jpg": [], "Test_1.jpg": ["sky"]}
    found = {
        name: labels
        for split in ("train", "validation")
        for name, labels in zip(getattr(loaded, split).names.tolist(), sets_of(loaded, split))
    }
    assert found == {
        "actor/Train_0.jpg": ["sky"],
        "actor/Train_2.jpg": [],
        "actor/Train_3.jpg": ["cat", "sky"],
    }
    assert nus_wide_lists.write(*given, labelled_only=True)["train images"] == 2


def test_lists_of_nus_wide_that_do_not_fit(flickr):
    given = (flickr / "lists", flickr / "images", flickr / "out")
    (flickr / "lists" / "Groundtruth" / "Labels_cat_Train.txt").write_text("1\n0\n")
    with pytest.raises(InputError, match=r"4 lines of 0 or 1 were expected.*got 2, such as '1'"):
        nus_wide_lists.write(*given)
    (flickr / "lists" / "Groundtruth" / "Labels_cat_Train.txt").unlink()
    with pytest.raises(InputError, match="of one split alone: 'cat'"):
        nus_wide_lists.write(*given)
    with pytest.raises(InputError, match="no TrainImagelist.txt and no TestImagelist.txt there"):
        nus_wide_lists.write(flickr / "images", *given[1:])


def test_configs_are_valid():
    for module in (celeb_a, coco2017, goemotions, nus_wide, voc2007):
        check(module.get_config())
