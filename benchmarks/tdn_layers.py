"""Time of a layer of TDN within a whole network, with its own products and those of e3nn.

    python benchmarks/tdn_layers.py [--channels 64] [--json FILE]

Energies and forces of C60 by networks of one and three layers, whose difference is the time of two
layers. All have the same channels, degrees, layers and attention; they differ in the tensor
products of the messages:

- fused: TDN in the kernels that run it (CPU);
- TDN: the same in plain torch: one weight per degree and channel, contracted first;
- shared: TDN with one weight per channel, as published;
- e3nn: o3.TensorProduct, mode uvu, one weight per path and channel;
- cuequivariance: ChannelWiseTensorProduct with its default method, if installed.

The methods take turns; times are medians, in one dtype, float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ase.build import molecule
from torch import Tensor, nn

from tensormd.models import TDN, Graph, Potential, ScalarReadout
from tensormd.models.inference.kernels import fuse
from tensormd.models.maths.harmonics import paths
from tensormd.models.neighbors import NeighborList
from tensormd.models.networks.tdn import PUBLISHED
from tensormd.models.networks.tdn_layers import RadialNetwork
from tensormd.models.networks.tdn_product import Coupling

GROUP = "O(3)"
LAYERS = (1, 3)
RADIAL = {"radial_functions": 32, "radial_widths": (64, 64)}


class PathWeights(nn.Module):
    """A product with a weight for every path, in the place of TDN's own."""

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__()
        self.paths = paths(lmax, GROUP)
        self.channels = channels
        self.sizes = [2 * degree + 1 for degree in range(lmax + 1)]

    def product(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Features (E, d, C), harmonics (E, d) and weights (E, paths C) -> (E, d, C)."""
        raise NotImplementedError

    def project(self, x: Tensor, coupling: Coupling) -> Tensor:
        """Nothing is computed per atom."""
        return x

    def message(self, sent: Tensor, weight: Tensor, coupling: Coupling) -> Tensor:
        """Products of the edges."""
        return self.product(sent, coupling.edge, weight.flatten(1))

    def aggregate(
        self, x: Tensor, weight: Tensor, coupling: Coupling, receiver: Tensor, atoms: int
    ) -> Tensor:
        """Sums of the products at the receivers."""
        terms = self.message(x, weight, coupling)
        return terms.new_zeros(atoms, *terms.shape[1:]).index_add(0, receiver, terms)


class E3NN(PathWeights):
    """Of e3nn, whose channels come before components."""

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__(lmax, channels)
        from e3nn import o3

        features = o3.Irreps([(channels, (n, (-1) ** n)) for n in range(lmax + 1)])
        self.inner = o3.TensorProduct(
            features,
            o3.Irreps.spherical_harmonics(lmax),
            features,
            [(i, j, k, "uvu", True) for i, j, k in self.paths],
            internal_weights=False,
            shared_weights=False,
        )

    def product(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Convert to the layout of e3nn and back."""
        flat = torch.cat([part.mT.flatten(1) for part in x.split(self.sizes, 1)], 1)
        parts = self.inner(flat, y, w).split([self.channels * size for size in self.sizes], 1)
        return torch.cat([p.unflatten(1, (self.channels, -1)).mT for p in parts], 1)


class Cuequivariance(PathWeights):
    """Of cuequivariance; paths that end in the same degree are summed here."""

    def __init__(self, lmax: int, channels: int) -> None:
        super().__init__(lmax, channels)
        import cuequivariance as cue
        import cuequivariance_torch as cuet

        parity = "eo"
        text = "+".join(f"{channels}x{n}{parity[n % 2]}" for n in range(lmax + 1))
        edge = "+".join(f"1x{n}{parity[n % 2]}" for n in range(lmax + 1))
        self.inner = cuet.ChannelWiseTensorProduct(
            cue.Irreps("O3", text),
            cue.Irreps("O3", edge),
            [irrep for _, irrep in cue.Irreps("O3", edge)],
            layout=cue.ir_mul,
            shared_weights=False,
        )
        self.ends = [(irrep.l, multiple) for multiple, irrep in self.inner.irreps_out]

    def product(self, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Sum the paths of each degree."""
        out = self.inner(x.flatten(1), y, w)
        sums: list[Any] = [0] * len(self.sizes)
        parts = out.split([multiple * (2 * n + 1) for n, multiple in self.ends], 1)
        for (n, multiple), part in zip(self.ends, parts, strict=True):
            terms = part.view(len(x), 2 * n + 1, multiple // self.channels, self.channels)
            sums[n] = sums[n] + terms.sum(2)
        return torch.cat(sums, 1)


def network(kind: str, lmax: int, channels: int, layers: int) -> nn.Module:
    """A potential with random weights."""
    torch.manual_seed(0)
    own = {"shared": PUBLISHED | {"self_product": True, "sender_species": True}}.get(kind, {})
    by_path = kind in PEERS
    options: dict[str, Any] = {"evaluation": "factored" if by_path else "auto", **RADIAL, **own}
    tdn = TDN(channels=channels, layers=layers, lmax=lmax, max_number=10, **options)
    if by_path:
        for layer in tdn.layers:
            product = PEERS[kind](lmax, channels)
            weights = [len(product.paths), channels]
            layer.attention.product = product
            layer.attention.radial = RadialNetwork(
                RADIAL["radial_functions"], list(RADIAL["radial_widths"]), weights[0] * weights[1]
            )
    potential = Potential(tdn, ScalarReadout(channels), elements=[6]).eval()
    return fuse(potential) if kind == "fused" else potential


PEERS: dict[str, Callable[[int, int], PathWeights]] = {
    "e3nn": E3NN,
    "cuequivariance": Cuequivariance,
}


def graph() -> Graph:
    """Rattled C60."""
    atoms = molecule("C60")
    atoms.rattle(0.05, seed=0)
    return NeighborList(4.5).graph(atoms.numbers, atoms.positions)


def seconds(model: nn.Module, inputs: Graph) -> float:
    """Time of energies and forces."""
    start = time.perf_counter()
    model(inputs)
    return time.perf_counter() - start


def measure(kinds: list[str], lmax: int, channels: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a layer and of the network of three layers, and its number of weights."""
    inputs, times = graph(), {}
    models = {(kind, n): network(kind, lmax, channels, n) for kind in kinds for n in LAYERS}
    for model in models.values():
        for _ in range(2):
            seconds(model, inputs)
    for _ in range(rounds):
        for key, model in models.items():
            times.setdefault(key, []).append(1000 * seconds(model, inputs))
    rows = {}
    for kind in kinds:
        one, three = (median(times[kind, n]) for n in LAYERS)
        source = network("TDN" if kind == "fused" else kind, lmax, channels, LAYERS[-1])
        rows[kind] = {
            "layer_ms": (three - one) / (LAYERS[-1] - LAYERS[0]),
            "network_ms": three,
            "weights": sum(p.numel() for p in source.parameters()),
        }
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kinds = ["fused", "TDN", "shared", "e3nn"]
    try:
        Cuequivariance(1, 16)
        kinds.append("cuequivariance")
    except ImportError:
        print("cuequivariance is not installed: it is left out")
    table = {}
    print(f"ms a layer (of {arguments.channels} channels), {arguments.threads} threads:")
    print("  L" + "".join(f"{kind:>16}" for kind in kinds))
    for lmax in arguments.degrees:
        rows = table[lmax] = measure(kinds, lmax, arguments.channels, arguments.rounds)
        print(f"{lmax:3}" + "".join(f"{rows[kind]['layer_ms']:16.2f}" for kind in kinds))
    if arguments.json:
        content = {"channels": arguments.channels, "threads": arguments.threads, "table": table}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
