"""The browser that the tests share, and the emulator for their Airflow."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rungen_emulator import Emulator

from compat.environments import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

IMAGES = ROOT / "docs" / "images"
KEY = "a-key-that-must-appear-nowhere"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def keep_picture(shown: Page | Locator, name: str, **options: Any) -> None:
    """Make a picture of the docs."""
    shown.screenshot(path=IMAGES / f"{name}.png", **options)


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(job_seconds=2, api_key=KEY) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    if shutil.which("chromium") is None:
        for command in ("update", "install --yes --no-install-recommends chromium fonts-liberation"):
            apt_get = ["apt-get", "-qq", *command.split()]
            subprocess.run(apt_get, check=True, timeout=280)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1100, "height": 860}, color_scheme="light")
    page.set_default_timeout(30_000)
    yield page
    page.screenshot(path=tmp_path / "last.png")  # the last page of a failed test
    page.close()
