"""Small TFDS sets with the features of well-known ones; importing registers their names."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

F = tfds.features
NAMES = ["cat", "dog", "sofa"]


def encoded(seed, shape, form="PNG"):
    """An image file; large squares survive JPEG and resizing."""
    pixels = np.full(shape, 40 * (seed % 6), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    file.seek(0)
    return file


class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the sets below share."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": 12, "validation": 4, "test": 6}  # noqa: RUF012
    FEATURES = {}  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="A test.",
            features=F.FeaturesDict(dict(self.FEATURES)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self.SPLITS.items()}

    def _generate_examples(self, count):
        for k in range(count):
            yield k, self.example(k)


class SdjaxVoc(Small):
    """Like voc: images of any size, labels three times over."""

    FEATURES = {  # noqa: RUF012
        "image": F.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "image/filename": F.Text(),
        "a_first_one": F.Sequence(F.ClassLabel(names=["wrong"])),
        "labels": F.Sequence(F.ClassLabel(names=NAMES)),
        "objects": F.Sequence(
            {"label": F.ClassLabel(names=NAMES), "bbox": F.BBoxFeature(), "hard": np.bool_}
        ),
    }

    def example(self, k):
        box = F.BBox(0.0, 0.0, 1.0, 1.0)
        return {
            "image": encoded(k, (20 + k, 30) if k % 3 == 0 else (30, 20 + k, 3), "JPEG"),
            "image/filename": f"{k}.jpg",
            "a_first_one": [0],
            "labels": [label for label in range(3) if k >> label & 1],
            "objects": [{"label": k % 3, "bbox": box, "hard": False}] * (k % 4),
        }


class SdjaxFaces(Small):
    """Like celeb_a: a dict of bools; no validation split."""

    SPLITS = {"train": 10, "test": 6}  # noqa: RUF012
    FEATURES = {  # noqa: RUF012
        "image": F.Image(shape=(6, 4, 3), encoding_format="png"),
        "landmarks": {"x": np.int64, "y": np.int64},
        "attributes": {"Smiling": np.bool_, "Young": np.bool_, "Bald": np.bool_},
    }

    def example(self, k):
        return {
            "image": encoded(k, (6, 4, 3)),
            "landmarks": {"x": k, "y": 1},
            "attributes": {"Smiling": k % 2 == 0, "Young": k % 3 == 0, "Bald": False},
        }


class SdjaxObjects(Small):
    """Like coco: labels of objects only."""

    FEATURES = {  # noqa: RUF012
        "image": F.Image(shape=(4, 4, 1), encoding_format="png"),
        "objects": F.Sequence({"label": F.ClassLabel(names=NAMES), "area": np.int64}),
    }

    def example(self, k):
        objects = [{"label": label, "area": 3} for label in (k % 3, k % 3, 2)[: k % 4]]
        return {"image": encoded(k, (4, 4)), "objects": objects}


class SdjaxComments(Small):
    """Like goemotions: text beside bools; and some numbers."""

    FEATURES = {  # noqa: RUF012
        "comment": F.Text(),
        "joy": np.bool_,
        "anger": np.bool_,
        "size_a": np.float32,
        "size_b": np.int64,
    }

    def example(self, k):
        joy = k % 2 == 0
        return {
            "comment": f"the cat {k}",
            "joy": joy,
            "anger": k % 3 == 0,
            "size_a": k / 2,
            "size_b": -k,
        }


class SdjaxTable(Small):
    """A dict of numbers, a vector and one class label."""

    FEATURES = {  # noqa: RUF012
        "features": {"p": np.float32, "q": np.int32},
        "vector": F.Tensor(shape=(5,), dtype=np.float32),
        "label": F.ClassLabel(names=NAMES),
    }

    def example(self, k):
        vector = np.arange(5, dtype=np.float32) * k
        return {"features": {"p": k, "q": 1}, "vector": vector, "label": k % 3}


class SdjaxNan(Small):
    """A vector with a hole."""

    FEATURES = {  # noqa: RUF012
        "features": F.Tensor(shape=(2,), dtype=np.float32),
        "labels": F.Sequence(F.ClassLabel(names=NAMES)),
    }

    def example(self, k):
        return {"features": np.array([1, np.nan if k == 3 else 2], np.float32), "labels": []}


class SdjaxTensorflow(SdjaxNan):
    """Needs TensorFlow to be prepared."""

    def _split_generators(self, dl_manager):
        raise ModuleNotFoundError("No module named 'tensorflow'")


class SdjaxManual(SdjaxNan):
    """Needs files that are downloaded by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors for faces.zip."

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(len(str(dl_manager.manual_dir)))}


class SdjaxTags(Small):
    """A vector and tags out of many."""

    FEATURES = {  # noqa: RUF012
        "features": F.Tensor(shape=(2,), dtype=np.float32),
        "labels": F.Sequence(F.ClassLabel(num_classes=3000)),
    }

    def example(self, k):
        return {"features": np.array([k, 1], np.float32), "labels": [2999 - k, k][: k % 3]}
