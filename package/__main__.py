"""`python -m tensormd`: the command."""

from .md_runs.command.main import main

if __name__ == "__main__":
    main()
