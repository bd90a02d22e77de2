"""Airflow's UI in a real browser. Its screenshots illustrate the documentation."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Locator, Page, expect
from rungen_emulator import Emulator

from airflow_provider_rungen import get_provider_info
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.hooks.connection import read_connection

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import EXAMPLES, AirflowInstance

from browser.conftest import KEY, keep_picture

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
APP = "flux-schnell"
DAG_ID = "rungen_first_job"
TASKS = ("paint",)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowInstance]:
    home = tmp_path_factory.mktemp("airflow")
    environment = {"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
    with AirflowInstance(home, EXAMPLES, environment=environment) as instance:
        instance.unpause(DAG_ID)  # its file has been read then
        yield instance


class Connections:
    """The page of connections, and its form."""

    def __init__(self, page: Page, airflow: AirflowInstance) -> None:
        self.page, self.url = page, f"{airflow.url}/connections"
        self.form = page.get_by_role("dialog")

    def add(self, conn_id: str) -> None:
        self.page.goto(self.url)
        self.page.get_by_role("button", name="Add Connection").click()
        self.form.get_by_label("Connection ID").fill(conn_id)
        self.form.get_by_label("Connection Type").fill("RunGen")
        self.page.keyboard.press("Enter")

    def edit(self, conn_id: str) -> None:
        self.page.goto(self.url)
        self.row(conn_id).get_by_role("button", name="Edit Connection").click()

    def fill(self, **fields: str) -> None:
        """Fill in fields of the provider by name, after opening their sections."""
        for name, value in fields.items():
            self.show(name).fill(value)

    def show(self, name: str) -> Locator:
        """Open the section of a field of the provider, and return the field."""
        title = _fields()[name]["schema"].get("section", "Extra Fields")
        section = self.form.get_by_role("button", name=title, exact=True)
        if section.get_attribute("aria-expanded") != "true":
            section.click()
        return self.form.locator(_field(name))

    def save(self) -> dict[str, Any]:
        """Save the form, and return what it sent."""
        with self.page.expect_request(lambda request: request.method in ("POST", "PATCH")) as sent:
            self.form.get_by_role("button", name="Save").click()
        self.form.wait_for(state="hidden")
        body = sent.value.post_data_json
        assert isinstance(body, dict)
        return body

    def test(self, conn_id: str) -> str:
        """Press *Test*, and return the visible answer."""
        self.page.goto(self.url)
        self.row(conn_id).get_by_role("button", name="Test Connection").click()
        answer: str = self.page.get_by_role("status").filter(has_text="Test Connection").inner_text()
        return answer

    def row(self, conn_id: str) -> Locator:
        return self.page.get_by_role("row").filter(has_text=conn_id)


@pytest.fixture
def connections(page: Page, airflow: AirflowInstance) -> Connections:
    return Connections(page, airflow)


def _fields() -> dict[str, Any]:
    return dict(get_provider_info()["connection-types"][0]["conn-fields"])


def _field(name: str) -> str:
    return f'[name="element_{name}"]'


def _read(sent: dict[str, Any]) -> Settings:
    """Read what the form sent in the way of the hook."""
    from airflow.providers.common.compat.sdk import Connection

    extra = sent.get("extra") or "{}"
    assert isinstance(json.loads(extra), dict)
    fields = {name: sent.get(name) for name in ("conn_type", "host", "login", "password", "schema", "port")}
    return read_connection(Connection(conn_id=sent["connection_id"], extra=extra, **fields), "sent")


def test_the_form_labels_explains_and_masks_its_fields(connections: Connections, page: Page) -> None:
    connections.add("rungen_default")
    form = connections.form
    for label in ("Base URL", "API key", "Port", "Description"):
        expect(form.get_by_label(label, exact=True)).to_be_visible()
    for label in ("Host", "Password", "Login", "Schema"):
        expect(form.get_by_label(label, exact=True)).to_have_count(0)
    expect(form.get_by_label("Base URL")).to_have_attribute("placeholder", "https://api.rungen.ai")
    form.get_by_label("API key").fill(KEY)
    expect(form.get_by_label("API key")).to_have_attribute("type", "password")
    page.mouse.move(0, 0)
    keep_picture(form, "connection")
    for name, field in _fields().items():
        expect(connections.show(name)).to_be_attached()
        row = form.get_by_role("group").filter(has=page.locator(_field(name)))
        expect(row).to_contain_text(field["label"])
        expect(row).to_contain_text(field["description"])
    expect(connections.show("proxy")).to_have_attribute("type", "password")


def test_a_form_with_nothing_but_the_key_gives_the_defaults(connections: Connections) -> None:
    connections.add("key_only")
    connections.form.get_by_label("API key").fill(KEY)
    assert _read(connections.save()) == Settings(base_url="https://api.rungen.ai", api_key=KEY)


def test_what_is_typed_into_the_form_is_what_the_hook_reads(
    connections: Connections, airflow: AirflowInstance
) -> None:
    connections.add("all_fields")
    connections.form.get_by_label("API key").fill(f" {KEY} ")
    connections.form.get_by_label("Base URL").fill("http://rungen.example/v1")
    connections.form.get_by_label("Port").fill("8080")
    connections.fill(app_id=APP, team_id=" team ", user_id="user", timeout="90", verify="false")
    connections.fill(proxy="http://me:hidden@proxy.example:3128", max_requests_per_second="2.5")
    console = "https://console.example/{app_id}"
    connections.fill(max_response_bytes="1000", app_url=console, job_url=console + "/{job_id}")
    connections.show("allow_http").press("Space")
    settings = _read(connections.save())
    assert settings == Settings(
        base_url="http://rungen.example:8080/v1",
        api_key=KEY,
        team_id="team",
        user_id="user",
        connect_timeout=10.0,
        read_timeout=90.0,
        verify=False,
        proxy="http://me:hidden@proxy.example:3128",
        max_response_bytes=1000,
        max_requests_per_second=2.5,
        app_url=console,
        job_url=console + "/{job_id}",
        app_id=APP,
    )
    shown = airflow.request("GET", "/connections/all_fields")
    assert (shown["password"], json.loads(shown["extra"])["proxy"]) == ("***", "***")
    connections.edit("all_fields")
    assert connections.show("timeout").input_value() == "90"
    connections.fill(timeout="")
    assert json.loads(connections.save()["extra"])["timeout"] is None


def test_the_test_says_what_to_do_and_then_what_it_reached(
    connections: Connections, emulator: Emulator, page: Page
) -> None:
    wrong = "a-key-of-somebody-else"
    connections.add("tested")
    _fill_address(connections, emulator)
    connections.form.get_by_label("API key").fill(wrong)
    connections.save()
    said = connections.test("tested")
    assert "Test Connection Failed" in said
    assert "the API key is missing or wrong. Check the password of this connection." in said
    assert wrong not in page.content()
    connections.edit("tested")
    connections.form.get_by_label("API key").fill(KEY)
    connections.save()
    said = connections.test("tested")
    assert "Test Connection Successful" in said
    assert f"Connected to {emulator.url}: 2 apps: FLUX Schnell (flux-schnell), Llama (llama-text)" in said
    assert KEY not in page.content()


def test_the_first_job_from_the_connection_to_its_link(
    connections: Connections, airflow: AirflowInstance, emulator: Emulator, page: Page
) -> None:
    connections.add("rungen_default")
    _fill_address(connections, emulator)
    connections.form.get_by_label("API key").fill(KEY)
    connections.fill(app_id=APP)
    connections.save()
    page.goto(f"{airflow.url}/dags/{DAG_ID}")
    page.get_by_role("button", name="Trigger").click()
    page.get_by_role("dialog").get_by_role("button", name="Trigger").click()
    page.wait_for_url(re.compile("/runs/"))
    run = page.url
    page.set_viewport_size({"width": 1100, "height": 620})
    page.get_by_role("button", name="Show Graph").click()
    for task_id in TASKS:
        expect(page.locator(f'[data-id="{task_id}"]')).to_contain_text("success", timeout=150_000)
    expect(page.get_by_text("Running", exact=True)).to_have_count(0, timeout=60_000)  # the run, too
    keep_picture(page, "run")
    [job] = emulator.service.jobs()
    assert job["status"] == "COMPLETED"
    page.get_by_role("button", name="Show Grid").click()
    page.goto(f"{run}/tasks/paint/details")
    link = page.get_by_role("link", name="RunGen job")
    expect(link).to_be_visible()
    assert KEY not in page.content()
    details = page.url
    page.get_by_role("link", name="RunGen results").click()
    page.set_viewport_size({"width": 1100, "height": 860})
    expect(page.locator("img").first).not_to_have_js_property("naturalWidth", 0)
    assert KEY not in page.content()
    page.goto(details)
    link.click()
    page.wait_for_url(re.compile(f"{airflow.url}/rungen/task/{DAG_ID}/.*#job={job['id']}$"))
    expect(page.get_by_role("dialog")).to_contain_text("completed")
    expect(page.get_by_role("dialog")).to_contain_text("a lighthouse at dawn")
    assert KEY not in page.content()


def _fill_address(connections: Connections, emulator: Emulator) -> None:
    # with a port, without which Airflow 3.3.2 tests no connection
    address = urlsplit(emulator.url)
    connections.form.get_by_label("Base URL").fill(f"http://{address.hostname}")
    connections.form.get_by_label("Port").fill(str(address.port))
