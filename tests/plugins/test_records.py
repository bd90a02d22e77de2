"""What pages make of what tasks pushed, without Airflow's server."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import APP

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.pages.models import JobView
from airflow_provider_rungen.plugins.job_views import job_view
from airflow_provider_rungen.plugins.rows import pushed_rows
from airflow_provider_rungen.plugins.stored import OpenFile, StoredFile, attachment
from airflow_provider_rungen.plugins.task_record import Failure, PageXCom, TaskRecord
from airflow_provider_rungen.plugins.urls import Urls


def record(state: str = "success", **xcoms: Any) -> TaskRecord:
    return TaskRecord(dag_id="d", run_id="r", task_id="t", state=state, **xcoms)


FAILED = [Failure(index=1, job_id="b", error="out of memory"), Failure(index=2)]


@pytest.mark.parametrize(
    ("task", "statuses"),
    [
        (record(page=PageXCom(jobs=["a", "b", None]), failed=FAILED), ["completed", "failed", "refused"]),
        # only submitted
        (record(job_id="a", page=PageXCom(waits=False)), ["unknown"]),
        (record("deferred", page=PageXCom(jobs=["a", None])), ["unknown", "unknown"]),
        (
            record("failed", page=PageXCom(jobs=["a", None, None]), failed=FAILED[1:]),
            ["completed", "not submitted", "refused"],
        ),
    ],
)
def test_the_status_of_what_a_task_pushed(task: TaskRecord, statuses: list[str]) -> None:
    rows = pushed_rows(task, 1)
    assert [row.status for row in rows.rows] == statuses
    assert Counter(rows.counts) == Counter(statuses)
    assert [row.error for row in rows.failed] == [each.error for each in task.failed or ()]


def test_rows_are_counted_beyond_the_page() -> None:
    failed = [Failure(index=index, job_id=str(index)) for index in range(1, 250, 2)]
    found = pushed_rows(record(page=PageXCom(jobs=list(map(str, range(250)))), failed=failed), 2)
    assert (found.total, found.counts["failed"], found.counts["completed"]) == (250, 125, 125)
    assert [row.index for row in found.rows] == list(range(100, 200))
    assert len(found.failed) == 125


def test_a_completed_job_whose_result_is_of_no_use_has_failed() -> None:
    row = JobView(index=0, status="failed", job_id="j", error="the schema does not fit")
    live = Job(id="j", app_id=APP, status=JobStatus.COMPLETED)
    view = job_view(row, task=record(), urls=Urls("/rungen"), answer=live)
    assert (view.status, view.error) == ("failed", "the schema does not fit")
    canceled = replace(live, status=JobStatus.CANCELED)
    assert job_view(row, task=record(), urls=Urls("/rungen"), answer=canceled).status == "canceled"


def test_the_name_of_a_file_cannot_add_a_header() -> None:
    for name in ('a".png', "a\r\nX: 1.png", "ä.png", "\ud800.png"):
        header = attachment(name)
        assert (header.isascii(), header.isprintable(), header.count('"')) == (True, True, 2)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=300-", 300, 1000),
        ("bytes=200-999999999", 200, 1000),
        ("bytes=-7", 993, 1000),
        ("bytes=-999999999", 0, 1000),
        *((asked, None, None) for asked in ("", "bytes=999999999-", "bytes=9-3", "bytes=-", "lines=0-1")),
        ("bytes=0-1,5-6", None, None),
    ],
)
def test_a_player_gets_the_range_that_it_asks_for(
    tmp_path: Path, asked: str, start: int | None, stop: int | None
) -> None:
    content = bytes(number % 251 for number in range(1000))
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "a.mp4").write_bytes(content)
    file = OpenFile(tmp_path.as_uri(), "j", StoredFile("a.mp4", 1000, "video/mp4"), asked)
    sent = b"".join(iter(file.read, b""))
    file.close()
    assert sent == content[start:stop]
    assert file.headers["Content-Length"] == str(len(sent))
    assert file.headers["Accept-Ranges"] == "bytes"
    assert "sandbox" in file.headers["Content-Security-Policy"]
    assert file.status == (200 if stop is None else 206)
    expected = None if stop is None else f"bytes {start}-{stop - 1}/1000"
    assert file.headers.get("Content-Range") == expected
