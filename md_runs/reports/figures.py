"""Figures of a run, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import lgamma
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ...models.files import write_atomically
from ...models.units import kj_per_mol_in_ev
from ..md.torsion import TorsionProfile
from .analysis import PairDistances
from .spectrum import HIGHEST_BAND, Spectrum

Array = NDArray[np.float64]
Columns = dict[str, Array]

INK = "#1f2933"
FAINT = "#9aa5b1"
PALETTE = ("#2563a8", "#d9622b", "#2c8c6a", "#8a4fa3", "#b08a1e", "#5b6770")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 150,
}


@contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in the house style, saved under ``path`` when the block ends."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        buffer = BytesIO()
        figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def energies(path: Path, log: Columns, atoms: int, drift: float | None) -> None:
    """Potential, kinetic and total energy, and the conserved quantity."""
    time = log["time_ps"]
    conserved = log.get("conserved_ev")
    with canvas(path, 8.0, 5.4 if conserved is not None else 3.4) as figure:
        rows = 2 if conserved is not None else 1
        axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True, height_ratios=[1.5, 1][:rows]))
        plot_energies(axes[0], log)
        if conserved is not None:
            bottom: Axes = axes[1]
            deviation = 1e3 * (conserved - conserved[0]) / atoms
            bottom.plot(time, deviation, color=PALETTE[2], linewidth=1.2)
            if drift is not None:
                line = np.polyval(np.polyfit(time, deviation, 1), time)
                bottom.plot(time, line, "--", color=INK, linewidth=1.2)
            bottom.set_ylabel("deviation\n/ meV per atom")
            same = np.array_equal(conserved, log["total_ev"])
            what = "Total energy" if same else "Conserved energy (less the bath's share)"
            fit = f": drift {drift:+.4f} meV/atom/ps" if drift is not None else ""
            bottom.set_title(what + fit)
        axes[-1].set_xlabel("time / ps")


def plot_energies(axes: Axes, log: Columns) -> None:
    """Potential and total energy from where the potential began, and kinetic energy."""
    start = log["potential_ev"][0]
    curves = (
        ("potential $-$ E$_0$", log["potential_ev"] - start, PALETTE[0]),
        ("kinetic", log["kinetic_ev"], PALETTE[1]),
        ("total $-$ E$_0$", log["total_ev"] - start, INK),
    )
    for label, values, color in curves:
        axes.plot(log["time_ps"], values, color=color, label=label)
    axes.set_ylabel("energy / eV")
    axes.set_title(f"Energies, E$_0$ = {start:.4f} eV")
    _legend(axes)


def temperature(path: Path, log: Columns, freedom: int, target: float | None) -> None:
    """Temperature against time, and its distribution against the canonical one."""
    time, values = log["time_ps"], log["temperature_k"]
    with canvas(path, 8.0, 3.3) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[4.2, 1])
        left.plot(time, values, color=PALETTE[1], alpha=0.45, linewidth=1.0)
        window = max(len(values) // 20, 1)
        if window > 1:
            mean = np.convolve(values, np.ones(window) / window, "valid")
            middle = np.convolve(time, np.ones(window) / window, "valid")
            span = float(middle[1] - middle[0]) * window
            left.plot(middle, mean, color=PALETTE[1], label=f"mean over {span:.3g} ps")
        if target is not None:
            left.axhline(target, color=INK, linestyle="--", linewidth=1, label=f"{target:g} K")
        left.set(xlabel="time / ps", ylabel="temperature / K")
        left.set_title(f"Temperature: {values.mean():.0f} ± {values.std():.0f} K")
        _legend(left)
        bins = int(np.clip(len(values) // 8, 6, 30))
        right.hist(
            values, bins, orientation="horizontal", density=True, color=PALETTE[1], alpha=0.45
        )
        if target is not None and freedom > 0:
            grid = np.linspace(max(values.min() * 0.8, 1e-3), values.max() * 1.15, 200)
            right.plot(_canonical(grid, target, freedom), grid, color=INK, linewidth=1.2)
        right.set_xlabel("density / K$^{-1}$")
        right.xaxis.set_major_locator(MaxNLocator(2))


def pressure(path: Path, log: Columns, target: float | None) -> None:
    """Pressure and volume against time."""
    time = log["time_ps"]
    with canvas(path, 8.0, 4.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        values = log["pressure_bar"]
        top.plot(time, values, color=PALETTE[0], linewidth=1.0)
        if target is not None:
            top.axhline(target, color=INK, linestyle="--", linewidth=1, label=f"{target:g} bar")
            _legend(top)
        top.set_ylabel("pressure / bar")
        top.set_title(f"Pressure: {values.mean():.0f} ± {values.std():.0f} bar")
        bottom.plot(time, log["volume_a3"], color=PALETTE[2])
        bottom.set_title("Volume")
        bottom.set(xlabel="time / ps", ylabel="volume / Å$^3$")


def distances(path: Path, pairs: PairDistances, frames: int) -> None:
    """Radial distribution functions, or pair distances of a molecule."""
    with canvas(path, 8.0, 3.4) as figure:
        axes = figure.subplots()
        for color, (name, curve) in zip(PALETTE, pairs.curves.items(), strict=False):
            axes.plot(pairs.centers, curve, color=color, label=name, linewidth=1.3)
            axes.fill_between(pairs.centers, curve, color=color, alpha=0.12, linewidth=0)
        if pairs.normalized:
            axes.axhline(1.0, color=FAINT, linewidth=1, linestyle="--")
            axes.set_ylabel("g(r)")
            axes.set_title(f"Radial distribution functions, {frames} frames")
        else:
            axes.set_ylabel("pairs / Å$^{-1}$")
            axes.set_title(f"Distances between atoms, {frames} frames")
        axes.set_xlabel("distance r / Å")
        axes.set_ylim(bottom=0)
        axes.set_xlim(*_occupied(pairs))
        _legend(axes)


def infrared(path: Path, spectrum: Spectrum) -> None:
    """Infrared absorption against the wavenumber."""
    with canvas(path, 8.0, 3.4) as figure:
        axes = figure.subplots()
        shown = spectrum.wavenumbers <= 1.1 * HIGHEST_BAND
        x, y = spectrum.wavenumbers[shown], spectrum.absorption[shown]
        axes.plot(x, y, color=PALETTE[0], linewidth=1.3)
        axes.fill_between(x, y, color=PALETTE[0], alpha=0.12, linewidth=0)
        axes.set(xlabel="wavenumber / cm$^{-1}$", ylabel="absorption / km mol$^{-1}$ cm")
        axes.set_title(f"Infrared absorption, {spectrum.frames} frames")
        axes.set_xlim(0, x[-1])
        axes.set_ylim(bottom=0)


def convergence(path: Path, log: Columns, fmax: float) -> None:
    """Energy and largest force of a relaxation by step."""
    step, energy = log["step"], log["energy_ev"]
    with canvas(path, 8.0, 4.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        marker = "o" if len(step) <= 60 else ""
        top.plot(step, energy - energy[-1], marker + "-", color=PALETTE[0], markersize=4)
        top.set_ylabel("energy above\nthe last / eV")
        top.set_title(f"Energy: {energy[0]:.4f} → {energy[-1]:.4f} eV")
        force = log["fmax_ev_per_a"]
        bottom.semilogy(step, force, marker + "-", color=PALETTE[1], markersize=4)
        bottom.axhline(fmax, color=INK, linestyle="--", linewidth=1, label=f"{fmax:g} eV/Å")
        bottom.set(xlabel="step", ylabel="largest force / eV Å$^{-1}$")
        bottom.set_title(f"Largest force: {force[0]:.3g} → {force[-1]:.3g} eV/Å")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(bottom)


def torsion(path: Path, profile: TorsionProfile) -> None:
    """Energy against the angle of a torsion, over the whole circle."""
    degrees = np.append(profile.degrees, profile.degrees[0] + 360)
    energies = np.append(profile.energies_ev, profile.energies_ev[0]) / kj_per_mol_in_ev
    with canvas(path, 8.0, 3.0) as figure:
        axes = figure.subplots()
        axes.plot(degrees, energies, "o-", color=PALETTE[0], markersize=4)
        axes.set(xlabel="angle / degrees", ylabel="energy / kJ/mol", xticks=range(0, 361, 60))
        axes.set_title("Torsion, everything else relaxed")


def frequencies(path: Path, wavenumbers: Array) -> None:
    """Harmonic frequencies as sticks; imaginary ones, negative, in another colour."""
    with canvas(path, 8.0, 2.4) as figure:
        axes = figure.subplots()
        colors = np.where(wavenumbers < 0, PALETTE[1], PALETTE[0])
        axes.vlines(wavenumbers, 0, 1, colors=colors.tolist(), linewidth=1.5)
        axes.set(xlabel="frequency / cm$^{-1}$", yticks=[], ylim=(0, 1.1))
        axes.set_title(f"{len(wavenumbers)} vibrations")


def energy_volume(path: Path, volumes: Array, energies: Array, grid: Array, curve: Array) -> None:
    """Energies (eV, from the lowest of the fit) against the volume, and the fit."""
    with canvas(path, 8.0, 3.4) as figure:
        axes = figure.subplots()
        axes.plot(grid, 1e3 * curve, color=FAINT)
        axes.plot(volumes, 1e3 * energies, "o", color=PALETTE[0], markersize=5)
        axes.set(xlabel="volume / Å$^3$", ylabel="energy / meV")
        axes.set_title("Equation of state")


def reaction_path(file: Path, distances: Array, energies: Array) -> None:
    """Energies (eV, from the first image) along a path."""
    with canvas(file, 8.0, 3.4) as figure:
        axes = figure.subplots()
        axes.plot(distances, energies, "o-", color=PALETTE[0], markersize=5)
        axes.set(xlabel="distance along the path / Å", ylabel="energy / eV")
        axes.set_title(f"Barrier: {energies.max():.3f} eV")


def bands(path: Path, bands: dict[str, Any], dos: dict[str, Any]) -> None:
    """Frequencies (THz) along a path of wave vectors, and their density."""
    with canvas(path, 8.0, 4.2) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        for along, frequencies in zip(bands["distances"], bands["frequencies_thz"], strict=True):
            left.plot(along, frequencies, color=PALETTE[0], linewidth=1.2)
        names: dict[float, list[str]] = {}
        for ticks, labels in zip(bands["ticks"], bands["labels"], strict=True):
            for tick, label in zip(ticks, labels, strict=True):
                shown = label.replace("G", "Γ")
                if shown not in names.setdefault(tick, []):
                    names[tick].append(shown)
        for tick in names:
            left.axvline(tick, color=FAINT, linewidth=0.8)
        left.axhline(0, color=FAINT, linewidth=0.8)
        left.set_xticks(list(names), ["|".join(each) for each in names.values()])
        left.set(ylabel="frequency / THz", xlim=(min(names), max(names)))
        right.fill_betweenx(dos["frequencies_thz"], dos["states_per_thz"], color=FAINT)
        right.set(xlabel="states / THz$^{-1}$", xlim=(0, None))
        left.set_title("Phonons")


def thermal(path: Path, values: Columns) -> None:
    """Free energy, entropy and heat capacity of a cell against the temperature (K)."""
    with canvas(path, 8.0, 3.0) as figure:
        for axes, (name, factor, label) in zip(
            figure.subplots(1, 3),
            (
                ("free_energy_ev", 1.0, "free energy / eV"),
                ("entropy_ev_per_k", 1e3, "entropy / meV K$^{-1}$"),
                ("heat_capacity_ev_per_k", 1e3, "heat capacity / meV K$^{-1}$"),
            ),
            strict=True,
        ):
            axes.plot(values["temperatures_k"], factor * values[name], color=PALETTE[0])
            axes.set(xlabel="temperature / K", ylabel=label)


def elastic(path: Path, stiffness: Array, planes: dict[str, Array] | None) -> None:
    """A stiffness (6, 6) as a map, and Young's modulus (GPa) by direction in planes."""
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    with canvas(path, 8.0, 3.8) as figure:
        axes = figure.add_subplot(1, 2 if planes else 1, 1)
        largest = 1.6 * np.abs(stiffness).max()  # numbers stay readable
        axes.imshow(stiffness, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.grid(False)
        axes.set_xticks(range(6), names)
        axes.set_yticks(range(6), names)
        for i, j in np.ndindex(6, 6):
            text = f"{round(float(stiffness[i, j]))}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8)
        axes.set_title("Stiffness / GPa")
        if planes:
            round_ = figure.add_subplot(1, 2, 2, projection="polar")
            for k, (name, values) in enumerate(planes.items()):
                angle = np.linspace(0, 2 * np.pi, len(values))
                round_.plot(angle, values, color=PALETTE[k], label=name)
            round_.yaxis.set_major_locator(MaxNLocator(3))
            round_.set_title("Young's modulus / GPa")
            round_.legend(loc="lower right", bbox_to_anchor=(1.25, -0.05), fontsize=9)


def _legend(axes: Axes) -> None:
    """Above the axes, on the right: it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            labels,
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=len(handles),
            borderaxespad=0.15,
            handlelength=1.4,
            columnspacing=1.2,
            fontsize=9,
        )


def _occupied(pairs: PairDistances) -> tuple[float, float]:
    """Distribution of distances by pair of elements."""
    total: Any = sum(pairs.curves.values())
    found = pairs.centers[total > 0]
    return max(float(found[0]) - 0.3, 0.0), min(float(found[-1]) + 0.3, float(pairs.centers[-1]))


def _canonical(grid: Array, target: float, freedom: int) -> Array:
    """Density of the kinetic temperature: a Gamma distribution with ``freedom`` / 2."""
    k = freedom / 2
    scale = target / k
    return np.asarray(
        np.exp((k - 1) * np.log(grid) - grid / scale - lgamma(k) - k * np.log(scale))
    )
