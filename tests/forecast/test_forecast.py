"""The reader of compiled programs, and forecasts for TPUs where libtpu is there."""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import compile_quickly
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax import LabelIndices, aot, label_sets
from sdjax.config import Config, sized
from sdjax.data import ArraySource, Dataset
from sdjax.errors import InputError
from sdjax.forecast import hlo
from sdjax.forecast.chips import CHIPS
from sdjax.forecast.forecast import Forecast, forecast, topology
from sdjax.training import make_setup
from sdjax.training.recipes import make_phases

ROOT = Path(__file__).parents[2]
HAND_WRITTEN = """\
HloModule jit_f, entry_computation_layout={(f32[64,32]{1,0})->f32[64,32]{1,0}}

%slice_of (p0: f32[64,32], p1: s32[]) -> f32[1,32] {
  %p0 = f32[64,32]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = f32[1,32]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,32}
}

%body (state: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %state = (s32[], f32[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[64,32]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,32]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice_of
  %turned = f32[1,32]{1,0} collective-permute(%row), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], f32[64,32]{1,0}) tuple(%i, %x)
}

%condition (state: (s32[], f32[64,32])) -> pred[] {
  %state = (s32[], f32[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[64,32]) -> f32[64,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %start = s32[] constant(0)
  %fast = f32[64,32]{1,0:T(8,128)S(1)} negate(%p)
  %state = (s32[], f32[64,32]{1,0}) tuple(%start, %p)
  %loop = (s32[], f32[64,32]{1,0}) while(%state), condition=%condition, body=%body
  %out = f32[64,32]{1,0} get-tuple-element(%loop), index=1
  ROOT %sum = f32[64,32]{1,0} all-reduce(%out), replica_groups=[2,4]<=[8], to_apply=%add
}
"""


def test_a_program_by_hand():
    program = hlo.parse(HAND_WRITTEN)
    turned, summed = sorted(program.collectives(), key=lambda each: each.kind, reverse=True)
    assert (turned.kind, turned.rounds, turned.sent) == ("collective-permute", 5, 5 * 32 * 4)
    whole = 64 * 32 * 4
    assert (summed.kind, summed.group, summed.sent) == ("all-reduce", 4, 2 * 3 / 4 * whole)
    # negate reads p, and writes on the chip; each round cuts a row (in, out, and its number);
    # the row is turned (in and out); the sum goes in and out.
    expected = whole + 5 * (2 * 32 * 4 + 4 + 2 * 32 * 4) + 2 * whole
    assert program.memory_traffic() == expected


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[2,8]<=[16]", 8),
        ("replica_groups=[4,4]<=[4,4]T(1,0)", 4),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", 8),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", 2),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=8], device_ids=([8,4]T(1,0)) {'c'}", 8),
    ],
)
def test_sizes_of_groups(groups, size):
    line = f"  %r = f32[8]{{0}} all-reduce(%p), {groups}, to_apply=%add\n"
    program = hlo.parse(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}}}\n")
    (found,) = program.collectives()
    assert found.group == size


def test_groups_that_cannot_be_read_are_not_left_out():
    line = "  %r = f32[8]{0} all-reduce(%p), replica_groups=<[2]>, to_apply=%add\n"
    program = hlo.parse(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}}}\n")
    with pytest.raises(ValueError, match=r"unknown form: <\[2\]>"):
        program.collectives()


def test_what_xla_inserts_for_shardings():
    """The gradient of shared weights is summed over all devices; sharded ones are gathered."""
    mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("a")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)

    def sent(spec):
        w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
        loss = jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
        program = jax.jit(loss, out_shardings=whole).lower(w, x).compile()
        return {c.kind: c.sent for c in hlo.parse(program.as_text()).collectives()}

    size = 32 * 16 * 4
    assert sent(P())["all-reduce"] == pytest.approx(2 * 7 / 8 * size, rel=0.01)
    assert sent(P("a"))["all-gather"] == 7 / 8 * size


def compiled(function, *shapes):
    return jax.jit(function).lower(*(np.zeros(shape, np.float32) for shape in shapes)).compile()


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "SAME"},
        {"window_strides": (2, 3), "padding": [(1, 2), (0, 3)], "rhs_dilation": (2, 1)},
        {"lhs_dilation": (2, 3), "padding": [(1, 0), (2, 2)]},
        {"padding": "VALID", "feature_group_count": 2},
        {"padding": "VALID", "batch_group_count": 2},
    ],
)
def test_convolutions_as_xla_counts_them(options):
    """Without loops, XLA's own count is exact."""
    options = {"window_strides": (1, 1), **options}
    channels = 4 // options.get("feature_group_count", 1)

    def f(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)

    program = compiled(f, (4, 11, 10, 4), (3, 3, channels, 6))
    flop = hlo.parse(program.as_text()).flop()
    assert flop == program.cost_analysis()["flops"] > 0


@pytest.mark.parametrize(
    ("line", "flop"),
    [
        # As TPUs write products of 16 pairs of matrices, 256×128 and 128×64.
        (
            "f32[16,256,64]{2,1,0} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, "
            "dim_labels=0bf_0io->0bf",
            16 * 2 * 256 * 128 * 64,
        ),
        # Two products, one in each half of a batch.
        (
            "f32[2,16,256,64]{3,2,1,0} dot(%a, %b), lhs_batch_dims={0,1}, "
            "lhs_contracting_dims={3}, rhs_batch_dims={0,1}, rhs_contracting_dims={2}",
            2 * 16 * 2 * 256 * 128 * 64,
        ),
    ],
)
def test_products_of_batches(line, flop):
    left, right = ("2,16,256,128", "2,16,128,64") if "dot" in line else ("16,256,128", "16,128,64")
    text = f"""
ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[1] {{
  %a = f32[{left}] parameter(0)
  %b = f32[{right}] parameter(1)
  ROOT %out = {line}
}}
"""
    assert hlo.parse(text).flop() == flop


