"""A loss and its gradient as one compiled graph for batches of all sizes.

torch.compile does not support functions that differentiate twice, but its parts do: `make_fx`
records every operator of the forward pass and of the first and second derivatives with symbolic
sizes, and Inductor compiles the recorded graph. Whenever Python or torch branches on a size during
tracing, the ShapeEnv records a guard; all guards are checked before a batch is run.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..potential import Potential

log = logging.getLogger("tensormd")

Function = Callable[[Potential, Sequence[Tensor]], tuple[Tensor, Tensor]]
"""From a potential and tensors to a scalar to differentiate and an additional result."""


class Axis(NamedTuple):
    """Axis of an input whose size differs between batches."""

    size: str
    """Field of `Sizes`."""
    place: int
    """Index of the axis."""


class Unfit(Exception):  # noqa: N818
    """A batch does not fit the compiled graph."""


class CompilationError(RuntimeError):
    """Tracing or compiling has failed."""


def compiler_for(device: torch.device) -> str | None:
    """Reason why steps cannot be compiled on this machine, or None if they can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "Triton is missing"
    _name_the_user()
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as problem:
        return f"there is no C++ compiler ({problem})"
    except Exception as problem:  # of any kind, from deep inside torch
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        return f"torch cannot look for a C++ compiler ({reason})"
    return None if shutil.which("ld") else "there is no linker"


@contextlib.contextmanager
def _without_cuda_notice() -> Iterator[None]:
    """Drop a line that torch logs when it compiles for a CPU beside a CUDA toolkit."""

    def wanted(record: logging.LogRecord) -> bool:
        return "No CUDA runtime is found" not in record.getMessage()

    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _name_the_user() -> None:
    """Give this process a user name if its user id has none, as in many containers.

    Inductor names a folder after the user when it is imported, and fails otherwise.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


class CompiledFunction:
    """A function of a potential's parameters and a batch, with its gradient, compiled.

    Parameters
    ----------
    potential
        Potential whose trainable parameters the gradient refers to; its structure and dtype must
        not change.
    function
        Function to compile, see `Function`. It may branch on sizes, but not on values.
    """

    def __init__(self, potential: Potential, function: Function) -> None:
        self.potential = potential
        self.function = function
        self._graph: _Graph | None = None

    def __call__(
        self, inputs: Sequence[Tensor], axes: Sequence[Axis | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The additional result, and the gradient with respect to each trainable parameter.

        Parameters
        ----------
        inputs
            Inputs of the function, on the device of the potential.
        axes
            Variable axis of each input; None if its shape is fixed.

        Raises
        ------
        Unfit
            If the sizes do not fit the graph.
        CompilationError
            If torch cannot trace or compile the function.
        """
        sizes = Sizes.of(inputs, axes)
        if min(sizes) < 1:
            raise Unfit(f"{sizes}: expected 1 or more of each")
        if self._graph is None:
            # torch takes a size of 1 for a constant, and Inductor (2.9) then computes sums over
            # systems wrongly: in
            #     n = zeros(1).index_add(0, i, ones_like(x))
            #     zeros(1).index_add(0, i, x / n.index_select(0, i))
            # it fuses both sums into one loop, which divides by n before n is complete. A graph
            # for symbolic sizes of 2 or more has two loops, and holds for 1 as well.
            traced = Sizes(*(max(size, 2) for size in sizes))
            try:
                self._graph = _trace(self.potential, self.function, inputs, axes, traced)
            except Exception as problem:  # of any kind, from deep inside torch
                reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
                raise CompilationError(f"the step could not be compiled: {reason}") from problem
        return self._graph.run(self._weights(), inputs, sizes)

    def _weights(self) -> list[Tensor]:
        return [x.detach() for _, x in _tensors_of(self.potential)]


class Sizes(NamedTuple):
    """Sizes that differ between batches."""

    atoms: int
    edges: int
    pairs: int
    systems: int

    @classmethod
    def of(cls, inputs: Sequence[Tensor], axes: Sequence[Axis | None]) -> Sizes:
        """Sizes of the inputs of a `CompiledFunction`.

        Raises
        ------
        Unfit
            If two inputs disagree.
        """
        found: dict[str, int] = {}
        for x, axis in zip(inputs, axes, strict=True):
            if (
                axis is not None
                and found.setdefault(axis.size, x.shape[axis.place]) != (x.shape[axis.place])
            ):
                raise Unfit(
                    f"it has both {found[axis.size]} and {x.shape[axis.place]} {axis.size}"
                )
        return cls(**found)


