"""ARFF, dense and sparse, with labels as Mulan (an XML file) or MEKA (`-C n`) declare them."""

import dataclasses
import glob
import os
import re
import xml.etree.ElementTree
from typing import Any

import numpy as np

from sdjax.data.examples import Examples, listing
from sdjax.data.readers import tables, text
from sdjax.data.readers.options import ReadOptions, readable, select
from sdjax.errors import InputError

# The name of an attribute, in quotation marks or not; in them, a backslash stands before some.
NAME = re.compile(
    r"""^\s*@attribute\s+(?:'((?:\\.|[^\\\n])*?)'(?=[\s{])|"((?:\\.|[^\\\n])*?)"(?=[\s{])|([^\s{},%]+))""",
    re.IGNORECASE | re.MULTILINE,
)
ESCAPED = re.compile(r"""\\(['"\\%])""")
TRUTH = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


def read_arff(path: str, options: ReadOptions) -> Examples:
    """Reads an ARFF file.

    Nominal attributes of 0/1 or true/false are numbers, other nominal attributes become one
    0/1 feature `name=value` for each declared value. The labels are, in this order: those that
    `options.labels` names (an XML file, or attributes), those of the XML file beside it, the
    first n (or last, for negative n) by MEKA's `-C n` in the relation's name.
    """
    import arff
    import pandas as pd

    with text.open_text(path, "ARFF") as file, readable(path, "ARFF"):
        source = file.read()
    sparse = re.search(r"^\s*@data\b[^\n]*\n(?:\s*(?:%[^\n]*)?\n)*\s*\{", source, re.I | re.M)
    data = re.search(r"^\s*@data\b", source, re.I | re.M)
    if not data:
        raise InputError(f"{path}: no @data section; truncated?")
    with readable(path, "ARFF"):
        content = arff.loads(source, return_type=arff.LOD if sparse else arff.DENSE)
    # The parser leaves the backslashes of names where they are, and cuts quotation marks at an end.
    names = [
        plain or ESCAPED.sub(r"\1", single or double)
        for single, double, plain in NAME.findall(source, 0, data.start())
    ]
    kinds = [kind for _, kind in content["attributes"]]
    with readable(path, "ARFF"):
        attributes: list[tuple[str, Any]] = list(zip(names, kinds, strict=True))
    columns = _columns(content["data"], attributes, bool(sparse))
    options = _with_labels(path, options, str(content["relation"]), names)
    labels = tables.label_columns(path, names, options)
    first = not options.feature_names
    ignored = set(select(path, "data.ignore", options.ignore, names, first))
    known, of_labels = options.label_names or tuple(labels), set(labels)
    options = dataclasses.replace(options, labels="", label_names=known, ignore="")
    frame = {}
    for (name, kind), values in zip(attributes, columns, strict=True):
        if name in ignored:
            continue
        if not isinstance(kind, list) or name in of_labels:
            frame[name] = values
        else:
            frame.update(_nominal(name, kind, values))
    return tables.from_frame(path, pd.DataFrame(frame), options)


def _columns(data: Any, attributes: list[tuple[str, Any]], sparse: bool) -> list[np.ndarray]:
    """One array of each attribute's values; nominal ones that are 0/1 or true/false as floats."""
    columns = []
    for place, (_, kind) in enumerate(attributes):
        nominal = isinstance(kind, list)
        number = not nominal and kind.upper() in ("NUMERIC", "REAL", "INTEGER")
        # What a sparse row leaves out is 0: of nominal attributes, the first value.
        default = kind[0] if nominal else 0.0 if number else ""
        values = [row.get(place, default) if sparse else row[place] for row in data]
        if nominal and all(value.lower() in TRUTH for value in kind):
            values = [np.nan if value is None else TRUTH[value.lower()] for value in values]
            number = True
        columns.append(np.array(values, float if number else object))
    return columns


def _nominal(name: str, kind: list[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """A nominal attribute as features: itself where it is a number, else one a value."""
    if values.dtype != object:
        return {name: values}
    missing = np.array([value is None for value in values], bool)
    return {
        f"{name}={value}": np.where(missing, np.nan, (values == value).astype(float))
        for value in kind
    }


def _with_labels(path: str, options: ReadOptions, relation: str, names: list[str]) -> ReadOptions:
    """`options` with the label names that the XML file or MEKA's option declares."""
    if options.label_names:
        return options
    declared = None
    if options.labels.lower().endswith(".xml"):
        xml = options.labels
        beside = os.path.join(os.path.dirname(path), xml)
        declared = read_xml(beside if os.path.exists(beside) and not os.path.exists(xml) else xml)
    elif not options.labels:
        xml = _xml_beside(path)
        declared = read_xml(xml) if xml else _meka_labels(relation, names)
        if declared is None:
            raise InputError(
                f"{path}: which attributes are labels? Set data.labels to a Mulan XML file, or "
                f"to names or patterns. Attributes: {listing(names)}."
            )
    if declared is None:
        return options
    attributes = set(names)
    absent = [name for name in declared if name not in attributes]
    if absent:
        raise InputError(f"{path}: labels that are no attribute: {listing(absent)}.")
    return dataclasses.replace(options, label_names=declared)


def read_xml(path: str) -> tuple[str, ...]:
    """The label names of a Mulan XML file, nested ones included."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file (data.labels).")
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except xml.etree.ElementTree.ParseError as error:
        raise InputError(f"{path}: not a readable XML file: {error}.") from error
    names = [node.get("name", "") for node in root.iter() if node.tag.split("}")[-1] == "label"]
    if not all(names) or not names or len(set(names)) < len(names):
        raise InputError(
            f'{path}: a Mulan XML file has one <label name="..."> for each label, all different; '
            f"got {listing(names)}."
        )
    return tuple(names)


def _xml_beside(path: str) -> str | None:
    """The XML file of the same stem, else the one whose stem begins it, else the only one."""
    stem = path[: -len(text.suffix(path))]
    found = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "*.xml")))
    if f"{stem}.xml" in found:
        return f"{stem}.xml"
    prefixes = [xml for xml in found if stem.startswith(os.path.splitext(xml)[0])]
    if prefixes:
        return max(prefixes, key=len)
    return found[0] if len(found) == 1 else None


def _meka_labels(relation: str, names: list[str]) -> tuple[str, ...] | None:
    option = re.search(r"-C\s+(-?\d+)", relation, re.I)
    count = int(option.group(1)) if option else 0
    if not 0 < abs(count) <= len(names):
        return None
    return tuple(names[:count] if count > 0 else names[count:])
