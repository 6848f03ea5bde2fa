"""Settings shared by all tests: deterministic, and on one thread, so that their order and the machine do not matter."""

import os

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Tests never read or write the user's cache of data."""
    os.environ["CHAINRULE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
