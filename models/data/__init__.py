"""Labelled structures: frames, splits, units and file readers."""
