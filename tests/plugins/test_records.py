"""What pages make of XComs, without Airflow's server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from conftest import APP

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.plugins import headers
from airflow_provider_rungen.plugins.job_rows import (
    JobRow,
    JobRows,
    progress_by_counters,
    rows_of_task,
)
from airflow_provider_rungen.plugins.task_record import TaskRecord, plain
from airflow_provider_rungen.plugins.urls import Urls
from airflow_provider_rungen.plugins.views import bill_facts, job_view, scaled_up_at


def record(state: str = "success", **xcoms: Any) -> TaskRecord:
    return TaskRecord(dag_id="d", run_id="r", task_id="t", state=state, xcoms=xcoms)


def test_nothing_in_an_xcom_becomes_an_object() -> None:
    stored = json.dumps({"__classname__": "os.system", "__version__": 1, "__data__": ["id"]})
    assert plain(stored) == {"__classname__": "os.system", "__version__": 1, "__data__": ["id"]}
    assert plain(json.dumps({"__classname__": "builtins.tuple", "__version__": 1, "__data__": [0, "x"]})) == [
        0,
        "x",
    ]
    assert plain("no JSON") == "no JSON"


def test_an_input_without_a_job_was_refused() -> None:
    failed = [{"index": 1, "job_id": "b", "error": "out of memory"}, {"index": 2}]
    rows = list(rows_of_task(record(job_ids=["a", "b", None], failed=failed)))
    assert [row.status for row in rows] == ["completed", "failed", "refused"]
    assert [row.error for row in rows] == ["", "out of memory", ""]


def test_a_job_that_is_only_submitted_is_not_completed() -> None:
    task = record(job_id="a", rungen_page={"waits": False})
    assert [row.status for row in rows_of_task(task)] == ["unknown"]


@pytest.mark.parametrize(("state", "status"), [("deferred", "unknown"), ("failed", "not submitted")])
def test_an_input_that_is_not_submitted_has_not_failed(state: str, status: str) -> None:
    task = record(state, job_ids=["a", None, None], failed=[{"index": 2, "error": "too large"}])
    assert [row.status for row in rows_of_task(task)][1:] == [status, "refused"]


def test_a_completed_job_whose_result_is_of_no_use_has_failed() -> None:
    row = JobRow(index=0, status="failed", job_id="j", error="the schema does not fit")
    live = Job(id="j", app_id=APP, status=JobStatus.COMPLETED)
    view = job_view(row, task=record(), urls=Urls("/rungen"), live=live)
    assert (view.status, view.error) == ("failed", "the schema does not fit")
    canceled = replace(live, status=JobStatus.CANCELED)
    assert job_view(row, task=record(), urls=Urls("/rungen"), live=canceled).status == "canceled"


def test_rows_are_counted_beyond_the_page() -> None:
    rows = (
        JobRow(index=number, status="failed" if number % 2 else "completed", job_id=f"{number}")
        for number in range(250)
    )
    found = JobRows.count(rows, 2)
    assert (found.total, found.statuses["failed"]) == (250, 125)
    assert [row.index for row in found.rows] == list(range(100, 200))
    assert len(found.failed) == 125


def test_counters_of_the_app_never_show_more_than_the_task_has() -> None:
    task = record("deferred", rungen_page={"rows": 100, "skipped": 10, "reused": 20, "refused": 5})
    progress = progress_by_counters(65, task, queued=500, running=8)
    assert progress is not None
    assert (progress.total, progress.running, progress.queued, progress.done) == (100, 8, 57, 35)
    over = progress_by_counters(65, task, queued=0, running=0)
    assert over is not None
    assert over.done == over.total


def test_the_app_is_up_since_its_last_start() -> None:
    changes = [{"at": 1.0, "workers": 1}, {"at": 2.0, "workers": 0}, {"at": 3.0, "workers": 2}]
    since = scaled_up_at(record(scaled={"changes": [*changes, {"at": 4.0, "workers": 3}]}))
    assert since is not None
    assert since.timestamp() == 3.0
    assert scaled_up_at(record(scaled={"changes": changes[:2]})) is None


def test_a_bill_is_readable() -> None:
    bill = {"utilization": "0.1407", "worker_seconds": "21.329", "up_at": "2026-01-02T03:04:05+00:00"}
    facts = dict(bill_facts(bill | {"cost": "0.0071", "currency": "USD", "source": "declared price"}))
    assert facts["Utilization"] == "14 %"
    assert facts["Up since"] == "2026-01-02 03:04:05 UTC"
    assert facts["Cost"] == "0.0071 USD (declared price)"


@pytest.mark.parametrize("name", ['a".png', "a\r\nX: 1.png", "ä.png", "\ud800.png"])
def test_the_name_of_a_file_cannot_add_a_header(name: str) -> None:
    disposition = headers.of_file(name, "image/png", is_inline=True, size=1, part=None)["Content-Disposition"]
    assert disposition.isascii()
    assert disposition.isprintable()
    assert disposition.count('"') == 2
