"""Campaigns: many structures, seeds and temperatures, each run in a folder of its own."""
