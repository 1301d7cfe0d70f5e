"""Checkpoints that ship with recipes; ci/training/ made them."""
