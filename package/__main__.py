"""`python -m tensormd` runs the command `tensormd`."""

from .md_runs.command.main import main

if __name__ == "__main__":
    main()
