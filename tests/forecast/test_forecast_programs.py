"""What compiled programs compute and send, read off their text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilers import needs_cuda
from hlo_programs import RING, program_of
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sdjax.forecast import hlo
from sdjax.forecast.collectives import collectives, seconds
from sdjax.forecast.cost import hosts_of
from sdjax.forecast.operations import flop
from sdjax.forecast.topology import topology
from sdjax.forecast.traffic import traffic


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("{{0,1,2},{3,4,5}}", ((0, 1, 2), (3, 4, 5))),
        ("[2,3]<=[6]", ((0, 1, 2), (3, 4, 5))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("mesh['a'=2,'b'=3] {'b'}", ((0, 1, 2), (3, 4, 5))),
        ("mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=1,'b'=2,'c'=3], device_ids=([3,2]T(1,0)) {'c'}", ((0, 2, 4), (1, 3, 5))),
    ],
)
def test_groups(written, groups):
    line = f"f32[8]{{0}} all-reduce(%p), replica_groups={written}, to_apply=%add"
    (found,) = collectives(program_of(line, p="f32[8]{0}"))
    assert (found.groups, found.group) == (groups, len(groups[0]))


@pytest.mark.parametrize("written", ["<[2]>", "mesh['a'=2], device_ids=(1,0) {'a'}"])
def test_groups_that_cannot_be_read_are_not_left_out(written):
    line = f"f32[8]{{0}} all-reduce(%p), replica_groups={written}, to_apply=%add"
    with pytest.raises(ValueError, match="of an unknown form: [<1]"):
        collectives(program_of(line, p="f32[8]{0}"))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-reduce", 2 * 3 / 4 * 96),
        ("all-gather", 3 * 96),
        ("reduce-scatter", 3 / 4 * 96),
        ("all-to-all", 3 / 4 * 96),
        ("collective-permute", 96),
    ],
)
def test_several_arrays_at_once(kind, sent):
    """An operation that was merged of two sends both, not the larger one alone."""
    groups = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    if kind != "collective-permute":
        groups = "replica_groups=[1,4]<=[4]"
    pair = "(f32[16]{0}, s32[8]{0})"
    line = f"({pair}, {pair}) {kind}-start(%x, %y), {groups}"
    (found,) = collectives(program_of(line, x="f32[16]{0}", y="s32[8]{0}"))
    assert (found.kind, found.group, found.sent) == (kind, 4, sent)
    assert found.shape == "f32[16] and 1 more"


def test_a_program_for_gpus():
    """A ring of embeddings and labels, a library's convolution, a sum over two hosts."""
    program = hlo.parse(RING.read_text())
    ring, summed = collectives(program)
    assert (ring.shape, ring.rounds, ring.group) == ("f32[64,128] and 1 more", 15, 16)
    assert ring.sent == 15 * (64 * 128 + 64) * 4
    assert summed.sent == 2 * 15 / 16 * 4 * 4 * 16 * 4
    rows = 4 + 3 + 3  # of a kernel of 3 over 4 places, the padding left out
    assert flop(program) == 15 * 4 * 64 * 64 * 128 + 2 * 64 * rows**2 * 8 * 16


