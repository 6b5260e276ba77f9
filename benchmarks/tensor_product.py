"""Time and memory of one tensor product, forward and backward, by several methods.

    python benchmarks/tensor_product.py [--threads 2] [--device cpu] [--json FILE]

- contracted: the method of TDN. The Clebsch-Gordan tensor is contracted with the harmonics of each
  edge (here for each product, in the network once for all), then one small matrix product.
- factored: the three factors of the paper's rank 7 L^2, edge by edge, as published.
- blocked: the same, some hundreds of edges at a time, like contracted.
- e3nn: its TensorProduct, mode uvu, with one weight per path and channel.
- cuequivariance: ChannelWiseTensorProduct with its default method, if installed; its output keeps
  paths that end in the same degree separate.

All have the same paths: those of SO(3), as published. Gradients are taken with respect to the
features, the harmonics and the weights. Memory is the peak growth of the process (Linux, CPU), or
CUDA's peak. A case is skipped if, judged by the next smaller one, it would take longer than
``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tensormd.models.maths.cp import factors_for, paper_rank
from tensormd.models.maths.harmonics import paths
from tensormd.models.networks.tdn_product import ContractedProduct, ExactCoupling, chunk_size

GROUP = "SO(3)"
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case:
    """A product, and its number of weights per channel."""

    def __init__(self, product: Product, weights: int, flat: bool = False) -> None:
        self.product = product
        self.weights = weights
        self.flat = flat  # features are (E, d * C) instead of (E, d, C)


def contracted(lmax: int, channels: int, device: str) -> Case:
    """The modules of TDN."""
    coupling = ExactCoupling(range(lmax + 1), GROUP, contracted=True).to(device)
    product = ContractedProduct()
    return Case(lambda x, y, w: product.message(x, w.unsqueeze(1), coupling(y)), 1)


def factored(lmax: int, channels: int, device: str) -> Case:
    """C (A^T x * B^T y), times the weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        factors = factors_for(lmax, GROUP, paper_rank(lmax))
    a, b, c = (factor.float().to(device) for factor in factors)

    def product(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return (c @ ((a.t() @ x) * (y @ b).unsqueeze(2))) * w.unsqueeze(1)

    return Case(product, 1)


def blocked(lmax: int, channels: int, device: str) -> Case:
    """`factored` in blocks of edges."""
    whole = factored(lmax, channels, device).product

    def product(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        size = chunk_size(x, channels)
        blocks = zip(x.split(size), y.split(size), w.split(size), strict=True)
        return torch.cat([whole(*block) for block in blocks])

    return Case(product, 1)


def e3nn(lmax: int, channels: int, device: str) -> Case:
    """e3nn's TensorProduct, with one weight per path and channel."""
    from e3nn import o3

    irreps = o3.Irreps([(channels, (degree, 1)) for degree in range(lmax + 1)])
    edge = o3.Irreps([(1, (degree, 1)) for degree in range(lmax + 1)])
    all_paths = paths(lmax, GROUP)
    product = o3.TensorProduct(
        irreps,
        edge,
        irreps,
        [(i, j, k, "uvu", True) for i, j, k in all_paths],
        internal_weights=False,
        shared_weights=False,
    )
    return Case(product.to(device), len(all_paths), flat=True)


def cuequivariance(lmax: int, channels: int, device: str) -> Case:
    """The product of cuequivariance, in its own layout."""
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    text = "+".join(f"{channels}x{degree}" for degree in range(lmax + 1))
    edge = "+".join(f"1x{degree}" for degree in range(lmax + 1))
    product = cuet.ChannelWiseTensorProduct(
        cue.Irreps("SO3", text),
        cue.Irreps("SO3", edge),
        [irrep for _, irrep in cue.Irreps("SO3", edge)],
        layout=cue.ir_mul,
        shared_weights=False,
        device=device,
    )
    return Case(product, product.weight_numel // channels, flat=True)


METHODS: dict[str, Callable[[int, int, str], Case]] = {
    "contracted": contracted,
    "factored": factored,
    "blocked": blocked,
    "e3nn": e3nn,
    "cuequivariance": cuequivariance,
}


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 0


def _memory_of(run: Callable[[], None], device: str) -> float | None:
    """Peak growth in MiB."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _resident("VmRSS")
        run()
        return (_resident("VmHWM") - before) / 2**20
    except OSError:
        return None


class Timer:
    """One case with its inputs, timed repeatedly."""

    def __init__(self, case: Case, lmax: int, channels: int, edges: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        d = (lmax + 1) ** 2
        shapes = [
            (edges, d * channels) if case.flat else (edges, d, channels),
            (edges, d),
            (edges, case.weights * channels),
        ]
        self.inputs = [
            torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes
        ]
        self.case, self.device = case, device
        self.ones: Tensor | None = None
        self.seconds: list[float] = []
        self.run()  # compiles and allocates

    def run(self) -> None:
        """Run forward and backward once."""
        for tensor in self.inputs:
            tensor.grad = None
        out = self.case.product(*self.inputs)
        if self.ones is None:
            self.ones = torch.ones_like(out)
        out.backward(self.ones)
        if self.device != "cpu":
            torch.cuda.synchronize()

    def time(self, clock: Callable[[], float]) -> None:
        """Time one more run."""
        began = clock()
        self.run()
        self.seconds.append(clock() - began)


def measure(
    cases: dict[str, Case],
    sizes: tuple[int, int, int],
    device: str,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, float | None]]:
    """Shortest time, ms, with cases alternating, and peak memory, MiB, of each case."""
    timers = {name: Timer(case, *sizes, device) for name, case in cases.items()}
    for _ in range(repeats):
        for timer in timers.values():
            if sum(timer.seconds) < 10 or len(timer.seconds) < 2:
                timer.time(clock)
    return {
        name: {"ms": 1e3 * min(timer.seconds), "mib": _memory_of(timer.run, device)}
        for name, timer in timers.items()
    }


def main() -> None:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--edges", type=int, nargs="+", default=[4000, 10000, 40000])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: CPU time of one thread, for a machine that is not idle",
    )
    parser.add_argument("--limit", type=float, default=30.0, help="largest time of one run, s")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.clock == "cpu":
        options.threads = 1
    clock = time.thread_time if options.clock == "cpu" else time.perf_counter
    torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    print(f"torch {torch.__version__}, {where}, {options.threads} threads, float32")
    print("ms (MiB), and time relative to contracted")
    results: list[dict[str, Any]] = []
    for lmax in options.lmax:
        for channels in options.channels:
            last: dict[str, float] = {}  # ms per edge
            for edges in sorted(options.edges):
                cases = {}
                for name in options.methods:
                    if last.get(name, 0.0) * edges <= 1e3 * options.limit:
                        with contextlib.suppress(ImportError):
                            cases[name] = METHODS[name](lmax, channels, options.device)
                sizes = (lmax, channels, edges)
                row = measure(cases, sizes, options.device, options.repeats, clock)
                for name, found in row.items():
                    last[name] = (found["ms"] or 0.0) / edges
                    results.append(
                        {"method": name, "lmax": lmax, "channels": channels, "edges": edges}
                        | {"threads": options.threads, "device": options.device}
                        | {"clock": options.clock}
                        | found
                    )
                print(f"L {lmax}  {channels:3} channels  {edges:6} edges", end="")
                for name, found in row.items():
                    ratio = (found["ms"] or 0.0) / (row.get("contracted", found)["ms"] or 1.0)
                    memory = "" if found["mib"] is None else f" ({found['mib']:.0f})"
                    print(f"   {name} {found['ms']:.1f}{memory} x{ratio:.1f}", end="")
                print(flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
