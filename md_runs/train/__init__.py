"""Training runs: configuration, data, model, log."""
