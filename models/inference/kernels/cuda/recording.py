"""A step as a recorded CUDA graph: one launch instead of ninety."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....potential import Prediction
from .step import StepInputs

Run = Callable[[], Prediction]
Replay = Callable[[], object]
Capture = Callable[[Run], tuple[Prediction, Replay]]
"""Step -> the tensors to which each replay writes, and the replay."""


class CudaGraphCapture:
    """Records steps on the current CUDA device.

    All recordings share one memory pool: replays run one after another, and results are copied
    before the next replay, so that the pool is as large as the largest recording, not their sum.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __reduce__(self) -> tuple[type[CudaGraphCapture], tuple[()]]:
        return CudaGraphCapture, ()

    def __call__(self, run: Run) -> tuple[Prediction, Replay]:
        """Record a step, after runs on a side stream that compile kernels and set up libraries.

        Returns the results of the recording, and the function that replays it.
        """
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may continue to use their streams meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = run()
        except BaseException:
            self._pool = None
            raise
        return result, graph.replay


class Room(NamedTuple):
    """Sizes of the buffers of a recording."""

    atoms: int
    edges: int
    systems: int
    """One more than can be used: the last system is that of the padding atoms."""


def room_for(inputs: StepInputs) -> Room:
    """The smallest buffers, from a ladder of sizes, that hold the inputs."""
    return Room(
        _rung(inputs.numbers.shape[0], 16),
        _rung(inputs.senders.shape[0], 256),
        _rung(inputs.charge.shape[0], 1) + 1,
    )


def _rung(count: int, first: int) -> int:
    """The smallest rung >= count of a ladder that begins with ``first`` and grows by a quarter."""
    rung = first
    while rung < count:
        rung += -(-rung // 4)
    return rung


class _Recording:
    """A step recorded with buffers of one size, which hold its inputs."""

    def __init__(
        self, room: Room, inputs: StepInputs, run: Callable[[StepInputs], Prediction],
        capture: Capture,
    ) -> None:  # fmt: skip
        atoms, edges, systems = room
        # In the order of `StepInputs`
        sizes = (atoms, systems, atoms, atoms, systems, atoms + 1, edges, edges, edges)
        # Padding atoms have element 0, no edges, and a system of their own.
        buffers = StepInputs(
            *(t.new_zeros(n, *t.shape[1:]) for n, t in zip(sizes, inputs, strict=True))
        )
        self._buffers, self._nowhere = buffers, systems - 1
        self._edges: Tensor | None = None
        self.fill(inputs)
        self.result, self.replay = capture(lambda: run(buffers))

    def fill(self, inputs: StepInputs) -> None:
        """Copy the inputs into the buffers, asynchronously.

        Edges are copied only if they are in other tensors than before, because nothing writes to
        those of `EdgeRows`. The other tensors may be written to without torch noticing.
        """
        for buffer, tensor in zip(self._buffers[:5], inputs[:5], strict=True):
            buffer[: tensor.shape[0]].copy_(tensor, non_blocking=True)
        if self._edges is inputs.offsets:
            return
        atoms = inputs.numbers.shape[0]
        for buffer, tensor in zip(self._buffers[5:], inputs[5:], strict=True):
            buffer[: tensor.shape[0]].copy_(tensor, non_blocking=True)
        self._buffers.offsets[atoms:] = inputs.offsets[atoms]
        self._buffers.numbers[atoms:] = 0
        self._buffers.system[atoms:] = self._nowhere
        self._edges = inputs.offsets


class CudaGraphStep:
    """Runs a step by replaying a recording of it.

    Recordings have room for more atoms, edges and systems than they were made for: loop bounds
    are read on the device. One that is too small, or much too large, leads to another; the last
    ones are kept, so that systems may take turns.

    Parameters
    ----------
    run
        The step; it must not read from the device, and its shapes must depend on those of its
        inputs alone.
    capture
        Records a step; None takes CUDA's.
    keep
        Recordings to keep.

    Attributes
    ----------
    captures
        How many recordings were made so far.
    """

    def __init__(
        self,
        run: Callable[[StepInputs], Prediction],
        capture: Capture | None = None,
        keep: int = 4,
    ) -> None:
        if keep < 1:
            raise ValueError(f"{keep} recordings to keep: expected at least 1")
        self.captures = 0
        self._run = run
        self._capture = CudaGraphCapture() if capture is None else capture
        self._keep = keep
        self._lock = threading.Lock()
        self._recordings: OrderedDict[Room, _Recording] = OrderedDict()

    def __reduce__(self) -> tuple[type[CudaGraphStep], tuple[object, ...]]:
        # Recordings are bound to the device: a copy starts without any.
        return CudaGraphStep, (self._run, self._capture, self._keep)

    def __call__(self, inputs: StepInputs) -> Prediction:
        """Run the step; the result's tensors are copies that the caller owns."""
        with self._lock:
            room = room_for(inputs)
            recording = self._recordings.get(room)
            if recording is not None:
                recording.fill(inputs)
            else:  # kept only when complete: a failure, such as too little memory, leaves no trace
                recording = _Recording(room, inputs, self._run, self._capture)
                self.captures += 1
                self._recordings[room] = recording
            self._recordings.move_to_end(room)
            # Dropped only now: the memory pool must always have a recording that uses it.
            while len(self._recordings) > self._keep:
                self._recordings.popitem(last=False)
            recording.replay()
            atoms, systems = inputs.numbers.shape[0], inputs.charge.shape[0]
            result = recording.result
            return Prediction(
                energy=result.energy[:systems].clone(),
                energies=result.energies[:atoms].clone(),
                forces=result.forces[:atoms].clone(),
                virial=result.virial[:systems].clone(),
                virials=result.virials[:atoms].clone(),
            )
