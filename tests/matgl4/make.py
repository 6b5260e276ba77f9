"""Make the files of this folder with matgl 4.1.2; README.md says how. Not part of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matgl
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.units import GPa
from matgl.apps.pes import Potential
from matgl.ext.ase import Atoms2Graph
from matgl.models import QET, TensorNet

ELEMENTS = ("O", "Mg", "H", "C", "Na", "Cl")  # not in the order of the table
SMALL = [[1.9, 0, 0], [0.4, 2.0, 0], [0.3, -0.2, 2.2]]
MODELS: dict[str, dict[str, Any]] = {
    "bessel": {"rbf_type": "SphericalBessel", "use_smooth": True, "max_n": 3, "nblocks": 2},
    "gaussian": {
        "rbf_type": "Gaussian",
        "num_rbf": 6,
        "nblocks": 3,
        "equivariance_invariance_group": "SO(3)",
    },
    "expnorm": {"rbf_type": "ExpNorm", "num_rbf": 5, "nblocks": 1, "activation_type": "tanh"},
    "qet": {"rbf_type": "Gaussian", "num_rbf": 6, "nblocks": 2},
    "qet-surroundings": {
        "rbf_type": "SphericalBessel",
        "use_smooth": True,
        "max_n": 3,
        "nblocks": 1,
        "equivariance_invariance_group": "SO(3)",
        "is_hardness_envs": True,
        "is_sigma_train": True,
    },
}
CHARGES = {"ethanol": -1, "MgO rattled": 1}
"""Total charges of structures, for networks that predict charges."""


def make_model(name: str, seed: int, options: dict[str, Any]) -> Potential:
    """A potential whose weights are large enough to give forces, and no bias is zero."""
    torch.manual_seed(seed)
    charged = name.startswith("qet")
    options = {"element_types": ELEMENTS, "units": 8, "cutoff": 4.0, "use_warp": False, **options}
    network = QET(**options) if charged else TensorNet(is_intensive=False, **options)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "bond_expansion" in name:
                parameter *= 1.1 if parameter.requires_grad else 1.0
            elif parameter.ndim > 1:
                parameter *= 1.7
            elif name in ("hardness_readout", "sigma"):
                parameter += torch.rand_like(parameter)
            else:
                parameter += 0.3 * torch.randn_like(parameter)
    references = [-4.0, -1.5, -1.0, -7.0, -0.5, -2.0]
    numbers = {"data_mean": 0.25, "data_std": 1.75, "element_refs": references}
    return Potential(network, **numbers, **({"calc_charge": True} if charged else {}))


def structures() -> dict[str, Atoms]:
    """Crystals down to one atom in a cell, a slab with a cell on all sides, molecules."""
    random = np.random.default_rng(0)

    def rattled(atoms: Atoms, by: float) -> Atoms:
        atoms = atoms.copy()
        atoms.positions += by * random.normal(size=atoms.positions.shape)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * random.normal(size=(3, 3))))
        return atoms

    slab = fcc111("Mg", (1, 2, 3), a=4.5, vacuum=5.0)
    slab.pbc = True
    found = {
        "NaCl": bulk("NaCl", "rocksalt", a=5.6),
        "NaCl cubic, rattled": rattled(bulk("NaCl", "rocksalt", a=5.6, cubic=True), 0.1),
        "MgO rattled": rattled(bulk("MgO", "rocksalt", a=4.2), 0.08),
        "Mg, one atom": rattled(bulk("Mg", "fcc", a=4.4), 0.0),
        "C, one atom in a small cell": Atoms("C", cell=SMALL, pbc=True),
        "diamond": rattled(bulk("C", "diamond", a=3.6), 0.05),
        "hcp Mg": rattled(bulk("Mg", "hcp", a=3.2, c=5.2), 0.05),
        "NaCl supercell": rattled(bulk("NaCl", "rocksalt", a=5.6).repeat((2, 2, 1)), 0.1),
        "Mg slab": rattled(slab, 0.05),
        "far from the cell": rattled(bulk("MgO", "rocksalt", a=4.2), 0.05),
        "water": molecule("H2O"),
        "ethanol": molecule("CH3CH2OH"),
    }
    found["far from the cell"].positions[0] += 3 * found["far from the cell"].cell[0]
    found["ethanol"].rattle(0.05, seed=1)
    return found


def evaluate(potential: Potential, atoms: Atoms, charge: int) -> dict[str, Any]:
    """Energy, forces and stress, eV and Angstrom, and charges if there are any."""
    graph, _, _ = Atoms2Graph(ELEMENTS, potential.model.cutoff).get_graph(atoms)
    # The graph has fractional coordinates in float32: give them in double.
    lattice = torch.eye(3, dtype=torch.float64)[None]
    graph.frac_coords = torch.tensor(atoms.positions)
    if atoms.pbc.all():
        lattice = torch.tensor(atoms.cell.array[None])
        graph.frac_coords = torch.tensor(atoms.get_scaled_positions(wrap=False))
    given = {"total_charge": torch.tensor([charge])} if potential.calc_charge else {}
    energy, forces, stress, _, *charges = potential(graph, lattice, **given)
    found = {"charge": charge, "charges": charges[0].tolist()} if charges else {}
    return {
        **found,
        "energy": energy.item(),
        "forces": forces.detach().tolist(),
        "stress": (stress.detach() * GPa).reshape(3, 3).tolist() if atoms.pbc.all() else None,
    }


def main() -> None:
    """Write models and numbers."""
    assert matgl.__version__ == "4.1.2", matgl.__version__
    numbers: dict[str, Any] = {"matgl": matgl.__version__, "structures": {}, "models": {}}
    for name, atoms in structures().items():
        numbers["structures"][name] = {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.tolist(),
            "periodic": bool(atoms.pbc.all()),
        }
    for seed, (model, options) in enumerate(MODELS.items()):
        potential = make_model(model, seed, options)
        potential.save(Path(model))
        (Path(model) / "model.pt").unlink()  # a pickle that nobody needs
        potential.double().eval()
        numbers["models"][model] = {
            name: evaluate(potential, atoms, CHARGES.get(name, 0))
            for name, atoms in structures().items()
        }
        largest = max(np.abs(found["forces"]).max() for found in numbers["models"][model].values())
        print(f"{model}: forces up to {largest:.2f} eV/A")
    Path("numbers.json").write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
