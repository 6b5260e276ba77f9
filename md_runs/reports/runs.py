"""A run folder turned into figures, key numbers and one HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ase import Atoms, units

from ...models.files import unwritable, write_atomically
from ..md.loop import last_state
from ..runs.folder import CONFIG, DOUBTFUL, FIGURES, REPORT, RESTART, RunFolder
from . import drawing, figures
from .analysis import (
    drift_mev_per_atom_ps,
    fluctuation_mev_per_atom,
    pair_distances,
    read_frames,
    rmsd_angstrom,
)
from .page import Figure, Section, html_page
from .run_section import Numbers, run_section
from .scene import Scene
from .spectrum import Spectrum, spectrum_of
from .training import train_section
from .workflows import (
    elastic_section,
    eos_section,
    neb_section,
    phonons_section,
    ts_section,
    vibrations_section,
)


def write_report(path: Path | str, reload: int | None = None) -> tuple[Path, dict[str, Any]]:
    """Write RUN_DIR/report.html and RUN_DIR/figures.

    The run may still be running, or have been killed: the report covers what it wrote so far. Of a
    folder of runs, such as relaxations, the page has a section for each, with figures in its own
    folder.

    Parameters
    ----------
    path
        Run folder, or a folder of runs.
    reload
        Seconds after which a browser loads the page again; None: it does not.

    Returns
    -------
    The page, and its key numbers by name (units in the names); of several runs, those of each by
    the name of its folder.

    Raises
    ------
    ValueError, OSError
        If the folder is not that of a run, or cannot be written.
    """
    path = Path(path)
    page = path / REPORT
    parts = [
        file.parent
        for file in sorted(path.glob(f"*/{CONFIG}"))
        if RunFolder.open(file.parent).config["kind"] in SECTIONS
    ]
    if not parts or (path / CONFIG).exists():
        section, numbers = section_of(path)
        write_atomically(page, html_page(section.title, [section], reload=reload).encode())
        return page, numbers
    sections = []
    together = {}
    for part in parts:
        section, together[part.name] = section_of(part)
        sections.append(replace(section, title=f"{part.name}: {section.title}"))
    write_atomically(page, html_page(path.resolve().name, sections, reload=reload).encode())
    return page, together


def section_of(path: Path | str) -> tuple[Section, dict[str, Any]]:
    """The section of one run, and its key numbers; its figures are written too.

    Raises
    ------
    ValueError, OSError
        If the folder is not that of a run, or cannot be written.
    """
    folder = RunFolder.open(path)
    config = folder.config
    make = SECTIONS.get(config["kind"])
    if make is None:
        raise ValueError(
            f"{path} holds a run of the kind {config['kind']!r}: only {', '.join(SECTIONS)} have "
            "reports"
        )
    pictures = folder.path / FIGURES
    try:
        pictures.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(pictures, error) from error
    return make(folder, config, pictures)


def md_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Figures and numbers of a molecular dynamics run."""
    log = folder.read_log()
    if not log:
        raise ValueError(f"{folder.path} holds no step yet: nothing to report")
    settings = config["settings"]
    start, last = folder.start(), last_state(folder)
    frames = read_frames(folder)
    atoms = len(start)
    conserved = log.get("conserved_ev")
    drift = fluctuation = None
    if conserved is not None:
        drift = drift_mev_per_atom_ps(log["time_ps"], conserved, atoms)
        fluctuation = fluctuation_mev_per_atom(log["time_ps"], conserved, atoms)
    temperatures = log["temperature_k"]
    freedom = 0
    if (folder.path / RESTART).exists():
        freedom = int(folder.read_restart().state["freedom"])
    numbers: Numbers = [
        ("steps", "steps", float(log["step"][-1]), ""),
        ("time_ps", "simulated time", float(log["time_ps"][-1]), "ps"),
        ("drift_mev_per_atom_ps", "energy drift", drift, "meV/atom/ps"),
        ("fluctuation_mev_per_atom", "energy fluctuation", fluctuation, "meV/atom"),
        ("temperature_k", "mean temperature", float(temperatures.mean()), "K"),
        ("temperature_std_k", "its fluctuation", float(temperatures.std()), "K"),
        ("rmsd_angstrom", "displacement, first to last", rmsd_angstrom(start, last), "Å"),
    ]
    thermostatted = settings["ensemble"] != "nve"
    target = settings["temperature"] if thermostatted else None
    shown = [
        Figure(
            pictures / "energies.png",
            "Potential, kinetic and total energy; below, what the equations of motion conserve, "
            "with a straight line fitted to it.",
        ),
        Figure(
            pictures / "temperature.png",
            f"Kinetic temperature over {freedom} degrees of freedom"
            + (
                "; right, its distribution and that of the canonical ensemble (line)."
                if thermostatted
                else "; right, its distribution."
            ),
        ),
    ]
    figures.energies(shown[0].path, log, atoms, drift)
    figures.temperature(shown[1].path, log, freedom, target)
    if "pressure_bar" in log:
        numbers += [
            ("pressure_bar", "mean pressure", float(log["pressure_bar"].mean()), "bar"),
            ("volume_a3", "mean volume", float(log["volume_a3"].mean()), "Å³"),
            ("density_g_per_cm3", "mean density", _density(start, log), "g/cm³"),
        ]
        shown.append(Figure(pictures / "pressure.png", "Pressure and volume."))
        npt = settings["ensemble"] == "npt"
        figures.pressure(shown[-1].path, log, settings["pressure"] if npt else None)
    numbers += doubt_numbers(log, settings)
    pairs = pair_distances(frames)
    if pairs.curves:
        shown.append(
            Figure(
                pictures / "distances.png",
                "Radial distribution functions by pair of elements, against an ideal gas of the "
                "same density."
                if pairs.normalized
                else "How often pairs of elements are found at a distance.",
            )
        )
        figures.distances(shown[-1].path, pairs, len(frames))
    spectrum = spectrum_of(folder, settings["timestep"], float(temperatures.mean()))
    if spectrum is not None:
        numbers += _infrared_numbers(spectrum)
        if len(spectrum.wavenumbers):
            shown.append(Figure(pictures / "infrared.png", _infrared_caption(spectrum)))
            figures.infrared(shown[-1].path, spectrum)
    shown.append(Figure(pictures / "structures.png", "The structure at the start and at the end."))
    titles = ("start", f"after {log['time_ps'][-1]:.4g} ps")
    drawing.before_and_after(shown[-1].path, start, last, titles)
    what = {"nve": "NVE", "nvt": "NVT", "npt": "NPT"}[settings["ensemble"]]
    if thermostatted:
        what += f" ({settings['thermostat'].capitalize()})"
    what += f" at {settings['temperature']:g} K, {settings['timestep']:g} fs steps"
    if settings.get("engine") == "openmm":
        what += ", OpenMM" + (" (ML/MM)" if settings.get("ml_atoms") else "")
    labels = [f"{frame.info['step'] * settings['timestep'] * 1e-3:.3f} ps" for frame in frames]
    return run_section("Molecular dynamics", what, config, numbers, shown, Scene(frames, labels))


