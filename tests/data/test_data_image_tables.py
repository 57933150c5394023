"""Folders of images with a table that names them."""

import json

import numpy as np
import pandas as pd
import pytest
from image_tables import COLOURS, write_images, write_table
from PIL import Image

from sdjax.config import DataConfig
from sdjax.data import images, load, read_inputs
from sdjax.data.images import Resizing
from sdjax.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    names, labels = write_images(path / "files", 12, 0)
    write_table(path / "table.csv", names, labels, extra=["note"])
    frame = pd.DataFrame({"image": names, **dict(zip(COLOURS, labels.T))})
    frame.to_parquet(path / "table.parquet")
    with open(path / "table.jsonl", "w") as file:
        for name, row in zip(names, labels):
            there = [colour for colour, label in zip(COLOURS, row) if label]
            file.write(json.dumps({"image": name, "labels": there}) + "\n")
    return path


def config(folder, table="table.csv", **fields):
    given = {"image": "image", "images": str(folder / "files"), "labels": ",".join(COLOURS)}
    given |= {"name": "files", "train": str(folder / table), "validation": "", "test": ""}
    given |= {"image_size": 8, **fields}
    return DataConfig(**given)


def pixels(path, size=8):
    return np.asarray(Image.open(path).convert("RGB").resize((size, size), 2), np.float32)


@pytest.mark.parametrize("table", ["table.csv", "table.parquet", "table.jsonl"])
def test_tables_of_all_formats(folder, table):
    labels = "" if table.endswith("jsonl") else ",".join(COLOURS)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)
    data = load(config(folder, table, labels=labels, image_mean=mean, image_std=std))
    assert data.kind == "image" and data.input_spec.shape == (8, 8, 3)
    assert set(data.label_names) == set(COLOURS)
    assert data.preprocess.mean == mean and data.preprocess.column == "image"
    order = [data.label_names.index(colour) for colour in COLOURS]
    sources = (data.train, data.validation, data.test)
    x = np.concatenate([source.inputs(np.arange(len(source))) for source in sources])
    found = np.concatenate([source.labels for source in sources])[:, order]
    assert len(x) == 12
    for name, label in zip(*expected(folder)):
        wanted = (pixels(folder / "files" / name) / 255 - mean) / std
        apart = np.abs(x - wanted).max(axis=(1, 2, 3))
        assert apart.min() < 1e-4 and np.array_equal(found[apart.argmin()], label)


def expected(folder):
    frame = pd.read_csv(folder / "table.csv")
    return frame["image"].tolist(), frame[list(COLOURS)].to_numpy()


def test_statistics_of_train_without_given_ones(folder):
    data = load(config(folder))
    x = data.train.inputs(np.arange(len(data.train)))
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-4)


def test_names_are_seen_from_the_table_without_a_folder(folder):
    names, labels = expected(folder)
    write_table(folder / "files" / "beside.csv", names, labels, column="file")
    data = load(config(folder, "files/beside.csv", images="", image="file"))
    assert len(data.train) + len(data.validation) + len(data.test) == 12


def test_names_that_look_like_numbers(folder, tmp_path):
    (tmp_path / "files").mkdir()
    names, labels = expected(folder)
    for number, name in enumerate(names):
        Image.open(folder / "files" / name).save(tmp_path / "files" / f"{number:04}", "PNG")
    write_table(tmp_path / "table.csv", [f"{k:04}" for k in range(12)], labels)
    assert len(load(config(tmp_path)).train) > 5


def test_new_rows_are_read_when_they_are_asked_for(folder, monkeypatch):
    preprocess = load(config(folder)).preprocess
    read = images.decode
    opened = []
    monkeypatch.setattr(
        images, "decode", lambda path, *rest: opened.append(path) or read(path, *rest)
    )
    x, ids = read_inputs(str(folder / "table.csv"), preprocess, images=str(folder / "files"))
    names, _ = expected(folder)
    assert len(x) == 12 and ids == names and not opened
    row = x[3:5]
    assert row.shape == (2, 8, 8, 3) and row.dtype == np.float32
    assert len(opened) == 2
    paths = [str(folder / "files" / name) for name in names[3:5]]
    np.testing.assert_allclose(preprocess(paths), row)
    whole, ids = read_inputs(str(folder / "files"), preprocess)
    assert len(whole) == 12 and set(ids) == set(names)


