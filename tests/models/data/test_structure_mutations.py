"""Damaged structure files: read as a careful reader would, or refused in one line.

``TENSORMD_MUTATIONS=1000`` tries 1000 mutations instead of 160.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
from support.mutated_files import FILES, atoms_seen, mutated_file

from tensormd.models.data.structures import iterate_atoms

MUTATIONS = int(os.environ.get("TENSORMD_MUTATIONS", "160"))


def read(path: Path) -> tuple[int, list[str]]:
    """Number of atoms in all structures, and the warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = sum(len(atoms) for _, atoms in iterate_atoms(path))
    # Not of the charge, which most of these files state.
    return count, [str(w.message) for w in said if "total charge" not in str(w.message)]


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_whole_before_they_are_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    count, said = read(tmp_path / name)
    content = FILES[name].encode()
    assert count == atoms_seen(name, content) - (name == "g.pdb")  # an alternate location
    assert all("\n" not in line for line in said)


def test_damage_is_seen(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(MUTATIONS):
        name, content, done = mutated_file(seed)
        path = tmp_path / name
        path.write_bytes(content)
        what = f"seed {seed}, {name}: {done}"
        try:
            count, said = read(path)
        except (ValueError, OSError) as error:
            refusal = str(error)
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        else:
            refusal = ""
        if refusal:
            assert "\n" not in refusal, what
            assert refusal.startswith(str(path)), (what, refusal)
            outcomes["refused"] += 1
            continue
        if not said:
            assert count == atoms_seen(name, content), what
        outcomes["read with a warning" if said else "read"] += 1
    print(dict(outcomes))
    assert outcomes["refused"] > MUTATIONS / 4
    assert outcomes["read"] > MUTATIONS / 10
