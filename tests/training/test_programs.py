"""Compiled programs are forgotten before there is no room for more."""

import jax
import jax.numpy as jnp
import pytest

from sdjax.training import make_setup, programs, train

pytestmark = pytest.mark.skipif(
    not programs._MAPS.exists(),
    reason="This system does not tell how many regions of memory a process has.",
)


def test_programs_are_forgotten_when_half_the_room_is_taken():
    step = jax.jit(lambda x: x * 2 + 1)
    step(jnp.ones(3))
    programs.make_room(most=10**9)
    assert step._cache_size() == 1
    programs.make_room(most=10)
    assert step._cache_size() == 0
    assert step(jnp.ones(3)).tolist() == [3, 3, 3]


def test_a_run_makes_room_before_it_compiles(toy_config, monkeypatch):
    def make_room():
        raise StopIteration("room")

    monkeypatch.setattr("sdjax.training.run.make_room", make_room)
    with pytest.raises(StopIteration, match="room"):
        train(make_setup(toy_config))