def spoil(folder, name, content):
    path = folder / "files" / name
    path.write_bytes(content(path.read_bytes()))


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"image": "picture"}, "data.image 'picture' is no column. Columns: 'image', 'red'"),
        ({"images": "nowhere"}, "data.images nowhere: there is no such folder"),
        ({"image": ""}, "data.images needs data.image"),
        ({"text": "note"}, "data.text and data.image exclude each other"),
        ({"name": "digits", "images": ""}, "data.image is for files; data.name is 'digits'"),
        ({"image": "note"}, r"12 image files are missing, the first .*note"),
        ({"image_size": 0}, r"image \d+ is .* and others are .*: set data.image_size"),
        ({"image_mean": (0.5,)}, "image_mean and data.image_std are given together"),
        ({"image_mean": (0.5,), "image_std": (0.0,)}, "must be 1 numbers each, .*above 0"),
    ],
)
def test_errors_name_what_is_wrong(folder, tmp_path, fields, text):
    if "image_size" in fields:
        write_images(folder / "files", 1, 0, side=20)
    with pytest.raises((InputError, FileNotFoundError), match=text):
        load(config(folder, **fields))


@pytest.fixture
def own(tmp_path):
    names, labels = write_images(tmp_path / "files", 12, 1, side=64)
    write_table(tmp_path / "table.csv", names, labels)
    return tmp_path


def test_a_missing_file_is_named_with_one_that_is_alike(own):
    (own / "files" / "1_3.png").rename(own / "files" / "1_3.jpg")
    text = r"1 image files are missing, the first .*1_3\.png\. Did you mean .*1_3\.jpg\?"
    with pytest.raises(FileNotFoundError, match=text):
        load(config(own))


@pytest.mark.parametrize("content", [lambda whole: b"", lambda whole: b"<html>no</html>"])
def test_a_file_that_is_no_image_is_named_before_a_run_starts(own, content):
    spoil(own, "1_3.png", content)
    with pytest.raises(InputError, match=r"table\.csv: cannot decode .*1_3\.png: cannot identify"):
        load(config(own, image_mean=(0.5,) * 3, image_std=(0.5,) * 3))


def test_a_truncated_image_is_named_when_it_is_read(own):
    spoil(own, "1_3.png", lambda whole: whole[: len(whole) // 2])
    data = load(config(own, image_mean=(0.5,) * 3, image_std=(0.5,) * 3))
    sources = (data.train, data.validation, data.test)
    with pytest.raises(InputError, match=r"cannot decode .*1_3\.png: .*truncated"):
        [source.inputs(np.arange(len(source))) for source in sources]


def test_a_missing_name_is_named(own):
    frame = pd.read_csv(own / "table.csv")
    frame.loc[4, "image"] = None
    frame.to_csv(own / "table.csv", index=False)
    with pytest.raises(InputError, match="the image 'image' is missing in row 4"):
        load(config(own))


def test_images_are_upright_whole_or_cut(tmp_path):
    upright = np.zeros((40, 80, 3), np.uint8)
    upright[:, 40:] = 255  # the right half is white
    image = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    path = str(tmp_path / "turned.jpg")
    whole = images.decode(path, 3, Resizing(16)).astype(int)
    assert whole[:, :7].max() < 20 and whole[:, 9:].min() > 235
    cut = images.decode(path, 3, Resizing(20, 24, "bicubic")).astype(int)
    assert cut.shape == (20, 20, 3) and cut[:, :8].max() < 30 and cut[:, 12:].min() > 225
    middle = images.decode(path, 3, Resizing(20, 80, "bicubic")).astype(int)
    assert middle[:, :7].max() < 30 and middle[:, 13:].min() > 225
    assert images.decode(path, 3, None).shape == (40, 80, 3)


def test_large_photographs_are_decoded_at_a_fraction(tmp_path):
    x = np.linspace(0, 255, 1600).astype(np.uint8)
    picture = Image.fromarray(np.tile(x, (1200, 1)))
    picture.save(tmp_path / "large.jpg", quality=95)
    wanted = np.asarray(picture.convert("RGB").resize((32, 32), 2), int)
    found = images.decode(str(tmp_path / "large.jpg"), 3, Resizing(32)).astype(int)
    assert np.abs(found - wanted).max() <= 3
