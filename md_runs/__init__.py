"""The `tensormd` command, run folders, reports and ready scripts."""
