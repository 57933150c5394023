"""The examples run, and what they minimise falls."""

import importlib
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples"


# The library that each needs besides what the package installs.
EXAMPLES = {
    "in_linen": "flax",
    "in_equinox": "equinox",
    "queue_in_plain_jax": "jax",
    "torch_data_loop": "torch",
}


def test_each_example_is_run_here():
    assert EXAMPLES.keys() == {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_learns(name, monkeypatch):
    pytest.importorskip(EXAMPLES[name])
    monkeypatch.syspath_prepend(FOLDER)
    losses = np.array(importlib.import_module(name).main())
    assert np.isfinite(losses).all()
    third = len(losses) // 3
    assert losses[-third:].mean() < losses[:third].mean()
