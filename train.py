"""`python train.py ...` in a checkout is `python -m sdjax.train ...`."""

from sdjax.train import run

if __name__ == "__main__":
    run()
