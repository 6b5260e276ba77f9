"""Predictions for labelled frames, and their errors."""
