"""Probabilities and embeddings of new rows: `python -m sdjax.predict --workdir=... --input=...`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import app, flags, logging

from sdjax._src import stop
from sdjax.checks import one_of
from sdjax.data import read_inputs
from sdjax.errors import InputError, check_no_words, ending_in_a_line
from sdjax.training import load

FLAGS = flags.FLAGS
SUFFIXES = (".npz", ".csv", ".parquet", ".jsonl")


def main(argv: list[str]) -> None:
    check_no_words(argv)
    logging.set_verbosity(logging.WARNING)
    with ending_in_a_line():
        count = predict(
            Path(FLAGS.workdir),
            Path(FLAGS.input),
            Path(FLAGS.output),
            FLAGS.input_key,
            labels=FLAGS.labels,
            images=FLAGS.images,
        )
    print(f"Wrote {count} rows to {FLAGS.output}")


def predict(
    workdir: Path,
    source: Path,
    output: Path,
    input_key: str | None = None,
    *,
    labels: bool = False,
    images: str | None = None,
) -> int:
    """Writes probabilities and embeddings of the rows of `source` to `output`; returns how many.

    Args:
      workdir: of the trained run.
      source: file of new rows.
      output: file to write.
      input_key: the input array or field of `source`; "" finds it, None is that of the run's files.
      labels: also write the labels that the run's thresholds decide for.
      images: the folder of the images that a table names; "" is the table's own, None that of the
        run's files.
    """
    one_of("output format", output.suffix, SUFFIXES)
    model = load(workdir)
    if model.preprocess is None:
        raise InputError(
            f"{workdir}: its run was given a data set, not files; take `sdjax.training.load` and "
            "`predict_proba` for inputs of that kind."
        )
    if input_key is None:
        # The keys of a TFDS set are features of that set, and nothing that a file would have.
        input_key = model.config.data.input_key if model.config.data.name == "files" else ""
    images = model.config.data.images if images is None else images
    x, ids = read_inputs(str(source), model.preprocess, input_key, images)
    scores, embeddings = model.run(x)
    decided = model.decide(scores) if labels else None
    ids = ids or [str(row) for row in range(len(x))]
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".npz":
        arrays: dict[str, Any] = {"probabilities": scores, "embeddings": embeddings}
        if decided is not None:
            arrays["labels"] = decided
        np.savez(output, id=np.array(ids), label_names=np.array(model.label_names), **arrays)
    elif output.suffix == ".jsonl":
        with output.open("w") as file:
            for row, key in enumerate(ids):
                probabilities = dict(zip(model.label_names, scores[row].tolist(), strict=True))
                values = {"id": key, "probabilities": probabilities}
                if decided is not None:
                    values["labels"] = _names(model.label_names, decided[row])
                file.write(json.dumps({**values, "embedding": embeddings[row].tolist()}) + "\n")
    else:
        columns = [f"p_{name}" for name in model.label_names]
        columns += [f"e_{i}" for i in range(embeddings.shape[1])]
        frame = pd.DataFrame(np.concatenate([scores, embeddings], axis=1), columns=columns)
        if decided is not None:
            frame.insert(0, "labels", [";".join(_names(model.label_names, row)) for row in decided])
        frame.insert(0, "id", ids)
        frame.to_csv(output, index=False) if output.suffix == ".csv" else frame.to_parquet(output)
    return len(x)


def _names(label_names: tuple[str, ...], decided: np.ndarray) -> list[str]:
    return [label_names[place] for place in np.flatnonzero(decided)]


if __name__ == "__main__":
    stop.with_a_line()
    flags.DEFINE_string("workdir", None, "Workdir of the trained run.", required=True)
    flags.DEFINE_string("input", None, "File of new rows, as for training.", required=True)
    flags.DEFINE_string(
        "input_key", None, "The input in that file; by default what the run's files called it."
    )
    flags.DEFINE_string(
        "images", None, "Folder of the images that a table names; by default that of the run."
    )
    flags.DEFINE_string(
        "output", None, "File to write: .npz, .csv, .parquet or .jsonl.", required=True
    )
    flags.DEFINE_bool("labels", False, "Also write the labels that the run's thresholds give.")
    app.run(main)
