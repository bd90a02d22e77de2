"""
What is written of a job can be read again, whatever the service answers.

Whatever is in Airflow's database, reading it gives a record or nothing, and one warning.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_rungen.client import endpoints
from airflow_provider_rungen.client.flow import Response
from airflow_provider_rungen.client.models import App, Job
from airflow_provider_rungen.client.money import parse_price
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.apps.bill import add_costs
from airflow_provider_rungen.execution.apps.block import read_scale_record
from airflow_provider_rungen.execution.archive.stored_jobs import manifest_text, parse_manifest
from airflow_provider_rungen.execution.jobs.job_ends import ENDS
from airflow_provider_rungen.execution.ledger.entries import Entry, entry_text, parse_entry
from airflow_provider_rungen.execution.table.result_rows import ResultRow, Status
from airflow_provider_rungen.execution.task.report import Usage
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.part_files import PartFile
from airflow_provider_rungen.runs.rows import Writer

RAISED = ScaleRecord("app", 2, 0, time.time(), WorkerHistory(((1.0, 0), (2.0, 2))))

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
HOSTILE: list[Any] = [
    *(None, True, -1, 10**12, 10**400, float("nan"), float("inf"), "", "x" * 10_000_000, "../app", "a b"),
    *([], {}, [None], [[]], {"a": 1}, ["x"] * 1000, ["same", "same"], [7]),
]


def test_a_record_comes_back_as_it_was() -> None:
    assert read_scale_record(RAISED.to_json()) == RAISED


@given(value=JSON)
def test_arbitrary_json_raises_nothing(value: Any) -> None:
    read_scale_record(value)


@given(data=st.data())
def test_a_record_with_an_arbitrary_field_raises_nothing(data: st.DataObject) -> None:
    value = RAISED.to_json()
    read_scale_record(value | {data.draw(st.sampled_from(sorted(value))): data.draw(JSON)})


def test_a_record_with_a_hostile_or_missing_field_is_read_or_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    value = RAISED.to_json()
    broken: list[Any] = [value | {name: bad} for name in value for bad in HOSTILE]
    broken += [{name: value[name] for name in value if name != left_out} for left_out in value]
    broken += [value | {"version": 2}, *(bad for bad in HOSTILE if bad is not None)]
    for each in broken:
        caplog.clear()
        read_scale_record(each)
        assert len(caplog.messages) <= 1
        assert all(line.startswith("Ignored ") and len(line) < 300 for line in caplog.messages)


# --- what the service answers ---

ODD_NUMBERS = st.one_of(
    st.floats().map(str),
    st.floats(),
    st.integers(),
    st.integers(-3, 13).map(lambda digits: 10**digits + 0.4),
    st.sampled_from([True, None, "", "1764302000000", 99999999999.9999, 100_000_000_000.4, 10**400]),
)
ODD_IDS = st.text(min_size=1, max_size=80) | st.sampled_from(["x" * 255, "x" * 256, "\u00e9" * 128, ".", "~"])
ODD_JOBS = st.fixed_dictionaries(
    {
        "id": ODD_IDS,
        "status": st.sampled_from(["COMPLETED", "FAILED", "CANCELED"]),
        "execution_time": ODD_NUMBERS,
        "error": st.text() | JSON,
        "created_at": st.datetimes().map(str) | JSON,
        "result": JSON,
    }
)


def submitted(answer: Any) -> Job | None:
    """Return the job of an answer to a submission; ``None`` unless there is one."""
    try:
        return drive(endpoints.run_job("flux", {}, attempts=1), lambda _: Response(201, {}, answer))
    except RunGenError:
        return None


@given(fields=ODD_JOBS)
@example(fields={"id": "job-1", "status": "COMPLETED", "execution_time": "1764302000000"})
@example(fields={"id": "x" * 256, "status": "COMPLETED", "execution_time": "1"})
def test_all_that_is_written_of_a_job_can_be_read_again(fields: dict[str, Any]) -> None:
    job = submitted(json.dumps(fields).encode())
    if job is None:
        return
    writer = Writer(1, 1, "1" * 8)
    jobs = Jobs("ef" * 16, writer)
    jobs.load([0])
    jobs.announce([0])
    assert jobs.accept(0, job.id)
    jobs.end(job.id, ENDS[job.status], seconds=job.execution_time, why=job.error)
    file = jobs.snapshot(0, save=1, nth=0, at=0)
    assert PartFile.decode(file.encode()) == file

    manifest = manifest_text(
        {
            "job_id": job.id,
            "app_id": "flux",
            "created_at": job.created_at and job.created_at.isoformat(),
            "execution_time": job.execution_time,
            "outputs": [],
        }
    )
    stored = parse_manifest(manifest, "flux", job.id)
    assert stored.execution_seconds == job.execution_time
    assert stored.created_at == (job.created_at and job.created_at.isoformat())

    now, uri = datetime(2026, 1, 31, tzinfo=UTC), f"s3://bucket/{job.id}/manifest.json"
    for entry in (
        Entry("flux", job.id, "ab12", now),
        Entry("flux", job.id, "ab12", now, uri, stored.execution_seconds),
    ):
        assert parse_entry("a" * 64, entry_text("a" * 64, entry)) == entry

    usage = Usage()
    usage.note(job)
    ran = job.execution_time
    assert usage.to_json()["execution_seconds"] == (None if ran is None else round(ran, 3))
    row = ResultRow(index=0, status=Status.COMPLETED, execution_seconds=ran)
    [priced] = add_costs([row], parse_price("999999999.999999999 USD/s"))
    assert (priced.cost is None) == (ran is None)


@given(numbers=st.dictionaries(st.sampled_from(["active_workers", "in_queue"]), ODD_NUMBERS))
@example(numbers={"active_workers": 10**10})
def test_a_number_of_workers_can_be_read_again(numbers: dict[str, Any]) -> None:
    app = App.from_json({"id": "flux", "configuration": numbers, "jobs": numbers})
    history = WorkerHistory(((1.0, app.active_workers or 0),))
    record = ScaleRecord("flux", app.active_workers, app.active_workers, 1.0, history)
    assert read_scale_record(json.loads(json.dumps(record.to_json()))) == record