class _Graph(NamedTuple):
    """A compiled graph and its guards on sizes."""

    call: Callable[[list[Tensor]], Sequence[Tensor]]
    unused: list[bool]
    """Whether the scalar is independent of each trainable parameter."""
    symbols: list[Any]
    guards: list[Any]
    """Conditions on the symbols."""

    def run(
        self, weights: list[Tensor], inputs: Sequence[Tensor], sizes: Sizes
    ) -> tuple[Tensor, list[Tensor | None]]:
        values = dict(zip(self.symbols, sizes, strict=False))
        for guard in self.guards:
            if guard.xreplace(values) != True:  # noqa: E712 (sympy's)
                raise Unfit(f"{sizes} do not fulfil {guard}")
        with torch.no_grad():
            beside, *used = self.call([*weights, *inputs])
        rest = iter(used)
        return beside, [None if unused else next(rest) for unused in self.unused]


def _tensors_of(potential: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from potential.named_parameters()
    yield from potential.named_buffers()


@contextlib.contextmanager
def _whole(potential: nn.Module) -> Iterator[None]:
    """Switch off loops over chunks: a trace would fix their number."""
    chunked = [m for m in potential.modules() if getattr(m, "chunked", False)]
    for module in chunked:
        module.chunked = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in chunked:
            module.chunked = True  # type: ignore[assignment]


class _PlainLayerNorm(TorchFunctionMode):
    """Layer norms from simple operators: the second derivative of torch's operator fixes sizes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = list(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    scaled = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    if weight is not None:
        scaled = scaled * weight
    return scaled if bias is None else scaled + bias


class _Caller(nn.Module):
    """Calls a function of a potential whose tensors `functional_call` has replaced."""

    def __init__(self, potential: Potential, function: Function) -> None:
        super().__init__()
        self.potential = potential
        self._function = function

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return self._function(self.potential, inputs)


@_without_cuda_notice()
def _trace(
    potential: Potential,
    function: Function,
    inputs: Sequence[Tensor],
    axes: Sequence[Axis | None],
    sizes: Sizes,
) -> _Graph:
    _name_the_user()
    import torch._inductor.config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    began = time.perf_counter()
    shape_env = ShapeEnv(duck_shape=False)
    fake_mode = FakeTensorMode(shape_env=shape_env, allow_non_fake_inputs=True)
    fakes, symbols = _fakes(fake_mode, inputs, axes, sizes)
    tensors = list(_tensors_of(potential))
    names = [f"potential.{name}" for name, _ in tensors]
    trained = [k for k, (_, x) in enumerate(tensors) if x.requires_grad]
    caller = _Caller(potential, function)
    unused: list[bool] = []

    def flat(*everything: Tensor) -> list[Tensor]:
        weights = [x.detach() for x in everything[: len(names)]]
        for k in trained:
            weights[k].requires_grad_(True)
        replaced = dict(zip(names, weights, strict=True))
        total, beside = torch.func.functional_call(caller, replaced, (everything[len(names) :],))
        found = torch.autograd.grad([total], [weights[k] for k in trained], allow_unused=True)
        unused[:] = [x is None for x in found]
        return [beside.detach(), *(x for x in found if x is not None)]

    fake_weights = [fake_mode.from_tensor(x.detach(), static_shapes=True) for _, x in tensors]
    arguments = [*fake_weights, *fakes]
    with _whole(potential), _PlainLayerNorm(), torch.set_grad_enabled(True):
        graph = make_fx(flat, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
    # Dropout draws from torch's own generator, as in the plain step, because its state is saved.
    # Loops with several threads would sum over edges in varying order and break exact resume.
    # Matrix products, which take most of the time, still use all threads.
    with (
        torch._inductor.config.patch({"fallback_random": True, "cpp.threads": 1}),
        tracing(TracingContext(fake_mode)),
        torch.no_grad(),
    ):
        compiled: Any = compile_fx(graph, arguments)
    guards = [guard.expr for guard in shape_env.guards]
    log.info(
        "the training step was compiled in %.0f s: %d operators, %d conditions on sizes",
        time.perf_counter() - began, len(graph.graph.nodes), len(guards),
    )  # fmt: skip
    return _Graph(lambda given: compiled(*given), unused, symbols, guards)


def _fakes(
    fake_mode: Any, inputs: Sequence[Tensor], axes: Sequence[Axis | None], sizes: Sizes
) -> tuple[list[Tensor], list[Any]]:
    """Fake inputs whose sizes are symbols, and the symbols in the order of `Sizes`."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    env = fake_mode.shape_env
    symbols, sized = [], {}
    for name, size in sizes._asdict().items():
        source = ConstantSource(name)
        symbol = env.create_symbol(size, source, DimDynamic.DYNAMIC)
        symbols.append(symbol)
        sized[name] = env.create_symintnode(symbol, hint=size, source=source)
    fakes = []
    with fake_mode:
        for x, axis in zip(inputs, axes, strict=True):
            shape: list[Any] = list(x.shape)
            if axis is not None:
                shape[axis.place] = sized[axis.size]
            fakes.append(torch.empty(shape, dtype=x.dtype, device=x.device))
    return fakes, symbols
