"""Write the pages and the picture that come from the program: `python docs/site/generate.py`.

They are committed, so that they can be read without the site; a test compares them with the
program.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from architecture import picture
from commands import commands_page
from public_names import api_page

DOCS = Path(__file__).resolve().parents[1]


def generated() -> dict[Path, str]:
    """Content of each generated file."""
    return {
        DOCS / "reference" / "options.md": commands_page(),
        DOCS / "images" / "architecture.svg": picture(),
        DOCS / "reference" / "api.md": api_page(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
