"""The page of a task, the contact sheet and the overview of apps in a real browser."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("playwright")

from conftest import FakeTaskInstance
from pages.world import Database, Pages, World, make_server, new_run, session_token
from playwright.sync_api import expect
from rungen_emulator import Emulator

from airflow_provider_rungen.decorators import rungen_task

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]
PHONE = {"width": 375, "height": 812}
ROWS = 300
HOSTILE = '<img src=x onerror="alert(1)">"><script>alert(2)</script>'


@dataclass
class Site:
    """Pages that were made, by name, and where they are served."""

    url: str
    cookie: Any
    world: World
    pages: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        return f"{self.url}{self.pages[name]}"


def row(number: int) -> dict[str, Any]:
    things, lights = (
        ("lighthouse", "harbor", "windmill", "glacier"),
        ("at dawn", "in thick fog", "in the rain"),
    )
    prompt = f"a {things[number % 4]} {lights[number % 3]}"
    fails = {"fail": "CUDA out of memory"} if number % 60 == 7 else {}
    return {
        "sku": f"S-{number:03}",
        "title": HOSTILE if number == 1 else f"Tea kettle No. {number}",
        "prompt": HOSTILE if number == 1 else prompt,
        "emulator": {"seconds": 0.01, **fails},
    }


def to_input(row: dict[str, Any]) -> dict[str, Any]:
    size = {"width": 320, "height": (224, 320, 416)[int(row["sku"][2:]) % 3]}
    return {"prompt": row["prompt"], "seed": int(row["sku"][2:]), "emulator": row["emulator"], **size}


def make_pages(site: Site, folder: Path) -> None:
    world, pages = site.world, site.pages

    def start(name: str) -> None:
        world.folder = folder / name
        world.folder.mkdir()
        world.ti = world.context["ti"] = world.context["task_instance"] = new_run(FakeTaskInstance())

    table: dict[str, Any] = {"key": "sku", "columns": ["title"], "to_input": to_input}
    start("table")
    pages["table"] = world.table(*map(row, range(ROWS)), **table)
    results = Path(world.ti.xcoms["results"].removeprefix("file://"))
    pages["sheet"] = results.with_suffix(".html").as_uri()
    start("failed")
    pages["failed"] = world.table(*map(row, range(4, 16)), **table | {"max_failed": 0})
    start("second")
    for count in (8, 10):
        pages["second"] = world.table(*map(row, range(count)), **table)
        new_run(world.ti)
        world.ti.pushed.clear()
    start("texts")
    prompts = [{"prompt": f"Describe a kettle, {number} words"} for number in range(5, 15)]
    pages["texts"] = world.table(*prompts, app_id="llama-text")
    start("single")
    paint: Any = rungen_task(task_id="paint", destination=world.folder.as_uri(), poll_interval=0.02)(
        lambda: to_input(row(3))
    )
    op = paint().operator
    world.ti.task_id = op.task_id
    pages["single"] = world.run(op)
    world.database.render(world.ti, input=to_input(row(3)), destination=world.folder.as_uri())
    start("running")
    counts = {
        "rows": 50,
        "completed": 31,
        "failed": 1,
        "skipped": 2,
        "reused": 4,
        "running": 12,
        "queued": 5,
        "waiting": 4,
    }
    ended = [{"index": number, "status": "completed", **row(number)} for number in range(20)]
    view = {
        "at": datetime(2026, 12, 1, 14, 3, 20).timestamp(),
        "hint": "5 queued: app flux has no worker",
        "counts": counts,
        "usage": {"jobs": 40, "execution_seconds": 75},
        "ended": ended,
    }
    page = world.write_view(view, key=["sku"], price="1.20 USD/h")
    pages["running"] = world.save("running", xcoms={"rungen_page": page})
    pages["apps"] = "/rungen/"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    import uvicorn

    app = make_server()
    app.get("/favicon.ico")(lambda: None)  # as Airflow answers
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    with contextlib.ExitStack() as stack:
        emulator = stack.enter_context(Emulator(job_seconds=0.02, workers=50))
        stack.enter_context(emulator.connection(price="1.20 USD/h"))
        stack.callback(thread.join)
        stack.callback(setattr, server, "should_exit", True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        ti = FakeTaskInstance()
        world = World(emulator, {"ti": ti}, ti, Path(), Pages(app), Database())
        url = f"http://127.0.0.1:{port}"
        site = Site(url, {"name": "_token", "value": session_token("admin"), "url": url}, world)
        make_pages(site, tmp_path_factory.mktemp("stores"))
        yield site


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complains about, and what hostile texts run."""
    return []


