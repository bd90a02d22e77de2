"""Store outputs from tasks of a real Airflow: in a folder of this machine, and in S3 (moto's server)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_rungen.emulator import Emulator, Fault
from system.stage import AirflowInstance, Place, Run, task_processes, until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def check(airflow: AirflowInstance, run: Run, place: Place) -> None:
    """Check that the outputs of all jobs are stored, as the manifests list them."""
    landed = airflow.xcom(run.dag_id, run.id, "land")
    assert [job["job_id"] for job in landed] == airflow.xcom(run.dag_id, run.id, "run")
    assert "X-Amz" not in json.dumps(landed)
    for job in landed:
        text = place.read(job["manifest"])
        assert b"X-Amz" not in text
        manifest: dict[str, Any] = json.loads(text)
        assert manifest["complete"] is True
        assert manifest["input"]["prompt"] == run.prompt
        [stored] = manifest["outputs"]
        assert manifest["result"] == {"images": [{"image": stored["uri"]}]}
        content = place.read(stored["uri"])
        assert content.startswith(b"\x89PNG")
        assert (stored["size"], stored["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_an_attempt_after_a_kill_fetches_what_is_missing(
    airflow: AirflowInstance, emulator: Emulator, start: Callable[..., Run], place: Place
) -> None:
    asked = emulator.service.count("output")
    # the first half arrives, and nothing of the rest
    emulator.service.inject(Fault(on="output", kind="hang", times=None, skip=20))
    try:
        run = start("landing", seconds=1, count=40, destination=place.uri)
        until(lambda: emulator.service.count("output") - asked == 28, 90, lambda: run.log(task_id="land"))
        os.kill(task_processes(airflow, run, "land")["task"], signal.SIGKILL)
    finally:
        emulator.service.clear_faults()
    assert run.wait_for_end() == "success"
    assert run.task("land")["try_number"] == 2
    assert emulator.service.count("output") - asked == 28 + 20
    check(airflow, run, place)
