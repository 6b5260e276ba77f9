"""All other architectures of torchmd-net, which run torchmd-net's own module.

Its network is unchanged. Its neighbour lists are replaced by the edges of our `Graph`, so that any
cell and any number of neighbours work; forces and virial are computed from the gradient with
respect to the edges. torchmd-net is imported only here, and only if a checkpoint needs it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Graph, within
from ..heads.coulomb import WHY_NO_CELL, parse_coulomb_cutoff
from ..potential import Prediction, assemble
from ..state import check_fit
from ..units import energy_in_ev, length_in_angstrom
from .torchmdnet_edges import Edges, GivenEdges, use_plain_operators

ARCHITECTURES = {
    "tensornet": "TensorNet",
    "tensornet2": "TensorNet2",
    "graph-network": "TorchMD_GN",
    "transformer": "TorchMD_T",
    "equivariant-transformer": "TorchMD_ET",
}
"""Class names by the names in hyper-parameters."""

ENERGY_OUTPUTS = ("Scalar", "ScalarPlusWeightedCoulomb")

# Options that a prior needs; the rest is in its tensors.
PRIORS: dict[str, tuple[str, ...]] = {
    "Atomref": (),
    "LearnableAtomref": (),
    "ZBL": ("cutoff_distance", "distance_scale", "energy_scale"),
    "D2": ("cutoff_distance", "distance_scale", "energy_scale"),
}


def parse_priors(
    arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> list[tuple[str, dict[str, Any]]]:
    """Priors of a model and their options, from any form of its hyper-parameters.

    Raises
    ------
    ValueError
        If one is unknown, lacks an option, or needs data that a calculator does not have.
    """
    listed = arguments.get("prior_model") or []
    kinds: list[str] = []
    options: list[dict[str, Any]] = []
    for entry in listed if isinstance(listed, (list, tuple)) else [listed]:
        for kind, given in entry.items() if isinstance(entry, Mapping) else [(entry, None)]:
            kinds.append(str(kind))
            options.append(dict(given or {}))
    if arguments.get("prior_args") is not None:
        given = arguments["prior_args"]
        options = [dict(o or {}) for o in (given if isinstance(given, (list, tuple)) else [given])]
    if len(options) != len(kinds):
        raise ValueError(f"{name}: {len(kinds)} priors with {len(options)} sets of options")
    priors = []
    for i, (kind, found) in enumerate(zip(kinds, options, strict=True)):
        if kind == "Coulomb":
            raise ValueError(
                f"{name} has a Coulomb prior, which needs the partial charges of its training "
                "data for every structure: such a model cannot run on new structures"
            )
        if kind not in PRIORS:
            raise ValueError(
                f"{name}: unknown prior {kind!r}: expected one of {', '.join(PRIORS)}"
            )
        missing = [key for key in PRIORS[kind] if found.get(key) is None]
        if missing:
            raise ValueError(f"{name}: its {kind} prior lacks {', '.join(missing)}")
        priors.append((kind, _prior_options(kind, found, tensors, f"prior_model.{i}.", name)))
    return priors


def _prior_options(
    kind: str, found: dict[str, Any], tensors: Mapping[str, Tensor], prefix: str, name: str
) -> dict[str, Any]:
    if kind in ("Atomref", "LearnableAtomref"):
        table = tensors.get(f"{prefix}atomref.weight")
        if table is None:
            raise ValueError(f"{name} has no tensor {prefix}atomref.weight")
        if table.dim() != 2 or table.shape[0] < 2 or table.shape[1] != 1:
            raise ValueError(
                f"{name}: {prefix}atomref.weight has the shape {tuple(table.shape)}: expected "
                "one energy for each atomic number"
            )
        learnable = kind == "LearnableAtomref"  # takes no other option, though files have them
        return {"max_z": len(table)} | (
            {} if learnable else {"enable": bool(found.get("enable", True))}
        )
    key = prefix + ("atomic_number" if kind == "ZBL" else "Z_map")
    if key not in tensors:
        raise ValueError(f"{name} has no tensor {key}")
    scalars = {option: float(found[option]) for option in PRIORS[kind]}
    return {"max_num_neighbors": 1, "atomic_number": tensors[key].tolist()} | scalars


class TorchMDNetPotential(nn.Module):
    """A torchmd-net model with the interface of `Potential`.

    Parameters
    ----------
    hyper_parameters
        Hyper-parameters of the model under torchmd-net's names.
    tensors
        State dict of the model; copied.
    elements
        Atomic numbers the model was trained on.
    length_unit, energy_unit
        The model's own units: names of `units`.
    metadata
        Information about the weights.

    Attributes
    ----------
    has_atom_energies
        Whether the energy is a sum over atoms. If not, because a prior adds pair energies or the
        reduction is not a sum, ``energies`` of a prediction are NaN.

    Raises
    ------
    ValueError
        If the model does not predict an energy, or the tensors do not fit it.
    ImportError
        If torchmd-net cannot be imported.
    """

    def __init__(
        self,
        hyper_parameters: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        elements: Iterable[int],
        length_unit: str = "angstrom",
        energy_unit: str = "ev",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.elements = sorted({int(z) for z in elements})
        if not self.elements:
            raise ValueError("elements is empty: expected the atomic numbers the model knows")
        self.length_unit, self.energy_unit = length_unit.lower(), energy_unit.lower()
        self.length_in_angstrom = length_in_angstrom(length_unit)
        self.energy_in_ev = energy_in_ev(energy_unit)
        self.metadata = dict(metadata or {})
        priors = parse_priors(hyper_parameters, tensors, "the checkpoint")
        self.hyper_parameters = copy.deepcopy(dict(hyper_parameters)) | {
            # torchmd-net fails to build its LearnableAtomref; Atomref computes the same.
            "prior_model": [{kind.removeprefix("Learnable"): options} for kind, options in priors],
            "prior_args": None,
        }
        self._check_output()
        self.model = self._build(tensors)
        self._edges = Edges()
        self.cutoff = self._replace_neighbor_lists() * self.length_in_angstrom
        tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()}
        check_fit(self.model.state_dict(), tensors, "the checkpoint")
        self.model.load_state_dict(tensors, assign=True)
        kinds = {kind for kind, _ in priors}
        self.sums_atoms = self.hyper_parameters["reduce_op"] in ("add", "sum")
        self.has_atom_energies = self.sums_atoms and not kinds & {"ZBL", "D2"}
        # D2 fails for a batch whose last system has no pair in reach.
        self._one_by_one = "D2" in kinds

    def _check_output(self) -> None:
        arguments = self.hyper_parameters
        if arguments.get("model") not in ARCHITECTURES:
            raise ValueError(
                f"unknown architecture {arguments.get('model')!r}: expected one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        output = arguments.get("output_model")
        if output not in ENERGY_OUTPUTS:
            raise ValueError(
                f"the model predicts {output!r}, which is no energy: expected one of the "
                f"outputs {', '.join(ENERGY_OUTPUTS)}; dynamics needs a potential"
            )
        if int(arguments.get("atom_filter", -1)) > -1:
            raise ValueError(
                "the model leaves out atoms (atom_filter), which torchmd-net 3 can no longer "
                "run: expected atom_filter = -1"
            )

    def _build(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        try:
            from torchmdnet.models.model import create_model
        except ImportError as error:
            raise ImportError(
                f"{self.hyper_parameters['model']} models run in torchmd-net, which cannot be "
                f"imported ({error}): pip install torchmd-net"
            ) from error
        double = any(t.dtype == torch.float64 for t in tensors.values())
        arguments = copy.deepcopy(self.hyper_parameters) | {
            "precision": 64 if double else 32,
            "derivative": False,
            "static_shapes": False,
            "max_num_neighbors": 1,
            "box_vecs": None,
        }
        try:
            # create_model draws random weights, and changes the warning filters.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                model: nn.Module = create_model(arguments)
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"torchmd-net cannot build the model from its hyper-parameters "
                f"({type(error).__name__}: {error})"
            ) from error
        use_plain_operators(model)
        return model

    def _replace_neighbor_lists(self) -> float:
        """Replace all neighbour lists; return the largest cutoff, in the model's unit."""
        from torchmdnet.models.utils import OptimizedDistance

        # These treat every edge from an atom to itself as the edge of length zero.
        masks = self.hyper_parameters["model"] not in ("graph-network", "transformer")
        masks = masks or bool(self.hyper_parameters.get("neighbor_embedding"))
        cutoffs = []
        for name, module in list(self.model.named_modules()):
            if not isinstance(module, OptimizedDistance):
                continue
            in_network = name.startswith("representation_model.")
            given = GivenEdges(module, self._edges, not (masks and in_network))
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, given)
            cutoffs.append(given.cutoff_upper)
        return max(cutoffs)

    def __reduce__(self) -> tuple[Any, ...]:
        # Some of the model's classes live in private modules, which pickle cannot name.
        parameter = next(self.model.parameters())
        options = {
            "elements": self.elements,
            "length_unit": self.length_unit,
            "energy_unit": self.energy_unit,
            "metadata": self.metadata,
        }
        state = (self.training, parameter.requires_grad)
        return _rebuild, (self.hyper_parameters, self.tensors(), options, state)

    @property
    def architecture(self) -> str:
        """Name of torchmd-net's class: ``TensorNet2``, ``TorchMD_ET``, ..."""
        return ARCHITECTURES[self.hyper_parameters["model"]]

    @property
    def coulomb_cutoff(self) -> float | None:
        """Cutoff of the Coulomb energy, Angstrom, infinite for all pairs; None: no such energy."""
        if self.hyper_parameters["output_model"] != "ScalarPlusWeightedCoulomb":
            return None
        cutoff = self.hyper_parameters["coulomb_cutoff"]
        return math.inf if cutoff is None else float(cutoff) * self.length_in_angstrom

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights."""
        return next(self.model.parameters()).dtype

    def tensors(self) -> dict[str, Tensor]:
        """The state dict of the model under torchmd-net's names."""
        return {key: tensor.detach() for key, tensor in self.model.state_dict().items()}

    @staticmethod
    def allowed_nan(tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors that may contain NaN: D2 has no parameters for element zero."""
        return [key for key in tensors if key.endswith((".C_6", ".R_r"))]

    def with_coulomb_cutoff(self, cutoff: float | None) -> TorchMDNetPotential:
        """The same model with a Coulomb cutoff, which periodic systems require.

        Parameters
        ----------
        cutoff
            Coulomb cutoff, Angstrom (reaction field beyond it); None or infinity: sum over all
            pairs of a molecule.

        Raises
        ------
        ValueError
            If the model has no Coulomb energy, or the cutoff cannot be.
        """
        if self.coulomb_cutoff is None:
            raise ValueError("the model has no Coulomb energy to cut off: leave its cutoff out")
        parsed = parse_coulomb_cutoff(cutoff)
        own = None if parsed is None else parsed / self.length_in_angstrom
        return TorchMDNetPotential(
            self.hyper_parameters | {"coulomb_cutoff": own},
            self.tensors(),
            elements=self.elements,
            length_unit=self.length_unit,
            energy_unit=self.energy_unit,
            metadata=self.metadata,
        ).train(self.training)

    def forward(self, graph: Graph) -> Prediction:
        """Energies, forces and virials of the systems of a graph.

        Raises
        ------
        ValueError
            If the model does not support the cell; the message states the remedy.
        """
        self._check_cell(graph)
        graph, vectors = within(graph, self.cutoff)
        vectors = vectors.detach().requires_grad_(True)
        # Positions are read only by a Coulomb sum over all pairs.
        positions = _centred(graph).detach().requires_grad_(True)
        energy, energies = self._evaluate(graph, vectors, positions)
        by_vector, by_position = torch.autograd.grad(
            [energy.sum()],
            [vectors, positions],
            create_graph=self.training,
            allow_unused=True,
        )
        if by_vector is None:  # no pair in reach
            by_vector = torch.zeros_like(vectors)
        if by_position is None:
            by_position = torch.zeros_like(positions)
        if not self.training:
            energy, energies = energy.detach(), energies.detach()
        prediction = assemble(graph, energies, vectors.detach(), by_vector)
        outer = positions.detach().unsqueeze(2) * by_position.unsqueeze(1)
        direct = -0.5 * (outer + outer.mT)
        virial = prediction.virial.index_add(0, graph.system, direct)
        forces, virials = prediction.forces - by_position, prediction.virials + direct
        return Prediction(energy, energies, forces, virial, virials)

    def total_energy(self, graph: Graph) -> Tensor:
        """Sum of all energies, eV, differentiable in ``graph.positions``."""
        self._check_cell(graph)
        graph, vectors = within(graph, self.cutoff)
        return self._evaluate(graph, vectors, _centred(graph))[0].sum()

    def _check_cell(self, graph: Graph) -> None:
        output = self.model.output_model
        if getattr(output, "mode", None) == "all_to_all" and bool((graph.cell != 0).any()):
            raise ValueError(WHY_NO_CELL)

    def _evaluate(self, graph: Graph, vectors: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) of the systems and (N,) of the atoms, eV, float64."""
        systems = graph.charge.shape[0]
        if self._one_by_one and systems > 1:
            parts = [
                self._evaluate(*_one_system(graph, vectors, positions, b)) for b in range(systems)
            ]
            order = torch.cat([torch.nonzero(graph.system == b)[:, 0] for b in range(systems)])
            energies = torch.cat([p[1] for p in parts])[torch.argsort(order)]
            return torch.cat([p[0] for p in parts]), energies

        # Any: torchmd-net's modules are not typed.
        model: Any = self.model
        dtype = self.dtype
        self._edges.index = graph.edge_index
        self._edges.vectors = (vectors / self.length_in_angstrom).to(dtype)
        self._edges.shift = graph.edge_shift
        numbers, system = graph.numbers, graph.system
        pos = (positions / self.length_in_angstrom).to(dtype)
        x, v, numbers, pos, system = model.representation_model(
            numbers, pos, system, box=None, q=graph.charge.to(dtype), s=None
        )
        x = model.output_model.pre_reduce(x, v, numbers, pos, system, box=None)
        extra = getattr(model.representation_model, "extra_energy", None)
        if extra is not None:
            x = x + extra
        # From here on, torchmd-net's own order of operations in float64: sums over atoms and
        # reference energies are large.
        x = x.double() * model.std
        priors: Iterable[Any] = model.prior_model or ()
        for prior in priors:
            x = prior.pre_reduce(x, numbers, pos, system, None)
        mean = model.mean.double()
        y = model.output_model.reduce(x, system, num_systems=systems) + mean
        y = model.output_model.post_reduce(y)
        for prior in priors:
            y = prior.post_reduce(y, numbers, pos, system, None, None)
        sizes = torch.bincount(system, minlength=systems).index_select(0, system)
        shares = x.squeeze(-1) + mean / sizes
        if not self.has_atom_energies:
            shares = torch.full_like(shares, torch.nan)
        return y.squeeze(-1) * self.energy_in_ev, shares * self.energy_in_ev


def _rebuild(
    hyper_parameters: dict[str, Any],
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    state: tuple[bool, bool],
) -> TorchMDNetPotential:
    training, requires_grad = state
    potential = TorchMDNetPotential(hyper_parameters, tensors, **options)
    return potential.train(training).requires_grad_(requires_grad)


def _centred(graph: Graph) -> Tensor:
    """Positions relative to the mean of their system, to limit rounding in float32."""
    sums = graph.positions.new_zeros(graph.charge.shape[0], 3)
    sums = sums.index_add(0, graph.system, graph.positions)
    sizes = torch.bincount(graph.system, minlength=len(sums)).clamp(min=1)
    means = sums / sizes.unsqueeze(1)
    return graph.positions - means.index_select(0, graph.system)


def _one_system(
    graph: Graph, vectors: Tensor, positions: Tensor, number: int
) -> tuple[Graph, Tensor, Tensor]:
    atoms = graph.system == number
    edges = atoms[graph.edge_index[0]]
    place = torch.cumsum(atoms, 0) - 1
    return (
        Graph(
            numbers=graph.numbers[atoms],
            positions=graph.positions[atoms],
            cell=graph.cell[number : number + 1],
            edge_index=place[graph.edge_index[:, edges]],
            edge_shift=graph.edge_shift[edges],
            system=torch.zeros_like(graph.system[atoms]),
            charge=graph.charge[number : number + 1],
        ),
        vectors[edges],
        positions[atoms],
    )
