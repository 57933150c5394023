"""How the tests compile: as users do, or sooner and to slower programs."""

from __future__ import annotations

import functools

import jax
from jax._src import compiler  # no public setting holds for every program of a process

OPTIMIZATION = "jax_disable_most_optimizations"
# Off, programs compile in a third of the time.
OPTIONS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
_get_compile_options = compiler.get_compile_options


@functools.cache
def known_options() -> dict:
    """Those of the options that jaxlib has. In `XLA_FLAGS` an unknown one would end the process."""

    def is_known(name: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: OPTIONS[name]})()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in OPTIONS.items() if is_known(name)}


def _get_quick_options(*args, env_options_overrides=None, **kwargs):
    compiler.get_compile_options = _get_compile_options  # while `known_options` tries them
    overrides = {**known_options(), **(env_options_overrides or {})}
    compiler.get_compile_options = _get_quick_options
    return _get_compile_options(*args, env_options_overrides=overrides, **kwargs)


def is_quick() -> bool:
    return compiler.get_compile_options is _get_quick_options


def quick_environment() -> dict[str, str]:
    """Variables with which another process compiles quickly, and what it finds compiled not at all.

    Names that jaxlib does not know would end it.
    """
    flags = (f"--{name}={str(value).lower()}" for name, value in known_options().items())
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir or ""),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }


def compile_quickly(quick: bool = True) -> None:
    """Has all programs from now on compiled quickly, or as users have them compiled."""
    if quick != is_quick():
        jax.clear_caches()  # of what was compiled the other way
        jax.config.update(OPTIMIZATION, quick)
        compiler.get_compile_options = _get_quick_options if quick else _get_compile_options
