"""Topologies by name, and the compilers that they need."""

import re
import sys
from importlib.metadata import version

import pytest

from sdjax import aot
from sdjax.errors import InputError
from sdjax.forecast import gpu
from sdjax.forecast.chips import CHIPS
from sdjax.forecast.topology import topology

VERSION = version("jaxlib")


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "h100", "h100:", ""])
def test_names_that_are_not(name):
    expected = (
        "CHIP:SHAPE with a chip of v4, v5e, v5p, v6e, a100, h100, h200, b200, such as v5e:4x4"
    )
    with pytest.raises(InputError, match=f"{expected}.*got {name!r}"):
        topology(name)


@pytest.mark.parametrize("name", ["v5e:2", "v5e:axb"])
def test_slices_of_tpus_that_are_not(name):
    with pytest.raises(InputError, match=f"{name}.*a slice of TPUs has 2 or 3 sizes, such as 4x4"):
        topology(name)


@pytest.mark.parametrize(
    "shape", ["0", "12", "9", "2x9", "0x4", "2x0", "2x2x2", "x", "8x", "-8", "8.0", " 8"]
)
def test_gpus_that_are_not_whole_hosts(shape):
    with pytest.raises(InputError, match=f"h100:COUNT, up to 8 GPUs or a multiple.*h100:{shape}"):
        topology(f"h100:{shape}")


@pytest.fixture
def asked(monkeypatch):
    """What the compiler is asked for, of a jaxlib and a plugin of given versions."""
    from jax.experimental import topologies

    questions = []

    def describe(**options):
        questions.append(options)
        raise RuntimeError("none here\nand more")

    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    versions = {"jaxlib": VERSION, "jax-cuda12-pjrt": VERSION}
    monkeypatch.setattr(gpu, "_version", lambda name: versions.get(name, ""))
    monkeypatch.setattr(gpu, "_has", lambda module: module == "nvidia.cuda_nvcc")
    return questions, versions


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("a100:1", "1x1x1"),
        ("h100:8", "1x1x8"),
        ("h200:3", "1x1x3"),
        ("b200:1024", "1x128x8"),
        ("h100:2x6", "1x2x6"),
    ],
)
def test_what_the_compiler_is_asked_for(asked, name, shape):
    with pytest.raises(InputError, match=f"^topology '{name}': none here$"):
        topology(name)
    (question,) = asked[0]
    assert (question["platform"], question["topology"]) == ("cuda", shape)
    text, chip = question["target_config"], CHIPS[name.partition(":")[0]]
    fields = {field: float(value) for field, value in re.findall(r"(\w+): ([\d.]+)", text)}
    assert fields["device_memory_size"] == chip.memory
    assert fields["memory_bandwidth"] == chip.memory_bandwidth
    assert fields["l2_cache_size"] == chip.cache
    assert fields["shared_memory_per_block_optin"] == fields["shared_memory_per_core"] - 1024
    assert text.count("{") == text.count("}")
    capability = {"a100": 8, "h100": 9, "h200": 9, "b200": 10}[chip.name]
    assert re.search(rf"cuda_compute_capability {{ major: {capability}\b", text)
    assert ("ACCELERATED_FEATURES" in text) == (capability >= 9)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            {},
            r'compiler for NVIDIA GPUs is not installed: pip install -e ".\[train,gpu-forecast\]"',
        ),
        (
            {"jax-cuda12-pjrt": "0.1"},
            "0.1 does not match jaxlib {0}: pip install --no-deps jax-cuda12-pjrt=={0}.$",
        ),
        (
            {"jax-cuda13-pjrt": "0.1", "jax-cuda13-plugin": "0.1"},
            "pip install --no-deps jax-cuda13-pjrt=={0} jax-cuda13-plugin=={0}.$",
        ),
    ],
)
def test_without_the_compiler_of_jaxlibs_version(asked, found, text):
    questions, versions = asked
    versions.clear()
    versions.update(found, jaxlib=VERSION)
    with pytest.raises(InputError, match=text.format(VERSION)):
        topology("h100:8")
    assert not questions


def test_without_the_assembler(asked, monkeypatch):
    monkeypatch.setattr(gpu, "_has", lambda module: False)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="ptxas, is not installed: pip install"):
        topology("h100:8")


def test_without_libtpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(
        InputError, match=r'libtpu is not installed: pip install -e ".\[train,tpu\]"'
    ):
        topology("v5e:2x4")


def test_every_chip_has_a_compiler_and_rates():
    for name, chip in CHIPS.items():
        assert name == chip.name
        assert (chip.platform == "cuda") == (name in gpu._CARDS)
        assert min(chip.flops, chip.memory, chip.memory_bandwidth, chip.link_bandwidth) > 0
        assert aot.NOTES[chip.platform]
