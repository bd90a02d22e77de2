"""`RunGenCollectResultsOperator` with ``results``: a table in place of a list, on success and on failure."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, Asset
from conftest import APP, KEY, Outcome, OutletEvents, rows_in
from operator_kit import FAST, MODES, Stage, submitted, taking
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.exceptions import RunGenForbiddenError, RunGenInputError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.task.outcomes import MAX_FAILED
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator

pytestmark = pytest.mark.usefixtures("unsettled")

OUTLET = Asset("s3://shop/results")


class Collecting(Stage):
    """A task that collects jobs in a table."""

    def __init__(self, emulator: Emulator, context: Any, folder: Path) -> None:
        super().__init__(emulator, {**context, "outlet_events": OutletEvents()})
        self.folder = folder

    def operator(self, job_id: Any, **options: Any) -> RunGenCollectResultsOperator:
        own = {"task_id": "collect", "results": f"{self.folder}/results.jsonl", "outlets": [OUTLET]}
        return RunGenCollectResultsOperator(job_id=job_id, **{**FAST, **own, **options})

    def collect(self, job_id: Any, **options: Any) -> Outcome:
        return self.run(self.operator(job_id, **options))

    def failure(self, kind: type[BaseException], job_id: Any, **options: Any) -> Any:
        """Return the error of a task that fails, which is of this kind."""
        return self.error(self.operator(job_id, **options), kind)

    @property
    def extra(self) -> dict[str, Any]:
        """What the event of the asset says."""
        extra: dict[str, Any] = self.context["outlet_events"][OUTLET].extra
        return extra

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table, with parsed results."""
        return [row | {"result": row["result"] and json.loads(row["result"])} for row in rows_in(self.folder)]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    @property
    def failed(self) -> list[int]:
        return [each["index"] for each in self.ti.xcoms["failed"]]


