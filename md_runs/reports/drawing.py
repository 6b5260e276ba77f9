"""Atoms drawn with matplotlib: shaded spheres, bonds, the cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from ase.utils import rotate
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from .analysis import bonds, coordination, superpose
from .figures import FAINT, INK, Columns, canvas, plot_energies

Array = NDArray[np.float64]

MOST_SPHERES = 400
"""More atoms than this are drawn as flat discs: shading each would take long."""
BALL = 0.42
"""Radius of a sphere in covalent radii."""
MOST_BONDS = 6
"""No bond is drawn between atoms that both have more neighbours than this."""
MARGIN = 0.65
"""Margin around the outermost centres, A."""
OWN_COLORS = {1: "#f4f4f4", 6: "#4d565f"}
"""Colours of elements whose usual ones vanish on white or in print."""


def before_and_after(path: Path, before: Atoms, after: Atoms, titles: tuple[str, str]) -> None:
    """The two structures side by side, seen from the same direction and at the same scale."""
    before, after = before.copy(), after.copy()
    if before.pbc.any():
        _wrap_alike(before, after)
    else:
        after.positions = superpose(after.positions, before.positions, before.get_masses())
    view = _view(before)
    center = _center(before)
    corners = [_project(_corners(a), center, view) for a in (before, after)]
    points = [_project(a.positions, center, view) for a in (before, after)]
    low, high = _limits([*points, *corners])
    wide, tall = high - low
    with canvas(path, 8.0, float(np.clip(4.0 * tall / wide + 0.5, 2.2, 5.5))) as figure:
        for axes, atoms, title in zip(figure.subplots(1, 2), (before, after), titles, strict=True):
            _draw(axes, atoms, center, view)
            axes.set_xlim(low[0], high[0])
            axes.set_ylim(low[1], high[1])
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.set_title(title, loc="center")


def overview(path: Path, log: Columns, atoms: Atoms, titles: tuple[str, str], note: str) -> None:
    """Energies of a run with a note on the left, a structure on the right."""
    center, view = _center(atoms), _view(atoms)
    low, high = _limits([_project(a, center, view) for a in (atoms.positions, _corners(atoms))])
    with canvas(path, 9.0, 3.4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        plot_energies(left, log)
        left.set(xlabel="time / ps", title=titles[0])
        left.margins(y=0.12)
        left.text(0.015, 0.03, note, transform=left.transAxes)
        _draw(right, atoms, center, view)
        right.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        right.set_axis_off()
        right.set_title(titles[1], loc="center")


def _wrap_alike(before: Atoms, after: Atoms) -> None:
    """Bring atoms into the cell, each into the same image in both where it stayed near."""
    pbc = before.pbc
    old = before.cell.scaled_positions(before.positions)
    new = after.cell.scaled_positions(after.positions)
    images = np.floor(old + 1e-3) * pbc
    old, new = old - images, new - images
    strayed = ((new < -0.15) | (new > 1.15)) & pbc
    new = np.where(strayed, new - np.floor(new), new)
    before.positions = before.cell.cartesian_positions(old)
    after.positions = after.cell.cartesian_positions(new)


def _draw(axes: Axes, atoms: Atoms, center: Array, view: Array) -> None:
    points = _project(atoms.positions, center, view)
    colors = np.array([to_rgb(OWN_COLORS.get(z, jmol_colors[z])) for z in atoms.numbers])
    radii = BALL * covalent_radii[atoms.numbers]
    depth = points[:, 2]
    near = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9)
    _draw_cell(axes, atoms, center, view)
    for i, j in _drawn_bonds(atoms):
        _draw_bond(axes, points[[i, j]], colors[[i, j]], radii[[i, j]])
    if len(atoms) > MOST_SPHERES:
        order = np.argsort(depth)
        flat = points[order, :2]
        axes.scatter(
            flat[:, 0], flat[:, 1], s=14, c=colors[order], edgecolors=INK, linewidths=0.3, zorder=5
        )
        return
    for point, color, radius, closeness in zip(points, colors, radii, near, strict=True):
        fog = 0.18 * (1 - closeness)
        image = _sphere(color * (1 - fog) + fog)
        x, y, z = point
        axes.imshow(
            image,
            extent=(x - radius, x + radius, y - radius, y + radius),
            origin="lower",
            interpolation="bilinear",
            zorder=10 + z,
        )


def _drawn_bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Bonds, but not the many of a close-packed metal."""
    neighbors = coordination(atoms)
    return [(i, j) for i, j in bonds(atoms) if min(neighbors[i], neighbors[j]) <= MOST_BONDS]


