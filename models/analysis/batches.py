"""Batches of frames that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.frames import Frames
from ..graph import Graph, batch_graphs

EDGES_AT_ONCE = 8000
"""Largest number of edges in a batch: 9 x 64 features of each edge take 37 MB."""


def slices(frames: Frames) -> Iterator[slice]:
    """Slices of consecutive frames with at most `EDGES_AT_ONCE` edges, and at least one frame."""
    start, edges = 0, 0
    for k, count in enumerate(frames.edge_counts.tolist()):
        if k > start and edges + count > EDGES_AT_ONCE:
            yield slice(start, k)
            start, edges = k, 0
        edges += count
    yield slice(start, len(frames))


def batches(frames: Frames) -> Iterator[Graph]:
    """Batched graphs of the frames."""
    for part in slices(frames):
        yield batch_graphs(frames.graphs[part])
