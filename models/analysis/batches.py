"""Frames in batches that fit."""

from __future__ import annotations

from collections.abc import Iterator

from ..data.frames import Frames
from ..graph import Graph, batch_graphs

EDGES_AT_ONCE = 8000
"""Frames are evaluated together up to so many edges: 9 x 64 features of each are 37 MB."""


def slices(frames: Frames) -> Iterator[slice]:
    """Consecutive frames, as many as have `EDGES_AT_ONCE` edges, and at least one."""
    start, edges = 0, 0
    for k, graph in enumerate(frames.graphs):
        count = graph.edge_index.shape[1]
        if k > start and edges + count > EDGES_AT_ONCE:
            yield slice(start, k)
            start, edges = k, 0
        edges += count
    yield slice(start, len(frames))


def batches(frames: Frames) -> Iterator[Graph]:
    """The graphs of the frames, many in one."""
    for part in slices(frames):
        yield batch_graphs(frames.graphs[part])
