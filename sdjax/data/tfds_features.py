"""Which TFDS feature is the input and which holds the labels, and how a record becomes both.

The fields of a dict are taken in the order of their names: a set that is read without its builder
has them in another order each time.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdjax.data.examples import listing
from sdjax.data.readers.options import select
from sdjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LabelFeature:
    """The labels of a record: `indices(parse(record))` are theirs among the `names`."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    parse: Callable[[bytes], Any]
    indices: Callable[[Any], list[int]]


@dataclasses.dataclass(frozen=True)
class InputFeature:
    """The input of a record: encoded image (`channels` > 0), or vector with feature names."""

    parse: Callable[[bytes], Any]
    names: tuple[str, ...] = ()
    channels: int = 0
    fixed_size: bool = False


def find_labels(name: str, features: Any, key: str, skip: str = "") -> LabelFeature:
    """The label feature: `key`, or where it is empty the first found.

    `key` may be a path: "objects/label" is that field of all objects of a sequence, and
    "attributes/Smiling,attributes/B*" are bools of a dict.

    Sought are, in this order,
      1. a sequence of class labels (that of `labels` before others),
      2. a dict of bools (`attributes`),
      3. a sequence of objects that have a `label`,
      4. bools at the top level, all of them,
      5. one class label.

    Args:
      name: of the set, for error messages.
      features: of its records.
      key: see above.
      skip: bools of objects, comma-separated; an object for which one is true gives no label.

    Raises:
      ValueError: if there is none, listing the features.
    """
    keys = [key] if key else sorted(features, key=lambda k: (k not in ("labels", "label"), k))
    if skip:
        return _kept_objects(name, features, keys, skip)
    is_path = "/" in key and key not in features
    found = (_objects(features, key) if is_path else None) or _bools(name, features, key)
    if found:
        return found
    for find in (_class_labels, _attributes, _objects):
        for candidate in keys:
            found = find(features, candidate)
            if found:
                return found
    if not key:
        flat = ",".join(k for k in features if _is_bool(features[k]))
        found = _bools(name, features, flat) if flat else None
        found = found or next(filter(None, (_one_label(features, k) for k in keys)), None)
    elif key in features:
        found = _one_label(features, key)
    if found:
        return found
    raise InputError(
        f"{name}: no labels found{f' under data.label_key {key!r}' if key else ''}; they may be a "
        "sequence of class labels, a dict of bools, objects with a label ('objects/label'), or "
        f"bools (names or patterns, comma-separated). Features: {_described(features)}."
    )


def find_inputs(name: str, features: Any, key: str, label_keys: Sequence[str]) -> InputFeature:
    """The input feature: `key`, or where it is empty the only image, else the only vector.

    `key` may also name numbers at the top level, comma-separated names or patterns: they are
    joined into a vector.

    Raises:
      ValueError: if there is none or more than one, listing the features.
    """
    import tensorflow_datasets as tfds

    if key and (key not in features or _is_number(features[key])):
        return _joined(name, features, select(name, "data.input_key", key, sorted(features)))
    keys = [key] if key else [k for k in features if k not in label_keys]
    images = [k for k in keys if type(features[k]) is tfds.features.Image]
    images = ["image"] if "image" in images else images
    vectors = [k for k in keys if _is_vector(features[k])]
    if len(images) == 1:
        return _image(name, features, images[0])
    if not images and len(vectors) == 1:
        return _vector(features, vectors[0])
    raise InputError(
        f"{name}: {'several inputs' if images or vectors else 'no input'} found"
        f"{f' under data.input_key {key!r}' if key else ''}; an image, a vector of numbers, or "
        "numbers by name are expected, or a text, named by data.text. Set data.input_key. "
        f"Features: {_described(features)}."
    )


def find_text(name: str, features: Any, key: str) -> Callable[[bytes], str]:
    """What reads the text `key` of a record.

    Raises:
      ValueError: if it is no text, listing the features.
    """
    import tensorflow_datasets as tfds

    if not isinstance(_get(features, key), tfds.features.Text):
        raise InputError(f"{name}: data.text {key!r} is no text. Features: {_described(features)}.")
    parse = _field(_parser({key: features[key]}), key)
    return lambda record: parse(record).decode("utf-8", "replace")


