"""One thread: the models of these tests are too small to share."""

import pytest
import torch

pytest.register_assert_rewrite("support")


def pytest_configure() -> None:
    torch.set_num_threads(1)
