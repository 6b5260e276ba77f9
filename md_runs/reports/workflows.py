"""Sections of the calculations of one structure: vibrations, equation of state, reaction path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.eos import birchmurnaghan
from ase.io import read
from ase.vibrations import VibrationsData

from ...models.units import ev_per_angstrom3_in_gpa
from ..runs.folder import TRAJECTORY, RunFolder
from ..workflows.elastic import young_along
from ..workflows.vibrations import IMAGINARY, is_linear
from . import drawing, figures
from .page import Figure, Section
from .run_section import Numbers, run_section
from .scene import Scene

FRAMES_OF_A_MODE = 12
AMPLITUDE = 0.4
"""Largest displacement of an atom in the scene of a mode, A."""


def vibrations_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Frequencies, thermochemistry, and every mode to watch."""
    results, settings = folder.read_results(), config["settings"]
    atoms: Atoms = read(folder.path / TRAJECTORY, index=0, format="extxyz")
    wavenumbers = np.array(results["frequencies_inv_cm"])
    numbers: Numbers = [
        ("energy_ev", "energy", results["energy_ev"], "eV"),
        ("zero_point_ev", "zero-point energy", results["zero_point_ev"], "eV"),
        ("imaginary", "imaginary frequencies", float(results["imaginary"]), ""),
        ("lowest_inv_cm", "lowest frequency", float(wavenumbers[0]), "cm⁻¹"),
        ("highest_inv_cm", "highest frequency", float(wavenumbers[-1]), "cm⁻¹"),
        ("enthalpy_ev", "enthalpy", results.get("enthalpy_ev"), "eV"),
        ("entropy_ev_per_k", "entropy", results.get("entropy_ev_per_k"), "eV/K"),
        ("gibbs_ev", "free energy (Gibbs)", results.get("gibbs_ev"), "eV"),
    ]
    shown = [
        Figure(
            pictures / "frequencies.png",
            "Harmonic frequencies; the scene shows the modes one after the other.",
        )
    ]
    figures.frequencies(shown[0].path, wavenumbers)
    what = f"harmonic, {results['geometry']} molecule"
    if "gibbs_ev" in results:
        what += f"; ideal gas at {settings['temperature']:g} K and {settings['pressure']:g} bar"
    else:
        what += "; a saddle point, which has no thermochemistry of a molecule"
    scene = _modes(atoms, folder.read_hessian())
    return run_section("Vibrations", what, config, numbers, shown, scene)


def _modes(atoms: Atoms, hessian: figures.Array) -> Scene:
    """Every vibration, swinging once, under its frequency."""
    data = VibrationsData.from_2d(atoms, hessian)
    energies, modes = data.get_energies(), data.get_modes()
    order = np.argsort(np.abs(energies))[5 if is_linear(atoms) else 6 :]
    frames, labels = [], []
    for k in sorted(order, key=lambda k: float(energies[k].real - energies[k].imag)):
        size = np.linalg.norm(modes[k], axis=1).max()
        name = f"{abs(energies[k]) / units.invcm:.0f} cm⁻¹"
        for phase in np.arange(FRAMES_OF_A_MODE) / FRAMES_OF_A_MODE:
            frame = atoms.copy()
            frame.positions += AMPLITUDE * np.sin(2 * np.pi * phase) * modes[k] / size
            frames.append(frame)
            labels.append(f"i {name}" if energies[k].imag > IMAGINARY else name)
    return Scene(frames, labels)