def test_loops_count_as_often_as_they_run():
    """XLA's count has the body once: the reason for ours."""

    def f(x, w, times):
        x = jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]
        return jax.lax.fori_loop(0, times, lambda _, x: x @ w, x)

    once = 2 * 8 * 16 * 16
    args = [np.zeros(shape, np.float32) for shape in ((8, 16), (16, 16))]
    program = jax.jit(f).lower(*args, 5).compile()
    assert hlo.parse(program.as_text()).flop(unknown_rounds=5) == (3 + 5) * once
    assert program.cost_analysis()["flops"] < 3 * once


def test_of_the_branches_of_a_condition_the_largest_counts():
    def f(x, w, flag):
        return jax.lax.cond(flag, lambda x: x @ w, lambda x: jnp.tanh(x @ w) @ w @ w, x)

    args = [np.zeros(shape, np.float32) for shape in ((8, 16), (16, 16))]
    program = hlo.parse(jax.jit(f).lower(*args, True).compile().as_text())
    assert program.flop() == 3 * 2 * 8 * 16 * 16


def test_work_counts_by_the_device():
    """Rows are spread over the devices; what all of them compute counts whole."""
    mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))

    def flop(spec):
        sharding = NamedSharding(mesh, spec)
        x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=sharding)
        w = jax.ShapeDtypeStruct((32, 8), jnp.float32, sharding=NamedSharding(mesh, P()))
        program = jax.jit(lambda x, w: x @ w, out_shardings=sharding).lower(x, w).compile()
        return hlo.parse(program.as_text()).flop()

    whole = 2 * 16 * 32 * 8
    assert flop(P("a")) == whole / 8
    assert flop(P()) == whole


def test_a_sum_in_parts_is_one_operation():
    """As TPUs write it: the sum of all, of which each device cuts out its part."""
    text = """
%all-reduce-scatter.3 (input: f32[64,32]) -> f32[16,32] {
  %input = f32[64,32]{1,0} parameter(0)
  %place = s32[] constant(0)
  %all = f32[64,32]{1,0} all-reduce(%input), channel_id=4, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[16,32]{1,0} dynamic-slice(%all, %place, %place), dynamic_slice_sizes={16,32}
}

ENTRY %main (p: f32[64,32]) -> f32[16,32] {
  %p = f32[64,32]{1,0} parameter(0)
  ROOT %fusion = f32[16,32]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
    (found,) = hlo.parse(text).collectives()
    assert (found.kind, found.shape, found.group) == ("reduce-scatter", "f32[16,32]", 4)
    assert found.sent == 3 / 4 * 64 * 32 * 4


def test_the_slowest_resource_bounds():
    chip = CHIPS["v5e"]
    parts = {"flop": 2 * chip.flops, "traffic": chip.memory_bandwidth}
    sent = (hlo.Collective("all-reduce", "f32[1]", 2, 1, 3 * chip.link_bandwidth),)
    result = Forecast("joint", chip, 8, 64, True, 1.0, **parts, collectives=sent)
    assert (result.bound, result.step_seconds) == ("interconnect", 3)
    assert result.seconds == {"compute": 2, "memory": 1, "interconnect": 3}


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:2", "v5e:axb", ""])
def test_topologies_that_are_not(name):
    with pytest.raises(ValueError, match="CHIP:SHAPE with a chip of v4, v5e, v5p, v6e"):
        topology(name)


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
        return Forecast(phase.name, chip, len(devices), config.batch_size, False, 1.0)

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
    assert plain.flop == pytest.approx(by_hand, rel=0.1)
    sums = sum(each.sent for each in plain.collectives if each.kind == "all-reduce")
    assert sums == pytest.approx(2 * 7 / 8 * 4 * PARAMETERS, rel=0.1)


def test_a_queue_batch_statistics_and_microbatches(plain):
    """The follower sees one view and does not learn; statistics pass from part to part."""
    queued = small(**{"queue.size": 128, "model.norm": "batch", "microbatches": 4})
    learns = 8 * (8 * PARAMETERS - 2 * 6 * 512)
    follows = 8 * 2 * (PARAMETERS - 512 * 4)
    pairs = 4 * 8 * (64 + 128) * 128
    assert queued.flop == pytest.approx(learns + follows + pairs, rel=0.1)
    assert len(queued.collectives) > len(plain.collectives)


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


def test_without_libtpu(main, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(SystemExit) as caught:
        main(input_shape=["8"], num_classes=4)
    text = 'Error: libtpu is not installed: pip install -e ".[train,tpu]".'
    assert caught.value.code == text


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
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def rows(done):
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    return [dict(zip(lines[0], line)) for line in lines[2:] if len(line) == len(lines[0])]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("chips", "count"), [("v5e:2x4", 8), ("v5p:4x4x4", 64)])
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


@needs_libtpu
@pytest.mark.slow
def test_sharded_state_and_what_does_not_fit():
    flags = ("--topology=v5e:2x4", "--batch_sizes=256", *MODEL)
    wide = "--config.model.width=16384"
    (whole,) = rows(run_aot(*flags, wide))
    (sharded,) = rows(run_aot(*flags, wide, "--config.mesh.fsdp=8"))
    peak, less = (float(row["peak GB"].split()[0]) for row in (whole, sharded))
    assert less < 0.75 * peak
    (row,) = rows(run_aot(*flags, "--config.model.width=65536"))
    assert row["fits"] == "no"
    done = run_aot("--topology=v5e:2x4", "--batch_sizes=100", *MODEL)
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
