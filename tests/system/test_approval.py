"""A sample, a quote and an answer in a real Airflow, judged by the jobs and workers that the emulator saw."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest

from system.stage import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]

UP = b'{"configuration":{"active_workers":1}}'
DOWN = b'{"configuration":{"active_workers":0}}'
SAMPLE = ["kettle, red", "boots, blue"]
REST = ["desk, walnut", "lamp, brass", "clock, black"]


class Approval:
    """A run of the example over a table of its own, which waits for an answer."""

    def __init__(self, start: Callable[..., Run], folder: Path) -> None:
        self.style = f"picture {uuid.uuid4()}"
        table = folder / "products.csv"
        lines = [f"{number},{row.replace(', ', ',')}" for number, row in enumerate(SAMPLE + REST)]
        table.write_text("\n".join(["sku,title,color", *lines, ""]))
        conf = {"catalogue": str(table), "folder": folder.as_uri(), "style": self.style, "sample": 2}
        self.run = start("rungen_approval", seconds=0, **conf)
        self.run.prompt = self.style
        self.airflow, self.service = self.run.airflow, self.run.emulator.service
        self.first_record = len(self.service.records())
        self.run.wait_for_state("awaiting_input", timeout=150, task_id="approve")
        self.app_id = str(self.xcom("create"))

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        return self.airflow.xcom(self.run.dag_id, self.run.id, task_id, key)

    def ask(self, method: str = "GET", body: Any = None) -> Any:
        run = f"/dags/{self.run.dag_id}/dagRuns/{quote(self.run.id, safe='')}"
        return self.airflow.request(method, f"{run}/taskInstances/approve/-1/hitlDetails", body)

    def answer(self, option: str) -> str:
        """Answer as a human does in the UI, and return how the run ended."""
        self.ask("PATCH", {"chosen_options": [option], "params_input": {}})
        return self.run.wait_for_end()

    def bought(self) -> dict[str, int]:
        """Return how many jobs each row has, by what follows the style in its prompt."""
        prompts = [job["input"]["prompt"] for job in self.run.jobs()]
        return dict(Counter(prompt.removeprefix(f"{self.style} of ") for prompt in prompts))

    def workers_set(self) -> list[bytes]:
        """Return each number of workers that this run requested."""
        records = self.service.records()[self.first_record :]
        return [each.body for each in records if (each.method, each.path) == ("PUT", f"/app/{self.app_id}")]

    def check_no_worker(self) -> None:
        bills = []
        for pause in (0, 3):
            time.sleep(pause)
            stats = self.service.stats()
            assert stats["active_workers"][self.app_id] == 0
            bills.append(stats["worker_seconds"][self.app_id])
        assert bills[0] == bills[1] > 0

    def states(self) -> dict[str, str]:
        tasks = self.airflow.task_instances(self.run.dag_id, self.run.id)
        return {task["task_id"]: task["state"] for task in tasks}


@pytest.fixture
def approval(start: Callable[..., Run], tmp_path: Path) -> Approval:
    """Return a run that has painted its sample. While it waits, no worker is up."""
    approval = Approval(start, tmp_path)
    assert approval.bought() == dict.fromkeys(SAMPLE, 1)
    assert approval.workers_set() == [UP, DOWN]
    approval.check_no_worker()
    return approval


def test_a_human_sees_the_quote_and_the_sample_and_a_rejection_buys_nothing_more(approval: Approval) -> None:
    plan, body = approval.xcom("plan", "plan"), approval.ask()["body"]
    assert (plan["rows"], plan["jobs"], plan["reused"], plan["currency"]) == (5, 3, 2, "USD")
    assert plan["seconds"] > 0, "the sample has shown how long a job runs"
    assert f"**3** of 5 pictures are left to paint: about {round(plan['seconds'])} s of" in body
    assert f"**{plan['cost']} USD**" in body
    page = approval.xcom("sample", "rungen_results_link")
    assert f"({page})" in body
    with build_opener(ProxyHandler({})).open(approval.airflow.url + page, timeout=30) as answer:
        shown = answer.read().decode()
    assert all(f"{approval.style} of {row}" in shown for row in SAMPLE)
    assert approval.answer("Reject") == "success"
    assert approval.bought() == dict.fromkeys(SAMPLE, 1)
    assert approval.workers_set() == [UP, DOWN]
    approval.check_no_worker()
    states = approval.states()
    assert (states["approve"], states["app_up"], states["paint"]) == ("success", "skipped", "skipped")


def test_an_approval_buys_each_row_once(approval: Approval) -> None:
    assert approval.answer("Approve") == "success"
    assert approval.bought() == dict.fromkeys(SAMPLE + REST, 1)
    assert approval.run.jobs_by_status() == {"COMPLETED": 5}
    assert approval.workers_set() == [UP, DOWN, UP, DOWN]
    approval.check_no_worker()
    summary = approval.xcom("paint")
    assert (summary["rows"], summary["completed"], summary["jobs"], summary["reused"]) == (5, 5, 3, 2)
    assert set(approval.states().values()) == {"success"}
