"""Compiles every Triton kernel for a GPU, which need not be present, and counts spilled registers.

`test_kernels_triton.py` runs this file in a separate process: ``python triton_compile.py 90 128``
(compute capability, channels).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from tensormd.models.inference.kernels.cuda import algebra, neighbors
from tensormd.models.inference.kernels.cuda.operators import EDGE_BLOCK, ELEMENT_BLOCK

TYPES = {
    **dict.fromkeys(["positions", "cell", "shift", "force", "virial", "values", "sums"], "*fp64"),
    **dict.fromkeys(["system", "numbers"], "*i64"),
    **dict.fromkeys(["offsets", "senders", "knot", "reverse"], "*i32"),
    **dict.fromkeys(["stride", "edges", "size", "atoms"], "i32"),
}


def compile_kernel(module: ModuleType, kernel: Any, channels: int, flag: bool, target: int) -> str:
    """The kernel's PTX; everything that has no type of its own is a pointer to float32."""
    constants = {
        "CHANNELS": channels,
        "LENGTH": 10.0,
        "LOWER": 0.0,
        "CUTOFF": 4.5,
        "INTERVALS": 2048,
        "SCALE": 2.0,
        "PARITY": flag,
        "BACKWARD": flag,
        "WIDTH": 10,
        "BLOCK": ELEMENT_BLOCK if module is algebra else 128,
    }
    if kernel.__name__ in ("geometry_kernel", "forces_kernel"):
        constants["BLOCK"] = EDGE_BLOCK
    source = ASTSource(
        fn=kernel,
        signature={
            name: "constexpr" if name.isupper() else TYPES.get(name, "*fp32")
            for name in kernel.arg_names
        },
        constexprs={
            (k,): constants[name] for k, name in enumerate(kernel.arg_names) if name.isupper()
        },
    )
    warps = 4 if module is algebra else 1
    compiled = triton.compile(
        source, target=GPUTarget("cuda", target, 32), options={"num_warps": warps}
    )
    return compiled.asm["ptx"]


def spilled_bytes(ptx: str) -> int:
    """Of registers that did not suffice, by the assembler's own count."""
    architecture = re.search(r"\.target (sm_\w+)", ptx)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx)
        command = [get_ptxas().path, "-v", f"--gpu-name={architecture[1]}", str(file)]
        command += ["-o", str(Path(folder, "kernel.cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(count) for count in re.findall(r"(\d+) bytes spill", report))


def main() -> None:
    target, channels = int(sys.argv[1]), int(sys.argv[2])
    for module in (neighbors, algebra):
        for name, kernel in vars(module).items():
            if not name.endswith("_kernel"):
                continue
            flags = [True, False] if {"PARITY", "BACKWARD"} & {*kernel.arg_names} else [True]
            for flag in flags:
                ptx = compile_kernel(module, kernel, channels, flag, target)
                print(f"{name} {flag} {spilled_bytes(ptx)}")


if __name__ == "__main__":
    main()
