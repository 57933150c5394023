"""TFDS builders of the bundled data sets."""
