"""The UI of Airflow 2.11 in a real browser: the connection's form, its test, and the links of a task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Page, expect

from airflow_provider_rungen import get_provider_info
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.emulator.demo import EXAMPLES
from browser.airflow_2 import Airflow2
from browser.conftest import KEY
from compat.environments import Environment

# a new environment takes minutes
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
DAG_ID = "rungen_first_job"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow2]:
    of_2 = Environment("2.11", "3.11")
    of_2.make()
    environment = {"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
    home = tmp_path_factory.mktemp("airflow")
    with Airflow2(of_2.executable, home, EXAMPLES, environment=environment) as instance:
        instance.unpause(DAG_ID)
        yield instance


@pytest.fixture
def signed_in(airflow: Airflow2, page: Page) -> Page:
    page.goto(f"{airflow.url}/login/")
    page.locator("#username").fill(airflow.user)
    page.locator("#password").fill(airflow.password)
    page.locator("input[type=submit]").click()
    return page


def test_the_first_job_from_the_connection_to_its_link(
    airflow: Airflow2, emulator: Emulator, signed_in: Page
) -> None:
    page = signed_in
    page.goto(f"{airflow.url}/connection/add")
    page.locator("#conn_id").fill("rungen_default")
    page.locator("#conn_type").select_option("rungen", force=True)  # a widget lies over it
    for label in ("Base URL", "API key"):
        expect(page.get_by_text(label, exact=True)).to_be_visible()
    for name in ("login", "schema", "extra"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    fields = get_provider_info()["connection-types"][0]["conn-fields"]
    for field in fields.values():
        expect(page.get_by_text(field["label"], exact=True)).to_be_visible()
        expect(page.get_by_text(field["description"], exact=True)).to_be_visible()
    expect(page.locator("#host")).to_have_attribute("placeholder", "https://api.rungen.ai")
    page.locator("#host").fill(emulator.url)
    page.locator("#password").fill(KEY)
    page.get_by_label("Default app ID").fill("flux-schnell")
    # Airflow 2 has no pages of ours
    console = "https://console.example/{app_id}"
    page.get_by_label(fields["app_url"]["label"]).fill(console)
    page.get_by_label(fields["job_url"]["label"]).fill(console + "/{job_id}")
    page.locator("#test-connection").click()
    expect(
        page.get_by_text(
            f"Connected to {emulator.url}: 2 apps: FLUX Schnell (flux-schnell), Llama (llama-text)"
        )
    ).to_be_visible()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Added Row")).to_be_visible()

    run_id = airflow.trigger(DAG_ID)
    assert airflow.wait_for_run(DAG_ID, run_id, 150) == "success"
    [job] = emulator.service.jobs()
    page.goto(f"{airflow.url}/dags/{DAG_ID}/grid?dag_run_id={quote(run_id)}&task_id=paint")
    app = "https://console.example/flux-schnell"
    expect(page.get_by_role("link", name="RunGen job")).to_have_attribute("href", f"{app}/{job['id']}")
    expect(page.get_by_role("link", name="RunGen app")).to_have_attribute("href", app)
    expect(page.get_by_role("link", name="RunGen results")).not_to_have_attribute("href", re.compile("."))
    assert KEY not in page.content()
