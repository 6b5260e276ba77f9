"""State dicts of the released TDN code (divelab AIRS, OpenMol/TDN), in Angstrom and eV.

Channels, degree, rank, layers, heads and the widths of the radial networks are inferred from the
tensors. The cutoff and two averages of the training set cannot be inferred: they are arguments.
The factors of the tensor products are those of the file, and features of the release that are not
smooth (no envelope, its norms) are kept: the energies are those of the release.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ..potential import Potential
from .build import TensorPool
from .files import require_finite
from .formats import Format
from .layout import finish

UNITS = ("angstrom", "ev")
CUTOFF = 4.5
AVERAGE_DEGREE = 18.6
"""Neighbours per atom in the subset of PubChemQCR, the release's setting; 16.7 in the full set."""
AVERAGE_ATOMS = 36.6
"""Atoms per molecule in the subset; 30.0 in the full set."""
OUTPUTS = ("per_atom", "total")

PARTS = ("model_state_dict", "state_dict", "model", "ema")
"""Keys under which a file may have the state dict; the first one found is used."""
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_RADIAL = re.compile(r"edge_embed\.rad\.net\.(\d+)\.(weight|bias)$")
_MARKS = re.compile(r"(atom_embed\.atom_type_lin|edge_embed\.rad\.net)\.|.*\.cp_tp\.cp_[abc]$")

HARTREE = 27.2114
"""The release's own value of a hartree, eV, with which its labels were computed."""
REFERENCES = {
    1: -0.5002727762,
    4: -14.6684425428,
    5: -24.6543539532,
    6: -37.8462799513,
    7: -54.5844893657,
    8: -75.0606214015,
    9: -99.7155354215,
    14: -289.3723539998,
    15: -341.2580898032,
    16: -398.1049925382,
    17: -460.1362417086,
    21: -760.5813501324,
    22: -849.3013849537,
    23: -943.8255794204,
    24: -1044.2810289455,
    25: -1150.8680174849,
    26: -1263.5207828239406,
    27: -1382.5485719267936,
    28: -1508.0542451335,
    29: -1640.1731641564784,
    31: -1924.5926070018,
    32: -2076.6914561594,
    33: -2235.5683127287,
    34: -2401.2347730327,
    35: -2573.8397377628,
}
"""Energies of free atoms, hartree, which are subtracted from its labels, by atomic number."""


def is_tdn_release(content: Any) -> bool:
    """Whether the contents of a torch file are or contain a state dict of the released TDN."""
    return _find(content) is not None


