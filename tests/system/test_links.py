"""The links to results, job and app in Airflow's REST API, for deferred, failed and mapped tasks."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from rungen_emulator import Emulator

from system.stage import AirflowInstance, Run, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]


def test_deferred_and_failed_tasks_have_links_and_keep_them(
    airflow: AirflowInstance, emulator: Emulator, start: Callable[..., Run]
) -> None:
    run = start("linked", seconds=45)
    page = f"/rungen/task/linked/{quote(run.id, safe='')}"

    def check(task_id: str, prompt: str, index: int = -1, app_id: str = "flux-schnell") -> None:
        path = f"/dags/linked/dagRuns/{quote(run.id)}/taskInstances/{task_id}/links"
        ids = [job["id"] for job in emulator.service.jobs() if job["input"]["prompt"] == prompt]
        url = f"{page}/{task_id}" + (f"?map_index={index}" if index >= 0 else "")
        to_job = f"{url}#job={ids[0]}" if ids else None
        expected = {"RunGen results": url, "RunGen app": f"/rungen/#{app_id}", "RunGen job": to_job}
        assert airflow.request("GET", path, map_index=index)["extra_links"] == expected

    run.wait_for_state("deferred")
    check("run", run.prompt)
    until(lambda: run.task("failed")["state"] == "failed", 60, lambda: str(run.task("failed")))
    check("failed", "linked and failed")
    check("refused", "linked and refused", app_id="no-such-app")
    run.wait_for_state("deferred", task_id="mapped")
    for index in (0, 1):
        check("mapped", f"linked {index}", index)
    run.wait_for_end()
    check("run", run.prompt)
    check("failed", "linked and failed")
