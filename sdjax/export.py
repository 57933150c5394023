"""A trained model for JAX alone: `python -m sdjax.export --workdir=... --output=model.zip`.

The file holds the program with all parameters, for several platforms, and what a user must know of
its inputs and outputs. See docs/export.md.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax import export as jax_export

import sdjax
from sdjax._src import stop
from sdjax.checks import one_of
from sdjax.data import Preprocess, TextPreprocess
from sdjax.data.tokens import are_tokens, with_padding
from sdjax.errors import InputError, check_no_words, ending_in_a_line
from sdjax.models import registry
from sdjax.training import Predictor, load

FLAGS = flags.FLAGS
PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
FORMAT_VERSION = 1
PROGRAM, ABOUT, TOKENIZER = "program.jax", "model.json", "tokenizer.json"

_LARGEST = (1 << 31) - (1 << 24)  # bytes: the format's limit, less room for the program


def main(argv: list[str]) -> None:
    check_no_words(argv)
    logging.set_verbosity(logging.WARNING)
    with ending_in_a_line():
        about = export(Path(FLAGS.workdir), Path(FLAGS.output), platforms=FLAGS.platforms)
    inputs, outputs = _shown(about["inputs"]), _shown(about["outputs"])
    print(f"Wrote {inputs} -> {outputs} for {', '.join(about['platforms'])} to {FLAGS.output}")


def export(
    workdir: Path, output: Path, *, platforms: Sequence[str] = PLATFORMS
) -> Mapping[str, Any]:
    """Writes the model of a run for use without sdjax; returns what `model.json` says of it.

    Args:
      workdir: of the trained run.
      output: a .zip, or a folder; what it holds of these files is overwritten.
      platforms: that the program is for, of `KNOWN_PLATFORMS`; they need not be at hand.

    Raises:
      InputError: if a platform or the suffix of `output` is unknown, the run has not trained its
        classifier, the parameters exceed 2 GB, or the package flatbuffers is not there.
      FileNotFoundError: if there is no run, or it has not saved a checkpoint yet.
      OSError: if a file cannot be read or written.
    """
    if output.suffix != ".zip" and output.suffix and not output.is_dir():
        raise InputError(
            f"Unknown output format {output.suffix!r}. Known: .zip, and folders, whose names have "
            "no suffix."
        )
    platforms = check_platforms(platforms)
    files, about = contents(load(workdir), platforms)
    if output.suffix == ".zip":
        output.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(output, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (output / name).write_bytes(content)
    return about


def check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """Each platform once. Raises InputError, with the nearest name, where one is unknown."""
    found = tuple(dict.fromkeys(one_of("platform", name, KNOWN_PLATFORMS) for name in platforms))
    if not found:
        raise InputError(f"platforms must name at least one of {', '.join(KNOWN_PLATFORMS)}.")
    return found


def contents(
    model: Predictor, platforms: Sequence[str] = PLATFORMS
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files {name: content} of an exported model, and what `model.json` says. See `export`."""
    program = exported(model, platforms)
    try:
        files = {PROGRAM: bytes(program.serialize())}
    except ImportError as error:
        raise InputError(
            "An export needs the package flatbuffers: pip install 'sdjax[export]'."
        ) from error
    about = _about(model, program)
    if isinstance(model.preprocess, TextPreprocess):
        text = model.preprocess
        files[TOKENIZER] = with_padding(text.tokenizer, text.max_length).encode()
    files[ABOUT] = json.dumps(about, indent=1, ensure_ascii=False).encode()
    return files, about


