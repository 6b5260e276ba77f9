"""Speed beside other programs, in one run."""
