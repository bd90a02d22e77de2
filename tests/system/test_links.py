"""The links to job and app in Airflow's REST API, for deferred, failed and mapped tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from rungen_emulator import Emulator

from system.stage import AirflowInstance, Run, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]


def links(airflow: AirflowInstance, run: Run, task_id: str, map_index: int = -1) -> dict[str, Any]:
    path = f"/dags/{run.dag_id}/dagRuns/{quote(run.id)}/taskInstances/{task_id}/links"
    found: dict[str, Any] = airflow.request("GET", path, map_index=map_index)["extra_links"]
    return found


def to(
    run: Run, task_id: str, job_id: str | None, app_id: str = "flux-schnell", map_index: int = -1
) -> dict[str, Any]:
    page = f"/rungen/dags/{run.dag_id}/runs/{quote(run.id, safe='')}/tasks/{task_id}/{map_index}"
    job = None if job_id is None else f"{page}/jobs/{job_id}"
    return {"RunGen results": page, "RunGen app": f"{page}/apps/{app_id}", "RunGen job": job}


def test_deferred_and_failed_tasks_have_links_and_keep_them(
    airflow: AirflowInstance, emulator: Emulator, start: Callable[..., Run]
) -> None:
    run = start("linked", seconds=45)
    run.wait_for_state("deferred")
    [job] = run.jobs()
    assert links(airflow, run, "run") == to(run, "run", job["id"])
    until(lambda: run.task("failed")["state"] == "failed", 60, lambda: str(run.task("failed")))
    [failed] = [each for each in emulator.service.jobs() if each["input"]["prompt"] == "linked and failed"]
    assert links(airflow, run, "failed") == to(run, "failed", failed["id"])
    assert links(airflow, run, "refused") == to(run, "refused", None, "no-such-app")
    run.wait_for_state("deferred", task_id="mapped")
    mapped = [links(airflow, run, "mapped", index)["RunGen job"] for index in (0, 1)]
    by_prompt = {each["input"]["prompt"]: each["id"] for each in emulator.service.jobs()}
    assert mapped == [
        to(run, "mapped", by_prompt[f"linked {index}"], map_index=index)["RunGen job"] for index in (0, 1)
    ]
    run.wait_for_end()
    assert links(airflow, run, "run") == to(run, "run", job["id"])
    assert links(airflow, run, "failed") == to(run, "failed", failed["id"])
