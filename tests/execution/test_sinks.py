"""The sinks of a task, as jobs end one after the other: what is stored when, and what a table counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import APP, rows_in
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenOutputError,
    RunGenResultError,
    RunGenServerError,
)
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
from airflow_provider_rungen.execution.sinks.result_sink import ResultSink
from airflow_provider_rungen.execution.task.options import JobOptions
from airflow_provider_rungen.execution.task.outcomes import is_useless
from airflow_provider_rungen.execution.task.report import Usage
from airflow_provider_rungen.execution.task.run import TaskRun
from airflow_provider_rungen.operators import RunGenRunTableOperator
from airflow_provider_rungen.runs.plan import PlannedRow

pytestmark = pytest.mark.usefixtures("rungen_emulator")


class Attempt(TaskRun["JobOptions"]):
    """An attempt that runs nothing."""

    is_single = False
    are_known = True
    report = SimpleNamespace(unsent_error=None)

    @property
    def wait(self) -> Any:
        return self

    def refetch(self, app_id: str, job_ids: Sequence[str], on_outcome: Any) -> None:
        for job_id in job_ids:
            on_outcome(job_id, self.hook.get_job(app_id=app_id, job_id=job_id))

    @property
    def advice(self) -> Any:
        return self

    def retry_hint(self, some: str, *, buys: bool) -> str:
        return f"A retry runs {some}"

    def clear_hint(self) -> str:
        return "Correct them, and clear the task"

    def locate(self, numbers: Iterable[int]) -> Mapping[int, Mapping[str, Any]]:
        return {}


def plan_of(*rows: PlannedRow) -> Plan:
    source: Any = ((row, {} if row.digest else None) for row in rows)
    return Plan.of_rows(APP, source, lambda: {"columns": ["sku"], "types": ["text"]})


def planned(count: int) -> Plan:
    return plan_of(*(PlannedRow([f"sku-{number}"], "00") for number in range(count)))


class Task:
    """A table task whose jobs exist already."""

    def __init__(self, emulator: Emulator, context: Any, folder: Path) -> None:
        self.emulator, self.folder = emulator, folder
        emulator.service.scale(APP, 100)
        self._context = context
        self.options: dict[str, Any] = {"destination": (folder / "photos").as_uri()}
        self.attempt = self.next_attempt()

    def next_attempt(self) -> Attempt:
        task = RunGenRunTableOperator(
            task_id="task", table=[], key="sku", **self.options, output_type={"type": ["object", "array"]}
        )
        self.attempt = attempt = Attempt(task, self._context, JobOptions.of(task))
        attempt.note_app(APP)
        attempt.used = Usage().to_json
        return attempt

    def sink(self, *, has_table: bool = True) -> ResultSink:
        """Return the sink of a new attempt."""
        attempt: Any = self.next_attempt()
        table = (self.folder / "photos" / "results.jsonl").as_uri() if has_table else None
        sink = ResultSink(attempt, table=table, key=["sku"])
        sink.prepare()
        return sink

    def submit(self, count: int, **emulator: Any) -> list[str]:
        steering: Any = {"seconds": 0, **emulator}
        given = {"prompt": "a fox", "width": 64, "height": 64, "emulator": steering}
        with self.attempt.hook as hook:
            return [hook.run_job(app_id=APP, input=given).id for _ in range(count)]

    @property
    def gets(self) -> int:
        """How often the service was asked for a job."""
        return int(self.emulator.service.stats()["requests"].get("get", 0))

    @property
    def written(self) -> list[dict[str, Any]]:
        return rows_in(self.folder / "photos")

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.written]


@pytest.fixture
def task(rungen_emulator: Emulator, context: Any, tmp_path: Path) -> Task:
    return Task(rungen_emulator, context, tmp_path)


def gather(task: Task, sink: Any, job_ids: Sequence[str], jobs: Iterable[Job] = ()) -> None:
    with task.attempt.opened():
        sink.gather(APP, job_ids, jobs)


def finish(task: Task, sink: Any, result: BatchResult, plan: Plan) -> Any:
    try:
        with task.attempt.opened():
            return sink.finish(result, plan)
    finally:
        sink.close()


# --- jobs that end one after the other ---


def test_each_job_is_fetched_once_however_often_it_is_gathered(task: Task) -> None:
    sink, ids = task.sink(), task.submit(4)
    for count in (1, 2, 4, 4):
        gather(task, sink, ids[:count])
    assert task.gets == 4
    assert sorted(stored.job_id for stored in sink.stored) == sorted(ids)
    assert finish(task, sink, BatchResult(list(ids)), planned(4))["completed"] == 4
    assert task.gets == 4


def test_what_an_earlier_attempt_stored_is_taken_without_the_service(task: Task) -> None:
    ids = task.submit(3)
    first = task.sink()
    gather(task, first, ids[:2])
    first.close()
    sink, before = task.sink(), task.gets
    gather(task, sink, ids)
    assert task.gets == before + 1
    summary = finish(task, sink, BatchResult(list(ids)), planned(3))
    assert summary["reused"] == 0, "this task run has bought them"


def test_a_job_that_the_service_has_just_returned_is_not_looked_for_in_storage(task: Task) -> None:
    [job_id] = task.submit(1)
    for _ in range(2):
        sink = task.sink()
        gather(task, sink, [job_id], [Job(job_id, APP, JobStatus.COMPLETED)])
        assert not sink.errors
        sink.close()
    assert task.gets == 2


@pytest.mark.parametrize("has_table", [True, False])
def test_what_failed_for_a_while_is_tried_again_and_what_is_useless_is_not(
    task: Task, has_table: bool
) -> None:
    good, bad = task.submit(1) + task.submit(1, fail="no memory")
    task.emulator.service.inject(Fault(on="get", status=500, times=None, job_id=good))
    sink = task.sink(has_table=has_table)
    gather(task, sink, [good, bad])
    assert isinstance(sink.errors[good], RunGenServerError)
    assert {each: is_useless(error) for each, error in sink.errors.items()} == {good: False, bad: True}
    task.emulator.service.clear_faults()
    before = task.gets
    gather(task, sink, [good, bad])
    assert (set(sink.errors), task.gets - before) == ({bad}, 1)
    sink.close()


def test_a_destination_that_is_gone_is_an_error_that_may_pass(task: Task) -> None:
    ids = task.submit(2)
    sink = task.sink()
    photos = task.folder / "photos"
    photos.rename(task.folder / "elsewhere")
    gather(task, sink, ids)
    assert set(sink.errors) == set(ids)
    assert all(error.retryable and not is_useless(error) for error in sink.errors.values())
    (task.folder / "elsewhere").rename(photos)
    gather(task, sink, ids)
    assert not sink.errors
    assert finish(task, sink, BatchResult(list(ids)), planned(2))["completed"] == 2


def expired() -> RunGenOutputError:
    error = RunGenOutputError("the outputs of the job expired", retryable=False)
    error.is_expired = True
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RunGenJobFailedError("no memory"), True),
        (RunGenJobCanceledError("by a user"), True),
        (RunGenNotFoundError("forgotten", status_code=404), True),
        (RunGenResultError("does not fit"), True),
        (expired(), True),
        (RunGenOutputError("too many outputs", retryable=False), False),
        (RunGenServerError("busy", status_code=503), False),
    ],
)
def test_a_retry_runs_again_what_has_no_use_any_more(error: RunGenError, expected: bool) -> None:
    assert is_useless(error) is expected


# --- what a table counts ---


def test_a_row_is_reused_if_another_task_run_bought_its_job(task: Task) -> None:
    ids = task.submit(4)
    sink = task.sink()
    result = BatchResult([*ids, ids[0]], shared={ids[2]})
    summary = finish(task, sink, result, planned(5))
    assert (summary["rows"], summary["completed"], summary["reused"]) == (5, 5, 1)
    assert task.column("reused") == [False, False, True, False, False]


def test_each_row_says_why_it_has_no_result(task: Task) -> None:
    [good, bad] = task.submit(1) + task.submit(1, fail="no memory")
    rows = (
        PlannedRow(["good"], "00"),
        PlannedRow(["skipped"], status="skipped"),
        PlannedRow(["misfit"], status="refused", why="input.prompt: 7 is not a string"),
        PlannedRow(["refused"], "00"),
        PlannedRow(["unknown"], "00"),
        PlannedRow(["unsent"], "00"),
        PlannedRow(["bad"], "00"),
    )
    refused = {3: RunGenBadRequestError("too wide", status_code=422), 4: RunGenError("Fate unknown")}
    failed = Job(bad, APP, JobStatus.FAILED, error="no memory")
    ids = [good, None, None, None, None, None, bad]
    sink = task.sink()
    with pytest.raises(RunGenJobFailedError, match="5 of 6 rows failed") as caught:
        finish(task, sink, BatchResult(ids, refused, [failed]), plan_of(*rows))
    assert "misfit: input.prompt" in caught.value.message
    assert caught.value.hint.endswith("A retry runs only these again")
    statuses = ["completed", "skipped", "refused", "refused", "failed", "failed", "failed"]
    assert task.column("status") == statuses
    assert task.column("sku") == [row.values[0] for row in rows]
    errors = task.column("error")
    assert errors[:2] == [None, None]
    assert errors[3:6] == ["too wide", "Fate unknown", "it was not submitted"]
    assert "no memory" in errors[6]


# --- an error ends the task ---


def test_what_is_known_is_written_when_an_error_ends_the_task(task: Task) -> None:
    ids = task.submit(3)
    first = task.sink()
    gather(task, first, ids[:1])
    first.close()
    sink, before = task.sink(), task.gets
    gather(task, sink, ids[1:2])
    canceled = Job("job-3", APP, JobStatus.CANCELED, error="after the time-out")
    result = BatchResult([*ids, "job-3", None], jobs=[canceled])
    sink.report(result, planned(5), RunGenError("the service went away"))
    sink.close()
    assert task.gets == before + 1
    assert task.column("status") == ["completed", "completed", "failed", "canceled", "failed"]
    errors = task.column("error")
    assert (errors[2], errors[4]) == ("the service went away", "not submitted: the service went away")


def test_a_report_that_cannot_be_written_raises_nothing(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    sink = task.sink()
    shutil.rmtree(task.folder)
    task.folder.write_text("not a folder")
    sink.report(BatchResult([None]), planned(1), RunGenError("the service went away"))
    sink.close()
    assert any(line.startswith("Could not write the results table") for line in caplog.messages)
