"""Pretrained weights: read whole or not at all, and never from a pickle."""

import json
import logging
import sys

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from published_models import FOLDER, copy
from safetensors.numpy import load_file, save_file

from sdjax import hub
from sdjax.errors import InputError
from sdjax.models import bert, weights

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def loaded(origin):
    module = bert.Bert(bert.read_sizes(origin), rngs=nnx.Rngs(0))
    bert.load(module, origin)
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(module))}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path])


@pytest.fixture(scope="module")
def sound():
    return loaded(str(FOLDER / "bert"))


def test_each_tensor_goes_to_its_place(sound):
    given = load_file(FOLDER / "bert" / "model.safetensors")
    kernel = sound["layers", 1, "qkv", "kernel"]
    assert kernel.shape == (16, 48)
    np.testing.assert_array_equal(kernel[:, :16], given[QUERY].T)
    np.testing.assert_array_equal(
        kernel[:, 32:], given["bert.encoder.layer.1.attention.self.value.weight"].T
    )
    np.testing.assert_array_equal(
        sound["embeddings", "position", "embedding"],
        given["bert.embeddings.position_embeddings.weight"],
    )


@pytest.mark.parametrize("prefix", ["", "model.", "model.bert."])
def test_prefixes(tmp_path, sound, prefix):
    def renamed(tensors):
        return {name.replace("bert.", prefix, 1): x for name, x in tensors.items()}

    assert_same(loaded(copy("bert", tmp_path / "model", tensors=renamed)), sound)


def test_names_of_the_first_releases(tmp_path, sound):
    def renamed(tensors):
        ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, old in ends.items():
            tensors = {name.replace(new, old): x for name, x in tensors.items()}
        return {**tensors, "bert.embeddings.position_ids": np.arange(20)[None]}

    assert_same(loaded(copy("bert", tmp_path / "model", tensors=renamed)), sound)


def test_a_file_and_parts_of_a_file(tmp_path, sound):
    assert_same(loaded(str(FOLDER / "bert" / "model.safetensors")), sound)
    origin = copy("bert", tmp_path / "parts")
    whole = tmp_path / "parts" / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    places = {name: f"model-0000{1 + (name > 'bert.e')}-of-00002.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file(
            {k: x for k, x in tensors.items() if places[k] == file}, tmp_path / "parts" / file
        )
    index = tmp_path / "parts" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert_same(loaded(origin), sound)
    (tmp_path / "parts" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"are missing: \['model-00002-of-00002.safetensors'\]"):
        loaded(origin)
    index.write_text("[]")
    with pytest.raises(InputError, match="not an index of weights"):
        loaded(origin)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats_become_float32(tmp_path, sound, dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    given = {k: x.astype(kind) for k, x in load_file(FOLDER / "bert/model.safetensors").items()}
    origin = copy("bert", tmp_path / "model")
    _write(tmp_path / "model" / "model.safetensors", given)
    for path, value in loaded(origin).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, sound[path].astype(kind).astype(np.float32))


def _write(path, tensors):
    """The format by hand, as safetensors writes no bfloat16 of NumPy."""
    names = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}
    header, content = {}, b""
    for name, x in tensors.items():
        data = np.ascontiguousarray(x).tobytes()
        place = [len(content), len(content) + len(data)]
        header[name] = {"dtype": names[str(x.dtype)], "shape": x.shape, "data_offsets": place}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def without(tensors, name):
    return {k: x for k, x in tensors.items() if k != name}


def test_missing_surplus_and_misshapen_tensors_in_one_error(tmp_path):
    def spoiled(tensors):
        norm = "bert.encoder.layer.0.output.LayerNorm.bias"
        near = QUERY.replace("query", "querry")
        return {
            **without(without(tensors, norm), QUERY),
            near: tensors[QUERY],
            "bert.extra": np.zeros((2, 3), np.float32),
            "bert.embeddings.word_embeddings.weight": np.zeros((81, 16), np.float32),
        }

    origin = copy("bert", tmp_path / "model", tensors=spoiled)
    with pytest.raises(InputError) as caught:
        loaded(origin)
    text = str(caught.value)
    assert text.startswith(f"{origin}: the tensors do not fit the model. missing: ")
    assert (
        "encoder.layer.1.attention.self.query.weight [16, 16], near miss "
        "encoder.layer.1.attention.self.querry.weight [16, 16]" in text
    )
    assert "encoder.layer.0.output.LayerNorm.bias [16]" in text
    assert "not known: encoder.layer.1.attention.self.querry.weight [16, 16]; extra [2, 3]" in text
    assert (
        "of another shape: embeddings.word_embeddings.weight [80, 16] wanted, [81, 16] found."
        in text
    )


