"""The scene of a report: its data, and what a browser draws of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from support.md_runs import Springs, ethanol

from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.reports import scene
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.reports.scene import Scene, library_html, scene_html
from tensormd.md_runs.runs.settings import MDSettings

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
DATA = re.compile(r'<script type="application/json">(.*?)</script>', re.DOTALL)


def data_of(html: str) -> dict[str, Any]:
    (found,) = DATA.findall(html)
    data: dict[str, Any] = json.loads(found)
    return data


def shown(frames: list[Atoms], labels: list[str] | None = None) -> dict[str, Any]:
    return data_of(scene_html(Scene(frames, labels or [""] * len(frames)), at_once=True))


def test_a_molecule_does_not_drift_out_of_the_scene() -> None:
    atoms = ethanol()
    moved = atoms.copy()
    moved.rotate(70, (1, 2, 3))
    moved.translate((50, 0, 0))
    bent = moved.copy()
    bent.positions[0] += 0.3
    data = shown([atoms, moved, bent])
    assert data["symbols"] == atoms.get_chemical_symbols()
    first, second, third = (np.array(frame).reshape(-1, 3) for frame in data["frames"])
    np.testing.assert_allclose(first, atoms.positions, atol=6e-4)
    np.testing.assert_allclose(second, atoms.positions, atol=6e-4)
    assert np.abs(third - atoms.positions).max() > 0.1  # its own motion is kept
    assert data["cells"] == [[], [], []]


def test_small_cells_are_repeated_and_their_edges_drawn() -> None:
    atoms = bulk("Cu", cubic=True, a=3.6)
    data = shown([atoms])
    assert len(data["symbols"]) == 4 * 8
    (edges,) = data["cells"]
    lengths = np.linalg.norm(np.diff(np.array(edges).reshape(12, 2, 3), axis=1), axis=2)
    np.testing.assert_allclose(lengths, 3.6)
    large = atoms.repeat(2)
    assert len(shown([large])["symbols"]) == 32


def test_long_trajectories_lose_frames_but_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "MOST_NUMBERS", 5 * 27)
    frames = [ethanol() for _ in range(20)]
    data = shown(frames, [str(k) for k in range(20)])
    assert data["labels"][0] == "0"
    assert data["labels"][-1] == "19"
    assert len(data["frames"]) == len(data["labels"]) == 5


def test_text_of_a_file_cannot_end_the_script() -> None:
    html = scene_html(Scene([ethanol()], ["</script><b>"]), at_once=True)
    assert "</script><b>" not in html
    assert data_of(html)["labels"] == ["</script><b>"]
    assert library_html().count("</script>") == 2  # none within the library


def in_browser(page: Path, then: str) -> dict[str, str]:
    """Attributes of the page's first scene, after a script ran, in a browser without network."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed: the scene is not drawn")
    tried = page.with_name("tried.html")
    tried.write_text(page.read_text().replace("</body>", f"<script>{then}</script></body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--enable-unsafe-swiftshader"]
    command += ["--use-angle=swiftshader", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={page.parent / 'browser'}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--dump-dom", tried.as_uri()], capture_output=True, text=True, timeout=300
    )
    found = re.search(r'<div class="scene"([^>]*)>', done.stdout)
    assert found is not None, done.stderr
    return dict(re.findall(r'data-(\w+)="([^"]*)"', found[1]))


def test_a_browser_draws_a_molecule_and_plays_its_run(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(steps=200, seed=1), tmp_path / "run")
    page, _ = write_report(tmp_path / "run")
    last = "const s = document.querySelector('.controls input'); s.value = s.max; s.oninput();"
    found = in_browser(page, last)
    assert found == {"start": "page", "atoms": "9", "frames": "21", "frame": "20"}
    play = "const b = document.querySelector('.scene'); document.querySelector('.controls button')"
    seen = "setInterval(() => b.dataset.seen = Math.max(b.dataset.seen || 0, b.dataset.frame), 20)"
    assert in_browser(page, f"{play}.click(); {seen};")["seen"] == "20"


def test_a_browser_draws_a_crystal_of_a_page_of_several_runs(tmp_path: Path) -> None:
    settings = MDSettings(ensemble="npt", thermostat="bussi", steps=20, timestep=2, seed=1)
    for name in ("one", "two"):
        atoms = bulk("Cu", cubic=True)
        atoms.calc = EMT()
        start_md(atoms, settings, tmp_path / name)
    page, _ = write_report(tmp_path)
    found = in_browser(page, "document.querySelector('.scene button').click();")
    assert found == {"start": "button", "atoms": "32", "frames": "3", "frame": "0"}
