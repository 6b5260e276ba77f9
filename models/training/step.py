"""Training step, fused, compiled or plain: losses, and their gradient for the parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.batch import Batch
from ..evaluation.predictions import check_heads, predict
from ..graph import Graph, Pairs, pair_edges, within
from ..inference.forks import use_one_thread_in_forks
from ..potential import Potential
from ..quantities import QUANTITIES
from .compiled import Axis, CompilationError, CompiledFunction, Unfit
from .kernels import fused_energies
from .losses import loss_terms
from .settings import TrainingSettings

log = logging.getLogger("tensormd")

_GRAPH_AXES = [
    *(Axis("atoms", 0), Axis("atoms", 0), Axis("systems", 0)),  # numbers, positions, cell
    *(Axis("edges", 1), Axis("edges", 0)),  # edge_index, edge_shift
    *(Axis("atoms", 0), Axis("systems", 0)),  # system, charge
    *(Axis("edges", 0), Axis("pairs", 0), Axis("edges", 0)),  # vectors, pairs
    None,  # factors of the losses
]


class StepLosses(NamedTuple):
    """Losses of one batch."""

    total: float
    """Weighted sum of the losses."""
    terms: dict[str, float]
    """Losses by quantity, without the weights."""


class TrainingStep:
    """Losses of a batch, and the gradient of their weighted sum in ``.grad`` of the parameters.

    A fused step evaluates a TensorNet's energies, their derivatives and the gradients of both by
    kernels (see `kernels`); losses and all else are plain operators.

    A compiled step is one graph of tensor operators: forward pass, derivatives with respect to the
    edge vectors, loss, and derivatives with respect to the parameters. It is traced with symbolic
    sizes and compiled once by Inductor (C++ on a CPU, Triton on CUDA) for batches of all sizes.
    The conditions on sizes found in tracing are checked for each batch; a batch that does not fit
    takes the plain step and is counted, as do batches without pairs. On a CPU, matrix products use
    all threads and other loops one, so that results are bitwise reproducible; several processes
    (see `distributed`) make better use of more cores.

    Gradients are contiguous, because fused optimizers misread others. Parameters on which the
    losses do not depend keep the gradient None.

    Parameters
    ----------
    potential
        Potential whose parameters with ``requires_grad`` are trained. Each step puts it into
        training mode.
    settings
        Settings that define the losses and their weights.
    backend
        ``fused``, ``compiled`` or ``plain``. A graph is compiled at the first step. If this fails
        and the settings do not ask for it, a warning is logged and later steps are plain;
        otherwise the error is raised.
    masked
        Labels that some frames of the data set lack (`Frames.partial`).
    weighted
        Whether frames of the data set have weights (`Frames.weighted`).

    Raises
    ------
    ValueError
        If the potential lacks a head that the losses need.

    Attributes
    ----------
    backend
        Kind of the steps from here on.
    plain_steps
        Number of plain steps while steps are compiled.
    """

    def __init__(
        self,
        potential: Potential,
        settings: TrainingSettings,
        backend: str = "plain",
        masked: Sequence[str] = (),
        weighted: bool = False,
    ) -> None:
        use_one_thread_in_forks()
        self.potential = potential
        self.settings = settings
        self.plain_steps = 0
        self._quantities = list(settings.weights)
        check_heads(potential, self._quantities)
        self._masked = [name for name in self._quantities if name in masked]
        self._weighted = self._quantities if weighted else []
        of_labels = [
            "atoms" if QUANTITIES[name].per_atom else "systems"
            for name in (*self._quantities, *self._masked, *self._weighted)
        ]
        of_labels += ["systems"] if "stress" in self._quantities else []
        self._axes = [*_GRAPH_AXES, *(Axis(size, 0) for size in of_labels)]
        self.backend = backend
        self._compiled = self._fused = None
        if backend == "compiled":
            self._compiled = CompiledFunction(potential, self._losses)
        elif backend == "fused":
            self._fused = fused_energies(potential, settings.radial_intervals)

    @property
    def reads_pairs(self) -> bool:
        """Whether a step reads the pairs of a batch."""
        return self._fused is None or self._fused.reads_pairs

    def step(self, batch: Batch, shares: Mapping[str, float] | None = None) -> StepLosses:
        """Losses and gradients of one batch.

        Parameters
        ----------
        batch
            Frames with every label that has a weight, but for those of ``masked``.
        shares
            Factor of each quantity's loss, the batch's share of a larger batch; None: 1.

        Raises
        ------
        ValueError
            If the batch lacks a label.
        CompilationError
            If compilation fails and the settings ask for it.
        """
        self.potential.train()
        inputs = self._inputs(batch, shares)
        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        terms, gradients = self._evaluate(inputs, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.contiguous()
        values = dict(zip(self._quantities, terms.tolist(), strict=True))
        weights = self.settings.weights
        return StepLosses(sum(weights[name] * values[name] for name in values), values)

    def _evaluate(
        self, inputs: list[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        if self._compiled is not None:
            try:
                return self._compiled(inputs, self._axes)
            except Unfit as problem:
                self.plain_steps += 1
                log.info("a training step was not run compiled: %s", problem)
            except CompilationError as problem:
                if self.settings.wanted_backend != "auto":
                    raise
                log.warning("steps run plainly from here on: %s", problem)
                self._compiled, self.backend = None, "plain"
        total, terms = self._losses(self.potential, inputs)
        return terms.detach(), torch.autograd.grad([total], parameters, allow_unused=True)

    def _inputs(self, batch: Batch, shares: Mapping[str, float] | None) -> list[Tensor]:
        """All tensors that a step reads, except parameters and buffers."""
        weights, alphas = self.settings.weights, self.settings.loss_emas
        factors = [
            weights[name] * alphas[name] * (shares or {}).get(name, 1.0) for name in weights
        ]
        device = next(self.potential.parameters()).device
        graph, vectors = within(batch.graph, self.potential.cutoff)
        pairs = batch.pairs
        if not self.reads_pairs:
            pairs = Pairs(*graph.edge_index[:, :0])
        elif pairs is None or graph.edge_index.shape[1] != batch.graph.edge_index.shape[1]:
            pairs = pair_edges(graph)
        labels = []
        for name in self._quantities:
            label = getattr(batch.labels, name)
            if label is None:
                raise ValueError(f"a batch has no {name}: expected it, the loss gives it a weight")
            if name in batch.masks and name not in self._masked:
                raise ValueError(f"some frames have no {name}: expected it among those masked")
            labels.append(label)
        for name in self._masked:
            has = torch.ones(len(getattr(batch.labels, name)), dtype=torch.bool)
            labels.append(batch.masks.get(name, has))
        if batch.weights and not self._weighted:
            raise ValueError("some frames have weights: expected weighted=True")
        for name in self._weighted:
            one = torch.ones(len(getattr(batch.labels, name)), dtype=torch.float64)
            labels.append(batch.weights.get(name, one))
        volume = []
        if "stress" in weights:
            volumes = torch.linalg.det(graph.cell).abs()
            # A frame without a cell has no label, but NaN times zero would be NaN.
            volume = [volumes.where(volumes > 0, 1.0)]
        everything = [*graph, vectors, *pairs, torch.tensor(factors, dtype=torch.float64)]
        return [x.to(device).contiguous() for x in (*everything, *labels, *volume)]

    def _losses(self, potential: Potential, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Weighted sum of the losses, and the losses (Q,), as functions of `_inputs`."""
        rest: Iterator[Tensor] = iter(inputs)
        graph = Graph(*(next(rest) for _ in Graph._fields))
        vectors = next(rest)
        pairs = Pairs(next(rest), next(rest))
        factors = next(rest)
        wanted = {name: next(rest) for name in self._quantities}
        masks = {name: next(rest) for name in self._masked}
        weights = {name: next(rest) for name in self._weighted}
        volume = next(rest, None)
        found = predict(potential, graph, vectors, pairs, self._quantities, volume, self._fused)
        atoms = None
        if self.settings.energy_per_atom:
            atoms = torch.zeros_like(graph.charge).index_add(
                0, graph.system, torch.ones_like(graph.positions[:, 0])
            )
        losses = loss_terms(found, wanted, atoms, self.settings, masks, weights)
        terms = torch.stack(list(losses.values()))
        return (factors * terms).sum(), terms