def _class_labels(features: Any, key: str) -> LabelFeature | None:
    """A sequence of class labels."""
    names = _class_names(getattr(_get(features, key), "feature", None))
    return _indexed(features, key, names) if names else None


def _one_label(features: Any, key: str) -> LabelFeature | None:
    """A single class label."""
    names = _class_names(_get(features, key))
    return _indexed(features, key, names) if names else None


def _indexed(features: Any, key: str, names: tuple[str, ...]) -> LabelFeature:
    parse = _field(_parser({key: features[key]}), key)
    return LabelFeature((key,), names, parse, _known)


def _objects(features: Any, key: str, skip: Sequence[str] = ()) -> LabelFeature | None:
    """A sequence of objects with a class label each, called `label` or as the path `key` ends."""
    import tensorflow_datasets as tfds

    key, field = (key, "label") if key in features else _halves(key)
    objects: Any = getattr(_get(features, key), "feature", None)
    names = _class_names(_get(objects, field))
    if not names:
        return None
    wrong = [each for each in skip if not _is_bool(_get(objects, each))]
    if wrong:
        known = [each for each in objects if _is_bool(objects[each])]
        raise InputError(
            f"data.skip_objects {listing(wrong)}: no bools of {key}; known: {listing(known)}."
        )
    part = tfds.features.Sequence({each: objects[each] for each in (field, *skip)})

    def indices(found: Any) -> list[int]:
        skipped = np.zeros(len(found[field]), bool)
        for each in skip:
            skipped |= np.asarray(found[each], bool)
        return _known(np.asarray(found[field])[~skipped])

    return LabelFeature((key,), names, _field(_parser({key: part}), key), indices)


def _kept_objects(name: str, features: Any, keys: Sequence[str], skip: str) -> LabelFeature:
    """The objects under one of `keys` but for those that `skip` leaves out."""
    names = tuple(filter(None, map(str.strip, skip.split(","))))
    for key in keys:
        found = _objects(features, key, names)
        if found:
            return found
    raise InputError(
        f"{name}: data.skip_objects {skip!r} is for objects with a label, and none are found under "
        f"data.label_key {keys[0] if len(keys) == 1 else ''!r}. Features: {_described(features)}."
    )


def _attributes(features: Any, key: str) -> LabelFeature | None:
    """A dict of bools."""
    attributes = _get(features, key)
    if not _is_dict(attributes) or not all(_is_bool(attributes[k]) for k in attributes):
        return None
    names = tuple(sorted(attributes))
    parse = _values(_field(_parser({key: attributes}), key), names)
    return LabelFeature((key,), names, parse, _true)


def _bools(name: str, features: Any, key: str) -> LabelFeature | None:
    """Bools that `key`, names or patterns, matches: at the top level or, by paths, in dicts."""
    if not key or (key in features and not _is_bool(features[key])):
        return None
    known = {each: features[each] for each in sorted(features)}
    if "/" in key:
        dicts = [each for each in known if _is_dict(features[each])]
        known |= {f"{k}/{each}": features[k][each] for k in dicts for each in sorted(features[k])}
    paths = select(name, "data.label_key", key, list(known))
    if not all(_is_bool(known[path]) for path in paths):
        return None
    part: dict[str, Any] = {}
    routes = [(path,) if path in features else _halves(path) for path in paths]
    for path, (top, *inner) in zip(paths, routes, strict=True):
        if inner:
            part.setdefault(top, {})[inner[0]] = known[path]
        else:
            part[top] = known[path]
    whole = _parser(part)

    def parse(record: bytes) -> list[bool]:
        example = whole(record)
        return [functools.reduce(operator.getitem, route, example) for route in routes]

    ends = tuple(route[-1] for route in routes)
    names = ends if len(set(ends)) == len(ends) else tuple(paths)
    return LabelFeature(tuple(part), names, parse, _true)