def ring(z, kernel, labels):
    """Weighted sums of the rows of all 16 devices, as images that a kernel passes over."""
    others = [(i, (i + 1) % 16) for i in range(16)]

    def step(_, carry):
        total, other, weights = carry
        total = total + (jnp.exp(z @ other.T) * weights[None]) @ other
        return total, *(jax.lax.ppermute(x, "a", others) for x in (other, weights))

    total, _, _ = jax.lax.fori_loop(0, 15, step, (jnp.zeros_like(z), z, labels))
    layout = ("NHWC", "HWIO", "NHWC")
    images = jax.lax.conv_general_dilated(
        total.reshape(64, 4, 4, 8), kernel, (1, 1), "SAME", dimension_numbers=layout
    )
    return jax.lax.psum(images.sum(0), "a")


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("name", ["a100:16", "h100:16", "h200:16", "b200:16"])
def test_the_stored_program_is_what_the_compiler_makes(name):
    chip, devices = topology(name)
    mesh = jax.make_mesh((16,), ("a",), (AxisType.Auto,), devices=devices)
    specs = (P("a"), P(), P("a"))
    run = jax.shard_map(ring, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    args = (
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(((1024, 128), (3, 3, 8, 16), (1024,)), specs, strict=True)
    )
    made = hlo.parse(jax.jit(run).lower(*args).compile().as_text())
    stored = hlo.parse(RING.read_text())
    assert flop(made) == flop(stored)
    assert collectives(made) == collectives(stored)
    # A ring over two hosts is as fast as the network between them.
    around, _ = collectives(made)
    assert seconds(chip, hosts_of(devices), around) == around.sent / chip.network_bandwidth
    assert traffic(made, cache=50e6) == traffic(stored, cache=50e6)


CONVOLUTION = {
    "x": "f32[2,8,8,3]{3,2,1,0}",
    "k": "f32[5,3,3,3]{3,2,1,0}",
    "y": "f32[2,4,4,5]{3,2,1,0}",
}
WINDOW = "window={size=3x3 pad=0_1x0_1 stride=2x2}, dim_labels=b01f_o01i->b01f"


@pytest.mark.parametrize(
    ("target", "result", "operands"),
    [
        ("convForward", "y", "xk"),
        ("convBiasActivationForward", "y", "xk"),
        ("convBackwardInput", "x", "yk"),
        ("convBackwardFilter", "k", "xy"),
    ],
)
def test_convolutions_by_library(target, result, operands):
    """Value and gradients take the same operations: 4 rows of 3 places, less 1 of padding."""
    first, second = operands
    line = (
        f"({CONVOLUTION[result]}, u8[1024]{{0}}) custom-call(%{first}, %{second}), {WINDOW}, "
        f'custom_call_target="__cudnn${target}"'
    )
    assert flop(program_of(line, **CONVOLUTION)) == 2 * 2 * 11 * 11 * 3 * 5


def test_products_by_library():
    numbers = '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}'
    line = (
        '(f32[16,8]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        f'backend_config={{"gemm_backend_config":{{"dot_dimension_numbers":{numbers}}}}}, x={{}}'
    )
    assert flop(program_of(line, a="f32[16,32]{1,0}", b="f32[8,32]{1,0}")) == 2 * 16 * 8 * 32


def test_what_xla_inserts_for_shardings():
    """The gradient of shared weights is summed over all devices; sharded ones are gathered."""
    mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("a")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=rows)

    def sent(spec):
        w = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, spec))
        loss = jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w)))
        program = jax.jit(loss, out_shardings=whole).lower(w, x).compile()
        return {c.kind: c.sent for c in collectives(hlo.parse(program.as_text()))}

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
    assert flop(hlo.parse(program.as_text())) == program.cost_analysis()["flops"] > 0


@pytest.mark.parametrize(
    ("line", "expected"),
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
def test_products_of_batches(line, expected):
    left, right = ("2,16,256,128", "2,16,128,64") if "dot" in line else ("16,256,128", "16,128,64")
    text = f"""
ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[1] {{
  %a = f32[{left}] parameter(0)
  %b = f32[{right}] parameter(1)
  ROOT %out = {line}
}}
"""
    assert flop(hlo.parse(text)) == expected


def test_loops_count_as_often_as_they_run():
    """XLA's count has the body once: the reason for ours."""

    def f(x, w, times):
        x = jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=3)[0]
        return jax.lax.fori_loop(0, times, lambda _, x: x @ w, x)

    once = 2 * 8 * 16 * 16
    args = [np.zeros(shape, np.float32) for shape in ((8, 16), (16, 16))]
    program = jax.jit(f).lower(*args, 5).compile()
    assert flop(hlo.parse(program.as_text()), unknown_rounds=5) == (3 + 5) * once
    assert program.cost_analysis()["flops"] < 3 * once


def test_of_the_branches_of_a_condition_the_largest_counts():
    def f(x, w, flag):
        return jax.lax.cond(flag, lambda x: x @ w, lambda x: jnp.tanh(x @ w) @ w @ w, x)

    args = [np.zeros(shape, np.float32) for shape in ((8, 16), (16, 16))]
    program = hlo.parse(jax.jit(f).lower(*args, True).compile().as_text())
    assert flop(program) == 3 * 2 * 8 * 16 * 16


def test_work_counts_by_the_device():
    """Rows are spread over the devices; what all of them compute counts whole."""
    mesh = jax.make_mesh((8,), ("a",), (AxisType.Auto,))

    def work(spec):
        sharding = NamedSharding(mesh, spec)
        x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=sharding)
        w = jax.ShapeDtypeStruct((32, 8), jnp.float32, sharding=NamedSharding(mesh, P()))
        program = jax.jit(lambda x, w: x @ w, out_shardings=sharding).lower(x, w).compile()
        return flop(hlo.parse(program.as_text()))

    whole = 2 * 16 * 32 * 8
    assert work(P("a")) == whole / 8
    assert work(P()) == whole


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
    (found,) = collectives(hlo.parse(text))
    assert (found.kind, found.shape, found.group) == ("reduce-scatter", "f32[16,32]", 4)
    assert found.sent == 3 / 4 * 64 * 32 * 4
