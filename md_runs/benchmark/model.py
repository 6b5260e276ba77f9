"""The model that is measured, as a checkpoint of either program, and what it costs at least."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models import EnergyReadout, Potential, TensorNet
from ...models.files import replacing
from ...models.heads.energy import MLPHead
from ...models.maths.cartesian import TensorLinear

ELEMENTS = range(1, 100)


def random_potential(seed: int = 0) -> Potential:
    """TensorNet with torchmd-net's default architecture and random weights.

    2 layers, 128 channels, 32 expnorm functions, cutoff 4.5 A, O(3).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        potential = Potential(
            TensorNet(),
            EnergyReadout(128),
            elements=ELEMENTS,
            metadata={"name": f"random weights, seed {seed}"},
        )
    return potential.eval().requires_grad_(False)


class NotTransferableError(ValueError):
    """The other program has no such model."""


def write_torchmdnet(
    potential: nn.Module, path: Path, dtype: str = "float32", *, old_layout: bool = False
) -> None:
    """Write a potential as a checkpoint of torchmd-net 3.1.

    Parameters
    ----------
    potential
        A `Potential` of a TensorNet.
    path
        Of the new file.
    dtype
        ``float32`` or ``float64``: the precision torchmd-net gives the model.
    old_layout
        Whether to write the outputs of scalar layers in the order [F, 3] of torchmd-net before
        version 3, marked as it marked them: openmm-ml 1.7 and 1.8 take every file for one.

    Raises
    ------
    NotTransferableError
        If torchmd-net has no such model.
    """
    arguments = _hyper_parameters(potential, dtype)
    assert isinstance(potential, Potential)
    tensors = _tensors(potential, old_layout)
    if old_layout:
        arguments["check_errors"] = True
    if potential.atomic_scale.references.any():
        table = torch.zeros(arguments["max_z"], 1)
        references = potential.atomic_scale.references[: len(table)]
        table[: len(references), 0] = references
        tensors["prior_model.0.atomref.weight"] = table
        tensors["prior_model.0.initial_atomref"] = table.clone()
        arguments["prior_model"] = "Atomref"
        arguments["prior_args"] = {"max_z": arguments["max_z"]}
    state = {f"model.{name}": tensor.detach().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        torch.save({"state_dict": state, "hyper_parameters": arguments}, temporary)


def _hyper_parameters(potential: nn.Module, dtype: str) -> dict[str, Any]:
    if not isinstance(potential, Potential) or not isinstance(potential.representation, TensorNet):
        raise NotTransferableError(
            f"{potential.architecture} is not handed over to torchmd-net: only a TensorNet is"
        )
    network = potential.representation.config
    head = getattr(potential.readout, "head", None)
    natural = network["self_interaction"] and network["radial"] in _RADIAL
    if not isinstance(head, MLPHead) or not natural:
        raise NotTransferableError("this TensorNet is another program's variant")
    if potential.repulsion is not None:
        raise NotTransferableError("its repulsion is not handed over")
    if potential.length_unit != "angstrom":
        raise NotTransferableError(f"its unit of length is {potential.length_unit}")
    return {
        "model": "tensornet",
        "embedding_dimension": network["channels"],
        "num_layers": network["layers"],
        "num_rbf": network["radial_functions"],
        "rbf_type": network["radial"],
        "trainable_rbf": network["trainable_radial"],
        "activation": potential.readout.config["activation"],
        "cutoff_lower": network["cutoff_lower"],
        "cutoff_upper": network["cutoff"],
        "max_z": network["max_number"],
        "max_num_neighbors": 64,
        "equivariance_invariance_group": network["group"],
        "precision": 32 if dtype == "float32" else 64,
        "derivative": True,
        "output_model": "Scalar",
        "reduce_op": "add",
        "prior_model": None,
        "prior_args": None,
        "atom_filter": -1,
        "static_shapes": False,
        "remove_ref_energy": False,
        "coulomb_cutoff": None,
    }


def _tensors(potential: Potential, interleaved: bool) -> dict[str, Tensor]:
    """The weights under torchmd-net's names: the inverse of `models.checkpoint.layout`."""
    ours = {key.removeprefix("representation."): t for key, t in potential.state_dict().items()}

    def last(tensor: Tensor) -> Tensor:
        """Of a layer with an output for each of I, A and S."""
        if not interleaved:
            return tensor
        return tensor.reshape(3, len(tensor) // 3, -1).transpose(0, 1).reshape(tensor.shape)

    network = _config(potential)
    layers = range(network["layers"])
    prefix = "representation_model."
    found = {
        f"{prefix}tensor_embedding.emb.weight": ours["embedding.species.weight"],
        f"{prefix}distance.box": torch.zeros(3, 3),
        "mean": potential.atomic_scale.mean.float(),
        "std": potential.atomic_scale.scale.float(),
    }
    for name, theirs in _RADIAL[network["radial"]].items():
        found[f"{prefix}distance_expansion.{theirs}"] = ours[f"radial.{name}"]
    for part in ("weight", "bias"):
        embedding = f"{prefix}tensor_embedding."
        found[f"{embedding}emb2.{part}"] = ours[f"embedding.species_pair.{part}"]
        for k, tensor in enumerate(ours[f"embedding.radial.{part}"].chunk(3), 1):
            found[f"{embedding}distance_proj{k}.{part}"] = tensor
        found[f"{embedding}init_norm.{part}"] = ours[f"embedding.norm.{part}"]
        found[f"{embedding}linears_scalar.0.{part}"] = ours[f"embedding.gate.0.{part}"]
        found[f"{embedding}linears_scalar.1.{part}"] = last(ours[f"embedding.gate.2.{part}"])
        found[f"{prefix}out_norm.{part}"] = ours[f"readout.norm.{part}"]
        found[f"{prefix}linear.{part}"] = ours[f"readout.head.network.0.{part}"]
        for k in (0, 2):
            key = f"output_model.output_network.layers.{k}.{part}"
            found[key] = ours[f"readout.head.network.{k + 2}.{part}"]
        for i in layers:
            for k in range(3):
                tensor = ours[f"layers.{i}.radial.{2 * k}.{part}"]
                key = f"{prefix}layers.{i}.linears_scalar.{k}.{part}"
                found[key] = last(tensor) if k == 2 else tensor
    mixes = {"tensor_embedding": [ours["embedding.mix.weight"]]}
    for i in layers:
        mixes[f"layers.{i}"] = [ours[f"layers.{i}.mix_{way}.weight"] for way in ("in", "out")]
    for name, weights in mixes.items():
        for k, matrix in enumerate(torch.cat(weights)):
            found[f"{prefix}{name}.linears_tensor.{k}.weight"] = matrix
    return found


def _config(potential: Potential) -> dict[str, Any]:
    assert isinstance(potential.representation, TensorNet)
    return potential.representation.config


_RADIAL = {
    "expnorm": {"means": "means", "betas": "betas"},
    "gauss": {"centres": "offset", "coefficient": "coeff"},
}


def product_flops_per_atom(potential: nn.Module) -> int | None:
    """Operations of the matrix products that every atom needs, energy and forces.

    Those on features of atoms: mixing of channels, gates and readout, a multiplication and an
    addition each, once forwards and once backwards. What depends on a distance alone (the
    networks of edges) is left out, for a table can replace it. None for other architectures.
    """
    if not isinstance(potential, Potential) or not isinstance(potential.representation, TensorNet):
        return None
    network = potential.representation
    per_atom: list[nn.Module] = [network.embedding.gate, potential.readout]
    count = sum(
        module.weight.numel()
        for part in per_atom
        for module in part.modules()
        if isinstance(module, nn.Linear)
    )
    for module in network.modules():
        if isinstance(module, TensorLinear):
            count += 9 * module.weight.shape[1] * module.weight.shape[2]
    return 2 * 2 * count


def product_rate(device: torch.device | str = "cpu", size: int = 2048, repeats: int = 7) -> float:
    """Operations per second of ``torch.mm`` on square float32 matrices; the median."""
    a = torch.ones(size, size, device=device)
    out = torch.empty_like(a)
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        torch.mm(a, a, out=out)
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[2:])
