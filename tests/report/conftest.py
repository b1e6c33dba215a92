"""A real browser for the pages: Debian's chromium where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no browser here; .ci/run installs chromium")  # a page can be shown in nothing else
    playwright = pytest.importorskip("playwright.sync_api", reason="the development tools are not installed")
    with playwright.sync_playwright() as driver:
        # Root, as in a container, has no sandbox; what is opened here is made by these tests.
        opened = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