def doubt_numbers(log: dict[str, Any], settings: dict[str, Any]) -> Numbers:
    """How far the members of a committee disagreed, where that was watched."""
    doubt = log.get("doubt_ev_per_a")
    if doubt is None:
        return []
    above = float((doubt > settings["doubt"]).sum())
    words = f"frames with more than {settings['doubt']:g} eV/Å, in {DOUBTFUL}"
    return [
        ("largest_doubt_ev_per_a", "largest disagreement about a force", doubt.max(), "eV/Å"),
        ("doubtful_frames", words, above, ""),
    ]


def _infrared_numbers(spectrum: Spectrum) -> Numbers:
    words = "resolution of the infrared spectrum"
    if not len(spectrum.wavenumbers):
        words += ": too coarse, the run is too short to show one"
    return [
        ("infrared_resolution_inv_cm", words, spectrum.resolution, "cm⁻¹"),
        (
            "infrared_nyquist_inv_cm",
            f"highest wavenumber that frames {spectrum.interval:g} fs apart can tell",
            spectrum.nyquist,
            "cm⁻¹",
        ),
    ]


def _infrared_caption(spectrum: Spectrum) -> str:
    caption = (
        "Infrared absorption from the autocorrelation of the dipole's time derivative (classical "
        "nuclei, harmonic quantum correction), integrated over wavenumbers in km/mol. Lines are "
        f"{spectrum.resolution:.3g} cm⁻¹ wide or more, and a thermostat widens them further; "
        f"frames {spectrum.interval:g} fs apart tell wavenumbers up to {spectrum.nyquist:.0f} "
        "cm⁻¹ (Nyquist)."
    )
    if spectrum.folds:
        caption += (
            " Bands above appear mirrored at that limit, as false ones below it: store frames "
            "more often (--interval)."
        )
    return caption


def relax_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Figures and numbers of a relaxation."""
    log = folder.read_log()
    if not log:
        raise ValueError(f"{folder.path} holds no step yet: nothing to report")
    settings = config["settings"]
    frames = read_frames(folder)
    start, last = folder.start(), frames[-1]
    energy, force = log["energy_ev"], log["fmax_ev_per_a"]
    converged = bool(force[-1] < settings["fmax"])
    numbers: Numbers = [
        ("steps", "steps", float(log["step"][-1]), ""),
        ("energy_ev", "energy", float(energy[-1]), "eV"),
        ("energy_change_ev", "energy change", float(energy[-1] - energy[0]), "eV"),
        ("fmax_ev_per_a", "largest force", float(force[-1]), "eV/Å"),
        ("rmsd_angstrom", "displacement, first to last", rmsd_angstrom(start, last), "Å"),
    ]
    numbers += doubt_numbers(log, settings)
    if "volume_a3" in log:
        numbers += [
            ("volume_a3", "volume", float(log["volume_a3"][-1]), "Å³"),
            ("max_stress_gpa", "largest stress", float(log["max_stress_gpa"][-1]), "GPa"),
        ]
    shown = [
        Figure(
            pictures / "convergence.png",
            "Energy above that of the last step, and the largest force on an atom"
            + (" or the cell" if settings["cell"] else "")
            + "; dashed, where the relaxation ends.",
        ),
        Figure(pictures / "structures.png", "The structure before and after."),
    ]
    figures.convergence(shown[0].path, log, settings["fmax"])
    drawing.before_and_after(shown[1].path, start, last, ("before", "relaxed"))
    what = f"{settings['optimizer'].upper()} to {settings['fmax']:g} eV/Å"
    what += ", cell included" if settings["cell"] else ""
    what += ": converged" if converged else ": NOT converged"
    labels = [f"step {frame.info['step']}" for frame in frames]
    scene = Scene(frames, labels)
    section, values = run_section("Relaxation", what, config, numbers, shown, scene)
    return section, {**values, "converged": converged}


def _density(atoms: Atoms, log: figures.Columns) -> float:
    mass_g = float(atoms.get_masses().sum()) / units.kg * 1e3
    return mass_g / (float(log["volume_a3"].mean()) * 1e-24)


SECTIONS = {
    "md": md_section,
    "relax": relax_section,
    "train": train_section,
    "vibrations": vibrations_section,
    "eos": eos_section,
    "phonons": phonons_section,
    "elastic": elastic_section,
    "ts": ts_section,
    "neb": neb_section,
}
"""For each kind of run, what makes its section."""
