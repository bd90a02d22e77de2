"""The pages of the plugin in a real Airflow and a real browser."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, expect
from rungen_emulator import Emulator

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import AirflowError, AirflowInstance

from browser.conftest import KEY, keep_picture
from compat.environments import AIRFLOWS, Environment

# a new environment takes minutes
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

INSTALLED = "installed"
DAGS = Path(__file__).with_name("pages_dags")
PASSWORDS = {"admin": "for-the-admin", "viewer": "for-the-viewer"}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(job_seconds=0.2, workers=50, api_key=KEY) as emulator:
        yield emulator


def environment(emulator: Emulator, home: Path) -> dict[str, str]:
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    return {
        "AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection(),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "PAGES_FOLDER": str(home),
    }


@pytest.fixture(scope="module", params=[INSTALLED, "3.1", "3.4"])
def version(request: pytest.FixtureRequest) -> str:
    """The installed Airflow, the first with an entry in the navigation, and the newest pre-release."""
    return str(request.param)


@pytest.fixture(scope="module")
def airflow(
    version: str, emulator: Emulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowInstance]:
    home, bin_folder = tmp_path_factory.mktemp("airflow"), None
    if version != INSTALLED:
        other = Environment(version, AIRFLOWS[version][0])
        other.make()
        bin_folder = other.executable.parent
    settings = environment(emulator, home)
    with AirflowInstance(home, DAGS, environment=settings, bin_folder=bin_folder) as instance:
        instance.log_in("admin", PASSWORDS["admin"])
        yield instance


@pytest.fixture(scope="module")
def as_admin(browser: Browser, airflow: AirflowInstance) -> Any:
    """What the browser of an admin has in its storage."""
    return session(browser, airflow, "admin")


@pytest.fixture
def page(browser: Browser, as_admin: Any) -> Iterator[Page]:
    page = browser.new_page(
        viewport={"width": 1100, "height": 860}, color_scheme="light", storage_state=as_admin
    )
    page.set_default_timeout(30_000)
    yield page
    page.close()


def session(browser: Browser, airflow: AirflowInstance, user: str) -> Any:
    page = browser.new_page()
    log_in(page, airflow, user, f"{airflow.url}/")
    state = page.context.storage_state()
    page.close()
    return state


def log_in(page: Page, airflow: AirflowInstance, user: str, url: str) -> None:
    """Open a page, and log in where that leads to."""
    page.goto(url)
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password", exact=True).fill(PASSWORDS[user])
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda here: "/auth/" not in here)


def take(version: str, page: Page, name: str) -> None:
    """Renew a picture of the documentation, from the Airflow that is installed."""
    if version == INSTALLED:
        keep_picture(page, name)


def start(airflow: AirflowInstance, dag_id: str, until: str, *, has_page: bool = True) -> str:
    """Start a run, wait for a state of its task, and return the address of its page, ours or Airflow's."""
    run_id = airflow.trigger(dag_id)
    deadline, state = time.monotonic() + 240, ""
    while state != until:
        assert time.monotonic() < deadline, state
        assert state not in ("failed", "upstream_failed")
        time.sleep(0.5)
        with contextlib.suppress(AirflowError):  # it may be overloaded
            [task] = airflow.task_instances(dag_id, run_id)
            state = task["state"]
    if not has_page:
        return f"{airflow.url}/dags/{dag_id}/runs/{quote(run_id)}/tasks/paint"
    return f"{airflow.url}{airflow.xcom(dag_id, run_id, 'paint', 'rungen_results_link')}"


def test_a_gallery_from_the_task_to_its_pictures(version: str, airflow: AirflowInstance, page: Page) -> None:
    url = start(airflow, "gallery", "success")
    run_id = airflow.wait_for_new_run("gallery", 5)
    page.goto(f"{airflow.url}/dags/gallery/runs/{quote(run_id)}/tasks/paint/details")
    link = page.get_by_role("link", name="RunGen results").and_(page.locator('[href^="/rungen/"]'))
    if link.get_attribute("target") == "_blank":  # before Airflow 3.2
        with page.expect_popup() as opened:
            link.click()
        page = opened.value
    else:
        link.click()
    page.wait_for_url(url)
    pictures = page.locator("img")
    expect(pictures).to_have_count(100)
    # they load as they come into view
    for number in (0, 50, 99):
        pictures.nth(number).scroll_into_view_if_needed()
        expect(pictures.nth(number)).not_to_have_js_property("naturalWidth", 0)
    page.evaluate("scrollTo(0, 0)")
    page.set_viewport_size({"width": 1100, "height": 860})
    page.wait_for_load_state("networkidle")
    take(version, page, "results")
    page.get_by_role("link", name=re.compile("next", re.IGNORECASE)).first.click()
    expect(page.locator("img")).to_have_count(100)
    page.set_viewport_size({"width": 390, "height": 800})
    is_wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    assert not is_wide


