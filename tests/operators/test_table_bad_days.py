"""Tables on bad days: killed attempts, ledgers that others wrote to, stores and services that fail."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from bad_answers import Fault
from conftest import Died, FakeStore
from operator_kit import Table, die, picture, products
from rungen_emulator import Emulator

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.jobs.collecting import Collecting
from airflow_provider_rungen.execution.task import store_writer
from airflow_provider_rungen.operators import Ledger, RunGenRunTableOperator
from airflow_provider_rungen.triggers import RunGenJobTrigger

Run = Callable[..., Table]

pytestmark = [
    pytest.mark.usefixtures("unsettled"),
    # Python 3.12 warns of a fork beside threads
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

HAS_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


def lasting(seconds: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a `to_input` of jobs that take so long."""
    return lambda row: picture(row) | {"emulator": {"seconds": seconds}}


def entries(task: Table) -> list[Path]:
    return sorted((task.folder / "ledger").glob("??/*.json"))


def leftovers(task: Table) -> list[Path]:
    """Return hidden files, apart from the logs of task runs, and from claims that a kill cut off."""
    hidden = (path.relative_to(task.folder) for path in task.folder.rglob(".*"))
    return [path for path in hidden if ".rungen" not in path.parts and path.parts[0] != "ledger"]


# --- the jobs of others ---


@pytest.mark.contract
def test_a_changed_table_does_not_cancel_the_jobs_of_another_dag(run: Run) -> None:
    task = run(products(4), to_input=lasting(2))
    task.attempt_until("rungen_job_link")
    task.dag_id = "another"
    task.next_run("x")
    task.store = FakeStore()
    task.attempt_until("rungen_job_link", table=products(6))
    assert task.created == 6
    task.attempt(table=products(2))
    assert task.statuses() == ["COMPLETED"] * 4 + ["CANCELED"] * 2


# --- while deferred ---


