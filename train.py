"""`python train.py ...` in a checkout is `python -m sdjax.train ...`."""

import signal

if __name__ == "__main__":
    # Before jax is imported, which takes a while: see sdjax/_src/stop.py.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sdjax.train import run

    run()