def test_a_gallery_to_work_in(airflow: AirflowInstance, page: Page, tmp_path: Path) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(start(airflow, "gallery", "success"))
    page.get_by_label("Text, #row").fill("windmill")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("img")).to_have_count(25)
    page.get_by_label("Sort by").select_option("seconds")
    page.wait_for_url(re.compile("text=windmill&sort=seconds#list$"))
    expect(page.locator("[data-pixels]").first).to_have_text(re.compile(r"320 x \d+ px"))
    page.screenshot(path=tmp_path / "filtered.png")
    with page.expect_download() as table:
        page.get_by_role("link", name="Table (CSV)").click()
    assert len(table.value.path().read_text().splitlines()) == 26
    with page.expect_download() as picture:
        page.get_by_role("link", name="download", exact=True).first.click()
    assert re.fullmatch(r"\d+-[\d-]+\.\w+", picture.value.suggested_filename), "its row, and no job id"
    # from job to job
    page.locator(".job .line a").first.click()
    page.wait_for_url(re.compile("/jobs/"))
    first = page.url
    page.keyboard.press("ArrowRight")
    page.wait_for_url(lambda here: "/jobs/" in here and here != first)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(first)
    page.go_back()
    page.go_back()
    page.go_back()
    # two of different pages beside each other
    page.get_by_role("link", name="all", exact=True).click()
    page.locator("[name=jobs]").first.check()
    page.get_by_role("link", name="Next").click()
    page.wait_for_url(re.compile("page=2#list$"))
    page.locator("[name=jobs]").nth(1).check()
    page.get_by_role("button", name="Compare checked (2)").click()
    expect(page.locator("img")).to_have_count(2)
    expect(page.locator("[name=jobs]:checked")).to_have_count(2)
    page.screenshot(path=tmp_path / "compared.png")
    with page.expect_download() as archive:
        page.get_by_role("link", name="Files (zip)").click()
    assert len(zipfile.ZipFile(archive.value.path()).namelist()) == 2
    page.get_by_role("link", name="all of the run").click()
    expect(page.locator("img")).to_have_count(100)
    page.get_by_label("Go to page").fill("2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Page 2 of 2")).to_be_visible()
    page.screenshot(path=tmp_path / "run.png")
    assert complaints == []


def test_progress_moves_by_itself_while_the_task_is_deferred(
    version: str, airflow: AirflowInstance, page: Page
) -> None:
    page.goto(start(airflow, "moving", "deferred"))
    expect(page.get_by_text("deferred", exact=True).first).to_be_visible()
    done = page.get_by_text(re.compile(r"^\d+ of 12 done")).first
    before = done.inner_text()
    expect(done).not_to_have_text(before, timeout=60_000)
    take(version, page, "progress")


def test_ten_thousand_jobs_are_shown_in_less_than_two_seconds(airflow: AirflowInstance, page: Page) -> None:
    url = start(airflow, "many", "success")
    page.goto(url)  # the first page imports what reads tables
    for number in (1, 57, 100):
        started = time.monotonic()
        page.goto(f"{url}?page={number}")
        assert time.monotonic() - started < 2
        assert f"sku-{100 * number - 1}" in page.inner_text("body")
    assert "10,000" in page.inner_text("body")


def test_the_navigation_leads_to_the_apps(version: str, airflow: AirflowInstance, page: Page) -> None:
    page.goto(airflow.url)
    page.get_by_role("link", name="RunGen").click()
    apps = page.frame_locator("iframe")
    expect(apps.get_by_text("FLUX Schnell")).to_be_visible()
    expect(apps.get_by_text("rungen_default").first).to_be_visible()
    take(version, page, "apps")
    assert KEY not in page.content()


def test_a_viewer_logs_in_and_comes_back(airflow: AirflowInstance, browser: Browser) -> None:
    run_id = airflow.wait_for_new_run("gallery", 5)
    link = airflow.xcom("gallery", run_id, "paint", "rungen_results_link")
    page = browser.new_page()
    log_in(page, airflow, "viewer", f"{airflow.url}{link}")
    page.wait_for_url(re.compile("/rungen/dags/gallery/"))
    expect(page.locator("img").first).to_be_visible()
    # a viewer may not read connections
    page.goto(f"{airflow.url}/rungen/")
    expect(page.get_by_text("rungen_default")).to_have_count(0)
    answer = page.goto(f"{airflow.url}/rungen/connections/rungen_default/apps/flux-schnell")
    assert answer is not None
    assert answer.status == 403
    page.close()


def test_a_task_of_ours_has_a_tab_from_airflow_3_4(
    version: str, airflow: AirflowInstance, page: Page
) -> None:
    page.goto(start(airflow, "other", "success", has_page=False))
    expect(page.get_by_role("link", name="Details")).to_be_visible()
    expect(page.get_by_role("link", name="RunGen results")).to_have_count(0)
    run_id = airflow.wait_for_new_run("gallery", 5)
    page.goto(f"{airflow.url}/dags/gallery/runs/{quote(run_id)}/tasks/paint")
    expect(page.get_by_role("link", name="Details")).to_be_visible()
    tab = page.get_by_role("link", name="RunGen results")
    if tuple(map(int, airflow.version().split(".")[:2])) < (3, 4):
        expect(tab).to_have_count(0)
        return
    tab.click()
    inside = page.frame_locator("iframe")
    expect(inside.locator("img").first).to_be_visible()
    # the frame is sandboxed, and the page that the link leads to is open
    expect(inside.get_by_text("Open in Airflow")).to_be_hidden()
    assert KEY not in page.content()


def test_pages_that_are_turned_off_have_no_links(
    emulator: Emulator, browser: Browser, tmp_path: Path
) -> None:
    settings = environment(emulator, tmp_path) | {"AIRFLOW__RUNGEN__PAGES": "False"}
    with AirflowInstance(tmp_path / "home", DAGS, environment=settings) as instance:
        instance.log_in("admin", PASSWORDS["admin"])
        run_id = instance.trigger("gallery")
        assert instance.wait_for_run("gallery", run_id, 120) == "success"
        task = f"/dags/gallery/dagRuns/{quote(run_id, safe='')}/taskInstances/paint"
        links = instance.request("GET", f"{task}/links")["extra_links"]
        assert set(links.values()) == {None}
        page = browser.new_page(storage_state=session(browser, instance, "admin"))
        page.goto(f"{instance.url}/dags")
        page.get_by_role("link", name="Dags").first.wait_for()
        assert page.get_by_role("link", name="RunGen").count() == 0
        page.close()