@pytest.mark.contract
def test_what_is_reused_stays_so_while_deferred(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    task = run(products(3))
    assert task.attempt().error is None
    jobs = task.column("job_id")
    task.next_run("2")
    task.dag_id = "another"
    wait = RunGenJobTrigger.run

    def prune(trigger: Any) -> Any:
        for path in entries(task):
            if json.loads(path.read_text())["state"] != "pending":
                path.unlink()
        return wait(trigger)

    monkeypatch.setattr(RunGenJobTrigger, "run", prune)
    task.emulator.service.inject(Fault(on="get", status=404, times=None, job_id=jobs[0]))
    places = {"destination": "photos2", "results": "photos/results.jsonl"}
    changes: dict[str, Any] = {name: (task.folder / path).as_uri() for name, path in places.items()}
    assert task.attempt(table=products(4), deferrable=True, **changes).error is None
    assert task.column("status") == ["completed"] * 4
    assert task.column("reused") == [True] * 3 + [False]
    assert task.column("job_id")[:3] == jobs


# --- what others wrote to the ledger ---


@pytest.mark.contract
def test_a_pending_job_from_the_future_is_not_waited_for(run: Run) -> None:
    task = run(products(2))
    task.attempt_until("rungen_job_link")
    for path in entries(task):
        job_id = "11111111-1111-4111-8111-11111111111" + path.stem[0]
        entry = json.loads(path.read_text()) | {"at": "2999-01-01T00:00:00+00:00", "job_id": job_id}
        path.write_text(json.dumps(entry))
    task.next_run("2")
    assert task.attempt().error is None


@pytest.mark.contract
@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_pending_job_that_the_service_refuses_is_a_miss(run: Run, status: int) -> None:
    task = run(products(2))
    task.attempt_until("rungen_job_link")
    path = entries(task)[0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job_id": "no-job"}))
    task.emulator.service.inject(Fault(on="get", status=status, times=None, job_id="no-job"))
    task.next_run("2")
    assert task.attempt().error is None
    assert task.column("status") == ["completed"] * 2


# --- failures that leave a table ---


@pytest.mark.contract
def test_the_table_tells_what_is_reused_when_nothing_can_be_submitted(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("2")
    task.emulator.service.inject(Fault(on="run", status=403, times=None))
    assert task.attempt(table=products(5)).error is not None
    assert task.column("status") == ["completed"] * 4 + ["failed"]
    assert task.column("reused") == [True] * 4 + [False]


@pytest.mark.contract
@pytest.mark.parametrize("ledger", [None, "ledger"])
def test_the_table_stays_if_nothing_can_be_submitted(run: Run, mode: bool, ledger: str | None) -> None:
    task = run(products(3), deferrable=mode)
    more: dict[str, Any] = {"ledger": ledger and (task.folder / ledger).as_uri()}
    assert task.attempt(**more).error is None
    before = {path: path.read_bytes() for path in (task.folder / "photos").glob("[ir]*.*")}
    task.next_run("2")
    task.emulator.service.inject(Fault(on="run", status=403, times=None))
    assert "403" in str(task.attempt(table=products(5)[3:], **more).error)
    assert len(before) == 2
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.contract
def test_the_table_tells_why_outputs_could_not_be_stored(run: Run, mode: bool) -> None:
    task = run(products(3), deferrable=mode, max_failed=1)
    task.emulator.service.inject(Fault(on="output", status=403, skip=1, times=None, body=HAS_EXPIRED))
    error = str(task.attempt().error)
    assert "2 of 3 rows failed" in error
    assert any(f"sku-{number}: Could not store" in error for number in range(3))
    assert sorted(task.column("status")) == ["completed", "invalid", "invalid"]
    for row in task.written:
        assert ("expired" in (row["error"] or "")) == (row["status"] == "invalid")


# --- SIGKILL ---

# whether it may happen after a deferral, the function, and the number of its last call; 0 for none
KILL_POINTS = {
    "the ledger is read": (False, "execution.ledger.store.LedgerStore.find", 0),
    "the first id is saved": (False, "execution.ledger.store.LedgerStore.add_pending", 1),
    "the attempt is noted": (False, "execution.jobs.places.StoragePlace.put", 1),
    "the first intent is saved": (False, "runs.log.RunLog.fence", 1),
    "all is submitted": (False, "execution.jobs.run_report.RunReport.push_submitted", 0),
    "the wait is over": (True, "execution.sinks.collector.Collector.gather", 0),
    "a manifest is written": (True, "execution.archive.job_archiver.JobArchiver._save", 2),
    "a file is moved": (True, "execution.archive.storage.Storage.put", 5),
    "all is stored": (True, "execution.ledger.store.LedgerStore.add_done", 0),
    "the ledger is written": (True, "execution.ledger.store.LedgerStore.add_done", 1),
    "the table is to be written": (True, "execution.table.results_table.ResultsTable.write", 0),
    "a row is written": (True, "execution.table.result_rows.JobRows.row", 3),
    "the task ends": (True, "execution.table.results_table.ResultsTable.write", 1),
}
KILL_POINTS_OF_DEFERRALS = {
    "the state is to be kept": (False, "execution.jobs.deferral.Deferral.keep_state", 0),
    "the state is kept": (False, "execution.jobs.deferral.Deferral.keep_state", 1),
    "the state is to be read": (True, "execution.jobs.deferral.Deferral.restore", 0),
    "the inputs are to be removed": (True, "execution.jobs.plans.Plan.remove_inputs", 0),
}


def kill(work: Callable[[], Any], target: str, after: int) -> None:
    """
    Do something in a process of its own, which SIGKILL ends.

    :param target: the function in which it is killed.
    :param after: the number of the call at whose end it is killed; 0 for the beginning of the first.
    """
    path, owner, name = target.rsplit(".", 2)
    kind = getattr(importlib.import_module(f"airflow_provider_rungen.{path}"), owner)
    original, calls = getattr(kind, name), count(1)

    def killed(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs) if after else None
        if next(calls) >= after:
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    if not (child := os.fork()):
        try:
            setattr(kind, name, killed)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{target} was not called"
    raise Died


@pytest.mark.contract
@pytest.mark.parametrize(
    ("point", "is_deferred"),
    [
        *((point, is_deferred) for point in KILL_POINTS for is_deferred in (False, True)),
        *((point, True) for point in KILL_POINTS_OF_DEFERRALS),
    ],
)
def test_a_killed_attempt_costs_nothing(
    run: Run, point: str, is_deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_late, target, after = (KILL_POINTS | KILL_POINTS_OF_DEFERRALS)[point]
    # long enough for a deferral
    task = run(products(6), to_input=lasting(0.7), deferrable=is_deferred)
    method = "execute_complete" if is_late and is_deferred else "execute"
    original = getattr(RunGenRunTableOperator, method)
    killed: Any = lambda *args, **kw: kill(lambda: original(*args, **kw), target, after)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(RunGenRunTableOperator, method, killed)
        with pytest.raises(Died):
            task.attempt()
    outcome = task.attempt()
    assert outcome.error is None
    assert outcome.value["completed"] == task.created == 6
    assert leftovers(task) == []


# --- apps ---


@pytest.mark.contract
@pytest.mark.parametrize("kind", ["wrong_types", "garbage"])
def test_an_app_that_cannot_be_read_costs_nothing(run: Run, kind: str) -> None:
    task = run(products(2))
    assert task.attempt().error is None
    task.next_run("2")
    task.emulator.service.inject(Fault(on="get_app", kind=kind))
    assert task.attempt().error is None
    assert task.created == 2


# --- storage that fails ---


def test_a_results_table_that_cannot_be_written_costs_nothing(
    run: Run, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_writer, "STORE_RETRY_BUDGET", 0.3)
    task = run(products(3), deferrable=mode)
    blocked = task.folder / "photos" / "results.jsonl"
    (blocked / "x").mkdir(parents=True)
    outcome = task.attempt()
    assert "Could not write the results table" in str(outcome.error)
    shutil.rmtree(blocked)
    value = task.attempt().value
    assert (value["jobs"], value["reused"], task.created) == (3, 0, 3)


# --- parameters ---


@pytest.mark.contract
def test_a_share_is_one_of_the_rows_that_run(run: Run, mode: bool) -> None:
    bad = {"prompt": "x", "emulator": {"fail": "no memory"}}
    inputs = {"sku-0": None, "sku-1": None, "sku-2": bad}
    task = run(products(4), deferrable=mode, to_input=lambda row: inputs.get(row["sku"], picture(row)))
    assert "1 of 2 rows failed, 0 may" in str(task.attempt(max_failed=0.49).error)
    assert task.attempt(max_failed=0.5).error is None


@pytest.mark.contract
@pytest.mark.parametrize(
    "uri",
    [
        "file://{folder}/results?X-Amz-Signature=SECRETVALUE&x=.csv",
        "memory://me:SECRETVALUE@host/results.jsonl",
    ],
)
def test_no_secret_of_a_uri_is_shown(run: Run, caplog: pytest.LogCaptureFixture, uri: str) -> None:
    text: Any = lambda row: {"prompt": "x", "emulator": {"result": {"text": "x"}}}  # noqa: E731
    task = run(products(1), ledger=None, destination=None, to_input=text)
    outcome = task.attempt(results=uri.format(folder=task.folder))
    shown = json.dumps([str(outcome.error), outcome.value, task.ti.pushed, caplog.text], default=str)
    assert "SECRETVALUE" not in shown


# --- the schema of results ---


@pytest.mark.contract
def test_a_schema_that_no_result_fits_costs_other_tasks_nothing(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode, max_failed=4)
    strict = {"output_type": {"type": "object", "required": ["text"]}}
    assert task.attempt(**strict).value["failed"] == 4
    for number, bought in enumerate((4, 8, 12)):
        task.next_run(f"any {number}")
        assert (task.attempt().value["completed"], task.created) == (4, bought)
        task.next_run(f"strict {number}")
        assert task.attempt(**strict).value["failed"] == 4


@pytest.mark.contract
def test_a_job_whose_outputs_expired_is_bought_again(
    run: Run, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = run(products(2), deferrable=mode)
    task.attempt_until("rungen_job_link")
    [expired, _] = task.ids()
    fault = Fault(on="output", status=403, times=None, job_id=expired, body=HAS_EXPIRED)
    task.emulator.service.inject(fault)
    task.next_run("8 days later")
    caplog.clear()
    assert task.attempt().value["completed"] == 2
    assert f"Outputs expired: job {expired}; its input is paid for again" in caplog.text
    assert task.column("reused") == [False, True]
    assert task.created == 3


@pytest.mark.contract
@pytest.mark.parametrize("change", ["cleared", "prompt"])
def test_the_seconds_of_jobs_that_a_later_attempt_cancels_count(run: Run, mode: bool, change: str) -> None:
    def new(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": f"a new {row['title']}"}

    task = run(products(3), deferrable=mode, to_input=lasting(60), ledger=None)
    task.attempt_until("rungen_job_link")
    if change == "cleared":
        task.clear()
    outcome = task.attempt(to_input=picture if change == "cleared" else new)
    assert outcome.error is None
    assert task.statuses() == ["CANCELED"] * 3 + ["COMPLETED"] * 3
    ran_for = [job["finished"] - job["started"] for job in task.emulator.service.jobs()]
    assert min(ran_for) > 0
    assert outcome.value["execution_seconds"] == pytest.approx(sum(ran_for), abs=0.01)


@pytest.mark.contract
def test_the_seconds_of_a_job_count_whose_cancel_takes_a_moment(run: Run) -> None:
    task = run(products(1), deferrable=False, to_input=lasting(60), ledger=None)
    task.attempt_until("rungen_job_link")
    [job_id] = task.ids()
    # it is looked at before the cancel, too
    running = {"id": job_id, "status": "RUNNING"}
    task.emulator.service.inject(Fault(on="get", status=200, body=running, skip=1, job_id=job_id))
    task.clear()
    outcome = task.attempt(to_input=picture)
    assert task.statuses() == ["CANCELED", "COMPLETED"]
    ran_for = sum(job["finished"] - job["started"] for job in task.emulator.service.jobs())
    assert outcome.value["execution_seconds"] == pytest.approx(ran_for, abs=0.01)


@pytest.mark.contract
@pytest.mark.parametrize("has_ledger", [False, True])
def test_only_a_ledger_buys_what_expired_again(run: Run, mode: bool, has_ledger: bool) -> None:
    task = run(products(3), deferrable=mode)
    task.options["ledger"] = replace(task.options["ledger"], max_attempts=2) if has_ledger else None
    task.max_tries = 3
    task.emulator.service.inject(Fault(on="output", status=403, times=None, body=HAS_EXPIRED))
    for created in (3, 6, 6) if has_ledger else (3,):  # max_attempts counts them
        error = task.attempt().error
        assert task.created == created
    assert isinstance(error, AirflowFailException)


@pytest.mark.contract
@pytest.mark.parametrize("status", [302, 401, 403, 404, 407, 451])
def test_a_job_whose_outputs_are_refused_is_not_bought_again(
    run: Run, mode: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    task = run(products(6), deferrable=mode)
    task.emulator.service.inject(Fault(on="output", status=status, times=None))
    for attempt in ("first", "retry", "cleared", "next run"):
        if attempt == "cleared":
            task.clear()
        elif attempt == "next run":
            task.next_run("2")
        error = task.attempt().error
        assert not isinstance(error, AirflowFailException)
        assert "expired" not in str(error)
        assert f"127.0.0.1 answered {status}" in str(error)
        assert "check that the worker may reach it" in str(error)
        assert "runs no job again, and downloads the outputs" in str(error)
        assert [json.loads(path.read_text())["state"] for path in entries(task)] == ["pending"] * 6
    task.emulator.service.clear_faults()
    assert task.attempt().error is None
    assert task.column("status") == ["completed"] * 6
    assert task.created == 6


@pytest.mark.contract
def test_outputs_that_are_gone_are_bought_again_with_refresh(
    run: Run, mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    task = run(products(2), deferrable=mode)
    task.attempt_until("rungen_job_link")
    for job in task.emulator.service.jobs():
        task.emulator.service.inject(Fault(on="output", status=404, times=None, job_id=job["id"]))
    assert "answered 404" in str(task.attempt().error)
    task.next_run("night 2")
    again = Ledger((task.folder / "ledger").as_uri(), refresh=True)
    assert task.attempt(ledger=again).value["completed"] == 2
    assert task.created == 4


# --- the end of a deferral ---


@pytest.mark.contract
def test_a_table_whose_deferral_airflow_ends_is_written(run: Run) -> None:
    task = run(products(2), deferrable=True)
    assert task.attempt().error is None
    task.next_run("2")
    task.tries = task.max_tries
    endless: Any = lambda row: (picture if row["sku"] < "sku-2" else lasting(600))(row)  # noqa: E731
    op = task.begin(table=products(4), to_input=endless)
    with pytest.raises(TaskDeferred):
        op.execute(task.context)
    with pytest.raises(RunGenError, match="Airflow ended the wait for 2 jobs"):
        op.resume_execution("__fail__", {"error": "Trigger timeout"}, task.context)
    assert task.column("status") == ["completed"] * 2 + ["canceled"] * 2
    assert sorted(task.statuses()) == ["CANCELED"] * 2 + ["COMPLETED"] * 2
    assert leftovers(task) == []


# --- the log of the task run ---


# --- what the service says is not what we know ---


@pytest.mark.contract
@pytest.mark.parametrize("knows", ["ledger", "Airflow"])
def test_jobs_are_known_after_a_change_of_the_key_though_the_service_writes_inputs_its_own_way(
    run: Run, mode: bool, knows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run(products(3), deferrable=mode, **({} if knows == "ledger" else {"ledger": None}))
    task.store = FakeStore() if knows == "Airflow" else None
    task.attempt_until("rungen_job_link")
    service = task.emulator.service
    service.api_key = "rungen-new-key"
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", task.emulator.airflow_connection())
    for job in service.jobs():
        body = {"job_id": job["id"], "status": "COMPLETED", "result": {"text": "a photo"}}
        body["input"] = {"prompt": job["input"]["prompt"].upper()}
        service.inject(Fault(on="get", status=200, job_id=job["id"], times=None, body={"data": body}))
    outcome = task.attempt()
    assert outcome.error is None, outcome.error
    assert outcome.value["completed"] == task.created == 3


@pytest.mark.parametrize("has_ledger", [True, False])
@pytest.mark.parametrize("store", [None, FakeStore], ids=["3.1", "3.3"])
def test_what_is_stored_is_not_bought_again_when_the_service_forgets_it(
    run: Run, has_ledger: bool, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.GONE_GRACE", 0)
    task = run(products(4), **({} if has_ledger else {"ledger": None}))
    task.store = store and store()
    with monkeypatch.context() as patch:  # all is stored, and the log does not say so yet
        patch.setattr(Collecting, "_note_collected" if not has_ledger else "let_go", die)
        with pytest.raises(Died):
            task.attempt()
    stored = [path.parent.name for path in (task.folder / "photos").glob("*/manifest.json")]
    assert stored
    for job_id in stored:
        task.emulator.service.inject(Fault(on="get", status=404, times=None, job_id=job_id))
    outcome = task.attempt()
    assert outcome.error is None, outcome.error
    assert task.created == 4
