"""The pages in a real browser, served with a strict policy. A screenshot illustrates the documentation."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect

from airflow_provider_rungen.pages import render
from airflow_provider_rungen.pages.models import Progress

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sys.path.insert(0, str(Path(__file__).parents[1] / "pages"))
import samples

from browser.conftest import keep_picture

pytestmark = pytest.mark.browser
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'"
)
EACH = pytest.mark.parametrize("name", samples.pages())
PHONE = {"width": 375, "height": 812}


class Handler(SimpleHTTPRequestHandler):
    """Serves the samples, and a progress that a test can change."""

    progress: Progress

    def do_GET(self) -> None:
        if not self.path.startswith("/progress.json"):
            super().do_GET()
            return
        content = json.dumps(render.progress_parts(Handler.progress)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def end_headers(self) -> None:
        # the contact sheet has its style inside
        if "contact_sheet" not in self.path:
            self.send_header("Content-Security-Policy", POLICY)
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    samples.main(folder)
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def progress() -> None:
    Handler.progress = samples.MOVING


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What the browser complains about, and what hostile texts run."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))

    def dismiss(dialog: Any) -> None:
        found.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", dismiss)
    return found


@EACH
@pytest.mark.parametrize("size", [None, PHONE], ids=["desktop", "phone"])
def test_a_page_needs_nothing_that_the_policy_forbids_and_never_scrolls_sideways(
    page: Page, site: str, complaints: list[str], name: str, size: Any
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    if size:
        page.set_viewport_size(size)
    page.goto(f"{site}/{name}.html")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # the sample pages have files that are not there
    assert [text for text in complaints if "404" not in text] == []
    assert all(url.startswith(site) for url in asked)


@EACH
def test_a_page_can_be_read_without_scripts(browser: Browser, site: str, name: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{site}/{name}.html")
        expect(page.locator("h1")).to_be_visible()


def test_progress_moves_by_itself(page: Page, site: str, complaints: list[str]) -> None:
    page.goto(f"{site}/task.html")
    expect(page.get_by_text("8 of 12 done")).to_be_visible()
    Handler.progress = Progress(total=12, completed=10, failed=1, running=1, is_moving=True)
    expect(page.get_by_text("11 of 12 done")).to_be_visible()
    expect(page.locator('[data-count="queued"]')).to_be_hidden()
    expect(page.locator('[data-bar="completed"]')).to_have_attribute("width", "83.333")
    Handler.progress = Progress(total=12, completed=11, failed=1)
    with page.expect_navigation():  # the whole page once nothing moves
        pass
    assert complaints == []


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_switch_of_airflow_decides_about_light_and_dark(browser: Browser, site: str, system: Any) -> None:
    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    with browser.new_context(color_scheme=system) as context:
        page = context.new_page()
        found = {}
        for theme in ("light", "dark", "system"):
            page.goto(f"{site}/task.html")
            page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
            page.reload()
            found[theme] = paper()
        assert found["light"] != found["dark"]
        assert found["system"] == found[system]
        # it is switched elsewhere
        other = context.new_page()
        other.goto(f"{site}/app.html")
        other.evaluate("localStorage.setItem('theme', 'dark')")
        page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        assert paper() == found["dark"]


@EACH
def test_no_word_is_broken_on_a_phone(page: Page, site: str, name: str) -> None:
    page.set_viewport_size({"width": 375, "height": 812})
    page.goto(f"{site}/{name}.html")
    # a word of letters whose parts stand on two lines
    broken = page.evaluate("""() => {
        const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
        const found = [], range = document.createRange();
        while (walker.nextNode()) {
            for (const word of walker.currentNode.data.matchAll(/[A-Za-z]{2,16}/g)) {
                range.setStart(walker.currentNode, word.index);
                range.setEnd(walker.currentNode, word.index + word[0].length);
                const lines = new Set([...range.getClientRects()].map((each) => Math.round(each.top)));
                if (lines.size > 1) found.push(word[0]);
            }
        }
        return found;
    }""")
    if "hostile" not in name:
        assert broken == []


def test_a_click_shows_a_picture_larger(page: Page, site: str) -> None:
    page.goto(f"{site}/large.html")
    page.locator("#job-1 a[data-zoom]").click()
    dialog = page.locator("dialog")
    expect(dialog.get_by_role("img")).to_have_attribute("src", f"{site}/files/1-0.png")
    expect(dialog).to_contain_text(samples.prompt(1))
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("img")).to_have_attribute("src", f"{site}/files/2-0.png")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_pictures_below_the_screen_are_not_loaded(page: Page, site: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site}/large.html")
    page.wait_for_load_state("networkidle")
    assert 4 <= sum("/files/" in url for url in asked) < 150


def test_a_contact_sheet_opens_from_a_folder(page: Page, folder: Path, complaints: list[str]) -> None:
    sheet = replace(samples.contact_sheet(), pager=None)
    (folder / "index.html").write_text(render.render(sheet))
    page.goto((folder / "index.html").as_uri())
    expect(page.locator("#job-0 img")).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.images].slice(0, 4).every((image) => image.naturalWidth > 0)")
    assert complaints == []
    keep_picture(page, "contact-sheet")