@pytest.fixture
def page(site: Site, browser: Browser, complaints: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    context.add_cookies([site.cookie])
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: complaints.append(f"{message.text} {message.location}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    yield page
    context.close()
    assert complaints == []


# What reaches out of the box or the card that it is in.
OUTSIDE = """[...document.querySelectorAll(".box, .card")].flatMap((box) =>
    [...box.querySelectorAll("a, button, dd, b, code, p")]
        .filter((each) => each.getBoundingClientRect().right > box.getBoundingClientRect().right)
        .map((each) => each.textContent))"""


def open_page(page: Page, site: Site, name: str) -> None:
    page.goto(site.pages[name] if name == "sheet" else site.of(name))
    expect(page.get_by_role("heading", level=1)).to_be_visible()


def cards(page: Page) -> Locator:
    return page.get_by_role("article")


WORDS = {
    "table": ["300 of 300 ended", "295 completed", "5 failed", "Contact sheet", "100 rows of 300"],
    "failed": ["1 of 12 rows failed", "CUDA out of memory", "flux-schnell", "rungen_default", "What to do"],
    "texts": ["10 of 10 ended", "You said: Describe a kettle, 5 words"],
    "single": ["1 of 1 ended", "Bought: 1 job", "a glacier at dawn"],
    "running": ["34 of 50 ended", "7 running", "5 queued: app flux has no worker", "4 waiting", "0.0250 USD"],
    "apps": ["RunGen apps", "FLUX Schnell", "USD an hour"],
    "sheet": ["300 of 300 ended", "300 rows", "Tea kettle No. 299"],
}


@pytest.mark.parametrize("size", [None, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", WORDS)
def test_each_page_shows_what_it_has_and_never_scrolls_sideways(
    site: Site, page: Page, tmp_path: Path, name: str, size: Any
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    if size:
        page.set_viewport_size(size)
    open_page(page, site, name)
    for words in WORDS[name]:
        expect(page.locator("body")).to_contain_text(words)
    page.screenshot(path=tmp_path / "page.png")  # for whoever wants to look
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(OUTSIDE) == []
    assert all(url.startswith(("file://", site.url)) for url in asked)


@pytest.mark.parametrize("name", ["table", "sheet"])
def test_a_click_shows_the_full_picture_and_keys_go_left_and_right(site: Site, page: Page, name: str) -> None:
    open_page(page, site, name)
    page.get_by_role("button", name="Open: a windmill in the rain").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("img")).not_to_have_js_property("naturalWidth", 0)
    expect(dialog).to_contain_text("3 of")
    expect(dialog).to_contain_text("Tea kettle No. 2")
    for key, title in (("ArrowRight", "No. 3"), ("ArrowLeft", "No. 2"), ("ArrowLeft", "alert(1)")):
        page.keyboard.press(key)
        expect(dialog).to_contain_text(title)
    dialog.get_by_role("button", name="Next picture").click()
    expect(dialog).to_contain_text("No. 2")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_it_works_with_a_keyboard_alone(site: Site, page: Page) -> None:
    open_page(page, site, "table")
    expect(cards(page)).to_have_count(100)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "search":
            break
    page.keyboard.type("kettle No. 128")
    expect(cards(page)).to_have_count(1)
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "picture":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("1 of 1")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "picture"


@pytest.mark.parametrize("name", ["table", "sheet"])
def test_rows_are_filtered_by_status_and_searched_by_parts_of_words(
    site: Site, page: Page, name: str
) -> None:
    open_page(page, site, name)
    page.get_by_role("button", name="Failed 5").click()
    expect(cards(page)).to_have_count(5)
    expect(cards(page).first).to_contain_text("CUDA out of memory")
    page.get_by_role("button", name="All 300").click()
    search = page.get_by_label("Search rows")
    search.fill("ETTLE 19 fo")
    numbers = [19, *(number for number in range(190, 200) if number % 3 == 1)]
    expect(cards(page)).to_have_count(len(numbers))
    expect(page.locator("#found")).to_have_text(f"{len(numbers)} rows have “ETTLE 19 fo”")
    if name == "table":
        with page.expect_download() as download:
            page.get_by_role("link", name="Download these rows").click()
        lines = download.value.path().read_text().splitlines()
        assert [json.loads(line)["sku"] for line in lines] == [f"S-{number:03}" for number in numbers]
    search.fill("")
    if name == "table":
        for count in (200, 300):
            page.get_by_role("button", name="Load more rows").click()
            expect(cards(page)).to_have_count(count)
        expect(page.get_by_role("button", name="Load more rows")).to_have_count(0)
        expect(page.get_by_label("Files")).to_contain_text("Contact sheet")


def test_a_link_and_a_reload_show_the_same_rows(site: Site, page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_page(page, site, "table")
    page.get_by_role("button", name="Failed 5").click()
    page.get_by_label("Search rows").fill("No. 127")
    expect(cards(page)).to_have_count(1)
    page.get_by_role("button", name="Copy link").click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    page.goto("about:blank")
    page.goto(link)
    for _ in range(2):
        expect(cards(page)).to_have_count(1)
        expect(page.get_by_label("Search rows")).to_have_value("No. 127")
        expect(page.get_by_role("button", name="Failed 5")).to_have_attribute("aria-pressed", "true")
        page.reload()


def test_a_second_night_has_a_filter_for_what_is_new(site: Site, page: Page) -> None:
    open_page(page, site, "second")
    page.get_by_role("button", name="New").click()
    expect(cards(page)).to_have_count(2)
    expect(cards(page).first).to_contain_text("S-008")
    open_page(page, site, "table")
    expect(page.get_by_role("button", name="New")).to_be_hidden()


def test_a_link_opens_the_contact_sheet(site: Site, page: Page) -> None:
    open_page(page, site, "table")
    with page.context.expect_page() as opened:
        page.get_by_label("Files").get_by_role("link", name="Open").click()
    expect(cards(opened.value)).to_have_count(ROWS)
    expect(opened.value.locator(".picture img").first).not_to_have_js_property("naturalWidth", 0)


def test_progress_says_as_of_when_and_how_long_it_took(site: Site, page: Page) -> None:
    open_page(page, site, "running")
    progress = page.get_by_label("Progress", exact=True)
    expect(progress).to_contain_text("As of 14:03:20")
    expect(progress).to_contain_text("Running for")
    open_page(page, site, "table")
    expect(progress).to_contain_text("Took")


def test_a_running_task_moves_without_a_reload(site: Site, page: Page) -> None:
    world = site.world
    new_run(world.ti)
    view: dict[str, Any] = {"counts": {"rows": 4, "running": 4}, "usage": {"jobs": 4}, "ended": []}
    record = world.write_view(view, key=["sku"])
    site.pages["moving"] = world.save("running", xcoms={"rungen_page": record})
    open_page(page, site, "moving")
    expect(page.locator("body")).to_contain_text("0 of 4 ended")
    expect(page.locator("body")).to_contain_text("No row has ended yet")
    view["counts"] |= {"running": 1, "completed": 3}
    view["ended"] = [{"index": 0, "status": "completed", **row(3)}]
    world.write_view(view)
    expect(page.locator("body")).to_contain_text("3 of 4 ended")
    expect(cards(page)).to_have_count(1)


def test_the_link_of_a_job_opens_what_the_service_says_of_it(site: Site, page: Page) -> None:
    open_page(page, site, "single")
    page.get_by_role("link", name="Job").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("a glacier at dawn")
    expect(dialog).to_contain_text("completed")
    link = page.url
    dialog.get_by_role("button", name="Close").click()
    page.wait_for_url(lambda url: "#" not in url)
    page.goto("about:blank")
    page.goto(link)
    expect(dialog).to_contain_text("a glacier at dawn")


def test_a_file_that_is_gone_and_a_task_that_never_ran_are_explained(
    site: Site, page: Page, complaints: list[str]
) -> None:
    page.route("**/api/file/**", lambda route: route.fulfill(status=200, body="no picture"))
    open_page(page, site, "single")
    expect(cards(page)).to_contain_text("This file was removed, or is damaged.")
    site.pages["none"] = f"{site.pages['single']}-never-ran"
    open_page(page, site, "none")
    expect(page.get_by_role("alert")).to_contain_text("This task has not run")
    assert ["404" in text for text in complaints] == [True]
    complaints.clear()


def test_two_hundred_pictures_are_there_soon(site: Site, page: Page) -> None:
    page.goto(site.of("table"))
    started = time.monotonic()
    expect(page.locator(".picture img").first).not_to_have_js_property("naturalWidth", 0)
    assert time.monotonic() - started < 5
    # only what is seen is asked for
    assert page.evaluate("performance.getEntriesByType('resource').length") < 60