def _image(name: str, features: Any, key: str) -> InputFeature:
    import tensorflow_datasets as tfds

    image = features[key]
    if image.np_dtype != np.uint8:
        raise InputError(f"{name}: image {key!r} must be uint8, got {image.np_dtype}.")
    height, width, channels = image.shape
    parse = _field(_parser({key: image}, {key: tfds.decode.SkipDecoding()}), key)
    fixed = height is not None and width is not None
    return InputFeature(parse, channels=channels or 3, fixed_size=fixed)


def _vector(features: Any, key: str) -> InputFeature:
    parse = _field(_parser({key: features[key]}), key)
    if not _is_dict(features[key]):
        return InputFeature(parse)
    names = tuple(sorted(features[key]))
    return InputFeature(_values(parse, names), names)


def _joined(name: str, features: Any, keys: list[str]) -> InputFeature:
    wrong = [key for key in keys if not _is_number(features[key])]
    if wrong or not keys:
        raise InputError(
            f"{name}: data.input_key must name numbers; {listing(wrong)} are none. "
            f"Features: {_described(features)}."
        )
    parse = _parser({k: features[k] for k in keys})
    return InputFeature(_values(parse, keys), tuple(keys))


def _parser(part: dict[str, Any], decoders: dict | None = None) -> Callable[[bytes], Any]:
    """Parses those features of a record that are in `part`."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(part)

    def parse(record: bytes) -> Any:
        return features.deserialize_example_np(record, decoders=decoders)

    return parse


def _field(parse: Callable[[bytes], Any], *keys: str) -> Callable[[bytes], Any]:
    """Parses a record down to the value at `keys`."""
    return lambda record: functools.reduce(operator.getitem, keys, parse(record))


def _values(parse: Callable[[bytes], Any], names: Sequence[str]) -> Callable[[bytes], list]:
    """Parses a record into the values of `names`, in their order."""

    def values(record: bytes) -> list:
        example = parse(record)
        return [example[name] for name in names]

    return values


def _known(indices: Any) -> list[int]:
    indices = np.atleast_1d(np.asarray(indices, np.int64))
    return indices[indices >= 0].tolist()  # -1 is TFDS's unknown label


def _true(values: Any) -> list[int]:
    return np.flatnonzero(np.asarray(values, bool)).tolist()


def _get(features: Any, key: str) -> Any:
    return features[key] if _is_dict(features) and key in features else None


def _halves(path: str) -> tuple[str, str]:
    """What stands before the last "/" of a path, and after it."""
    before, _, after = path.rpartition("/")
    return before, after


def _class_names(feature: Any) -> tuple[str, ...] | None:
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.ClassLabel) or not feature.num_classes:
        return None
    return tuple(feature.int2str(k) for k in range(feature.num_classes))


def _is_dict(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.FeaturesDict)


def _is_scalar(feature: Any, kinds: str) -> bool:
    import tensorflow_datasets as tfds

    plain = type(feature) in (tfds.features.Tensor, tfds.features.Scalar)
    return plain and _shape(feature) == () and _kind(feature) in kinds


def _shape(feature: Any) -> tuple[int | None, ...]:
    return feature.shape


def _kind(feature: Any) -> str:
    return np.dtype(feature.np_dtype).kind


def _is_bool(feature: Any) -> bool:
    return _is_scalar(feature, "b")


def _is_number(feature: Any) -> bool:
    return _is_scalar(feature, "buif")


def _is_vector(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if _is_dict(feature):
        return bool(list(feature)) and all(_is_number(feature[key]) for key in feature)
    plain = type(feature) is tfds.features.Tensor  # subclasses are boxes, class labels, text
    shape: tuple[int | None, ...] = _shape(feature) if plain else ()
    return len(shape) == 1 and shape[0] is not None and _kind(feature) in "uif"


def _described(features: Any) -> str:
    return ", ".join(f"{key} ({type(features[key]).__name__})" for key in features)
