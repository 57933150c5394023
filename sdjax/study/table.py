"""`runs.parquet`: a row a run, a column a variable."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sdjax.config import Config, flat
from sdjax.writing import whole

FILE = "runs.parquet"
SPLITS = ("test", "test_tuned", "validation")
_NO_VARIABLES = ("data.", "report.", "seed", "candidates")


def make(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """The table of the runs with these records.

    Columns: "data", "method", "baseline" (its name, or ""), "seed", "status" ("done" or "failed"),
    "error", "seconds", "parameters", "tuned", "command" (arguments of `python -m sdjax.train`),
    "run" (its folder), "rows.train", "labels" and the like; the fields of the config in which runs
    differ, by their names; and the figures: "test.mAP", "test_tuned.micro_f1", "test.tail.mAP",
    "retrieval.h.ndcg_at_50", "validation.mAP", ...

    Args:
      entries: of `sdjax.study.runs.record`.
    """
    # A field that an earlier version did not know had what is its default now.
    default = flat(Config())
    configs = [
        {**default, **_flattened(each["config"])} if "config" in each else {} for each in entries
    ]
    varied = _varied(configs)
    rows = [
        {
            **{name: each.get(name, "") for name in ("data", "method", "baseline", "seed")},
            "status": each["status"],
            "error": each.get("error", ""),
            "seconds": each["seconds"],
            "parameters": each.get("parameters"),
            "tuned": " ".join(each.get("tuned", ())),
            "command": shlex.join(each.get("command", ())),
            "run": each.get("run", ""),
            **{f"rows.{split}": number for split, number in each.get("data_rows", {}).items()},
            "labels": each.get("data_labels"),
            **{name: config.get(name) for name in varied},
            **dict(figures(each.get("results", {}))),
        }
        for each, config in zip(entries, configs, strict=True)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame({"data": [], "method": [], "seed": []})


def _varied(configs: list[dict[str, Any]]) -> list[str]:
    """The fields that are not the same in all configs, those of data left out."""
    known = [config for config in configs if config]
    return [
        name
        for name in dict.fromkeys(name for each in known for name in each)
        if not name.startswith(_NO_VARIABLES)
        and len({json.dumps(each.get(name)) for each in known}) > 1
    ]


def _flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a config in JSON, by dotted names."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flattened(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def figures(results: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The numbers of the results of a run, by the names of their columns."""
    for split in SPLITS:
        found = dict(results.get(split, {}))
        groups = found.pop("groups", {})
        found.pop("counts", None)
        yield from ((f"{split}.{name}", value) for name, value in found.items())
        for group, values in groups.items():
            for name in ("mAP", "macro_f1"):
                yield f"{split}.{group}.{name}", values[name]
    for vectors, found in results.get("retrieval", {}).items():
        for name, value in found.items():
            if isinstance(value, Mapping):
                if name == "alignment":
                    yield from (
                        (f"retrieval.{vectors}.alignment.{relation}", each)
                        for relation, each in value.items()
                    )
            else:
                yield f"retrieval.{vectors}.{name}", value


def write(frame: pd.DataFrame, workdir: Path) -> Path:
    """Writes `runs.parquet`, whole or not at all."""
    path = workdir / FILE
    with whole(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return path
