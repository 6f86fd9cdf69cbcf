"""One thread for small tensors."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Small tensors: threads only wait for each other, and badly so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
