"""`RunGenCollectResultsOperator` with a destination: a table whose rows already have jobs."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, Asset
from conftest import APP, KEY, Outcome, OutletEvents, rows_in
from operator_kit import FAST, MODES, Stage, submitted, taking
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.exceptions import (
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunTableOperator
from airflow_provider_rungen.task.outcomes import MAX_FAILED

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]

OUTLET = Asset("s3://shop/results")


class Collecting(Stage):
    """A task that collects jobs in a table, again and again."""

    def __init__(self, emulator: Emulator, context: Any, folder: Path) -> None:
        super().__init__(emulator, {**context, "outlet_events": OutletEvents()})
        self.folder = folder
        self.tries = 0

    def collect(self, job_id: Any, **options: Any) -> Outcome:
        self.tries += 1
        self.ti.id = self.ti.try_number = self.tries
        own = {"task_id": "collect", "destination": self.folder.as_uri(), "outlets": [OUTLET]}
        own |= {"results": f"{self.folder}/results.jsonl"}
        return self.run(RunGenCollectResultsOperator(job_id=job_id, **{**FAST, **own, **options}))

    def failure(self, kind: type[BaseException], job_id: Any, **options: Any) -> Any:
        """Return the error of a task that fails, which is of this very kind."""
        error = self.collect(job_id, **options).error
        assert type(error) is kind
        return error

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


@MODES
def test_results_are_written_in_the_order_of_the_jobs(task: Collecting, deferrable: bool) -> None:
    text, null, bad, gone = submitted(
        taking(2, result="text"), taking(0, result=None), taking(0, fail="out of memory"), taking(60)
    )
    with RunGenHook() as hook:
        hook.cancel_job(job_id=gone)
    outcome = task.collect([text, bad, None, gone, null, text], deferrable=deferrable, max_failed=3)
    assert (outcome.error, len(outcome.events)) == (None, deferrable)
    columns = ("index", "job_id", "status", "error", "result", "reused", "outputs")
    assert [tuple(row[name] for name in columns) for row in task.rows] == [
        (0, text, "completed", None, "text", False, []),
        (1, bad, "failed", "out of memory", None, False, []),
        (2, None, "failed", "it has no job", None, False, []),
        (3, gone, "canceled", "canceled", None, False, []),
        (4, null, "completed", None, None, False, []),
        (5, text, "completed", None, "text", True, []),  # its job is that of the first row
    ]
    # what the service says of them
    inputs = {job["id"]: json.dumps(job["input"]) for job in task.service.jobs()}
    assert task.column("input") == [inputs.get(job) for job in task.column("job_id")]
    assert task.column("seconds")[:2] == [pytest.approx(2, abs=0.1), 0]
    assert task.column("bought_at")[0].endswith("+00:00")
    assert outcome.value.pop("execution_seconds") == pytest.approx(2, abs=0.1)
    results = f"{task.folder}/results.jsonl"
    counts = {"rows": 6, "completed": 3, "failed": 3, "skipped": 0, "reused": 1, "jobs": 4}
    assert outcome.value == {"results": results} | counts
    assert task.failed == [1, 2, 3]
    found = {"app_id": APP, "failed_count": 3, "file_count": 0, "results": results}
    assert {"usage": task.ti.xcoms["usage"], **found}.items() <= task.extra.items()


@MODES
@pytest.mark.parametrize("images", [2, 0])
def test_what_is_stored_is_not_asked_for_again(
    task: Collecting, deferrable: bool, images: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    signed = "https://storage.example/in.png?X-Amz-Signature=s3cret"
    ids = submitted(taking(0.2, images=images) | {"like": signed}, taking(0.2, images=images))
    outcome, rows = task.collect(ids, deferrable=deferrable), task.rows
    files = {path.as_uri(): path.read_bytes()[:4] for path in task.folder.glob("files/*/*") if path.is_file()}
    assert files == dict.fromkeys((uri for row in rows for uri in row["outputs"]), b"\x89PNG")
    assert len(files) == 2 * images
    for row, job_id in zip(rows, ids, strict=True):
        assert (row["status"], row["reused"], row["job_id"]) == ("completed", False, job_id)
        assert row["output"] == (row["outputs"][0] if images else None)
        assert [each["image"] for each in row["result"]["images"]] == row["outputs"]
    assert (task.extra["destination"], task.extra["file_count"]) == (task.folder.as_uri(), 2 * images)

    # the service has forgotten the jobs
    task.service.inject(Fault(on="get", status=404, times=None))
    requests = len(task.service.records())
    again = task.collect(ids, deferrable=deferrable)
    assert again.value == outcome.value, "the bill counts what an earlier attempt has stored"
    assert len(task.service.records()) == requests
    assert task.rows == rows
    everything = [path.read_text("latin-1") for path in task.folder.rglob("*") if path.is_file()]
    told = f"{everything} {outcome} {task.ti.pushed} {caplog.text}"
    assert not [secret for secret in ("X-Amz-Signature", "s3cret", KEY) if secret in told]


def test_a_job_that_failed_is_never_given_up(task: Collecting) -> None:
    ids = submitted(taking(0, result={"n": 1}), taking(0, fail="out of memory"))
    for _ in range(4):
        error = task.failure(AirflowFailException, ids)
        assert "1 of 2 rows failed, 0 may (max_failed): index 1: out of memory" in str(error)
        assert "Raise max_failed to collect the others" in str(error)
        assert task.column("status") == ["completed", "failed"]
        assert task.ti.xcoms["usage"]["jobs"] == 2
    # what another type refused is looked at again
    fits = {"properties": {"n": {"type": "integer"}}}
    for schema, status in ((fits, "completed"), ({"properties": {"n": {"type": "string"}}}, "invalid")) * 2:
        assert task.collect(ids, max_failed=2, output_type=schema).error is None
        assert task.column("status") == [status, "failed"]


@MODES
def test_many_that_failed_do_not_end_it(task: Collecting, deferrable: bool) -> None:
    ids = submitted(*[taking(0, fail="no luck")] * 25, taking(0.5))
    assert task.collect(ids, max_failed=25, deferrable=deferrable).error is None
    assert task.column("status") == ["failed"] * 25 + ["completed"]


def test_jobs_of_a_table_are_collected_with_another_destination(task: Collecting) -> None:
    table = [{"sku": sku, "prompt": sku} for sku in "ab"]
    options = {"destination": f"{task.folder}/table", "key": "sku", **FAST}
    bought = task.run(RunGenRunTableOperator(task_id="buy", table=table, **options)).value
    ids = [row["job_id"] for row in map(json.loads, Path(bought["results"]).read_text().splitlines())]
    assert task.collect(ids).value["completed"] == 2
    assert task.service.stats()["jobs_created"] == 2


def test_what_xcom_or_a_record_cannot_hold_is_in_the_table(task: Collecting) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    odd = [{"__classname__": "airflow.sdk.Connection", "large": 2**70}, "x" * 1_000_000, "\ud800", ["\0"]]
    ids = submitted(*[taking(0)] * 5)
    for job_id, result in zip(ids, [*odd, deep], strict=True):
        found = {"id": job_id, "status": "COMPLETED", "result": result}
        task.service.inject(Fault(on="get", status=200, body={"data": found}, job_id=job_id, times=None))
    for _ in range(2):
        assert task.collect(ids).error is None
        assert task.column("result")[:4] == odd
        assert re.sub(r'[\\"]', "", json.dumps(task.column("result")[4])) == json.dumps(deep).replace('"', "")


@MODES
def test_the_table_is_written_when_too_many_fail(task: Collecting, deferrable: bool) -> None:
    ids = submitted(taking(0.2), taking(0, fail="out of memory"), taking(0, result=7))
    options: Any = {"output_type": "flux-schnell", "deferrable": deferrable}
    task.failure(AirflowFailException, ids, max_failed=1, **options)
    assert task.failed == [1, 2]
    assert task.column("status") == ["completed", "failed", "invalid"]
    assert [len(row["outputs"]) for row in task.rows] == [1, 0, 0]
    assert "does not fit output_type" in task.rows[2]["error"]


@MODES
def test_the_table_is_written_when_the_time_is_over(task: Collecting, deferrable: bool) -> None:
    ids = [*submitted(taking(60), taking(0), taking(0, fail="x")), None]
    task.failure(RunGenJobTimeoutError, ids, timeout=0.4, deferrable=deferrable, max_failed=3)
    assert task.column("status") == ["failed", "completed", "failed", "failed"]
    assert "Not over in time: RUNNING" in task.rows[0]["error"]
    assert len(task.rows[1]["outputs"]) == 1
    assert task.statuses[0] == "RUNNING", "they are not its own"


def test_those_that_are_not_over_are_waited_for_only_if_asked(task: Collecting) -> None:
    ids = submitted(taking(60), taking(0))
    error = task.failure(RunGenJobFailedError, ids, wait_for_completion=False)
    assert "index 0: it has not ended" in str(error)
    assert task.column("status") == ["failed", "completed"]
    assert error.retryable


def test_the_table_is_written_when_the_service_goes_away(task: Collecting) -> None:
    ids = submitted(taking(0, result="done"), taking(60))
    # the key is refused once the first job is known to be over
    task.service.inject(Fault(on="get", status=403, times=None, job_id=ids[1], skip=3))
    error = task.failure(RunGenForbiddenError, ids)
    assert error.retryable
    assert (task.column("status"), task.column("result")) == (["completed", "failed"], ["done", None])
    assert "403" in task.rows[1]["error"]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"results": "{}/results.txt"}, AirflowFailException),
        ({"results": "{}/file/results.csv"}, RunGenInputError),  # this may pass
        ({"destination": "{}/file/x"}, RunGenInputError),
        ({"output_type": "{}/none.json"}, AirflowFailException),
    ],
)
def test_what_cannot_be_written_is_reported_before_the_wait(
    task: Collecting, options: dict[str, str], kind: type[Exception]
) -> None:
    (task.folder / "file").touch()
    [(name, text)] = options.items()
    assert name in str(task.failure(kind, ["job"], **{name: text.format(task.folder)}))
    assert task.service.records() == []


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


def test_results_are_not_held(task: Collecting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.store.ended.FLUSH_BYTES", 500_000)
    ids = submitted(*[taking(0, result_bytes=60_000) for _ in range(120)])
    assert task.collect(ids[:1]).error is None
    tracemalloc.start()
    try:
        outcome = task.collect(ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.value["completed"] == 120
    assert (task.folder / "results.jsonl").stat().st_size > 7_000_000
    assert peak < 11_000_000, "what sixteen jobs take, and a half; all take 18 MB"
