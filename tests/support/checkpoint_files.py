"""Small checkpoints of other programs with random weights, and damaged native files."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support.data import FOLDER
from torch import Tensor

MATPES = FOLDER / "matgl" / "TensorNet-MatPES-PBE-v2025.1-PES"

# modelforge
CHANNELS, LAYERS, RADIAL, CUTOFF_NM, MAX_Z = 8, 2, 6, 0.5, 18
REPRESENTATION = "representation_module."


ELEMENT_TYPES = ["O", "H", "C", "N"]  # not in the order of the table


def write_folder(folder: Path, **changes: Any) -> Path:
    """A folder as matgl writes it; `changes` go into the arguments of the model."""
    arguments: dict[str, Any] = {
        "element_types": ELEMENT_TYPES,
        "units": 8,
        "nblocks": 1,
        "num_rbf": 5,
        "max_n": 3,
        "max_l": 3,
        "rbf_type": "SphericalBessel",
        "use_smooth": True,
        "activation_type": "swish",
        "cutoff": 4.0,
        "equivariance_invariance_group": "O(3)",
        "width": 0.5,
        "is_intensive": False,
    } | changes
    size = {"SphericalBessel": 3}.get(arguments["rbf_type"], 5)
    torch.manual_seed(0)
    f = arguments["units"]
    shapes = {
        "tensor_embedding.emb.weight": (len(ELEMENT_TYPES), f),
        "tensor_embedding.emb2.weight": (f, 2 * f),
        "tensor_embedding.emb2.bias": (f,),
        "linear.weight": (f, 3 * f),
        "linear.bias": (f,),
        "out_norm.weight": (3 * f,),
        "out_norm.bias": (3 * f,),
        "tensor_embedding.init_norm.weight": (f,),
        "tensor_embedding.init_norm.bias": (f,),
    }
    for k in (1, 2, 3):
        shapes |= linear(f"tensor_embedding.distance_proj{k}", f, size)
    for k, (rows, columns) in enumerate([(2 * f, f), (3 * f, 2 * f)]):
        shapes |= linear(f"tensor_embedding.linears_scalar.{k}", rows, columns)
    for k, (rows, columns) in enumerate([(f, size), (2 * f, f), (3 * f, 2 * f)]):
        shapes |= linear(f"layers.0.linears_scalar.{k}", rows, columns)
    shapes |= {f"tensor_embedding.linears_tensor.{k}.weight": (f, f) for k in range(3)}
    shapes |= {f"layers.0.linears_tensor.{k}.weight": (f, f) for k in range(6)}
    for part in ("layers", "gates"):
        for k, rows in ((0, f), (2, f), (4, f), (6, 1)):
            shapes |= linear(f"final_layer.gated.{part}.{k}", rows, f)
    state = {f"model.{k}": 0.5 * torch.randn(s) for k, s in shapes.items()}
    if arguments["rbf_type"] == "Gaussian":
        state["model.bond_expansion.rbf.centers"] = torch.linspace(0, 5.0, size)
    if arguments["rbf_type"] == "ExpNorm":
        state["model.bond_expansion.rbf.means"] = torch.linspace(0.1, 1, size)
        state["model.bond_expansion.rbf.betas"] = torch.full((size,), 7.0)
    state["data_mean"], state["data_std"] = torch.tensor(0.5), torch.tensor(2.0)
    state["element_refs.property_offset"] = torch.tensor([-4.0, -1.0, -3.0, -2.0]).double()
    state["element_refs.onehot"] = torch.eye(4)
    folder.mkdir()
    torch.save(state, folder / "state.pt")
    description = {
        "@class": "Potential",
        "@module": "matgl.apps._pes_pyg",
        "@model_version": 3,
        "metadata": None,
        "kwargs": {
            "model": {
                "@class": "TensorNet",
                "@module": "matgl.models._tensornet_pyg",
                "@model_version": 1,
                "init_args": arguments,
            },
            "calc_repuls": False,
        },
    }
    (folder / "model.json").write_text(json.dumps(description))
    return folder


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def make_state(prefix: str = "core_network.") -> dict[str, Tensor]:
    """Random weights, named as modelforge names them, in float64."""
    torch.manual_seed(0)
    f, k = CHANNELS, RADIAL
    shapes: dict[str, tuple[int, ...]] = {
        f"{REPRESENTATION}atomic_number_i_embedding_layer.weight": (MAX_Z, f),
        f"{REPRESENTATION}atomic_number_ij_embedding_layer.weight": (f, 2 * f),
        f"{REPRESENTATION}atomic_number_ij_embedding_layer.bias": (f,),
        f"{REPRESENTATION}batch_layer_normalization.weight": (f,),
        f"{REPRESENTATION}batch_layer_normalization.bias": (f,),
        "perform_layer_normalization.weight": (3 * f,),
        "perform_layer_normalization.bias": (3 * f,),
        "output_layers.per_atom_energy.dense.weight": (f, 3 * f),
        "output_layers.per_atom_energy.dense.bias": (f,),
        "output_layers.dipole.dense.weight": (f, 3 * f),
    }
    for part in "IAS":
        shapes[f"{REPRESENTATION}rsf_projections.{part}.weight"] = (f, k)
        shapes[f"{REPRESENTATION}rsf_projections.{part}.bias"] = (f,)
    for i, (rows, columns) in enumerate([(2 * f, f), (3 * f, 2 * f)]):
        shapes[f"{REPRESENTATION}linears_scalar.{i}.weight"] = (rows, columns)
        shapes[f"{REPRESENTATION}linears_scalar.{i}.bias"] = (rows,)
    shapes |= {f"{REPRESENTATION}linears_tensor.{i}.weight": (f, f) for i in range(3)}
    for layer in range(LAYERS):
        name = f"interaction_modules.{layer}."
        for i, (rows, columns) in enumerate([(f, k), (2 * f, f), (3 * f, 2 * f)]):
            shapes[f"{name}mlp_scalar.{i}.weight"] = (rows, columns)
            shapes[f"{name}mlp_scalar.{i}.bias"] = (rows,)
        shapes |= {f"{name}linear_layer.{i}.weight": (f, f) for i in range(6)}
    state = {n: 0.6 * torch.randn(s, dtype=torch.float64) for n, s in shapes.items()}
    cutoff = torch.tensor([CUTOFF_NM], dtype=torch.float64)
    state[f"{REPRESENTATION}cutoff_module.cutoff"] = cutoff
    for layer in range(LAYERS):
        state[f"interaction_modules.{layer}.cutoff_module.cutoff"] = cutoff
    start = math.exp(-CUTOFF_NM / 0.1)
    radial = f"{REPRESENTATION}radial_symmetry_function."
    centres = torch.linspace(start, 1, k, dtype=torch.float64)
    state[f"{radial}radial_basis_centers"] = centres
    state[f"{radial}radial_scale_factor"] = torch.full_like(centres, 2 * (1 - start) / k)
    state = {prefix + name: tensor for name, tensor in state.items()}
    post = "postprocessing.registered_chained_operations.per_atom_energy."
    state[f"{post}mean"] = torch.tensor([-250.0])
    state[f"{post}stddev"] = torch.tensor([40.0])
    return state


def rewrite(path: Path, change: Any) -> None:
    """Change the description and the tensors of a native file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    description = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["tensormd"])
    tensors = load_file(path)
    change(description, tensors)
    save_file(tensors, path, {"tensormd": json.dumps(description)})
