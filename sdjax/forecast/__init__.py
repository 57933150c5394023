"""What a training step will cost, compiled ahead of time."""
