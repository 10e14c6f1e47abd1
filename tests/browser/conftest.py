"""One Chromium and one server of each front end for all browser tests of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
HOW = "apt-get install -y --no-install-recommends chromium fonts-liberation fonts-noto-color-emoji"


@pytest.fixture(scope="session")
def start_front_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """name → the running front end; each is started when the first test asks for it."""
    from playwright.sync_api import sync_playwright

    from tests.browser.front_ends import start

    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} is missing. Install it ({HOW}) or name another Chromium in CHROMIUM.")
    running: dict = {}
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        stack.callback(browser.close)

        def started(name: str):
            if name not in running:
                running[name] = stack.enter_context(start(name, tmp_path_factory.mktemp(name), browser))
            return running[name]

        yield started


@pytest.fixture(params=["jupyterlab", "classic"])
def front_end(request: pytest.FixtureRequest, start_front_end: Callable):
    """Each of the two generations of widgets."""
    return start_front_end(request.param)
