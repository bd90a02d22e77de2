"""`RunGenCollectResultsOperator` with ``results``: a table in place of a list, on success and on failure."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, Asset
from conftest import APP, KEY, Outcome, OutletEvents, run_task

from airflow_provider_rungen.emulator import Emulator, Fault
from airflow_provider_rungen.exceptions import RunGenForbiddenError, RunGenInputError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.sinks.batch_result import MAX_FAILED
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator

pytestmark = pytest.mark.usefixtures("unsettled")

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])


def job(seconds: float = 0, **emulator: Any) -> dict[str, Any]:
    return {"prompt": "a red fox", "emulator": {"seconds": seconds, **emulator}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def collect(context: Any, job_id: Any, folder: Path, **options: Any) -> Outcome:
    options = {"poll_interval": 0.02, "defer_after": 0, "results": f"{folder}/results.jsonl", **options}
    return run_task(RunGenCollectResultsOperator(task_id="collect", job_id=job_id, **options), context)


def table_in(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a table, with parsed results."""
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [row | {"result": row["result"] and json.loads(row["result"])} for row in rows]


def columns(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


@MODES
def test_results_are_written_in_the_order_of_the_jobs(
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, deferrable: bool
) -> None:
    text, null, bad, gone = submitted(
        job(2, result="text"), job(result=None), job(fail="out of memory"), job(60)
    )
    with RunGenHook() as hook:
        hook.cancel_job(job_id=gone)
    context["outlet_events"] = OutletEvents()
    outlet = Asset("s3://shop/results")
    ids = [text, bad, None, gone, null, text]
    outcome = collect(context, ids, tmp_path, deferrable=deferrable, max_failed=3, outlets=[outlet])
    assert outcome.error is None
    assert len(outcome.events) == deferrable
    rows = table_in(tmp_path)
    assert columns(rows, "index", "job_id", "status", "result", "reused", "outputs") == [
        (0, text, "completed", "text", False, []),
        (1, bad, "failed", None, False, []),
        (2, None, "failed", None, False, []),
        (3, gone, "canceled", None, False, []),
        (4, null, "completed", None, False, []),
        (5, text, "completed", "text", False, []),
    ]
    assert "out of memory" in rows[1]["error"]
    assert rows[2]["error"] == "it has no job"
    assert "Canceled" in rows[3]["error"]
    assert [row["error"] for row in (rows[0], rows[4], rows[5])] == [None] * 3
    assert rows[0]["execution_seconds"] == pytest.approx(2)
    assert rows[0]["created_at"].endswith("+00:00")
    seconds = outcome.value.pop("execution_seconds")
    jobs = {row["job_id"]: row["execution_seconds"] or 0 for row in rows}
    assert seconds == pytest.approx(sum(jobs.values()), abs=0.001)
    assert outcome.value == {
        "results": f"{tmp_path}/results.jsonl",
        "rows": 6,
        "completed": 3,
        "failed": 3,
        "skipped": 0,
        "reused": 0,
        "jobs": 4,
    }
    assert [each["index"] for each in ti.xcoms["failed"]] == [1, 2, 3]
    extra = context["outlet_events"][outlet].extra
    assert extra == {
        "usage": ti.xcoms["usage"],
        "app_id": APP,
        "job_ids": [text, null],
        "job_count": 2,
        "failed_count": 3,
        "results": f"{tmp_path}/results.jsonl",
    }


def test_a_job_that_is_not_over_when_it_is_collected_is_waited_for(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    """Whatever the trigger has seen: it may have asked another replica."""
    op: Any = RunGenCollectResultsOperator(
        task_id="collect",
        job_id=submitted(job(0.5), job()),
        destination=tmp_path.as_uri(),
        poll_interval=0.02,
    )
    context["task"] = op
    value = op.execute_complete(context, {"outcome": "go on", "in_flight": 0})
    assert len(value) == 2


@MODES
@pytest.mark.parametrize("images", [2, 0])
def test_stored_files_are_in_the_table(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, deferrable: bool, images: int
) -> None:
    ids = submitted(job(0.2, images=images), job(0.2, images=images))
    options: dict[str, Any] = {"destination": tmp_path.as_uri(), "deferrable": deferrable}
    context["outlet_events"] = OutletEvents()
    outlet = Asset("s3://shop/results")
    outcome = collect(context, ids, tmp_path, outlets=[outlet], **options)
    rows = table_in(tmp_path)
    for row, job_id in zip(rows, ids, strict=True):
        manifest = json.loads((tmp_path / job_id / "manifest.json").read_text())
        assert row["outputs"] == [output["uri"] for output in manifest["outputs"]]
        assert len(row["outputs"]) == images
        assert row["output"] == (row["outputs"][0] if images else None)
        assert row["sha256"] == (manifest["outputs"][0]["sha256"] if images else None)
        assert row["result"] == manifest["result"]
        assert (row["status"], row["reused"], row["job_id"]) == ("completed", False, job_id)
        assert row["execution_seconds"] == manifest["execution_time"]
        assert row["created_at"] == manifest["created_at"]
    assert (outcome.value["jobs"], outcome.value["reused"]) == (2, 0)
    extra = context["outlet_events"][outlet].extra
    assert (extra["destination"], extra["file_count"]) == (tmp_path.as_uri(), 2 * images)

    # the service has forgotten the jobs
    rungen_emulator.service.inject(Fault(on="get", status=404, times=None))
    requests = len(rungen_emulator.service.records())
    again = collect(context, ids, tmp_path, **options)
    assert again.value == outcome.value | {"reused": 2, "jobs": 0, "execution_seconds": 0}
    assert len(rungen_emulator.service.records()) == requests
    assert table_in(tmp_path) == [row | {"reused": True} for row in rows]


@MODES
def test_no_signed_url_is_kept(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, deferrable: bool, caplog: Any
) -> None:
    caplog.set_level("DEBUG")
    ids = submitted(job(0.1), job())
    outcome = collect(context, ids, tmp_path, deferrable=deferrable)
    [image] = table_in(tmp_path)[0]["result"]["images"]
    assert image["image"].endswith(f"/outputs/{ids[0]}/0.png")
    everything = f"{(tmp_path / 'results.jsonl').read_text()} {outcome} {ti.pushed} {caplog.text}"
    assert "X-Amz-Signature" not in everything
    assert KEY not in everything


def test_what_xcom_cannot_hold_is_in_the_table(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    odd = {"__classname__": "airflow.sdk.Connection", "large": 2**70}
    ids = submitted(job(result=odd), job(result="x" * 5000))
    assert collect(context, ids, tmp_path, max_xcom_bytes=100).error is None
    assert [row["result"] for row in table_in(tmp_path)] == [odd, "x" * 5000]


@MODES
@pytest.mark.parametrize("stores", [False, True])
def test_the_table_is_written_when_too_many_fail(  # noqa: PLR0917 - fixtures
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path, deferrable: bool, stores: bool
) -> None:
    good, bad, odd = submitted(job(0.2), job(fail="out of memory"), job(result=7))
    destination = tmp_path.as_uri() if stores else None
    options: dict[str, Any] = {"result_schema": "flux-schnell", "destination": destination}
    outcome = collect(context, [good, bad, odd], tmp_path, deferrable=deferrable, max_failed=1, **options)
    assert type(outcome.error) is AirflowFailException
    assert [each["index"] for each in ti.xcoms["failed"]] == [1, 2]
    rows = table_in(tmp_path)
    assert [row["status"] for row in rows] == ["completed", "failed", "failed"]
    assert len(rows[0]["outputs"]) == stores
    assert "out of memory" in rows[1]["error"]
    assert "does not fit result_schema" in rows[2]["error"]


@MODES
@pytest.mark.parametrize("stores", [False, True])
def test_the_table_is_written_when_the_time_is_over(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, deferrable: bool, stores: bool
) -> None:
    ids = submitted(job(60), job(), job(fail="x"))
    destination = tmp_path.as_uri() if stores else None
    outcome = collect(
        context,
        [*ids, None],
        tmp_path,
        timeout=0.4,
        deferrable=deferrable,
        max_failed=3,
        destination=destination,
    )
    assert type(outcome.error) is RunGenJobTimeoutError
    rows = table_in(tmp_path)
    assert [row["status"] for row in rows] == ["failed", "completed", "failed", "failed"]
    assert "Not over yet: RUNNING" in rows[0]["error"]
    assert len(rows[1]["outputs"]) == stores
    assert rows[1]["result"]


def test_the_table_is_written_when_the_service_goes_away(
    rungen_emulator: Emulator, context: Any, tmp_path: Path
) -> None:
    done, running = submitted(job(result="done"), job(60))
    # the key is refused once the first job is known to be over
    rungen_emulator.service.inject(Fault(on="get", status=403, times=None, job_id=running, skip=3))
    outcome = collect(context, [done, running], tmp_path)
    assert type(outcome.error) is RunGenForbiddenError
    assert outcome.error.retryable
    rows = table_in(tmp_path)
    assert columns(rows, "status", "result") == [("completed", "done"), ("failed", None)]
    assert "403" in rows[1]["error"]


@pytest.mark.parametrize(
    ("results", "kind"),
    [("results.txt", AirflowFailException), ("file/results.csv", RunGenInputError)],  # the latter may pass
)
def test_a_table_that_cannot_be_written_is_reported_before_the_wait(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, results: str, kind: type[Exception]
) -> None:
    (tmp_path / "file").touch()
    outcome = collect(context, ["job"], tmp_path, results=f"{tmp_path}/{results}")
    assert type(outcome.error) is kind
    assert "results" in str(outcome.error)
    assert rungen_emulator.service.records() == []


def test_an_error_of_the_task_counts_more_than_that_of_its_table(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [running] = submitted(job(60))
    (tmp_path / "results.jsonl").mkdir()
    outcome = collect(context, [running], tmp_path, timeout=0.2)
    assert type(outcome.error) is RunGenJobTimeoutError
    assert "Could not write the results table" in caplog.text


def test_xcom_stays_small_however_many_fail(
    rungen_emulator: Emulator, context: Any, ti: Any, tmp_path: Path
) -> None:
    count = MAX_FAILED + 500
    value = collect(context, [None] * count, tmp_path, max_failed=count).value
    assert (value["rows"], value["failed"]) == (count, count)
    assert [each["index"] for each in ti.xcoms["failed"]] == list(range(MAX_FAILED))


@pytest.mark.parametrize("wait", [True, False])
def test_results_are_not_held(rungen_emulator: Emulator, context: Any, tmp_path: Path, wait: bool) -> None:
    # as lists, because looking for URLs in long texts takes time
    ids = submitted(*[job(result=[{}] * 3_000) for _ in range(30)])
    assert collect(context, ids[:1], tmp_path, wait_for_completion=wait).error is None
    tracemalloc.start()
    try:
        outcome = collect(context, ids, tmp_path, wait_for_completion=wait)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.value["completed"] == 30
    assert (tmp_path / "results.jsonl").stat().st_size > 300_000
    assert peak < 3_000_000, "all lists together have over 6 MB"
