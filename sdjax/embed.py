"""Embeddings of rows, for a search: `python -m sdjax.embed --workdir=... --output=emb.npz`.

Without --input they are rows of the run's own data, with their labels.
"""

from pathlib import Path

import numpy as np
from absl import app, flags, logging

from sdjax._src import stop
from sdjax.checks import one_of
from sdjax.data import read_inputs
from sdjax.data.dataset import read_labelled
from sdjax.errors import InputError, check_no_words, ending_in_a_line
from sdjax.training import Gallery, load
from sdjax.training.gallery import SPACES, SUFFIXES
from sdjax.training.workdir import SPLITS

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    check_no_words(argv)
    logging.set_verbosity(logging.WARNING)
    with ending_in_a_line():
        source = FLAGS.input and Path(FLAGS.input)
        gallery = embed(
            Path(FLAGS.workdir),
            source,
            split=FLAGS.split,
            space=FLAGS.space,
            input_key=FLAGS.input_key,
            labels=FLAGS.labels,
            output=Path(FLAGS.output),
        )
    rows, width = gallery.embeddings.shape
    known = "with" if gallery.labels is not None else "without"
    print(f"Wrote {rows:,} embeddings {gallery.space} [{width}], {known} labels, to {FLAGS.output}")


def embed(
    workdir: Path,
    source: Path | None = None,
    *,
    output: Path | None = None,
    split: str = "train",
    space: str = "h",
    input_key: str | None = None,
    labels: bool = False,
) -> Gallery:
    """The embedded rows of a file or of the run's own data; written to `output` if there is one.

    Args:
      workdir: of the trained run.
      source: file of new rows; None is the `split` of the run's data.
      output: .npz or .parquet, see `Gallery.write`.
      split: "train", "validation" or "test".
      space: "h" or "z", see `Predictor.embed`.
      input_key: the input array or field of `source`; "" finds it, None is that of the run's files.
      labels: whether `source` holds labels, as the run's files do.

    Raises:
      InputError: if the rows are not such as the run's, or the suffix of `output` is unknown.
      OSError: if a file cannot be read or written.
    """
    if output is not None:
        one_of("output format", output.suffix, SUFFIXES)
    model = load(workdir)
    if source is None:
        gallery = model.embed_split(split, space)
    elif model.preprocess is None:
        raise InputError(
            f"{workdir}: its run was given a data set, not files; take `sdjax.training.load` and "
            "`embed` for inputs of that kind."
        )
    elif labels:
        examples = read_labelled(str(source), model.preprocess, model.config.data)
        vectors = model.embed(examples.inputs[:], space)
        names = model.label_names
        gallery = Gallery(vectors, examples.names, examples.labels, names, space, model.step)
    else:
        if input_key is None:
            input_key = model.config.data.input_key if model.config.data.name == "files" else ""
        images = model.config.data.images
        x, ids = read_inputs(str(source), model.preprocess, input_key, images)
        names = np.arange(len(x)) if ids is None else np.array(ids, str)
        gallery = Gallery(model.embed_preprocessed(x, space), names, space=space, step=model.step)
    if output is not None:
        gallery.write(output)
    return gallery


if __name__ == "__main__":
    stop.with_a_line()
    flags.DEFINE_string("workdir", None, "Workdir of the trained run.", required=True)
    flags.DEFINE_string("output", None, "File to write: .npz or .parquet.", required=True)
    flags.DEFINE_string("input", None, "File of new rows, as for training.")
    flags.DEFINE_enum("split", "train", SPLITS, "Without --input: of the run's own data.")
    flags.DEFINE_enum(
        "space", "h", SPACES, "h: of the encoder; z: its projection, which the loss compares."
    )
    flags.DEFINE_string(
        "input_key", None, "The input in that file; by default what the run's files called it."
    )
    flags.DEFINE_bool("labels", False, "The file of --input holds labels as the run's files do.")
    app.run(main)