def eos_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Energy against volume with the fit."""
    results = folder.read_results()
    volumes, energies = np.array(results["volumes_a3"]), np.array(results["energies_ev"])
    numbers: Numbers = [
        ("volume_a3", "volume", results["volume_a3"], "Å³"),
        ("energy_ev", "energy", results["energy_ev"], "eV"),
        ("bulk_modulus_gpa", "bulk modulus", results["bulk_modulus_gpa"], "GPa"),
        ("bulk_modulus_derivative", "its derivative", results["bulk_modulus_derivative"], ""),
        ("scale", "factor of the lattice vectors", results["scale"], ""),
        ("fit_rms_mev", "deviation of the fit", results["fit_rms_mev"], "meV"),
    ]
    shown = [
        Figure(
            pictures / "energy_volume.png",
            "Energy above the lowest against the volume; line: Birch-Murnaghan equation.",
        )
    ]
    grid = np.linspace(volumes.min(), volumes.max(), 200)
    modulus = results["bulk_modulus_gpa"] / ev_per_angstrom3_in_gpa
    curve = birchmurnaghan(
        grid,
        results["energy_ev"],
        modulus,
        results["bulk_modulus_derivative"],
        results["volume_a3"],
    )
    lowest = results["energy_ev"]
    figures.energy_volume(shown[0].path, volumes, energies - lowest, grid, curve - lowest)
    frames = read(folder.path / TRAJECTORY, index=":", format="extxyz")
    scene = Scene(frames, [f"{volume:.2f} Å³" for volume in volumes])
    return run_section("Equation of state", "Birch-Murnaghan", config, numbers, shown, scene)


def phonons_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Bands, density of states, thermal properties."""
    results = folder.read_results()
    thermal = {name: np.array(values) for name, values in results["thermal"].items()}
    atoms: Atoms = read(folder.path / TRAJECTORY, index=0, format="extxyz")
    numbers: Numbers = [
        ("lowest_thz", "lowest frequency", results["lowest_thz"], "THz"),
        ("highest_thz", "highest frequency", results["highest_thz"], "THz"),
        ("zero_point_ev", "zero-point energy", results["zero_point_ev"], "eV"),
        ("atoms", "atoms of the primitive cell", float(results["atoms"]), ""),
        ("displacements", "displacements", float(results["displacements"]), ""),
        ("max_stress_gpa", "largest stress of the cell", results["max_stress_gpa"], "GPa"),
    ]
    shown = [
        Figure(
            pictures / "bands.png",
            "Bands along the standard path of the primitive cell, and density of states; "
            "imaginary frequencies are negative.",
        ),
        Figure(
            pictures / "thermal.png",
            "Harmonic free energy, entropy and heat capacity of the primitive cell.",
        ),
    ]
    figures.bands(shown[0].path, results["bands"], results["dos"])
    figures.thermal(shown[1].path, thermal)
    what = f"harmonic, supercell {' x '.join(map(str, results['supercell']))}"
    what += "; IMAGINARY MODES: no minimum" if results["imaginary"] else ""
    section, values = run_section("Phonons", what, config, numbers, shown, Scene([atoms], [""]))
    return section, {**values, "imaginary": results["imaginary"]}


def elastic_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """The moduli, and Young's modulus by direction."""
    results = folder.read_results()
    bulk, shear = results["bulk_modulus_gpa"], results["shear_modulus_gpa"]
    stiffness = np.array(results["stiffness_gpa"])
    numbers: Numbers = [
        ("bulk_modulus_gpa", "bulk modulus (Hill)", bulk["hill"], "GPa"),
        ("shear_modulus_gpa", "shear modulus (Hill)", shear["hill"], "GPa"),
        ("young_modulus_gpa", "Young's modulus", results["young_modulus_gpa"], "GPa"),
        ("poisson_ratio", "Poisson's ratio", results["poisson_ratio"], ""),
        ("anisotropy", "anisotropy (universal)", results["anisotropy"], ""),
        ("lowest_eigenvalue_gpa", "lowest eigenvalue", results["lowest_eigenvalue_gpa"], "GPa"),
        ("asymmetry_gpa", "asymmetry of the constants", results["asymmetry_gpa"], "GPa"),
        ("max_stress_gpa", "largest stress of the cell", results["max_stress_gpa"], "GPa"),
    ]
    words = "Stiffness in Voigt's notation"
    words += "; Young's modulus (GPa) by direction in three planes." if results["stable"] else "."
    shown = [Figure(pictures / "elastic.png", words)]
    planes = None
    if results["stable"]:
        angle = np.linspace(0, 2 * np.pi, 181)
        flat = np.array([np.cos(angle), np.sin(angle), np.zeros_like(angle)])
        planes = {
            name: young_along(stiffness, flat[list(order)].T)
            for name, order in (("xy", (0, 1, 2)), ("xz", (0, 2, 1)), ("yz", (2, 0, 1)))
        }
    figures.elastic(shown[0].path, stiffness, planes)
    what = "finite strains; Voigt, Reuss, Hill"
    what += "" if results["stable"] else "; UNSTABLE"
    frames = read(folder.path / TRAJECTORY, index=":", format="extxyz")
    scene = Scene(frames, [str(frame.info["strain"]) for frame in frames])
    section, values = run_section("Elastic constants", what, config, numbers, shown, scene)
    return section, {**values, "stable": results["stable"]}


