"""When garbage is collected: with the defaults of Python that takes a quarter of the time."""

import gc


def collect_seldom():
    gc.set_threshold(10_000, 20, 20)


def collect():
    """Collects what is garbage, and has later collections pass over all that is there now."""
    gc.collect()
    gc.freeze()
