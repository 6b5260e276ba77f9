"""Tests run with one thread: their models are too small for more."""

import pytest
import torch

pytest.register_assert_rewrite("support")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what compiles longest, so that processes that share the files end at the same time."""
    items.sort(key=lambda item: "training" not in item.path.parts)
