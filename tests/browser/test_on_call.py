"""What the pages say at night: each way to fail as a picture."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, Page, expect
from rungen_emulator import Emulator, Fault

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import AirflowError, AirflowInstance

from browser.conftest import KEY, keep_picture

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

DAGS = Path(__file__).with_name("on_call_dags")
APP = "flux-schnell"
OVER = ("success", "failed", "upstream_failed")


#: What the red box says, for each way to fail.
SCENES = {
    "revoked_key": ["(403)", "Check API key", "nothing: no job was submitted"],
    "no_answer": ["(503)", "nothing: no job was submitted", "the job again"],
    "no_workers": ["Queued for too long", "Scale the app up", "1 job"],
    "timed_out": ["timeout (now 15 s)", "12 jobs", "all 12 inputs"],
    "execution_timed_out": ["execution_timeout (15 s) is over", "12 jobs", "all 12 inputs"],
    "queued_for_too_long": ["no active workers", "all 12 inputs"],
    "refused_input": ["(400)", "width must be a multiple of 8"],
    "three_of_fifty": ["3 of 50 inputs failed", "CUDA out of memory", "all 50 inputs", "only 3"],
    "out_of_memory": ["CUDA out of memory", "the job again"],
    "revoked_while_deferred": ["(403)", "May still run, and be billed"],
    "collecting": ["(404)", "no jobs"],
    "still_up": ["STILL BILLED", "(500)"],
}
#: What else the page says.
NUMBERS = {
    "timed_out": ["4 completed", "8 canceled"],
    "execution_timed_out": ["4 completed", "8 canceled"],
    "queued_for_too_long": ["12 canceled"],
    "three_of_fifty": ["47 completed", "3 failed"],
    "still_up": ["Workers now", "2.40 USD an hour", "Cost so far", "app billing ends"],
}


@dataclass
class Night:
    """An Airflow, and the services of its connections."""

    airflow: AirflowInstance
    services: dict[str, Emulator]
    folder: Path

    def start(self, *dag_ids: str) -> None:
        for dag_id in dag_ids:
            self.airflow.trigger(dag_id)

    def state(self, dag_id: str, task_id: str = "paint") -> str:
        with contextlib.suppress(AirflowError):  # it may be overloaded
            tasks = self.airflow.task_instances(dag_id, self.run_id(dag_id))
            return next((str(task["state"]) for task in tasks if task["task_id"] == task_id), "")
        return ""

    def wait(self, dag_id: str, task_id: str = "paint", *, until: tuple[str, ...] = OVER) -> str:
        deadline = time.monotonic() + 400
        while (state := self.state(dag_id, task_id)) not in until:
            assert time.monotonic() < deadline, (dag_id, state)
            time.sleep(0.5)
        return state

    def run_id(self, dag_id: str) -> str:
        run_id: str = self.airflow.wait_for_new_run(dag_id, 30)
        return run_id

    def url(self, dag_id: str, task_id: str = "paint") -> str:
        run_id = quote(self.run_id(dag_id), safe="")
        return f"{self.airflow.url}/rungen/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/-1"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    home = tmp_path_factory.mktemp("airflow")
    with contextlib.ExitStack() as stack:
        names = ("default", "down", "strict", "stuck", "lost")
        services = {
            name: stack.enter_context(Emulator(job_seconds=0.2, workers=12, api_key=KEY)) for name in names
        }
        services["default"].service.add_app("asleep")
        services["default"].service.scale("asleep", 0)
        services["stuck"].service.scale(APP, 0)
        services["down"].service.inject(Fault(status=503, times=None))
        refusal = {"error": "width must be a multiple of 8"}
        services["strict"].service.inject(Fault(on="run", status=400, body=refusal, times=None))
        connections = {name: emulator.airflow_connection() for name, emulator in services.items()}
        revoked = json.loads(connections["default"]) | {"password": "a-key-that-was-revoked"}
        settings = {
            f"AIRFLOW_CONN_RUNGEN_{name.upper()}": text
            for name, text in (connections | {"revoked": json.dumps(revoked)}).items()
        }
        settings |= {"PAGES_FOLDER": str(home), "AIRFLOW__CORE__PARALLELISM": "5"}
        airflow = stack.enter_context(AirflowInstance(home, DAGS, environment=settings))
        yield Night(airflow, services, home)


@pytest.fixture(scope="module")
def failed(night: Night) -> Night:
    """The night, with everything that goes wrong in it."""
    night.start(*SCENES, "retrying")
    night.wait("still_up", "app_up")
    night.services["stuck"].service.inject(Fault(on="update_app", status=500, times=None))
    night.wait("revoked_while_deferred", until=("deferred", "failed"))
    night.services["lost"].service.configure({"api_key": "another"})
    return night


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1100, "height": 860}, color_scheme="light")
    page.set_default_timeout(30_000)
    yield page
    page.close()


@pytest.mark.parametrize("dag_id", SCENES)
def test_a_task_that_failed_says_why(failed: Night, page: Page, tmp_path: Path, dag_id: str) -> None:
    task_id = "app_down" if dag_id == "still_up" else "paint"
    assert failed.wait(dag_id, task_id) == "failed"
    page.goto(failed.url(dag_id, task_id))
    box = page.get_by_label("What failed")
    for words in SCENES[dag_id]:
        expect(box).to_contain_text(words)
    text = page.inner_text("body")
    for words in NUMBERS.get(dag_id, ()):
        assert words in text
    assert not re.search(r"No jobs yet|\b0 of \d+ done", text)
    assert KEY not in page.content()
    page.screenshot(path=tmp_path / f"{dag_id}.png")
    if dag_id == "timed_out":
        keep_picture(page, "failed", clip={"x": 0, "y": 0, "width": 1100, "height": 560})


def test_a_retry_that_runs_says_why_the_last_attempt_failed(
    failed: Night, page: Page, tmp_path: Path
) -> None:
    deadline = time.monotonic() + 300
    while True:
        page.goto(failed.url("retrying"))
        text = page.inner_text("body")
        if "runs. Attempt" in text:
            break
        assert time.monotonic() < deadline, text
        time.sleep(1)
    expect(page.get_by_label("What failed")).to_contain_text("Queued for too long")
    page.screenshot(path=tmp_path / "retrying.png")


def test_all_tasks_of_the_block_and_the_overview_say_what_is_billed(
    failed: Night, page: Page, tmp_path: Path
) -> None:
    failed.wait("still_up", "app_down")
    for task_id in ("app_up", "paint"):
        page.goto(failed.url("still_up", task_id))
        expect(page.get_by_label("What is billed")).to_contain_text("STILL BILLED")
    page.goto(f"{failed.airflow.url}/rungen/")
    text = page.inner_text("header")
    assert "billed now" in text
    assert "Unknown" in text  # of the services that do not answer
    page.screenshot(path=tmp_path / "overview.png")
