"""The released TDN, implemented from its description: its parameter names, its factors, no cutoff
function. Nothing is taken from the package.

Features are (n, d, C); j sends and i receives; harmonics are e3nn's.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import silu


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(1, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.bias is None:
            return y
        scalar = torch.zeros(x.shape[1], 1, dtype=x.dtype)
        scalar[0] = 1
        return y + scalar * self.bias


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        gated = value * torch.sigmoid(gate[:, :1])
        return torch.cat([silu(value[:, :1]), gated[:, 1:]], dim=1)


class ScalarSiLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([silu(x[:, :1]), x[:, 1:]], dim=1)


class Norm(nn.Module):
    def __init__(self, channels: int, lmax: int) -> None:
        super().__init__()
        self.affine_weight = nn.Parameter(torch.ones(lmax + 1, 1, channels))
        self.affine_bias = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for degree, weight in enumerate(self.affine_weight):
            rows = slice(degree**2, (degree + 1) ** 2)
            part = x[:, rows]
            if degree == 0:
                part = part - part.mean(-1, keepdim=True)
            size = torch.sqrt(part.pow(2).mean((1, 2), keepdim=True) + 1e-5)
            out[:, rows] = part / size * weight
        out[:, :1] = out[:, :1] + self.affine_bias
        return out


class Product(nn.Module):
    def __init__(self, factors: list[Tensor]) -> None:
        super().__init__()
        self.cp_tp = nn.Module()
        for letter, factor in zip("abc", factors, strict=True):
            parameter = nn.Parameter(factor.clone(), requires_grad=False)
            self.cp_tp.register_parameter(f"cp_{letter}", parameter)

    def forward(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        a, b, c = self.cp_tp.cp_a, self.cp_tp.cp_b, self.cp_tp.cp_c
        return torch.einsum("eio,ir,ej,jr,cr,eo->eco", x, a, y, b, c, weight)


class RadialNetwork(nn.Module):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.offset = nn.Parameter(torch.zeros(sizes[-1]))

    def forward(self, g: Tensor) -> Tensor:
        return self.net(g) + self.offset


class RadialBasis(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.rand(1, size))
        self.std = nn.Parameter(torch.empty(1, size).uniform_(0.3, 1))
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.bias = nn.Parameter(torch.zeros(1, 1))

    def forward(self, scaled: Tensor) -> Tensor:
        x = self.weight * scaled[:, None] + self.bias
        s = self.std.abs() + 1e-5
        return torch.exp(-(((x - self.mean) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))


class AtomEmbedding(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.atom_type_lin = nn.Linear(80, channels)


class EdgeEmbedding(nn.Module):
    def __init__(self, channels: int, radial: list[int], factors: list[Tensor]) -> None:
        super().__init__()
        self.exp = Linear(channels, channels)
        self.tp = Product(factors)
        self.rad = RadialNetwork(radial)
        self.proj = Linear(channels, channels)

    def forward(self, edges: dict[str, Any], shape: tuple[int, ...], degree: float) -> Tensor:
        sender = torch.zeros(len(edges["i"]), *shape[1:], dtype=torch.float64)
        sender[:, :1] = self.exp(torch.ones(1, 1, shape[2], dtype=torch.float64))
        sent = self.proj(self.tp(sender, edges["y"], self.rad(edges["g"])))
        atoms = [sent[edges["i"] == n].sum(0) for n in range(shape[0])]
        return torch.stack(atoms) / math.sqrt(degree)


class Attention(nn.Module):
    def __init__(
        self, channels: int, heads: int, radial: list[int], factors: list[Tensor]
    ) -> None:
        super().__init__()
        self.merge_src = Linear(channels, channels)
        self.merge_dst = Linear(channels, channels, bias=False)
        self.tp1 = Product(factors)
        self.rad = RadialNetwork(radial)
        self.lin_alpha = Linear(channels, channels)
        self.alpha_dot = nn.Parameter(torch.randn(heads, channels // heads))
        self.lin_value = Linear(channels, 2 * channels)
        self.gate = Gate()
        self.tp2 = Product(factors)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, edges: dict[str, Any]) -> Tensor:
        heads, width = self.alpha_dot.shape
        weight = self.rad(edges["g"])
        message = self.merge_src(x)[edges["j"]] + self.merge_dst(x)[edges["i"]]
        message = self.tp1(message, edges["y"], weight)
        a = self.lin_alpha(message)[:, 0].unflatten(1, (heads, width))
        a = (1 + 0.2) / 2 * a + (1 - 0.2) / 2 * a * (2 * torch.sigmoid(a) - 1)
        scores = (a * self.alpha_dot).sum(-1)
        value = self.tp2(self.gate(self.lin_value(message)), edges["y"], weight)
        value = value.unflatten(2, (heads, width))
        out = torch.zeros(*x.shape[:2], heads, width, dtype=x.dtype)
        for n in range(len(x)):
            mine = edges["i"] == n
            alpha = torch.softmax(scores[mine], 0)
            out[n] = torch.einsum("eh,edhw->dhw", alpha, value[mine])
        return self.proj(out.flatten(2))


class Block(nn.Module):
    def __init__(self, channels: int, lmax: int, attention: Attention) -> None:
        super().__init__()
        self.norm1 = Norm(channels, lmax)
        self.attn = attention
        self.norm2 = Norm(channels, lmax)
        self.ffn = nn.Sequential(
            Linear(channels, 2 * channels), Gate(), Linear(channels, channels)
        )

    def forward(self, x: Tensor, edges: dict[str, Any]) -> Tensor:
        x = x + self.attn(self.norm1(x), edges)
        return x + self.ffn(self.norm2(x))


class ReleasedTDN(nn.Module):
    """Random weights, in float64; ``factors`` are random too, and couple nothing in particular."""

    def __init__(
        self,
        *,
        lmax: int = 1,
        channels: int = 16,
        blocks: int = 2,
        heads: int = 4,
        basis: int = 8,
        widths: tuple[int, ...] = (16, 16),
        rank: int = 7,
        cutoff: float = 4.5,
        average_degree: float = 18.6,
        average_atoms: float = 36.6,
        force_head: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.lmax, self.cutoff = lmax, cutoff
        self.average_degree, self.average_atoms = average_degree, average_atoms
        d = (lmax + 1) ** 2
        factors = [torch.randn(d, rank) / (d * rank) ** 0.2 for _ in range(3)]
        radial = [basis, *widths, channels]

        def attention() -> Attention:
            return Attention(channels, heads, radial, factors)

        self.atom_embed = AtomEmbedding(channels)
        self.edge_embed = EdgeEmbedding(channels, radial, factors)
        self.rbf = RadialBasis(basis)
        self.blocks = nn.ModuleList([Block(channels, lmax, attention()) for _ in range(blocks)])
        self.norm = Norm(channels, lmax)
        self.head = nn.Sequential(Linear(channels, channels), ScalarSiLU(), Linear(channels, 1))
        if force_head:
            self.force_head = attention()
            self.force_proj = Linear(channels, 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "cp_" in name or name.startswith("rbf.mean") or name.startswith("rbf.std"):
                    continue
                if "linear" in name or name.startswith("atom_embed"):
                    parameter *= 1.5
                parameter += 0.2 * torch.randn_like(parameter)
        self.double()

    def forward(self, numbers: Tensor, positions: Tensor) -> Tensor:
        """What the released network gives for one molecule, ()."""
        vectors = positions[None, :] - positions[:, None]  # [i, j]
        near = (vectors.detach().norm(dim=2) < self.cutoff).fill_diagonal_(False)
        i, j = torch.nonzero(near).t()
        r = positions[j] - positions[i]
        y = o3.spherical_harmonics(
            list(range(self.lmax + 1)), r, normalize=True, normalization="component"
        )
        edges = {"i": i, "j": j, "y": y, "g": self.rbf(r.norm(dim=1) / self.cutoff)}
        kinds = torch.nn.functional.one_hot(numbers, 80).double()
        species = self.atom_embed.atom_type_lin(kinds)
        shape = (len(numbers), (self.lmax + 1) ** 2, species.shape[1])
        x = torch.zeros(shape, dtype=torch.float64)
        x[:, 0] = species
        x = x + self.edge_embed(edges, shape, self.average_degree)
        for block in self.blocks:
            x = block(x, edges)
        return self.head(self.norm(x))[:, 0, 0].sum() / math.sqrt(self.average_atoms)

    def state(self, spelling: str = "plain") -> OrderedDict[str, Tensor]:
        """The state dict: ``plain``, with ``compiled`` blocks, ``whole``, or ``parallel``."""

        def spelt(key: str) -> str:
            if spelling in ("compiled", "parallel") and key.startswith("blocks."):
                blocks, n, rest = key.split(".", 2)
                key = f"{blocks}.{n}._orig_mod.{rest}"
            prefix = {"whole": "_orig_mod.", "parallel": "module."}.get(spelling, "")
            return prefix + key

        return OrderedDict(
            (spelt(key), tensor.detach().clone()) for key, tensor in self.state_dict().items()
        )
