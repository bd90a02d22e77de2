"""Tables on bad days: attempts that are killed, ledgers that others wrote to, stores and services that fail."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from conftest import FakeStore
from test_table import Killed, Table, mode, picture, products, run  # noqa: F401  # fixtures

from airflow_provider_rungen.emulator import Fault
from airflow_provider_rungen.operators import Ledger, RunGenRunTableOperator

pytestmark = pytest.mark.usefixtures("unsettled")
SLOW = {"emulator": {"seconds": 2}}


def slow(row: dict[str, Any]) -> dict[str, Any]:
    return picture(row) | SLOW


def kill_when_submitted(task: Table) -> None:
    """Run an attempt that is killed as soon as all is submitted."""

    def kill(key: str, _: Any) -> None:
        if key == "batch":
            raise Killed

    task.on_push = kill
    with pytest.raises(Killed):
        task.attempt()
    task.on_push = None


def entries(task: Table) -> list[Path]:
    return sorted((task.folder / "ledger").glob("??/*.json"))


# --- the jobs of others ---


def test_a_deferred_task_does_not_cancel_the_jobs_of_another_dag(
    run: Callable[..., Table], mode: bool
) -> None:
    task = run(products(4), to_input=slow)
    task.store = FakeStore()
    kill_when_submitted(task)
    task.store = None
    task.dag_id = "another"
    task.next_run("x")
    outcome = task.attempt(timeout=0.5, deferrable=mode)
    assert outcome.error is not None
    assert "CANCELED" not in task.statuses()


def test_a_changed_table_does_not_cancel_the_jobs_of_another_dag(run: Callable[..., Table]) -> None:
    task = run(products(4), to_input=slow)
    kill_when_submitted(task)
    task.dag_id = "another"
    task.next_run("x")
    task.store = FakeStore()
    task.options["table"] = products(6)
    kill_when_submitted(task)
    assert task.created == 6
    task.attempt(table=products(2))
    assert task.statuses() == ["COMPLETED"] * 4 + ["CANCELED"] * 2


# --- while deferred ---


@pytest.mark.parametrize("change", ["expired", "pruned", "refreshed"])
def test_what_is_reused_stays_so_while_deferred(
    run: Callable[..., Table], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_rungen.triggers import RunGenJobTrigger

    task = run(products(3))
    assert task.attempt().error is None
    jobs = task.column("job_id")
    task.next_run("2")
    task.dag_id = "another"
    wait = RunGenJobTrigger.run

    def meddle(trigger: Any) -> Any:
        for path in entries(task):
            entry = json.loads(path.read_text())
            if entry["state"] == "pending":
                continue
            if change == "expired":
                entry["at"] = (datetime.now(UTC) - timedelta(days=9)).isoformat()
                path.write_text(json.dumps(entry))
            elif change == "pruned":
                path.unlink()
            else:
                entry["job_id"] = "11111111-1111-4111-8111-111111111111"
                entry["manifest"] = entry["manifest"].replace(
                    json.loads(path.read_text())["job_id"], entry["job_id"]
                )
                path.write_text(json.dumps(entry))
        return wait(trigger)

    monkeypatch.setattr(RunGenJobTrigger, "run", meddle)
    ledger = Ledger((task.folder / "ledger").as_uri(), expires=86400)
    task.emulator.service.inject(Fault(on="get", status=404, times=None, job_id=jobs[0]))
    outcome = task.attempt(
        table=products(4),
        deferrable=True,
        ledger=ledger,
        destination=(task.folder / "photos2").as_uri(),
        results=(task.folder / "photos" / "results.jsonl").as_uri(),
    )
    assert outcome.error is None
    assert task.column("status") == ["completed"] * 4
    assert task.column("reused") == [True] * 3 + [False]
    assert task.column("job_id")[:3] == jobs


# --- what others wrote to the ledger ---


def test_a_pending_job_from_the_future_is_not_waited_for(run: Callable[..., Table]) -> None:
    task = run(products(2))
    kill_when_submitted(task)
    for path in entries(task):
        entry = json.loads(path.read_text())
        entry |= {
            "at": "2999-01-01T00:00:00+00:00",
            "job_id": "11111111-1111-4111-8111-11111111111" + path.stem[0],
        }
        path.write_text(json.dumps(entry))
    task.next_run("2")
    assert task.attempt().error is None


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_pending_job_that_the_service_refuses_is_a_miss(run: Callable[..., Table], status: int) -> None:
    task = run(products(2))
    kill_when_submitted(task)
    path = entries(task)[0]
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"job_id": "no-job"}))
    task.emulator.service.inject(Fault(on="get", status=status, times=None, job_id="no-job"))
    task.next_run("2")
    outcome = task.attempt()
    assert outcome.error is None
    assert task.column("status") == ["completed"] * 2


def test_two_entries_do_not_share_a_job(run: Callable[..., Table], mode: bool) -> None:
    for is_done in (False, True):
        shutil.rmtree(task.folder / "ledger") if is_done else None
        task = run(products(2), deferrable=mode)
        task.run_id = f"copied {is_done}"
        if is_done:
            task.attempt()
        else:
            kill_when_submitted(task)
        first, second = entries(task)
        shutil.copy(first, second)
        task.next_run(f"{is_done} 2")
        assert task.attempt().error is None
        assert len(set(task.column("job_id"))) == 2


@pytest.mark.parametrize(
    "uri",
    [
        "smb://host/share",
        "github://org/repo",
        "sftp://host/x",
        "memory://x",
        "hf://a/b",
        "zip://x/y",
        "simplecache://x/y",
        "git://x/y",
        "gs://bucket/x",
        "generic://x/y",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_entry_of_a_strange_destination_is_a_miss(run: Callable[..., Table], uri: str) -> None:
    task = run(products(1))
    assert task.attempt().error is None
    [path] = entries(task)
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"manifest": f"{uri}/{entry['job_id']}/manifest.json"}))
    task.next_run("2")
    assert task.attempt().error is None


# --- failures that leave a table ---


def test_the_table_tells_what_is_reused_when_nothing_can_be_submitted(
    run: Callable[..., Table], mode: bool
) -> None:
    task = run(products(4), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("2")
    task.emulator.service.inject(Fault(on="run", status=403, times=None))
    outcome = task.attempt(table=products(5))
    assert outcome.error is not None
    assert task.column("status") == ["completed"] * 4 + ["failed"]
    assert task.column("reused") == [True] * 4 + [False]


def test_the_table_tells_why_outputs_could_not_be_stored(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(3), deferrable=mode, max_failed=1)
    task.emulator.service.inject(Fault(on="output", status=410, skip=1, times=None))
    outcome = task.attempt(max_concurrency=1)
    assert "2 of 3 rows failed" in str(outcome.error)
    assert sorted(task.column("status")) == ["completed", "failed", "failed"]
    for row in task.written:
        assert ("expired" in (row["error"] or "")) == (row["status"] == "failed")
    assert "sku-1: Could not store" in str(outcome.error)


# --- rows ---


@pytest.mark.parametrize(
    "value",
    [datetime(2026, 1, 1), float("nan"), b"x", {1, 2}, {1: 2, "a": 3}, 10**400, [1, {"a": None}], 10**5000],
    ids=["date", "nan", "bytes", "set", "mixed", "huge", "nested", "too huge"],
)
@pytest.mark.parametrize("column", ["sku", "title", "price"])
def test_values_that_json_cannot_express_are_named(
    run: Callable[..., Table], value: Any, column: str
) -> None:
    rows = products(2)
    rows[1][column] = value
    task = run(rows, columns=["price"], to_input=lambda row: {"prompt": "x"})
    outcome = task.attempt()
    if outcome.error is not None:
        assert isinstance(outcome.error, AirflowFailException), repr(outcome.error)
        assert "row 2" in str(outcome.error)
        assert task.created == 0
    else:
        assert len(task.written) == 2


def test_a_mapping_is_an_input(run: Callable[..., Table]) -> None:
    from types import MappingProxyType

    assert run(products(1), to_input=lambda row: MappingProxyType(picture(row))).attempt().error is None


def test_the_function_may_change_its_row(run: Callable[..., Table], mode: bool) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        row["tags"].append("seen")
        return picture(row)

    rows = [row | {"tags": ["a"]} for row in products(2)]
    task = run(rows, to_input=change, columns=["tags"], deferrable=mode)
    assert task.attempt().error is None
    assert task.column("tags") == [["a"], ["a"]]


# --- places ---


def test_the_results_are_not_read_as_source(run: Callable[..., Table], mode: bool) -> None:
    task = run([], deferrable=mode)
    source = task.folder / "photos"
    source.mkdir()
    (source / "in.jsonl").write_text("\n".join(map(json.dumps, products(2))))
    for night in "123":
        task.next_run(night)
        outcome = task.attempt(table=source.as_uri())
        assert outcome.error is None
        assert outcome.value["rows"] == 2


def test_the_source_is_not_overwritten(run: Callable[..., Table]) -> None:
    task = run([])
    path = task.folder / "in.jsonl"
    path.write_text("\n".join(map(json.dumps, products(2))))
    outcome = task.attempt(table=str(path), results=path.as_uri())
    assert isinstance(outcome.error, AirflowFailException)
    assert task.created == 0
    assert "product 0" in path.read_text()


# --- SIGKILL ---

# by what has just happened: whether it may happen after a deferral, the function, and the number of the call that
# is the last; 0 for before the first
KILL_POINTS = {
    "the ledger is read": (False, "execution.ledger.book.LedgerBook.find", 0),
    "the first id is saved": (False, "execution.ledger.book.LedgerBook.add_pending", 1),
    "all is submitted": (False, "execution.table.run.TableRun.push_submitted", 0),
    "the wait is over": (True, "execution.collector.Collector.gather", 0),
    "a manifest is written": (True, "execution.archive.journal.ManifestJournal.finish", 2),
    "a file is moved": (True, "execution.archive.storage.Storage.put", 8),
    "all is stored": (True, "execution.ledger.book.LedgerBook.add_done", 0),
    "the ledger is written": (True, "execution.ledger.book.LedgerBook.add_done", 1),
    "the table is to be written": (True, "execution.table.results.ResultsTable.write", 0),
    "a row is written": (True, "execution.table.result_files.JsonLinesFile.add", 3),
    "the task ends": (True, "execution.table.results.ResultsTable.write", 1),
}
KILL_POINTS_OF_DEFERRALS = {
    "the rows are to be saved": (False, "execution.batch.saved.SavedLines.save", 0),
    "the rows are saved": (False, "execution.batch.saved.SavedLines.save", 1),
    "the saved rows are to be read": (True, "execution.batch.saved.SavedLines.load", 0),
    "the saved rows are to be removed": (True, "execution.batch.saved.SavedLines.remove", 0),
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
    raise Killed


@pytest.mark.parametrize(
    ("point", "is_deferred"),
    [
        *((point, is_deferred) for point in KILL_POINTS for is_deferred in (False, True)),
        *((point, True) for point in KILL_POINTS_OF_DEFERRALS),
    ],
)
def test_a_killed_attempt_costs_nothing(
    run: Callable[..., Table], point: str, is_deferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_late, target, after = (KILL_POINTS | KILL_POINTS_OF_DEFERRALS)[point]
    task = run(products(6), deferrable=is_deferred, max_concurrency=1)
    method = "execute_complete" if is_late and is_deferred else "execute"
    original = getattr(RunGenRunTableOperator, method)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            RunGenRunTableOperator,
            method,
            lambda *args, **kw: kill(lambda: original(*args, **kw), target, after),
        )
        task.attempt()
    outcome = task.attempt()
    assert outcome.error is None
    assert outcome.value["completed"] == 6
    assert task.created == 6
    assert [path.name for path in task.folder.rglob(".*")] == []
