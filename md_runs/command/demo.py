"""`tensormd demo`: aspirin relaxed, turned, warmed up and let go, with the model that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from ase import Atoms
from ase.io import read

from ...calculators.domain import DEFAULT
from ...models.files import unwritable, write_atomically
from ...models.units import kj_per_mol_in_ev
from ..md.launch import resolve_model
from ..md.loop import Observer, start_md
from ..md.relax import relax
from ..md.torsion import TorsionProfile, torsion_profile
from ..reports.analysis import drift_mev_per_atom_ps
from ..reports.drawing import overview
from ..reports.figures import torsion
from ..reports.page import Figure, Section, html_page
from ..reports.runs import section_of
from ..runs.folder import REPORT, RunFolder
from ..runs.models import input_record, load_calculator
from ..runs.settings import MDSettings, ModelSettings, RelaxSettings
from ..runs.structures import write_structure
from . import console
from .options import Device, Dtype, Json

PARTS = ("relax", "nvt", "nve")
PICTURE = "demo.png"
PROFILE = "torsion.png"
ASPIRIN = Path(__file__).with_name("aspirin.xyz")
RELAXED_FILE = "aspirin_relaxed.xyz"
TORSION = (9, 4, 3, 1)
"""Of the ester: ring, ring, oxygen, carbonyl."""
ANGLES = 18
NVT_STEPS = 1000
NVE_STEPS = 2000


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path(
        "demo"
    ),
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Relax aspirin, run it at 300 K and write a report, with what ships: about a minute."""
    found = run_demo(out, ModelSettings((DEFAULT,), dtype=dtype, device=device), say=console.say)
    if as_json:
        console.show_json(found)
    else:
        console.show_files(found["files"])


def run_demo(
    out: Path,
    model: ModelSettings | None = None,
    *,
    nvt_steps: int | None = None,
    nve_steps: int | None = None,
    angles: int | None = None,
    say: Callable[[str], None] = print,
    observer: Callable[[str], Observer] | None = None,
) -> dict[str, Any]:
    """Relax, turn a bond, 300 K NVT, then NVE from where that ends; a page that shows them.

    Results of an earlier demo in the folder are replaced; other files are not touched.

    Parameters
    ----------
    out
        Folder of the results.
    model
        The model that ships by default.
    nvt_steps, nve_steps
        Steps of 0.5 fs.
    angles
        Number of angles of the torsion profile.
    say
        Takes lines for people.
    observer
        Makes the observer of the run with that name.

    Returns
    -------
    Key numbers, and where the files are.
    """
    for part in PARTS:
        RunFolder.discard(out / part)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    atoms: Atoms = read(ASPIRIN)
    model = resolve_model(model or ModelSettings((DEFAULT,)), [atoms])
    atoms.calc, record = load_calculator(model)
    note = input_record("aspirin, a conformer of a force field", atoms, model, record)
    say(f"model   {record['name']}: {record['parameters']:,} parameters, on {record['device']}")

    relaxed = relax(atoms, RelaxSettings(), out / "relax", record=note)
    write_structure(out / RELAXED_FILE, atoms)
    rested = atoms.copy()
    say(
        f"relax   {relaxed.steps} steps, {relaxed.energy_before_ev:.4f} to "
        f"{relaxed.energy_ev:.4f} eV, largest force {relaxed.fmax_ev_per_a:.4f} eV/A"
    )
    profile = torsion_profile(atoms, TORSION, points=angles or ANGLES, fmax=0.05, steps=50)
    torsion(out / PROFILE, profile)
    say(
        f"turn    the ester about its ring, by {360 / len(profile.degrees):.0f} degrees: "
        f"{profile.barrier_ev / kj_per_mol_in_ev:.0f} kJ/mol at most"
    )
    nvt = MDSettings(
        ensemble="nvt",
        thermostat="bussi",
        thermostat_time=20.0,  # short: half of the heat goes into the relaxed bonds
        steps=nvt_steps or NVT_STEPS,
        seed=1,
        interval=5,
    )
    warm = start_md(
        atoms, nvt, out / "nvt", record=note, observer=observer("nvt") if observer else None
    )
    say(f"nvt     {_time_ps(nvt):.2f} ps at 300 K, {warm.milliseconds_per_step:.1f} ms a step")
    nve = MDSettings(steps=nve_steps or NVE_STEPS, seed=1, interval=5, keep_velocities=True)
    free = start_md(
        atoms, nve, out / "nve", record=note, observer=observer("nve") if observer else None
    )
    log = RunFolder.open(out / "nve").read_log()
    drift = drift_mev_per_atom_ps(log["time_ps"], log["total_ev"], len(atoms))
    say(
        f"nve     {_time_ps(nve):.2f} ps, {free.milliseconds_per_step:.1f} ms a step"
        + (f", energy drift {drift:+.4f} meV/atom/ps" if drift is not None else "")
    )
    caption = "" if drift is None else f"drift of the total energy {drift:+.4f} meV/atom/ps"
    overview(out / PICTURE, log, rested, (f"{_time_ps(nve):g} ps NVE", "relaxed"), caption)
    page = out / REPORT
    sections = [section_of(out / part)[0] for part in PARTS]
    sections.insert(1, _turned(profile, out / PROFILE))
    lead = (
        "Aspirin with the model that ships: relaxed, turned about a bond, warmed up to 300 K, "
        "then left alone."
    )
    write_atomically(page, html_page("tensormd demo", sections, lead).encode())
    files = {
        "relaxed_structure": str(out / RELAXED_FILE),
        "trajectory": str(out / "nve" / "trajectory.extxyz"),
        "picture": str(out / PICTURE),
        "torsion": str(out / PROFILE),
        "figures": str(out / "nve" / "figures"),
        "report": str(page),
    }
    return {
        "converged": relaxed.converged,
        "energy_ev": relaxed.energy_ev,
        "fmax_ev_per_a": relaxed.fmax_ev_per_a,
        "torsion_barrier_ev": profile.barrier_ev,
        "drift_mev_per_atom_ps": drift,
        "milliseconds_per_step": free.milliseconds_per_step,
        "files": files,
    }


def _turned(profile: TorsionProfile, picture: Path) -> Section:
    return Section(
        "Torsion",
        "the ester turned about its bond to the ring, everything else relaxed at each angle",
        [("highest energy", f"{profile.barrier_ev / kj_per_mol_in_ev:.1f}", "kJ/mol")],
        [Figure(picture, "Energy from the lowest, against the angle of the torsion.")],
        {},
    )


def _time_ps(settings: MDSettings) -> float:
    return settings.steps * settings.timestep * 1e-3
