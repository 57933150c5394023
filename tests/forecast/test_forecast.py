"""The reader of compiled programs, and forecasts for TPUs where libtpu is there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax.forecast import hlo
from sdjax.forecast.chips import CHIPS
from sdjax.forecast.forecast import Forecast, topology

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
    ],
)
def test_sizes_of_groups(groups, size):
    line = f"  %r = f32[8]{{0}} all-reduce(%p), {groups}, to_apply=%add\n"
    program = hlo.parse(f"ENTRY %main (p: f32[8]) -> f32[8] {{\n{line}}}\n")
    (found,) = program.collectives()
    assert found.group == size


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


def aot(*arguments):
    command = [sys.executable, "-m", "sdjax.aot", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu():
    done = aot("--topology=v5e:2x4", "--input_shape=8", "--num_classes=4")
    assert done.returncode == 1
    assert 'Error: libtpu is not installed: pip install -e ".[train,tpu]".' in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--input_shape=8"], "--input_shape and --num_classes go together"),
        (["--input_shape=8,8", "--num_classes=4"], "must be F or H,W,CHANNELS, got (8, 8)"),
        (["--input_shape=8", "--num_classes=4", "--batch_sizes=x"], "whole numbers above 0"),
        (["--config.batchsize=3"], "Did you mean 'batch_size'"),
    ],
)
def test_arguments_that_are_not(arguments, text):
    done = aot(*arguments)
    assert done.returncode == 1
    assert text in done.stderr and "Traceback" not in done.stderr


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
    (row,) = rows(aot(f"--topology={chips}", f"--batch_sizes={batch}", *MODEL))
    assert row["fits"] == "yes" and row["a chip"] == "64"
    parameters = 512 * 1024 + 1024 * 1024 + 1024 * 128 + 1024 * 80
    # Six a parameter and row, of two views, less the gradient of the input; and the loss.
    by_hand = 128 * (6 * parameters - 2 * 512 * 1024) + 4 * (2 * batch) ** 2 * 128 / count
    assert float(row["TFLOP"]) * 1e12 == pytest.approx(by_hand, rel=0.1)
    # The gradient goes around once; embeddings are small beside it.
    ring = 2 * 4 * parameters * (count - 1) / count / 1e6
    assert ring < float(row["sent MB"]) < 2.5 * ring


@needs_libtpu
@pytest.mark.slow
def test_sharded_state_and_what_does_not_fit():
    flags = ("--topology=v5e:2x4", "--batch_sizes=256", *MODEL)
    wide = "--config.model.width=16384"
    (whole,) = rows(aot(*flags, wide))
    (sharded,) = rows(aot(*flags, wide, "--config.mesh.fsdp=8"))
    peak, less = (float(row["peak GB"].split()[0]) for row in (whole, sharded))
    assert less < 0.75 * peak
    (row,) = rows(aot(*flags, "--config.model.width=65536"))
    assert row["fits"] == "no"
    done = aot("--topology=v5e:2x4", "--batch_sizes=100", *MODEL)
    assert "multiple of the 8 devices, got 100; the nearest are 96 and 104" in done.stderr