@pytest.fixture
def task(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> Collecting:
    return Collecting(rungen_emulator, context, tmp_path)


@pytest.mark.contract
@MODES
def test_results_are_written_in_the_order_of_the_jobs(task: Collecting, deferrable: bool) -> None:
    text, null, bad, gone = submitted(
        taking(2, result="text"), taking(0, result=None), taking(0, fail="out of memory"), taking(60)
    )
    with RunGenHook() as hook:
        hook.cancel_job(job_id=gone)
    ids = [text, bad, None, gone, null, text]
    outcome = task.collect(ids, deferrable=deferrable, max_failed=3)
    assert outcome.error is None
    assert len(outcome.events) == deferrable
    columns = ("index", "job_id", "status", "result", "reused", "outputs")
    assert [tuple(row[name] for name in columns) for row in task.rows] == [
        (0, text, "completed", "text", False, []),
        (1, bad, "failed", None, False, []),
        (2, None, "failed", None, False, []),
        (3, gone, "canceled", None, False, []),
        (4, null, "completed", None, False, []),
        (5, text, "completed", "text", False, []),
    ]
    told = [None, "out of memory", "it has no job", "Canceled", None, None]
    for part, error in zip(told, task.column("error"), strict=True):
        assert part in error if part else error is None
    assert task.rows[0]["execution_seconds"] == pytest.approx(2)
    assert task.rows[0]["created_at"].endswith("+00:00")
    jobs = {row["job_id"]: row["execution_seconds"] or 0 for row in task.rows}
    assert outcome.value.pop("execution_seconds") == pytest.approx(sum(jobs.values()), abs=0.001)
    results = f"{task.folder}/results.jsonl"
    counts = {"rows": 6, "completed": 3, "failed": 3, "skipped": 0, "reused": 0, "jobs": 4}
    assert outcome.value == {"results": results} | counts
    assert task.failed == [1, 2, 3]
    found = {"app_id": APP, "job_ids": [text, null], "job_count": 2, "failed_count": 3, "results": results}
    assert task.extra == {"usage": task.ti.xcoms["usage"]} | found


@pytest.mark.contract
def test_a_job_that_is_not_over_when_it_is_collected_is_waited_for(task: Collecting) -> None:
    """Whatever the trigger has seen: it may have asked another replica."""
    ids = submitted(taking(0.5), taking(0))
    op = task.operator(ids, destination=task.folder.as_uri())
    value = op.execute_complete(task.context, {"outcome": "go on", "in_flight": 0})
    assert (value["completed"], value["failed"]) == (2, 0)


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("images", [2, 0])
def test_stored_files_are_in_the_table(task: Collecting, deferrable: bool, images: int) -> None:
    ids = submitted(taking(0.2, images=images), taking(0.2, images=images))
    options: dict[str, Any] = {"destination": task.folder.as_uri(), "deferrable": deferrable}
    outcome, rows = task.collect(ids, **options), task.rows
    for row, job_id in zip(rows, ids, strict=True):
        manifest = json.loads((task.folder / job_id / "manifest.json").read_text())
        assert row["outputs"] == [output["uri"] for output in manifest["outputs"]]
        assert len(row["outputs"]) == images
        assert row["output"] == (row["outputs"][0] if images else None)
        assert row["sha256"] == (manifest["outputs"][0]["sha256"] if images else None)
        assert row["result"] == manifest["result"]
        assert (row["status"], row["reused"], row["job_id"]) == ("completed", False, job_id)
        assert row["execution_seconds"] == manifest["execution_time"]
        assert row["created_at"] == manifest["created_at"]
    assert (outcome.value["jobs"], outcome.value["reused"]) == (2, 0)
    assert (task.extra["destination"], task.extra["file_count"]) == (task.folder.as_uri(), 2 * images)

    # the service has forgotten the jobs
    task.service.inject(Fault(on="get", status=404, times=None))
    requests = len(task.service.records())
    again = task.collect(ids, **options)
    assert again.value == outcome.value, "the bill counts what an earlier attempt has stored"
    assert len(task.service.records()) == requests
    assert task.rows == rows


@pytest.mark.contract
@MODES
def test_no_signed_url_is_kept(task: Collecting, deferrable: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    ids = submitted(taking(0.1), taking(0))
    outcome = task.collect(ids, deferrable=deferrable)
    [image] = task.rows[0]["result"]["images"]
    assert image["image"].endswith(f"/outputs/{ids[0]}/0.png")
    table = (task.folder / "results.jsonl").read_text()
    everything = f"{table} {outcome} {task.ti.pushed} {caplog.text}"
    assert "X-Amz-Signature" not in everything
    assert KEY not in everything


@pytest.mark.contract
def test_what_xcom_cannot_hold_is_in_the_table(task: Collecting) -> None:
    odd = {"__classname__": "airflow.sdk.Connection", "large": 2**70}
    ids = submitted(taking(0, result=odd), taking(0, result="x" * 1_000_000))
    assert task.collect(ids).error is None
    assert task.column("result") == [odd, "x" * 1_000_000]


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("stores", [False, True])
def test_the_table_is_written_when_too_many_fail(task: Collecting, deferrable: bool, stores: bool) -> None:
    ids = submitted(taking(0.2), taking(0, fail="out of memory"), taking(0, result=7))
    options = {"output_type": "flux-schnell", "destination": task.folder.as_uri() if stores else None}
    task.failure(AirflowFailException, ids, deferrable=deferrable, max_failed=1, **options)
    assert task.failed == [1, 2]
    assert task.column("status") == ["completed", "failed", "invalid"]
    assert len(task.rows[0]["outputs"]) == stores
    assert "out of memory" in task.rows[1]["error"]
    assert "does not fit output_type" in task.rows[2]["error"]


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("stores", [False, True])
def test_the_table_is_written_when_the_time_is_over(task: Collecting, deferrable: bool, stores: bool) -> None:
    ids = [*submitted(taking(60), taking(0), taking(0, fail="x")), None]
    options = {"destination": task.folder.as_uri() if stores else None, "max_failed": 3}
    task.failure(RunGenJobTimeoutError, ids, timeout=0.4, deferrable=deferrable, **options)
    assert task.column("status") == ["failed", "completed", "failed", "failed"]
    assert "Not over yet: RUNNING" in task.rows[0]["error"]
    assert len(task.rows[1]["outputs"]) == stores
    assert task.rows[1]["result"]


@pytest.mark.contract
def test_the_table_is_written_when_the_service_goes_away(task: Collecting) -> None:
    ids = submitted(taking(0, result="done"), taking(60))
    # the key is refused once the first job is known to be over
    task.service.inject(Fault(on="get", status=403, times=None, job_id=ids[1], skip=3))
    error = task.failure(RunGenForbiddenError, ids)
    assert error.retryable
    assert (task.column("status"), task.column("result")) == (["completed", "failed"], ["done", None])
    assert "403" in task.rows[1]["error"]


@pytest.mark.contract
@pytest.mark.parametrize(
    ("results", "kind"),
    [("results.txt", AirflowFailException), ("file/results.csv", RunGenInputError)],  # the latter may pass
)
def test_a_table_that_cannot_be_written_is_reported_before_the_wait(
    task: Collecting, results: str, kind: type[Exception]
) -> None:
    (task.folder / "file").touch()
    error = task.failure(kind, ["job"], results=f"{task.folder}/{results}")
    assert "results" in str(error)
    assert task.service.records() == []


@pytest.mark.contract
def test_an_error_of_the_task_counts_more_than_that_of_its_table(
    task: Collecting, caplog: pytest.LogCaptureFixture
) -> None:
    (task.folder / "results.jsonl").mkdir()
    assert type(task.collect(submitted(taking(60)), timeout=0.2).error) is RunGenJobTimeoutError
    assert "Could not write the results table" in caplog.text


def test_xcom_stays_small_however_many_fail(task: Collecting) -> None:
    count = MAX_FAILED + 500
    value = task.collect([None] * count, max_failed=count).value
    assert (value["rows"], value["failed"]) == (count, count)
    assert task.failed == list(range(MAX_FAILED))


@pytest.mark.contract
@pytest.mark.parametrize("wait", [True, False])
def test_results_are_not_held(task: Collecting, wait: bool) -> None:
    # as lists, because looking for URLs in long texts takes time
    ids = submitted(*[taking(0, result=[{}] * 3_000) for _ in range(60)])
    assert task.collect(ids[:1], wait_for_completion=wait).error is None
    tracemalloc.start()
    try:
        outcome = task.collect(ids, wait_for_completion=wait)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.value["completed"] == 60
    assert (task.folder / "results.jsonl").stat().st_size > 600_000
    assert peak < 6_000_000, "all lists together have over 13 MB"
