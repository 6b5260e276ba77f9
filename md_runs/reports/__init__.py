"""Figures and one-page HTML reports of every kind of run."""
