"""Labelled structures: frames, splits, units and the readers of files."""