def read_tdn_release(
    content: Mapping[str, Any],
    name: str,
    *,
    elements: Iterable[int] | None = None,
    cutoff: float | None = None,
    average_degree: float | None = None,
    average_atoms: float | None = None,
    output: str = "per_atom",
    references: bool = True,
) -> Potential:
    r"""Read the potential of a state dict, or of a checkpoint that contains one.

    The network was trained on :math:`(E - \sum_i E_{ref}(Z_i)) / N`, and its output is
    :math:`\sum_i e_i / \sqrt{\bar N}`, so that

    .. math:: E = N \frac{1}{\sqrt{\bar N}} \sum_i e_i + \sum_i E_{ref}(Z_i)

    Parameters
    ----------
    content
        Result of ``torch.load``.
    name
        Name of the file, for error messages and the metadata.
    elements
        Atomic numbers that the model knows; None: all of ``REFERENCES``.
    cutoff
        Cutoff distance, Angstrom; None: 4.5, as in the release.
    average_degree, average_atoms
        Average numbers of neighbours of an atom and of atoms of a molecule in the training set.
        None: those of the subset of PubChemQCR, 18.6 and 36.6; the full set has 16.7 and 30.0.
    output
        Meaning of the network's output: ``per_atom``, like its labels, or ``total`` (without the
        factor N), for weights that were trained on other labels.
    references
        Whether to add the energies of free atoms.

    Warns
    -----
    UserWarning
        If the cutoff or an average was assumed, or if the file has a trained force head, which is
        not used: forces are the gradient of the energy.

    Raises
    ------
    ValueError
        If a tensor is missing, misshapen or unknown, or an argument is out of range.
    """
    if output not in OUTPUTS:
        raise ValueError(f"unknown output {output!r}: expected one of {', '.join(OUTPUTS)}")
    found = _find(content)
    if found is None:
        raise ValueError(f"{name} has no state dict of the released TDN in it")
    tensors, part = _plain_names(found[0], name), found[1]
    require_finite(tensors, name)
    assumed: dict[str, float] = {}

    def known(key: str, value: float | None, default: float) -> float:
        if value is None:
            assumed[key] = value = default
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: {key} is {value}: expected a positive number")
        return float(value)

    network: dict[str, Any] = {
        "cutoff": known("cutoff", cutoff, CUTOFF),
        "average_degree": known("average_degree", average_degree, AVERAGE_DEGREE),
        "group": "SO(3)",
        "product": "cp",
        "envelope": "none",
        "norm_epsilon": 1e-5,
    }
    scale = known("average_atoms", average_atoms, AVERAGE_ATOMS) ** -0.5
    pool = _Pool(tensors, name)
    state, sizes = _representation(pool)
    network |= sizes
    channels = sizes["channels"]
    head: dict[str, Tensor] = {}
    for ours, theirs, width in (("0", "head.0", channels), ("2", "head.2", 1)):
        head |= _linear(pool, f"head.{ours}", theirs, width, channels)
    norm = _norm(pool, "norm", channels, sizes["lmax"])
    head |= {"norm.weight": norm["weight"][0], "norm.bias": norm["bias"]}
    forces = _take_force_head(pool, sizes)

    size = sizes["max_number"]
    chosen = _elements(elements, size, references, name)
    table = torch.zeros(size, dtype=torch.float64)
    if references:
        for number in chosen:
            table[number] = REFERENCES[number] * HARTREE
    short = PurePath(name).name
    potential = finish(
        pool,
        architecture="TDN",
        network=network,
        readout={"per_atom": output == "per_atom"},
        representation=state,
        head=head,
        references=table,
        scale=scale,
        mean=0.0,
        elements=chosen,
        units=UNITS,
        metadata={
            "name": short,
            "source": {"format": "state dict of the released TDN", "file": short, "part": part},
            "units_stated": True,
            "elements_stated": elements is not None,
            "trained_with_charge": False,
            "assumed": assumed,
            "output": output,
            "force_head": forces,
            "reference_energies": "those of the release" if references else "not included",
        },
    )
    _warn(name, assumed, forces)
    return potential


def _warn(name: str, assumed: Mapping[str, float], forces: str) -> None:
    if assumed:
        values = ", ".join(f"{key} = {value:g}" for key, value in assumed.items())
        warnings.warn(
            f"{name} does not state all its settings: {values} are assumed, as in the release; "
            "tensormd.models.checkpoint.tdn_release.read_tdn_release takes others (16.7 and 30.0 "
            "are the averages of all of PubChemQCR)",
            UserWarning,
            stacklevel=3,
        )
    if forces == "trained, not used":
        warnings.warn(
            f"{name} was trained with a head that gives forces directly: here forces are the "
            "gradient of the energy, and differ from those of the head",
            UserWarning,
            stacklevel=3,
        )


# Finding the tensors


class _Pool(TensorPool):
    """Pool whose tensors are taken with a shape that follows from other tensors."""

    def take(self, key: str, *shape: int | None) -> Tensor:
        """Take a tensor; checks its shape if one is given, in which None is any size."""
        tensor = super().take(key)
        if shape and not (
            tensor.dim() == len(shape)
            and all(b is None or a == b for a, b in zip(tensor.shape, shape, strict=True))
        ):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{self.name}: {key} has the shape {tuple(tensor.shape)}: expected ({expected}) "
                "from the other tensors of the file"
            )
        return tensor

    def size(self, key: str, dimension: int) -> int:
        """Size of one dimension of a tensor, which stays in the pool."""
        tensor = self.take(key)
        self._left[key] = tensor
        if tensor.dim() <= dimension:
            raise ValueError(
                f"{self.name}: {key} has the shape {tuple(tensor.shape)}: expected at least "
                f"{dimension + 1} dimensions"
            )
        return tensor.shape[dimension]


def _find(content: Any) -> tuple[Mapping[str, Any], str] | None:
    """State dict in the contents of a file, and its key."""
    if not isinstance(content, Mapping):
        return None
    for part in ("", *PARTS):
        state = content if not part else content.get(part)
        if isinstance(state, Mapping) and any(
            isinstance(key, str) and _MARKS.match(_plain(key)) for key in state
        ):
            return state, part
    return None


def _plain(key: str) -> str:
    """Name without the prefixes of ``torch.compile`` and of training on several devices."""
    return key.replace("_orig_mod.", "").removeprefix("module.")


def _plain_names(state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name}: {key} is a {type(tensor).__name__}: expected the tensors of a state dict"
            )
        if _plain(key) in tensors:
            raise ValueError(f"{name} has {_plain(key)} twice, once as {key}: expected it once")
        tensors[_plain(key)] = tensor
    return tensors