def _sphere(color: Array, pixels: int = 96) -> Array:
    """An RGBA picture of a sphere lit from the upper left."""
    grid = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    x, y = np.meshgrid(grid, grid)
    square = x**2 + y**2
    z = np.sqrt(np.clip(1 - square, 0, 1))
    light = np.array([-0.45, 0.55, 0.70])
    diffuse = np.clip(light[0] * x + light[1] * y + light[2] * z, 0, 1)
    shade = (0.45 + 0.6 * diffuse)[..., None] * color
    shine = 0.55 * np.clip(diffuse, 0, 1)[..., None] ** 24
    rim = np.clip((square - 0.86) / 0.14, 0, 1)[..., None] * 0.45
    rgb = np.clip(shade * (1 - rim) + shine, 0, 1)
    alpha = np.clip((1 - np.sqrt(square)) * pixels / 3, 0, 1)
    return np.dstack([rgb, alpha])


def _draw_bond(axes: Axes, ends: Array, colors: Array, radii: Array) -> None:
    # Each half has the colour of its atom; both lie between the depths of the two spheres.
    direction = ends[1] - ends[0]
    length = float(np.linalg.norm(direction))
    if length < 1e-6:
        return
    start = ends[0] + direction * (0.9 * radii[0] / length)
    stop = ends[1] - direction * (0.9 * radii[1] / length)
    middle = 0.5 * (start + stop)
    depth = 10 + float(ends[:, 2].min()) + 0.01
    axes.plot(
        *zip(start[:2], stop[:2], strict=True),
        color=INK,
        linewidth=6.0,
        zorder=depth,
        solid_capstyle="butt",
    )
    for end, color in ((start, colors[0]), (stop, colors[1])):
        axes.plot(
            *zip(end[:2], middle[:2], strict=True),
            color=tuple(np.clip(0.88 * color, 0, 1)),
            linewidth=4.4,
            zorder=depth + 1e-3,
            solid_capstyle="butt",
        )


def _draw_cell(axes: Axes, atoms: Atoms, center: Array, view: Array) -> None:
    if not atoms.pbc.any():
        return
    corners = _corners(atoms).reshape(2, 2, 2, 3)
    for a in range(2):
        for b in range(2):
            for edge in (corners[:, a, b], corners[a, :, b], corners[a, b, :]):
                line = _project(edge, center, view)
                axes.plot(*line[:, :2].T, color=FAINT, linewidth=1, zorder=1)


def _corners(atoms: Atoms) -> Array:
    """Corners of the cell (8, 3); of a molecule nothing (0, 3)."""
    if not atoms.pbc.any():
        return np.zeros((0, 3))
    steps = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    return np.asarray(steps @ atoms.cell.array)


def _center(atoms: Atoms) -> Array:
    return np.asarray(atoms.positions.mean(0))


def _view(atoms: Atoms) -> Array:
    """Columns: right, up and towards the eye."""
    if atoms.pbc.any():
        return np.asarray(rotate("-75x,-15y,-5z"))
    arms = atoms.positions - atoms.positions.mean(0)
    axes = np.linalg.svd(arms, full_matrices=True)[2].T
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1
    # A little off the principal axes: symmetric molecules would hide atoms behind others.
    return np.asarray(axes @ rotate("18x,-14y,0z"))


def _project(points: Array, center: Array, view: Array) -> Array:
    return np.asarray((points - center) @ view)


def _limits(points: list[Array]) -> tuple[Array, Array]:
    flat = np.concatenate(points)[:, :2]
    return flat.min(0) - MARGIN, flat.max(0) + MARGIN
