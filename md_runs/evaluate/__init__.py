"""Evaluation of checkpoints on labelled frames."""
