"""Analysis of the irreducible representations that a network uses, and removal of others."""

from .advice import Advice
from .analysis import Analysis, analyse, fine_tuned, without_order
from .cost import work, work_without
from .layout import Layout, changed, layout_of
from .maps import Map, explained_by, graph_embeddings, maps_of
from .removal import Accuracy, accuracy, predict
from .shares import Shares, measure_shares

__all__ = [
    "Accuracy",
    "Advice",
    "Analysis",
    "Layout",
    "Map",
    "Shares",
    "accuracy",
    "analyse",
    "changed",
    "explained_by",
    "fine_tuned",
    "graph_embeddings",
    "layout_of",
    "maps_of",
    "measure_shares",
    "predict",
    "without_order",
    "work",
    "work_without",
]
