"""Parts that all runs share: folders, structures, settings, signals, errors."""
