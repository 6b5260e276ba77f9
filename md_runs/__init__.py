"""What a person runs: the `tensormd` command, run folders, reports, ready scripts."""
