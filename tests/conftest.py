"""Settings shared by all tests: deterministic, and on one thread, so that their order and the machine do not matter."""

import os
import shutil

import pytest
import torch

from chainrule.cli.app import keep_freed_memory
from chainrule.data import shapes
from chainrule.files import cache_root

torch.set_num_threads(1)
keep_freed_memory()  # as the command line does
shapes.SPLITS["train"] = 500  # the first of 50,000, which take half a minute to draw


@pytest.fixture
def chromium():
    """Debian's Chromium, for tests of pages."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory):
    """Tests never read or write the user's cache of data; kernels, compiled once, are kept there."""
    kernels, folder = cache_root() / "kernels", tmp_path_factory.mktemp("cache")
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(kernels, target_is_directory=True)
    os.environ["CHAINRULE_CACHE"] = str(folder)
