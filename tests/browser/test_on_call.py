"""What the page says at night, in a real Airflow: why, where, what it cost, and what to do."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import expect
from rungen_emulator import Emulator, Fault

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from airflow_instance import AirflowError, AirflowInstance

from browser.conftest import KEY

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

DAGS = Path(__file__).with_name("on_call_dags")
APP = "flux-schnell"
OVER = ("success", "failed", "upstream_failed")

#: What the box says, for each way to fail.
SCENES = {
    "revoked_key": [
        "(403)",
        "Check the password of connection 'rungen_revoked'",
        "nothing",
    ],
    "no_workers": ["asleep", "1 job"],
    "out_of_memory": ["CUDA out of memory", "rungen_default", "1 job"],
    "timed_out": ["execution_timeout (15 s) is over", "12 jobs"],
    "three_of_fifty": ["3 of 50 rows failed", "CUDA out of memory", "50 jobs", "buys only these again"],
    "still_up": ["(500)", "rungen_stuck"],
}
#: What else the page says.
NUMBERS = {
    "three_of_fifty": ["50 of 50 ended", "47 completed", "3 failed"],
    "still_up": ["may still be up, and billed"],
}


@dataclass
class Night:
    """An Airflow, and the services of its connections."""

    airflow: AirflowInstance
    services: dict[str, Emulator]

    def wait(self, dag_id: str, task_id: str = "paint", *, until: tuple[str, ...] = OVER) -> str:
        deadline = time.monotonic() + 400
        state = ""
        while state not in until:
            assert time.monotonic() < deadline, (dag_id, state)
            time.sleep(0.5)
            with contextlib.suppress(AirflowError):  # it may be overloaded
                tasks = self.airflow.task_instances(dag_id, self.run_id(dag_id))
                state = next((str(task["state"]) for task in tasks if task["task_id"] == task_id), "")
        return state

    def run_id(self, dag_id: str) -> str:
        run_id: str = self.airflow.wait_for_new_run(dag_id, 30)
        return run_id

    def url(self, dag_id: str, task_id: str = "paint") -> str:
        return f"{self.airflow.url}/rungen/task/{dag_id}/{quote(self.run_id(dag_id), safe='')}/{task_id}"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    home = tmp_path_factory.mktemp("airflow")
    with contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(Emulator(job_seconds=0.2, workers=12, api_key=KEY))
            for name in ("default", "stuck")
        }
        services["default"].service.add_app("asleep")
        services["default"].service.scale("asleep", 0)
        services["stuck"].service.scale(APP, 0)
        connections = {name: each.airflow_connection(price="1.20 USD/h") for name, each in services.items()}
        revoked = json.loads(connections["default"]) | {"password": "a-key-that-was-revoked"}
        settings = {
            f"AIRFLOW_CONN_RUNGEN_{name.upper()}": text
            for name, text in (connections | {"revoked": json.dumps(revoked)}).items()
        }
        settings |= {"PAGES_FOLDER": str(home), "AIRFLOW__CORE__PARALLELISM": "4"}
        night = Night(stack.enter_context(AirflowInstance(home, DAGS, environment=settings)), services)
        for dag_id in (*SCENES, "moving"):
            night.airflow.trigger(dag_id)
        night.wait("still_up", "app_up")
        services["stuck"].service.inject(Fault(on="update_app", status=500, times=None))
        yield night


@pytest.mark.parametrize("dag_id", SCENES)
def test_a_task_that_failed_says_why(night: Night, page: Page, tmp_path: Path, dag_id: str) -> None:
    task_id = "app_down" if dag_id == "still_up" else "paint"
    assert night.wait(dag_id, task_id) == "failed"
    page.goto(night.url(dag_id, task_id))
    box = page.get_by_label("What failed")
    for words in SCENES[dag_id]:
        expect(box).to_contain_text(words)
    for words in NUMBERS.get(dag_id, ()):
        expect(page.locator("body")).to_contain_text(words)
    assert KEY not in page.content()
    page.screenshot(path=tmp_path / f"{dag_id}.png")


def test_a_running_table_says_how_far_it_is(night: Night, page: Page, tmp_path: Path) -> None:
    night.wait("moving", until=("running", *OVER))
    page.goto(night.url("moving"))
    expect(page.locator("body")).to_contain_text("6 of 12 ended", timeout=90_000)
    expect(page.get_by_role("article")).to_have_count(6)
    page.screenshot(path=tmp_path / "moving.png")


def test_the_overview_says_what_is_billed_now(night: Night, page: Page, tmp_path: Path) -> None:
    night.wait("still_up", "app_down")
    page.goto(f"{night.airflow.url}/rungen/")
    expect(page.get_by_role("article").filter(has_text="rungen_stuck").first).to_contain_text(
        "2.40 USD an hour"
    )
    expect(page.locator("body")).to_contain_text("Connection rungen_revoked")
    page.screenshot(path=tmp_path / "overview.png")
