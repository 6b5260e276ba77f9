"""One thread: the models of these tests are too small to share."""

import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)
