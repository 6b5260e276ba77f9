"""The networks on which the contract of potentials is tested: a base, and one change each.

A new architecture needs a row in `MAKERS` and one in `VARIANTS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from support.helpers import (
    CUTOFF,
    REFERENCES,
    crystal,
    ethanol,
    make_potential,
    make_tdn,
    slab,
    tiny,
)
from torch import nn

from tensormd.models import Potential
from tensormd.models.inference.kernels import fuse
from tensormd.models.networks.tdn import PUBLISHED

BOHR_HARTREE = {
    "length_unit": "bohr",
    "energy_unit": "hartree",
    "cutoff": CUTOFF / 0.529,
    "scale": 0.1,
}
TENSORNETS: dict[str, dict[str, Any]] = {
    "base": {},
    "0-layers": {"layers": 0},
    "1-layer": {"layers": 1},
    "3-layers": {"layers": 3},
    "gauss": {"radial": "gauss"},
    "bessel": {"radial": "bessel"},
    "lower-cutoff": {"cutoff_lower": 0.5},
    "SO(3)": {"group": "SO(3)"},
    "SO(3)-bessel-gated": {"group": "SO(3)", "radial": "bessel", "head": "gated"},
    "no-self-interaction": {"self_interaction": False},
    "gated-head": {"head": "gated"},
    "linear-head": {"head": "linear"},
    "tanh": {"activation": "tanh"},
    "zbl": {"zbl": 3.0},
    "long-zbl": {"zbl": 5.5},
    "references": {"references": REFERENCES},
    "no-A": {"irreps": "IS"},
    "bohr-hartree": BOHR_HARTREE,
}
TDNS: dict[str, dict[str, Any]] = {
    "base": {},
    "L2": {"lmax": 2, "scale": 1.4},
    "L3-1-layer": {"lmax": 3, "layers": 1, "scale": 1.5},
    "0-layers": {"layers": 0},
    "published": {"lmax": 2, "scale": 1.4, **PUBLISHED},
    "L2-SO(3)": {"lmax": 2, "scale": 1.3, "group": "SO(3)"},
    "cp-factored": {"product": "cp", "evaluation": "factored"},
    "L2-cp": {"lmax": 2, "scale": 1.4, "product": "cp"},
    "L2-by-path": {"lmax": 2, "scale": 1.4, "evaluation": "factored"},
    "l02": {"degrees": (0, 2), "scale": 1.4},
    "zbl-references": {"zbl": 3.0, "references": REFERENCES},
    "bohr-hartree": BOHR_HARTREE,
}
MAKERS: dict[str, Callable[..., Potential]] = {"tensornet": make_potential, "tdn": make_tdn}
VARIANTS = {"tensornet": TENSORNETS, "tdn": TDNS}
BASES = [f"{architecture} base" for architecture in VARIANTS]
NETWORKS = [f"{kind} {variant}" for kind, variants in VARIANTS.items() for variant in variants]
ENGINES = ("eager", "script", "fused")
SYSTEMS = {
    "molecule": ethanol(),
    "ion": ethanol(charge=-1.0),
    "crystal": crystal(),
    "slab": slab(),
    "1-atom-cell": tiny(1),
    "2-atom-cell": tiny(2),
}


@functools.cache
def network(name: str) -> Potential:
    """One of `NETWORKS`, in float64, for evaluation."""
    architecture, variant = name.split(" ")
    return MAKERS[architecture](**VARIANTS[architecture][variant])


@functools.cache
def model(name: str, engine: str = "eager") -> nn.Module:
    """The same as TorchScript or as fused kernels."""
    if engine == "script":
        return torch.jit.script(network(name))  # type: ignore[no-any-return]
    return fuse(network(name)) if engine == "fused" else network(name)