# From its names to ours


def _representation(pool: _Pool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of `TDN`, and its arguments that follow from the shapes."""
    channels = pool.size("atom_embed.atom_type_lin.weight", 0)
    max_number = pool.size("atom_embed.atom_type_lin.weight", 1)
    radial_functions = pool.size("rbf.mean", 1)
    lmax = pool.size("norm.affine_weight", 0) - 1
    rank = pool.size("edge_embed.tp.cp_tp.cp_a", 1)
    widths = _radial_widths(pool)
    layers = 1 + max(
        (int(m.group(1)) for key in pool.names() if (m := _BLOCK.match(key))),
        default=-1,
    )
    sizes = {
        "channels": channels,
        "layers": layers,
        "lmax": lmax,
        "heads": pool.size("blocks.0.attn.alpha_dot", 0) if layers else 1,
        "radial_functions": radial_functions,
        "radial_widths": widths,
        "max_number": max_number,
        "rank": rank,
    }
    species = pool.take("atom_embed.atom_type_lin.weight", channels, max_number).t()
    state = {"species.weight": species + pool.take("atom_embed.atom_type_lin.bias", channels)}
    for key, shape in (
        ("mean", (1, radial_functions)),
        ("std", (1, radial_functions)),
        ("weight", (1, 1)),
        ("bias", (1, 1)),
    ):
        state[f"radial.{key}"] = pool.take(f"rbf.{key}", *shape)[0]

    factors = _factors(pool, "edge_embed.tp", sizes)
    # As here, l = 1 is x, y, z: e3nn's harmonics of r_j - r_i.
    state |= {f"coupling.{key}": tensor.double() for key, tensor in factors.items()}
    # A linear map of ones is one number per channel.
    ones = _linear(pool, "exp", "edge_embed.exp", channels, channels)
    state["surroundings.sender"] = ones["exp.weight"].sum(1) + ones["exp.bias"]
    mix = _linear(pool, "mix", "edge_embed.proj", channels, channels)
    state["surroundings.mix.weight"] = mix["mix.weight"]
    state["surroundings.bias"] = mix["mix.bias"]
    state |= _radial(pool, "surroundings.radial", "edge_embed.rad", sizes)
    for layer in range(layers):
        ours, theirs = f"layers.{layer}", f"blocks.{layer}"
        for k in (1, 2):
            for key, tensor in _norm(pool, f"{theirs}.norm{k}", channels, lmax).items():
                state[f"{ours}.norm_{k}.{key}"] = tensor
        state |= _attention(pool, f"{ours}.attention", f"{theirs}.attn", sizes, factors)
        state |= _gated(pool, f"{ours}.gated", f"{theirs}.ffn.0", channels)
        state |= _linear(pool, f"{ours}.mix", f"{theirs}.ffn.2", channels, channels)
    return state, sizes


def _linear(
    pool: _Pool, ours: str, theirs: str, outputs: int, inputs: int, *, bias: bool = True
) -> dict[str, Tensor]:
    state = {f"{ours}.weight": pool.take(f"{theirs}.linear.weight", outputs, inputs)}
    if bias:
        state[f"{ours}.bias"] = pool.take(f"{theirs}.bias", 1, outputs)[0]
    return state


def _gated(pool: _Pool, ours: str, theirs: str, channels: int) -> dict[str, Tensor]:
    """State of `GatedLinear`; of the release's 2C outputs the second half are the gates."""
    both = _linear(pool, "both", theirs, 2 * channels, channels)
    value, gate = both["both.weight"].chunk(2)
    value_bias, gate_bias = both["both.bias"].chunk(2)
    return {
        f"{ours}.value": value,
        f"{ours}.bias": value_bias,
        f"{ours}.gate.weight": gate,
        f"{ours}.gate.bias": gate_bias,
    }


def _norm(pool: _Pool, theirs: str, channels: int, lmax: int) -> dict[str, Tensor]:
    return {
        "weight": pool.take(f"{theirs}.affine_weight", lmax + 1, 1, channels)[:, 0],
        "bias": pool.take(f"{theirs}.affine_bias", 1, 1, channels)[0, 0],
    }


def _radial_widths(pool: _Pool) -> list[int]:
    """Widths of the hidden layers, each of which is a linear map, a norm and an activation."""
    hidden = 0
    for match in filter(None, map(_RADIAL.match, pool.names())):
        # The last linear map has no bias.
        place = int(match.group(1))
        hidden = max(hidden, (place + 2) // 3 if match.group(2) == "weight" else place // 3 + 1)
    return [pool.size(f"edge_embed.rad.net.{3 * k}.weight", 0) for k in range(hidden)]


def _radial(pool: _Pool, ours: str, theirs: str, sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    state = {}
    inputs, last = sizes["radial_functions"], 3 * len(sizes["radial_widths"])
    for k, width in enumerate(sizes["radial_widths"]):
        for part, shape in (("weight", (width, inputs)), ("bias", (width,))):
            state[f"{ours}.{3 * k}.{part}"] = pool.take(f"{theirs}.net.{3 * k}.{part}", *shape)
            key = f"{3 * k + 1}.{part}"
            state[f"{ours}.{key}"] = pool.take(f"{theirs}.net.{key}", width)
        inputs = width
    channels = sizes["channels"]
    state[f"{ours}.{last}.weight"] = pool.take(f"{theirs}.net.{last}.weight", channels, inputs)
    state[f"{ours}.{last}.bias"] = pool.take(f"{theirs}.offset", channels)
    return state


def _factors(pool: _Pool, theirs: str, sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    d = (sizes["lmax"] + 1) ** 2
    return {k: pool.take(f"{theirs}.cp_tp.cp_{k}", d, sizes["rank"]) for k in ("a", "b", "c")}


def _attention(
    pool: _Pool,
    ours: str,
    theirs: str,
    sizes: Mapping[str, Any],
    factors: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """State of `GraphAttention`; its products must have the ``factors``, unless these are None."""
    channels, heads = sizes["channels"], sizes["heads"]
    for product in ("tp1", "tp2"):
        for key, tensor in _factors(pool, f"{theirs}.{product}", sizes).items():
            if factors is None:
                continue
            difference = float((tensor - factors[key]).abs().max())
            if difference > 1e-6 * float(factors[key].abs().max()):
                raise ValueError(
                    f"{pool.name}: {theirs}.{product}.cp_tp.cp_{key} differs from "
                    f"edge_embed.tp.cp_tp.cp_{key} by {difference:.2g}: expected one set of "
                    "factors for all tensor products, which the release fits once and shares"
                )
    state = _linear(pool, f"{ours}.sender", f"{theirs}.merge_src", channels, channels)
    state |= _linear(
        pool, f"{ours}.receiver", f"{theirs}.merge_dst", channels, channels, bias=False
    )
    state |= _linear(pool, f"{ours}.score", f"{theirs}.lin_alpha", channels, channels)
    state[f"{ours}.score_dot"] = pool.take(f"{theirs}.alpha_dot", heads, channels // max(1, heads))
    state |= _gated(pool, f"{ours}.value", f"{theirs}.lin_value", channels)
    state |= _linear(pool, f"{ours}.mix", f"{theirs}.proj", channels, channels)
    return state | _radial(pool, f"{ours}.radial", f"{theirs}.rad", sizes)


def _take_force_head(pool: _Pool, sizes: Mapping[str, Any]) -> str:
    """Take the tensors of the force head, and return its status for the metadata."""
    if not any(key.startswith(("force_head.", "force_proj.")) for key in pool.names()):
        return "none"
    heads = pool.size("force_head.alpha_dot", 0)
    state = _attention(pool, "force", "force_head", {**sizes, "heads": heads}, None)
    _linear(pool, "projection", "force_proj", 1, sizes["channels"])
    # Every model of the release has this head. If forces were the gradient of the energy, it was
    # never trained: its biases are still zero.
    biases = ("sender.bias", "score.bias", "value.bias", "value.gate.bias")
    trained = any(bool(state[f"force.{key}"].any()) for key in biases)
    return "trained, not used" if trained else "never trained"


def _elements(given: Iterable[int] | None, size: int, references: bool, name: str) -> list[int]:
    possible = [z for z in (REFERENCES if references else range(1, size)) if z < size]
    if given is None:
        return [z for z in possible if z in REFERENCES]
    chosen = sorted({int(z) for z in given})
    if not chosen or not set(chosen) <= set(possible):
        outside = [z for z in chosen if z not in possible] or "nothing"
        what = "that have a reference energy in the release" if references else "of its embedding"
        raise ValueError(f"{name}: elements has {outside}: expected some of those {what}")
    return chosen


FORMAT = Format(
    "TDN state dict",
    "torch",
    is_tdn_release,
    lambda content, name, request: read_tdn_release(content, name, elements=request.elements),
    UNITS,
)