def test_a_network_of_more_layers_names_the_first_tensors(tmp_path):
    origin = copy("bert", tmp_path / "model", config={"num_hidden_layers": 3})
    with pytest.raises(InputError, match=r"encoder\.layer\.2\..*; and 8 more\.$"):
        loaded(origin)
    origin = copy("bert", tmp_path / "other", config={"num_hidden_layers": 1})
    with pytest.raises(InputError, match=r"not known: encoder\.layer\.1\."):
        loaded(origin)


def test_heads_are_left_out_and_named(caplog):
    with caplog.at_level(logging.INFO):
        loaded(str(FOLDER / "bert"))
    assert "left out: cls.predictions.bias" in caplog.text


def test_a_tensor_that_is_there_twice(tmp_path):
    def doubled(tensors):
        return {**tensors, QUERY.removeprefix("bert."): tensors[QUERY]}

    origin = copy("bert", tmp_path / "model", tensors=doubled)
    with pytest.raises(InputError, match="there twice: encoder.layer.1.attention.self.query"):
        loaded(origin)


def test_integers_are_no_weights(tmp_path):
    def rounded(tensors):
        return {**tensors, QUERY: tensors[QUERY].astype(np.int32)}

    origin = copy("bert", tmp_path / "model", tensors=rounded)
    with pytest.raises(InputError, match=r"query.weight must be floats, got I32"):
        loaded(origin)


def test_a_pickle_is_never_loaded(tmp_path):
    origin = copy("bert", tmp_path / "model", drop=["model.safetensors"])
    pickle = tmp_path / "model" / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="only pytorch_model.bin: a pickle.*never loaded"):
        loaded(origin)
    with pytest.raises(InputError, match="from .safetensors files alone"):
        loaded(str(pickle))
    pickle.unlink()
    with pytest.raises(InputError, match="there is no model.safetensors in"):
        loaded(origin)


def test_a_file_that_is_no_safetensors(tmp_path):
    origin = copy("bert", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as safetensors; truncated"):
        loaded(origin)


def test_configs_that_are_absent_or_broken(tmp_path):
    origin = copy("bert", tmp_path / "model", drop=["config.json"])
    with pytest.raises(InputError, match=r"there is no config\.json in"):
        bert.read_sizes(origin)
    with pytest.raises(InputError, match=r"there is no config\.json in"):
        bert.read_sizes(f"{origin}/model.safetensors")
    for text, message in (("{", "not JSON"), ("[1]", "a JSON object was expected")):
        (tmp_path / "model" / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            bert.read_sizes(origin)


# --- the hub ------------------------------------------------------------------------------------


def test_what_is_neither_a_path_nor_an_id():
    for origin in ("/no/such/folder", "no/such/folder", "a b", ""):
        with pytest.raises(InputError, match="no such file or folder, and not an id of the hub"):
            hub.local(origin)


def test_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"needs the package huggingface_hub: pip install 'sdjax"):
        hub.local("owner/name")


def test_off_line(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"owner/name: no such file .* cannot be fetched .* Off"):
        hub.local("owner/name")


def test_what_is_fetched_from_the_hub(monkeypatch, sound):
    import huggingface_hub

    calls = []

    def fetched(name, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(FOLDER / "bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert_same(loaded("owner/name@v1.0"), sound)
    name, revision, patterns = calls[0]
    assert (name, revision) == ("owner/name", "v1.0")
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in patterns)
    hub.local("name")
    assert calls[-1][:2] == ("name", None)


def test_without_the_package_that_reads_weights(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"needs the package safetensors: pip install 'sdjax"):
        weights.read(str(FOLDER / "bert"), {})