def exported(model: Predictor, platforms: Sequence[str] = PLATFORMS) -> jax_export.Exported:
    """The model as a program of raw inputs, for any batch size and for texts of any length.

    Args:
      model: of a run.
      platforms: that it is for.

    Returns:
      `jax.export.Exported` of x -> (probabilities float32 [B, C], embeddings float32 [B, H]).

    Raises:
      InputError: if the classifier is not trained, or the parameters exceed 2 GB.
    """
    model.check_classifies()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.weights))
    if size > _LARGEST:
        raise InputError(
            f"The parameters take {size / 1e9:.1f} GB; jax.export has room for 2 GB. Train with "
            "fewer members, or use `sdjax.training.load`."
        )
    function = jax_export.export(jax.jit(function_of(model)), platforms=check_platforms(platforms))
    return function(input_spec(model))


def function_of(model: Predictor) -> Any:
    """The model as a function x -> (probabilities, embeddings), for jit and for other exporters.

    Raw vectors and images go in, their preprocessing is part of it, and of texts their tokens. What
    `Predictor.predict_proba` checks is not checked.
    """

    def function(x: Any) -> tuple[jax.Array, jax.Array]:
        if isinstance(model.preprocess, Preprocess):
            x = model.preprocess.traced(x)
        scores, embeddings = model.forward(x)
        return scores, embeddings.astype(np.float32)

    return function


def input_spec(model: Predictor) -> Any:
    """Shapes and dtypes of the inputs of `function_of`, `batch` and `length` being symbols."""
    inputs = model.spec.inputs
    longest = registry.max_length(model.config.model)
    constraints = [f"length <= {longest}"] if longest else []
    batch, length = jax_export.symbolic_shape("batch, length", constraints=constraints)
    if isinstance(model.preprocess, Preprocess):
        images = model.preprocess.kind == "image" and model.preprocess.scale != 1
        dtype = np.uint8 if images else np.float32
        return jax.ShapeDtypeStruct((batch, *model.preprocess.input_shape), dtype)
    if are_tokens(inputs):
        return {k: jax.ShapeDtypeStruct((batch, length), x.dtype) for k, x in inputs.items()}
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape), x.dtype), inputs)


def _about(model: Predictor, program: jax_export.Exported) -> dict[str, Any]:
    """What `model.json` says."""

    def described(array: Any) -> dict[str, Any]:
        shape = [size if isinstance(size, int) else str(size) for size in array.shape]
        return {"shape": shape, "dtype": str(array.dtype)}

    preprocess = {} if model.preprocess is None else model.preprocess.to_json()
    for name in ("tokenizer", "label_names"):  # they stand elsewhere
        preprocess.pop(name, None)
    probabilities, embeddings = map(described, program.out_avals)
    return {
        "format_version": FORMAT_VERSION,
        "program": PROGRAM,
        "platforms": list(program.platforms),
        "label_names": list(model.label_names),
        "thresholds": None if model.thresholds is None else model.thresholds.tolist(),
        "inputs": jax.tree.map(described, input_spec(model)),
        "outputs": {"probabilities": probabilities, "embeddings": embeddings},
        "preprocess": preprocess,
        "preprocess_in_program": isinstance(model.preprocess, Preprocess),
        "tokenizer": TOKENIZER if isinstance(model.preprocess, TextPreprocess) else None,
        "length_limit": registry.max_length(model.config.model) or None,
        "step": model.step,
        "sdjax": sdjax.__version__,
        "jax": jax.__version__,
        "calling_convention_version": program.calling_convention_version,
    }


def _shown(arrays: Any) -> str:
    """Inputs or outputs in one line."""
    if "dtype" in arrays:
        return f"{arrays['dtype']} [{', '.join(map(str, arrays['shape']))}]"
    return ", ".join(f"{name} {_shown(array)}" for name, array in arrays.items())


if __name__ == "__main__":
    stop.with_a_line()
    flags.DEFINE_string("workdir", None, "Workdir of the trained run.", required=True)
    flags.DEFINE_string("output", None, "File to write, .zip, or a folder.", required=True)
    flags.DEFINE_list(
        "platforms", list(PLATFORMS), f"What it is to run on: {', '.join(KNOWN_PLATFORMS)}."
    )
    app.run(main)
