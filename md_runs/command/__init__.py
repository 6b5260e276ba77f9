"""The `tensormd` command: one file for each subcommand."""
