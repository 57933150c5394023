"""What compiled programs move to and from memory, with and without a cache before it."""

import re

import jax
import numpy as np
import pytest
from hlo_programs import HAND_WRITTEN, RING, program_of

from sdjax.forecast import hlo
from sdjax.forecast.cache import Array, Cache
from sdjax.forecast.collectives import collectives
from sdjax.forecast.traffic import traffic

WHOLE, ROW = 64 * 32 * 4, 32 * 4


def test_a_program_by_hand():
    program = hlo.parse(HAND_WRITTEN)
    turned, summed = collectives(program)
    assert (turned.kind, turned.rounds, turned.sent) == ("collective-permute", 5, 5 * ROW)
    assert (summed.kind, summed.group, summed.sent) == ("all-reduce", 4, 2 * 3 / 4 * WHOLE)
    # negate reads p, and writes on the chip; each round cuts a row (in, out, and its number);
    # the row is turned (in and out); the sum goes in and out.
    assert traffic(program) == WHOLE + 5 * (2 * ROW + 4 + 2 * ROW) + 2 * WHOLE


def test_what_a_cache_spares():
    """p is read once, and the sum written once; with less room, each round's slices of p."""
    program = hlo.parse(HAND_WRITTEN)
    assert traffic(program, cache=4 * WHOLE) == 2 * WHOLE + 4
    assert traffic(program, cache=WHOLE - 1) == 3 * WHOLE + 5 * ROW + 4


def test_a_program_for_gpus_reads_its_input_and_writes_its_result():
    """Where the cache holds all else; the arrays are small, and every round uses all of them."""
    program = hlo.parse(RING.read_text())
    rows, kernel, result = (64 * 128 + 64) * 4, 3 * 3 * 8 * 16 * 4, 4 * 4 * 16 * 4
    assert traffic(program, cache=50e6) == rows + kernel + result + 4
    assert traffic(program) > 300 * rows
    assert traffic(program) > traffic(program, cache=100_000) > 2 * traffic(program, cache=50e6)


def test_a_library_works_in_a_place_of_its_own():
    """Operands and result count, what it takes to work in does not."""
    line = '(f32[8,8]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"'
    operands = {"a": "f32[8,8]{1,0}", "b": "f32[8,8]{1,0}"}
    assert traffic(program_of(line, **operands)) == 3 * 8 * 8 * 4
    mark = line.replace("__cublas$gemm", "Sharding")
    assert traffic(program_of(mark, **operands)) == 0


@pytest.mark.parametrize("cache", [0.0, 1e9])
def test_real_programs(cache):
    """Rows of a table, a slice that is changed, a loop and a condition, as XLA for CPU has them."""

    def f(table, x, places, flag):
        rows = jax.lax.optimization_barrier(table[places])
        x = jax.lax.fori_loop(0, 6, lambda i, x: x.at[i].set(jax.numpy.sin(rows[i])), x)
        return jax.lax.cond(flag, lambda x: jax.numpy.cos(x), lambda x: x * 2, x)

    table, x = np.zeros((4096, 64), np.float32), np.zeros((64, 64), np.float32)
    args = (table, x, np.zeros(64, np.int32), True)
    program = hlo.parse(jax.jit(f).lower(*args).compile().as_text())
    found = traffic(program, cache=cache)
    # Never the whole table. At the least x is read and the result written, and 64 rows are read;
    # without a cache, rows and result are written and read a few times more.
    least = 3 * x.nbytes
    assert least <= found < (1.1 if cache else 5) * least + table.nbytes / 64


def test_what_goes_to_on_chip_memory_in_parts():
    """As TPUs fetch it: begun and waited for, into memory that the program manages itself."""
    fast = "f32[16,32]{1,0:T(8,128)S(1)}"
    text = f"""
ENTRY %main (p: f32[64,32]) -> f32[64,32] {{
  %p = f32[64,32]{{1,0:T(8,128)}} parameter(0)
  %begun = ((f32[64,32]{{1,0}}), {fast}, s32[]{{:S(2)}}) slice-start(%p), slice={{[0:16], [0:32]}}
  %part = {fast} slice-done(%begun)
  %cut = {fast} slice(%p), slice={{[16:32], [0:32]}}
  %changed = f32[64,32]{{1,0}} dynamic-update-slice(%p, %part, %zero, %zero)
  %back = (f32[16,32]{{1,0}}, {fast}, u32[]{{:S(2)}}) copy-start(%cut)
  %kept = f32[16,32]{{1,0}} copy-done(%back)
}}
"""
    assert traffic(hlo.parse(text)) == 4 * 16 * 32 * 4


def test_what_makes_room_is_written_once():
    cache, (a, b, c) = Cache(100), (Array(60) for _ in range(3))
    cache.write(a, 60, 1)
    assert cache.traffic == 0
    cache.read(b, 60, 1)  # of a, 40 are left
    assert cache.traffic == 60 + 20
    cache.read(a, 60, 1)  # the other 20 again, for which b makes room
    assert cache.traffic == 60 + 20 + 20
    cache.drop(a)
    cache.flush()  # nobody reads a
    assert cache.traffic == 60 + 20 + 20
    cache.write(c, 60, times=5)
    cache.settle([c], 1)
    cache.flush()
    assert cache.traffic == 60 + 20 + 20 + 60


def test_slices_of_what_fits_count_once():
    cache, a, large = Cache(100), Array(60), Array(101)
    cache.read(a, 10, times=4)
    cache.read(a, 10, times=8)
    assert cache.traffic == 60
    cache.read(large, 10, times=4)
    assert cache.traffic == 60 + 40


def test_arrays_of_rounds_that_do_not_fit_count_in_each():
    """Three arrays of which two have room, in a loop of six rounds."""
    text = re.sub(r"\n +%turned.*", "", HAND_WRITTEN).replace("constant(5)", "constant(6)")
    line = "  %{name} = f32[64,32]{{1,0}} negate({of})\n"
    lines = "".join(
        line.format(name=name, of=of) for name, of in (("a", "%x"), ("b", "%a"), ("c", "%b"))
    )
    text = text.replace("  ROOT %next", f"{lines}  ROOT %next").replace(
        "tuple(%i, %x)\n}", "tuple(%i, %c)\n}"
    )
    large = traffic(hlo.parse(text), cache=20 * WHOLE)
    small = traffic(hlo.parse(text), cache=1.5 * WHOLE)
    assert small - large > 5 * WHOLE


def test_slices_do_not_displace_what_every_round_uses():
    """Two arrays that together are too large pass by, a slice in each of 100 rounds."""
    cache, (x, gradient), rows = Cache(100), (Array(70), Array(70)), Array(20)
    cache.write(rows, 20, 1)
    for times in (1, 99):
        cache.read(x, 1, times)
        cache.write(gradient, 1, times)
        cache.read(rows, 20, times)
    cache.settle([], 1)
    cache.read(rows, 20, 1)
    assert cache.traffic == 70  # x; the rows stay, and what was changed is not yet written
    cache.flush()
    assert cache.traffic == 70 + 70 + 20
