"""When a real Airflow retries a failed task."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from urllib.parse import quote

import pytest
from rungen_emulator import Emulator, Fault

from system.stage import AirflowInstance, Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]


def test_a_retry_comes_no_sooner_than_the_service_asked_for(
    airflow: AirflowInstance, emulator: Emulator, start: Callable[..., Run]
) -> None:
    # longer than an attempt backs off, and than the task's retry_delay of a second
    emulator.service.inject(Fault(on="run", status=429, headers={"Retry-After": "125"}))
    run = start("asked_to_wait", seconds=0.1)
    assert run.wait_for_end(240) == "success"
    path = f"/dags/{run.dag_id}/dagRuns/{quote(run.id)}/taskInstances/run/tries"
    first, second = airflow.request("GET", path)["task_instances"]
    pause = datetime.fromisoformat(second["start_date"]) - datetime.fromisoformat(first["end_date"])
    assert timedelta(seconds=124) < pause < timedelta(seconds=200)
    assert len(run.jobs()) == 1
    assert "RunGen asked to wait 2 min 5 s" in run.log(1)


def test_a_permanent_error_is_not_retried(start: Callable[..., Run]) -> None:
    run = start("hopeless", seconds=0.1)
    assert run.wait_for_end() == "failed"
    assert run.task()["try_number"] == 1
    assert run.task()["max_tries"] == 2
    assert run.jobs() == []