def ts_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """The modes of a transition state, and the way to it."""
    results, settings = folder.read_results(), config["settings"]
    frames = read(folder.path / TRAJECTORY, index=":", format="extxyz")
    wavenumbers = np.array(results["frequencies_inv_cm"])
    numbers: Numbers = [
        ("energy_ev", "energy", results["energy_ev"], "eV"),
        ("energy_change_ev", "energy since the start", results["energy_change_ev"], "eV"),
        ("fmax_ev_per_a", "largest force", results["fmax_ev_per_a"], "eV/Å"),
        ("imaginary", "imaginary modes", float(results["imaginary"]), ""),
        ("lowest_inv_cm", "lowest frequency", float(wavenumbers[0]), "cm⁻¹"),
        ("steps", "steps", float(results["steps"]), ""),
    ]
    shown = [
        Figure(
            pictures / "frequencies.png",
            "Harmonic frequencies; the scene shows the modes one after the other, the imaginary "
            "one first.",
        ),
        Figure(pictures / "structures.png", "The given structure and the last one."),
    ]
    figures.frequencies(shown[0].path, wavenumbers)
    drawing.before_and_after(shown[1].path, folder.start(), frames[-1], ("start", "end"))
    what = f"Sella to {settings['fmax']:g} eV/Å: "
    what += "converged" if results["converged"] else "NOT converged"
    if results["imaginary"] != 1:
        what += f"; NO transition state, {results['imaginary']} imaginary modes"
    scene = _modes(frames[-1], folder.read_hessian())
    section, values = run_section("Transition state", what, config, numbers, shown, scene)
    return section, {**values, "converged": results["converged"]}


def neb_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Energy along the path, and the path to play."""
    results, settings = folder.read_results(), config["settings"]
    distances, energies = np.array(results["distances_a"]), np.array(results["energies_ev"])
    frames = read(folder.path / TRAJECTORY, index=":", format="extxyz")
    numbers: Numbers = [
        ("barrier_ev", "barrier", results["barrier_ev"], "eV"),
        ("reverse_barrier_ev", "barrier of the way back", results["reverse_barrier_ev"], "eV"),
        ("reaction_energy_ev", "reaction energy", results["reaction_energy_ev"], "eV"),
        ("fmax_ev_per_a", "largest force of the band", results["fmax_ev_per_a"], "eV/Å"),
        ("steps", "steps", float(results["steps"]), ""),
    ]
    shown = [
        Figure(pictures / "path.png", "Energy of the images above the first, along the path."),
        Figure(pictures / "structures.png", "The first image and the highest one."),
    ]
    figures.reaction_path(shown[0].path, distances, energies - energies[0])
    top = frames[results["highest_image"]]
    drawing.before_and_after(shown[1].path, frames[0], top, ("first", "highest"))
    what = f"nudged elastic band to {settings['fmax']:g} eV/Å, climbing image: "
    what += "converged" if results["converged"] else "NOT converged"
    labels = [f"image {k}, {e - energies[0]:+.3f} eV" for k, e in enumerate(energies)]
    section, values = run_section(
        "Reaction path", what, config, numbers, shown, Scene(frames, labels)
    )
    return section, {**values, "converged": results["converged"]}
