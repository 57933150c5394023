"""Forecasts of whole training steps; those for TPUs and GPUs where their compilers are there."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from compilation import compile_quickly
from compilers import needs_cuda, needs_libtpu

from sdjax import LabelIndices, aot, label_sets
from sdjax.config import Config, sized
from sdjax.data import ArraySource, Dataset
from sdjax.errors import InputError
from sdjax.forecast import cost as costs
from sdjax.forecast import forecast as forecasting
from sdjax.forecast.chips import CHIPS
from sdjax.forecast.collectives import Collective
from sdjax.forecast.cost import Cost
from sdjax.forecast.forecast import Forecast, forecast
from sdjax.training import make_setup
from sdjax.training.recipes import make_phases

ROOT = Path(__file__).parents[2]


def test_the_slowest_resource_bounds():
    chip = CHIPS["v5e"]
    everyone = (tuple(range(8)),)
    sent = (Collective("all-reduce", "f32[1]", everyone, 1, 3 * chip.link_bandwidth),)
    cost = Cost(chip, (0,) * 4 + (1,) * 4, 1.0, 2 * chip.flops, chip.memory_bandwidth, sent)
    assert (cost.bound, cost.least_seconds) == ("interconnect", 3)
    assert cost.seconds == {"compute": 2, "memory": 1, "interconnect": 3}


@pytest.mark.parametrize(
    ("kind", "groups", "rate"),
    [
        # On one host, by NVLink.
        ("all-reduce", ((0, 1, 2, 3), (4, 5, 6, 7)), 450e9),
        ("collective-permute", ((0, 1), (1, 2), (2, 3), (3, 0)), 450e9),
        # Over two hosts: the adapters of the four GPUs of each carry a part of the sum; a GPU sends
        # to one other by its own.
        ("all-reduce", (tuple(range(8)),), 4 * 50e9),
        ("all-reduce", ((0, 4), (1, 5), (2, 6), (3, 7)), 50e9),
        ("collective-permute", tuple((i, (i + 1) % 8) for i in range(8)), 50e9),
        # Of seven parts that a GPU sends four leave the host.
        ("all-to-all", (tuple(range(8)),), 50e9 * 7 / 4),
    ],
)
def test_hosts_are_joined_by_a_slower_network(kind, groups, rate):
    sent = (Collective(kind, "f32[1]", groups, 1, 1e9),)
    cost = Cost(CHIPS["h100"], (0,) * 4 + (1,) * 4, 1.0, collectives=sent)
    assert cost.seconds["interconnect"] == pytest.approx(1e9 / rate)


def toy(rows, labels=None):
    """A data set of `rows` to train on, 6 features and 4 labels."""
    rng = np.random.default_rng(0)

    def source(size):
        given = rng.random((size, 4)) < 0.5 if labels is None else labels(size)
        return ArraySource(rng.normal(size=(size, 6)).astype(np.float32), given)

    return Dataset("toy", source(rows), source(24), source(24), label_names=tuple("abcd"))


@pytest.mark.parametrize(
    ("rows", "microbatches", "expected"),
    [(70, 1, (32, 256)), (5_000, 3, (504, 256)), (20_000, 1, (512, 512))],
)
def test_sizes_are_those_of_training(monkeypatch, rows, microbatches, expected):
    """Whatever topology has as many devices as there are here."""
    config = Config(batch_size=0, microbatches=microbatches, recipe="bce")
    dataset, planned = toy(rows), []

    def planning(config, spec, phase, chip, devices):
        planned.append((config, spec))
        hosts = (0,) * len(devices)
        return Forecast(phase.name, config.batch_size, False, Cost(chip, hosts, peak=1.0))

    monkeypatch.setattr(aot, "topology", lambda name: (CHIPS["v5e"], jax.devices()))
    monkeypatch.setattr(aot, "forecast", planning)
    aot.print_forecasts(config, *aot.examples_of(dataset), ["v5e:2x4"], [config.batch_size])
    setup = make_setup(config, dataset=dataset)
    assert planned == [(setup.program, setup.spec)]
    assert (setup.config.batch_size, setup.config.model.width) == expected


LISTS = LabelIndices(np.array([[0, 2, -1], [1, 3, 2]], np.int32), 4)
SMALL = {"batch_size": 64, "model.width": 512, "model.dropout": 0.0}


def small(**fields):
    """A forecast for the eight CPU devices here, as if they were chips, and its number of flop."""
    config = Config()
    for name, value in {**SMALL, **fields}.items():
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, config), last, value)
    lists = toy(48, lambda size: label_sets.take(LISTS, np.arange(size) % 2))
    spec, rows = aot.examples_of(lists)
    config = sized(config, rows, spec.inputs, 8)
    (phase,) = make_phases(config, steps_per_epoch=3)
    return forecast(config, spec, phase, CHIPS["v5e"], jax.devices())


WIDE = 512 * 512
PARAMETERS = 6 * 512 + WIDE + 512 * (128 + 4)


@pytest.fixture(scope="module")
def quickly():
    compile_quickly()  # whole steps
    yield
    compile_quickly(False)


@pytest.fixture(scope="module")
def plain(quickly):
    return small()


def test_index_lists(plain):
    """Products of two views of 8 rows a device, and of all pairs; the gradient is summed once."""
    by_hand = 16 * (6 * PARAMETERS - 2 * 6 * 512) + 4 * 128 * 16 * 128
    assert plain.cost.flop == pytest.approx(by_hand, rel=0.1)
    sums = sum(each.sent for each in plain.cost.collectives if each.kind == "all-reduce")
    assert sums == pytest.approx(2 * 7 / 8 * 4 * PARAMETERS, rel=0.1)


def test_a_queue_batch_statistics_and_microbatches(plain):
    """The follower sees one view and does not learn; statistics pass from part to part."""
    queued = small(**{"queue.size": 128, "model.norm": "batch", "microbatches": 4})
    learns = 8 * (8 * PARAMETERS - 2 * 6 * 512)
    follows = 8 * 2 * (PARAMETERS - 512 * 4)
    pairs = 4 * 8 * (64 + 128) * 128
    assert queued.cost.flop == pytest.approx(learns + follows + pairs, rel=0.1)
    assert len(queued.cost.collectives) > len(plain.cost.collectives)


def test_a_queue_holds_whole_batches():
    with pytest.raises(InputError, match="queue.size must be a multiple of batch_size 64, got 100"):
        small(**{"queue.size": 100})


@pytest.fixture
def main(monkeypatch):
    """`sdjax.aot` in this process, with the values of its flags."""

    def run(**values):
        given = {"topology": ["v5e:2x4"], "batch_sizes": [], "input_shape": [], "num_classes": 0}
        for name, value in {**given, "num_examples": 100, **values}.items():
            monkeypatch.setattr(aot, f"_{name.upper()}", SimpleNamespace(value=value))
        monkeypatch.setattr(aot.flags, "FLAGS", SimpleNamespace(config=Config()))
        aot.main(["aot"])

    return run


@pytest.mark.parametrize(
    ("chip", "peak", "text"),
    [
        ("v5e", 15.9, "| h:8 | joint | 64 | 8 | 15.90 of 16 | yes |"),
        # JAX takes .75 of a GPU.
        ("h100", 59.4, "| h:8 | joint | 64 | 8 | 59.40 of 59.33 | no | - |"),
        ("h100", 59.3, "| h:8 | joint | 64 | 8 | 59.30 of 59.33 | yes | 0.5 |"),
    ],
)
def test_what_fits_and_what_is_a_bound(monkeypatch, capsys, chip, peak, text):
    """By what the compiler plans, which it does whatever the size of the device."""

    class Program:
        def trace(self, *args):
            return self

        lower = compile = trace

        def as_text(self):
            return "ENTRY %main () -> f32[] {\n  ROOT %zero = f32[] constant(0)\n}"

        def memory_analysis(self):
            return SimpleNamespace(peak_memory_in_bytes=int(peak * 2**30))

    monkeypatch.setattr(forecasting, "make_train_step", lambda *args: Program())
    monkeypatch.setattr(costs.operations, "flop", lambda *args: 5e11)
    monkeypatch.setattr(aot, "topology", lambda name: (CHIPS[chip], jax.devices()))
    config = Config(batch_size=64, recipe="joint")
    aot.print_forecasts(config, *aot.examples_of(toy(70)), ["h:8"], [64])
    printed = capsys.readouterr().out
    assert text in printed
    assert "lower bounds" in printed and (".75 of the card" in printed) == (chip == "h100")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"input_shape": ["8"]}, "--input_shape and --num_classes go together"),
        (
            {"input_shape": ["8", "8"], "num_classes": 4},
            "--input_shape must be F or H,W,CHANNELS, got (8, 8)",
        ),
        ({"batch_sizes": ["x"]}, "--batch_sizes must be whole numbers above 0, got 'x'"),
        ({"input_shape": ["8"], "num_classes": 4, "topology": ["v9:2x2"]}, "got 'v9:2x2'"),
    ],
)
def test_arguments_that_are_not(main, values, text):
    with pytest.raises(SystemExit) as caught:
        main(**values)
    assert caught.value.code.startswith("Error: ") and text in caught.value.code
    assert len(caught.value.code.splitlines()) == 1


def test_a_missing_file_is_one_line(main, monkeypatch):
    def missing(config):
        raise FileNotFoundError(2, "No such file", "x.npz")

    monkeypatch.setattr(aot.data_lib, "load", missing)
    with pytest.raises(SystemExit, match="Error: .*No such file: 'x.npz'"):
        main()


@pytest.mark.parametrize("kind", [ValueError, ImportError])
def test_defects_show_where_they_are(main, monkeypatch, kind):
    def fails(config):
        raise kind("a defect")

    monkeypatch.setattr(aot, "check", fails)
    with pytest.raises(kind, match="a defect"):
        main()


def run_aot(*arguments):
    command = [sys.executable, "-m", "sdjax.aot", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500
    )


def test_config_keys_that_are_not():
    done = run_aot("--config.batchsize=3")
    assert done.returncode == 1
    assert "Did you mean 'batch_size'" in done.stderr and "Traceback" not in done.stderr


MODEL = ("--input_shape=512", "--num_classes=80", "--config.model.width=1024",
         "--config.model.members=1", "--config.model.frequencies=0")  # fmt: skip


def rows(done):
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    return [dict(zip(lines[0], line)) for line in lines[2:] if len(line) == len(lines[0])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chips", "count"),
    [
        pytest.param("v5e:2x4", 8, marks=needs_libtpu),
        pytest.param("v5p:4x4x4", 64, marks=needs_libtpu),
        pytest.param("a100:8", 8, marks=needs_cuda),
        pytest.param("h100:3", 3, marks=needs_cuda),
        pytest.param("b200:16", 16, marks=needs_cuda),
    ],
)
def test_the_whole_step_compiles(chips, count):
    batch = 64 * count
    (row,) = rows(run_aot(f"--topology={chips}", f"--batch_sizes={batch}", *MODEL))
    assert row["fits"] == "yes" and row["a chip"] == "64"
    parameters = 512 * 1024 + 1024 * 1024 + 1024 * 128 + 1024 * 80
    # Six a parameter and row, of two views, less the gradient of the input; and the loss, of
    # embeddings, and of labels in words of 32 bits.
    pairs = (2 * batch) ** 2 / count
    by_hand = 128 * (6 * parameters - 2 * 512 * 1024) + pairs * (4 * 128 + 96)
    assert float(row["TFLOP"]) * 1e12 == pytest.approx(by_hand, rel=0.1)
    # The gradient goes around once; embeddings are small beside it.
    ring = 2 * 4 * parameters * (count - 1) / count / 1e6
    assert ring < float(row["sent MB"]) < 2.5 * ring


@pytest.mark.slow
@pytest.mark.parametrize(
    "chips",
    [
        pytest.param("v5e:2x4", marks=needs_libtpu),
        pytest.param("h100:8", marks=needs_cuda),
    ],
)
def test_sharded_state_and_what_does_not_fit(chips):
    flags = (f"--topology={chips}", "--batch_sizes=256", *MODEL)
    wide = "--config.model.width=16384"
    (whole,) = rows(run_aot(*flags, wide))
    (sharded,) = rows(run_aot(*flags, wide, "--config.mesh.fsdp=8"))
    peak, less = (float(row["peak GB"].split()[0]) for row in (whole, sharded))
    assert less < 0.75 * peak
    (row,) = rows(run_aot(*flags, "--config.model.width=65536"))
    assert row["fits"] == "no"
    done = run_aot(f"--topology={chips}", "--batch_sizes=100", *MODEL)
    assert "multiple of the 8 devices, got 100; the nearest are 96 and 104" in done.stderr


@needs_libtpu
@pytest.mark.slow
def test_index_lists_queue_batch_statistics_and_microbatches(tmp_path):
    """All sizes left open, for 48 rows and 8 devices."""
    for name in ("train", "test"):
        rng = np.random.default_rng(len(name))
        lists = np.stack([rng.permutation(40)[:3] for _ in range(60)]).astype(np.int32)
        x = rng.normal(size=(60, 6)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x, labels=lists, num_classes=40)
    (row,) = rows(
        run_aot(
            "--topology=v5e:2x4",
            "--config.data.name=files",
            f"--config.data.train={tmp_path / 'train.npz'}",
            "--config.data.validation=",
            f"--config.data.test={tmp_path / 'test.npz'}",
            "--config.batch_size=0",
            "--config.queue.size=64",
            "--config.model.norm=batch",
            "--config.microbatches=2",
        )
    )
    assert (row["batch"], row["a chip"], row["fits"]) == ("32", "4", "yes")
