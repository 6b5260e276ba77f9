"""Tests run with one thread: their models are too small for more."""

import pytest
import torch

pytest.register_assert_rewrite("support")


def pytest_configure() -> None:
    torch.set_num_threads(1)
