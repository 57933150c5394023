"""Texts of compiled programs."""

from pathlib import Path

from sdjax.forecast import hlo

# `ring` of test_forecast_programs.py, compiled for h100:16; what the compiler notes is left out.
RING = Path(__file__).with_name("ring_on_16_h100.hlo")


def program_of(line, **operands):
    """A program of one instruction, of operands by name and type."""
    given = [
        f"  %{name} = {kind} parameter({n})" for n, (name, kind) in enumerate(operands.items())
    ]
    text = "\n".join(["ENTRY %main () -> f32[] {", *given, f"  ROOT %out = {line}", "}"])
    return hlo.parse(text)


HAND_WRITTEN = """\
HloModule jit_f, entry_computation_layout={(f32[64,32]{1,0})->f32[64,32]{1,0}}

%slice_of (p0: f32[64,32], p1: s32[]) -> f32[1,32] {
  %p0 = f32[64,32]{1,0:T(8,128)} parameter(0)
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
