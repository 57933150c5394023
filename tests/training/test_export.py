"""Exported models: what JAX alone computes with them is what the run's own model gives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export as jax_export
from published_models import FOLDER
from scipy import sparse

from sdjax import training
from sdjax.config import Config, ModelConfig
from sdjax.data import Preprocess, TextPreprocess
from sdjax.errors import InputError
from sdjax.export import PLATFORMS, contents, export, exported, function_of
from sdjax.models.registry import with_architecture
from sdjax.training import Predictor, load, make_setup, score, train
from sdjax.training.recipes import make_phases
from sdjax.training.state import ExampleSpec, init_model

pytestmark = pytest.mark.usefixtures("two_devices")

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
NAMES = ("cat", "dog", "hat")
TEXTS = ["the cat", "a big red dog and the hat", "the the the hat", ""]
RANDOM = np.random.default_rng(0)


def blocks(heading=""):
    """The Python of the documentation, in or before the section `heading`."""
    sections = re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)
    parts = dict(zip(["", *sections[1::2]], sections[0::2]))
    return re.findall(r"^```python\n(.*?)^```", parts[heading], re.MULTILINE | re.DOTALL)


def predictor(preprocess, inputs, recipe="joint", **model):
    """A model of two members with random weights, as if it had been trained."""
    config = Config(recipe=recipe)
    options = {"members": 2, "width": 8, "projection_dim": 4, **model}
    config.model = with_architecture(ModelConfig(**options))
    config.model.weights = ""
    spec = ExampleSpec.of(inputs, jax.ShapeDtypeStruct((3,), np.bool_))
    state = SimpleNamespace(step=7, best=init_model(config, spec, jax.random.key(0)))
    return Predictor(config, preprocess, NAMES, spec, make_phases(config, 1)[0], state)


def of_vectors(**options):
    given = dict(mean=(0.5,) * 4, std=(0.3, 0.7, 2.0, 1.0))
    preprocess = Preprocess("vector", (4,), (), NAMES, 1.0, **given)
    inputs = jax.ShapeDtypeStruct((4,), np.float32)
    return predictor(preprocess, inputs, encoder="mlp", norm="batch", frequencies=2, **options)


def of_missing_values():
    given = dict(mean=(0.5,) * 6, std=(0.3,) * 6, medians=(1.0, 2.0, 3.0, 4.0), indicators=(0, 2))
    preprocess = Preprocess("vector", (4,), (), NAMES, 1.0, **given)
    return predictor(preprocess, jax.ShapeDtypeStruct((6,), np.float32), encoder="mlp")


def of_images(encoder, dtype=np.uint8):
    scale = 1 / 255 if dtype == np.uint8 else 1.0
    given = ("image", (12, 12, 3), (), NAMES, scale, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    inputs = jax.ShapeDtypeStruct((12, 12, 3), np.float32)
    return predictor(Preprocess(*given), inputs, encoder=encoder, weights=str(FOLDER / encoder))


def of_texts(**options):
    content = (FOLDER / "bert" / "tokenizer.json").read_text()
    inputs = {k: jax.ShapeDtypeStruct((20,), t) for k, t in (("ids", np.int32), ("mask", bool))}
    preprocess = TextPreprocess("text", content, 9, NAMES)
    return predictor(preprocess, inputs, encoder="bert", weights=str(FOLDER / "bert"), **options)


def dense(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def pixels(*shape):
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def tokens(model):
    return [model.preprocess(TEXTS).padded(np.arange(n), width) for n, width in ((4, 9), (2, 20))]


WITH_GAPS = np.where(RANDOM.random((5, 4)) < 0.3, np.nan, dense(5, 4))
WORDS = sparse.random_array((6, 4), density=0.4, rng=RANDOM, dtype=np.float32, format="csr")
SEGMENTS = dict(pooling="label_wise", label_chunk=2, segment_length=8, segment_overlap=4)
# Of each encoder: the model, the raw inputs for `Predictor`, those for the program.
CASES = {
    "sparse": lambda: (of_vectors(), WORDS, WORDS.toarray()),
    "missing": lambda: (of_missing_values(), WITH_GAPS, WITH_GAPS),
    "vit": lambda: (of_images("vit"), *[pixels(3, 12, 12, 3)] * 2),
    "resnet": lambda: (of_images("resnet", dtype=np.float32), *[dense(3, 12, 12, 3)] * 2),
    "bert": lambda: (of_texts(), TEXTS, None),
    "segments": lambda: (of_texts(**SEGMENTS), TEXTS, None),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exported_model_gives_what_the_model_gives(name):
    model, raw, given = CASES[name]()
    texts = given is None
    batches = tokens(model) if texts else [given, given[:2]]
    files, about = contents(model)
    program = jax_export.deserialize(bytearray(files["program.jax"]))
    assert program.platforms == tuple(about["platforms"]) == PLATFORMS
    # The same program, but for segments: here the width says whether there are some.
    same = np.testing.assert_allclose if name == "segments" else np.testing.assert_array_equal
    options = {"atol": 1e-6} if name == "segments" else {}
    for found, wanted in zip(program.call(batches[0]), jax.jit(function_of(model))(batches[0])):
        same(found, wanted, **options)
        assert found.dtype == np.float32
    expected = model.predict_proba(raw), model.embed(raw)
    for x in batches:
        probabilities, embeddings = program.call(x)
        count = len(probabilities)
        np.testing.assert_allclose(probabilities, expected[0][:count], atol=1e-6)
        np.testing.assert_allclose(embeddings, expected[1][:count], atol=1e-5)
    assert np.ptp(probabilities) > 1e-3


def test_texts_by_the_tokenizer_beside_the_program():
    tokenizers = pytest.importorskip("tokenizers")
    model = of_texts()
    files, about = contents(model, ["cpu"])
    encoded = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode()).encode_batch(TEXTS)
    wanted = model.preprocess(TEXTS).padded(np.arange(4), len(encoded[0].ids))
    np.testing.assert_array_equal([each.ids for each in encoded], wanted["ids"])
    np.testing.assert_array_equal([each.attention_mask for each in encoded], wanted["mask"])
    assert about["inputs"]["ids"] == {"shape": ["batch", "length"], "dtype": "int32"}
    assert (about["tokenizer"], about["length_limit"]) == ("tokenizer.json", 20)
    long = {"ids": np.ones((1, 21), np.int32), "mask": np.ones((1, 21), bool)}
    with pytest.raises(ValueError, match="symbolic shape constraint length <= 20"):
        exported(model, ["cpu"]).call(long)


def test_a_run_is_exported_and_used_by_jax_alone(toy_config, toy_files, tmp_path):
    """The command writes the file, and the code of the documentation reads it."""
    toy_config.model.members, toy_config.supervise.epochs = 2, 1
    setup = make_setup(toy_config)
    score(setup, train(setup, tmp_path / "run"), tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = ["-m", "sdjax.export", f"--workdir={tmp_path / 'run'}"]
    command += [f"--output={elsewhere / 'yeast.zip'}"]
    done = run_python(command, environment)
    assert "float32 [batch, 6] -> probabilities float32 [batch, 3]" in done
    assert "for cpu, cuda, tpu to" in done
    x = np.load(toy_files / "test.npz")["x"]
    np.save(elsewhere / "new.npy", x)
    code = (
        blocks()[0]
        + "import sys\n"
        + "assert not {'sdjax', 'flax', 'optax'} & {name.split('.')[0] for name in sys.modules}\n"
        + "np.savez('out.npz', a=probabilities, b=embeddings, c=labels, names=about['label_names'])"
    )
    run_python(["-c", code], environment, elsewhere)
    model = load(tmp_path / "run")
    with np.load(elsewhere / "out.npz") as found:
        np.testing.assert_allclose(found["a"], model.predict_proba(x), atol=1e-6)
        np.testing.assert_allclose(found["b"], model.embed(x), atol=1e-5)
        np.testing.assert_array_equal(found["c"], model.predict(x))
        assert tuple(found["names"]) == model.label_names
    about = export(tmp_path / "run", tmp_path / "folder", platforms=["cpu"])
    assert json.loads((tmp_path / "folder" / "model.json").read_text()) == about
    again = jax_export.deserialize(bytearray((tmp_path / "folder" / "program.jax").read_bytes()))
    assert again.platforms == ("cpu",)
    assert about["preprocess"]["mean"] == list(model.preprocess.mean)


def run_python(arguments, environment, folder=None):
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "output, platforms, error, text",
    [
        ("a.onnx", PLATFORMS, InputError, r"Unknown output format '.onnx'. Known: .zip"),
        ("a.zip", ["cpu", "cuba"], InputError, "Unknown platform 'cuba'. Did you mean 'cuda'"),
        ("a.zip", [], InputError, "at least one of cpu, cuda, tpu"),
        ("a.zip", PLATFORMS, FileNotFoundError, "is not the workdir of a run"),
    ],
)
def test_export_names_what_is_wrong(output, platforms, error, text, tmp_path):
    with pytest.raises(error, match=text):
        export(tmp_path, tmp_path / output, platforms=platforms)
    assert not (tmp_path / output).exists()


def test_models_that_cannot_be_exported(monkeypatch):
    with pytest.raises(InputError, match="stopped in phase 'pretrain', after step 7"):
        contents(of_vectors(recipe="probe"))
    model = of_vectors()
    monkeypatch.setattr(jax_export.Exported, "serialize", absent)
    with pytest.raises(InputError, match=r"needs the package flatbuffers: pip install 'sdjax\["):
        contents(model, ["cpu"])
    monkeypatch.setattr("sdjax.export._LARGEST", 100)
    with pytest.raises(InputError, match="room for 2 GB"):
        contents(model, ["cpu"])


def absent(*args, **kwargs):
    raise ImportError("flatbuffers")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["sparse", "missing", "vit", "bert"])
def test_the_recipe_for_onnx(name, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx", reason="the converter is not installed")
    pytest.importorskip("onnxruntime", reason="the runtime is not installed")
    model, raw, x = CASES[name]()
    x = tokens(model)[0] if x is None else x
    monkeypatch.setattr(training, "load", lambda workdir: model)
    monkeypatch.chdir(tmp_path)
    write, read = blocks("ONNX")
    exec(write, {})
    if isinstance(x, dict):
        read = read.replace("[x]", "x.values()")
    found = {"x": x}
    exec(read, found)
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(raw), atol=2e-6)
    np.testing.assert_allclose(found["embeddings"], model.embed(raw), atol=1e-5)
