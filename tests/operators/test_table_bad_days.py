"""Tables on bad days: killed attempts, ledgers that others wrote to, stores and services that fail."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowException, AirflowFailException, TaskDeferred
from bad_answers import Fault
from conftest import FakeStore, Outcome, OutletEvents, TrackedTaskInstance, run_task, signal_when
from test_table import MODES, Killed, Table, picture, products

from airflow_provider_rungen.client import retry
from airflow_provider_rungen.decorators import rungen_table_task, rungen_task
from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.exceptions import RunGenError, RunGenOutputError
from airflow_provider_rungen.execution.jobs import resuming
from airflow_provider_rungen.execution.jobs.collecting import Collecting
from airflow_provider_rungen.execution.ledger.book import LedgerBook
from airflow_provider_rungen.execution.sending import sender
from airflow_provider_rungen.operators import Ledger, RunGenRunBatchOperator, RunGenRunTableOperator
from airflow_provider_rungen.triggers import RunGenJobTrigger

pytestmark = [
    pytest.mark.usefixtures("unsettled"),
    # Python 3.12 warns of a fork beside threads
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SLOW = {"emulator": {"seconds": 2}}
HAS_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> bool:
    return MODES[request.param]


@pytest.fixture
def run(rungen_emulator: Emulator, with_links: None, tmp_path: Path) -> Callable[..., Table]:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


def slow(row: dict[str, Any]) -> dict[str, Any]:
    return picture(row) | SLOW


def endless(row: dict[str, Any]) -> dict[str, Any]:
    return picture(row) | {"emulator": {"seconds": 600}}


def entries(task: Table) -> list[Path]:
    return sorted((task.folder / "ledger").glob("??/*.json"))


def leftovers(task: Table) -> list[Path]:
    """Return hidden files, apart from the logs of task runs."""
    hidden = (path.relative_to(task.folder) for path in task.folder.rglob(".*"))
    return [path for path in hidden if ".rungen" not in path.parts]


# --- the jobs of others ---


def test_a_deferred_task_does_not_cancel_the_jobs_of_another_dag(
    run: Callable[..., Table], mode: bool
) -> None:
    task = run(products(4), to_input=endless)
    task.store = FakeStore()
    task.attempt_until("rungen_job_link")
    task.store = None
    task.dag_id = "another"
    task.next_run("x")
    outcome = task.attempt(timeout=0.5, deferrable=mode)
    assert outcome.error is not None
    assert "CANCELED" not in task.statuses()


def test_a_changed_table_does_not_cancel_the_jobs_of_another_dag(run: Callable[..., Table]) -> None:
    task = run(products(4), to_input=slow)
    task.attempt_until("rungen_job_link")
    task.dag_id = "another"
    task.next_run("x")
    task.store = FakeStore()
    task.options["table"] = products(6)
    task.attempt_until("rungen_job_link")
    assert task.created == 6
    task.attempt(table=products(2))
    assert task.statuses() == ["COMPLETED"] * 4 + ["CANCELED"] * 2


# --- while deferred ---


@pytest.mark.parametrize("change", ["expired", "pruned", "refreshed"])
def test_what_is_reused_stays_so_while_deferred(
    run: Callable[..., Table], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    task.attempt_until("rungen_job_link")
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
    task.attempt_until("rungen_job_link")
    path = entries(task)[0]
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"job_id": "no-job"}))
    task.emulator.service.inject(Fault(on="get", status=status, times=None, job_id="no-job"))
    task.next_run("2")
    outcome = task.attempt()
    assert outcome.error is None
    assert task.column("status") == ["completed"] * 2


def test_two_entries_do_not_share_a_job(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(2), deferrable=mode)
    task.attempt_until("rungen_job_link")
    for night in "12":  # pending entries, and then those of stored jobs
        first, second = entries(task)
        shutil.copy(first, second)
        task.next_run(night)
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
def test_an_entry_of_a_strange_destination_buys_nothing(run: Callable[..., Table], uri: str) -> None:
    task = run(products(1))
    assert task.attempt().error is None
    [path] = entries(task)
    entry = json.loads(path.read_text())
    path.write_text(json.dumps(entry | {"manifest": f"{uri}/{entry['job_id']}/manifest.json"}))
    task.next_run("2")
    outcome = task.attempt()
    assert isinstance(outcome.error, RunGenOutputError)
    assert outcome.error.retryable
    assert uri in str(outcome.error)
    assert task.created == 1


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
    task.emulator.service.inject(Fault(on="output", status=403, skip=1, times=None, body=HAS_EXPIRED))
    outcome = task.attempt(max_concurrency=1)
    assert "2 of 3 rows failed" in str(outcome.error)
    assert sorted(task.column("status")) == ["completed", "failed", "failed"]
    for row in task.written:
        assert ("expired" in (row["error"] or "")) == (row["status"] == "failed")
    assert re.search(r"sku-\d: Could not store", str(outcome.error))


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

# whether it may happen after a deferral, the function, and the number of its last call; 0 for none
KILL_POINTS = {
    "the ledger is read": (False, "execution.ledger.book.LedgerBook.find", 0),
    "the first id is saved": (False, "execution.ledger.book.LedgerBook.add_pending", 1),
    "the attempt is noted": (False, "execution.jobs.storage_place.StoragePlace.put", 1),
    "the first intent is saved": (False, "runs.log.RunLog.fence", 1),
    "all is submitted": (False, "execution.jobs.run_report.RunReport.push_submitted", 0),
    "the wait is over": (True, "execution.sinks.collector.Collector.gather", 0),
    "a manifest is written": (True, "execution.archive.job_archiver.JobArchiver._write", 2),
    "a file is moved": (True, "execution.archive.storage.Storage.put", 5),
    "all is stored": (True, "execution.ledger.book.LedgerBook.add_done", 0),
    "the ledger is written": (True, "execution.ledger.book.LedgerBook.add_done", 1),
    "the table is to be written": (True, "execution.table.results.ResultsTable.write", 0),
    "a row is written": (True, "execution.table.job_rows.JobRows.row", 3),
    "the task ends": (True, "execution.table.results.ResultsTable.write", 1),
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
    raise Killed


@pytest.mark.usefixtures("on_the_wire")
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
    # long enough for a deferral
    lasting: Any = lambda row: picture(row) | {"emulator": {"seconds": 0.7}}  # noqa: E731
    task = run(products(6), to_input=lasting, deferrable=is_deferred, max_concurrency=1)
    method = "execute_complete" if is_late and is_deferred else "execute"
    original = getattr(RunGenRunTableOperator, method)
    with monkeypatch.context() as patch:
        killed: Any = lambda *args, **kw: kill(lambda: original(*args, **kw), target, after)  # noqa: E731
        patch.setattr(RunGenRunTableOperator, method, killed)
        with pytest.raises(Killed):
            task.attempt()
    outcome = task.attempt()
    assert outcome.error is None
    assert outcome.value["completed"] == 6
    assert task.created == 6
    assert leftovers(task) == []


# --- lists with a ledger ---


class Inputs(Table):
    """A task that runs a list of inputs, or one, in place of a table."""

    kind = "batch"

    def attempt(self, **changes: Any) -> Outcome:
        self.tries += 1
        self.ti = ti = TrackedTaskInstance(self.state)
        ti.dag_id, ti.run_id, ti.try_number, ti.max_tries = (
            self.dag_id,
            self.run_id,
            self.tries,
            self.max_tries,
        )
        ti.on_push = self.on_push
        options = self.options | changes
        rows = options.pop("table")
        inputs = list(map(options.pop("to_input"), rows))
        del options["key"]
        if self.kind == "batch":
            self.op: Any = RunGenRunBatchOperator(task_id="task", inputs=inputs, **options)
        else:
            given = inputs[0] if self.kind == "one" else inputs
            decorated: Any = rungen_task(task_id="task", **options)
            with DAG("dag", schedule=None):
                self.op = decorated(lambda: given)().operator
        self.context: Any = {"ti": ti, "task_state_store": self.store, "outlet_events": OutletEvents()}
        return self.work(self.op, self.context)

    work: Callable[..., Outcome] = staticmethod(run_task)

    def fail_deferral(self) -> None:
        """Run an attempt whose deferral Airflow ends."""

        def work(op: Any, context: Any) -> Any:
            with pytest.raises(TaskDeferred):
                op.execute(context)
            op.resume_execution("__fail__", {"error": "Trigger timeout"}, context)

        self.work = work
        self.attempt()

    def attempt_until_submitted(self) -> None:
        """Run the next attempt, which is killed when it has submitted its jobs."""
        self.attempt_until("job_id" if self.kind == "one" else "job_ids")


@pytest.fixture(params=["batch", "list", "one"])
def run_inputs(
    request: pytest.FixtureRequest, rungen_emulator: Emulator, tmp_path: Path
) -> Callable[..., Inputs]:
    def make(rows: Any, **options: Any) -> Inputs:
        task = Inputs(rungen_emulator, tmp_path, rows[:1] if request.param == "one" else rows, **options)
        task.kind = request.param
        return task

    return make


def ids(value: Any) -> list[str]:
    return [each["job_id"] for each in (value if isinstance(value, list) else [value])]


def test_a_list_is_paid_once(run_inputs: Callable[..., Inputs], mode: bool) -> None:
    task = run_inputs(products(4) + products(2), deferrable=mode)
    first = task.attempt()
    assert first.error is None
    bought = 1 if task.kind == "one" else 4
    assert task.created == bought
    task.next_run("2")
    again = task.attempt(destination=(task.folder / "elsewhere").as_uri())
    assert again.value == first.value
    assert again.events == []
    assert task.created == bought
    task.clear()
    assert task.attempt().value == first.value
    assert task.created == bought


@pytest.mark.parametrize("store", [None, FakeStore], ids=["2.11", "3.3"])
def test_a_killed_list_is_taken_up(run_inputs: Callable[..., Inputs], store: Any, mode: bool) -> None:
    task = run_inputs(products(4), deferrable=mode)
    task.store = store and store()
    task.attempt_until_submitted()
    bought = task.created
    assert task.attempt().error is None
    assert task.created == bought
    assert set(task.statuses()) == {"COMPLETED"}


def test_a_list_does_not_cancel_the_jobs_of_another_dag(
    run_inputs: Callable[..., Inputs], mode: bool
) -> None:
    task = run_inputs(products(3), to_input=endless, deferrable=mode)
    task.attempt_until_submitted()
    task.dag_id = "another"
    task.next_run("x")
    assert task.attempt(timeout=0.5).error is not None
    assert "CANCELED" not in task.statuses()
    if mode:  # and when Airflow ends the deferral, after which no retry follows
        task.tries = task.max_tries
        with pytest.raises(RunGenError, match="Airflow ended the wait"):
            task.fail_deferral()
        assert "CANCELED" not in task.statuses()
        assert leftovers(task) == []


def test_a_list_that_fails_is_bought_once(run_inputs: Callable[..., Inputs], mode: bool) -> None:
    bad = {"prompt": "x", "emulator": {"fail": "no memory"}}
    task = run_inputs(
        products(3), deferrable=mode, to_input=lambda row: bad if row["sku"] == "sku-0" else picture(row)
    )
    outcome = task.attempt()
    assert "no memory" in str(outcome.error)
    bought = task.created
    outcome = task.attempt(to_input=picture)
    assert outcome.error is None
    assert task.created == bought + 1


def test_a_list_with_max_failed(run_inputs: Callable[..., Inputs], mode: bool) -> None:
    bad = {"prompt": "x", "emulator": {"fail": "no memory"}}
    task = run_inputs(
        products(3),
        deferrable=mode,
        max_failed=0.5,
        to_input=lambda row: bad if row["sku"] == "sku-1" else picture(row),
    )
    outcome = task.attempt()
    assert outcome.error is None
    if task.kind != "one":
        assert outcome.value[1] is None
        task.next_run("2")
        outcome = task.attempt()
        assert task.created == 4
        assert outcome.value[1] is None
        assert outcome.value[0] is not None


# --- apps ---


@pytest.mark.parametrize("kind", ["no_id", "wrong_types", "empty", "garbage", "truncate", "html"])
def test_an_app_that_cannot_be_read(run: Callable[..., Table], kind: str) -> None:
    task = run(products(2))
    assert task.attempt().error is None
    task.next_run("2")
    task.emulator.service.inject(Fault(on="get_app", kind=kind))
    outcome = task.attempt()
    assert outcome.error is None, outcome.error
    assert task.created == 2


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_app_that_is_refused(run: Callable[..., Table], status: int) -> None:
    task = run(products(2))
    task.emulator.service.inject(Fault(on="get_app", status=status, times=None))
    outcome = task.attempt()
    assert outcome.error is not None
    assert task.created == 0


# --- storage that fails ---


def test_a_ledger_that_breaks_costs_nothing(
    run: Callable[..., Table], mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "STORE_RETRY_BUDGET", 0.3)
    task = run(products(12), to_input=slow, deferrable=mode, max_concurrency=2)
    ledger = task.folder / "ledger"
    add_pending = LedgerBook.add_pending

    def break_it(book: LedgerBook, app_id: str, jobs: dict[str, str]) -> None:
        add_pending(book, app_id, jobs)
        if ledger.is_dir() and task.created > 2:
            shutil.rmtree(ledger)
            ledger.write_text("not a folder")

    with monkeypatch.context() as patch:
        patch.setattr(LedgerBook, "add_pending", break_it)
        outcome = task.attempt()
    assert "ledger" in str(outcome.error)
    assert 0 < task.created < 12
    # the log has those that the ledger does not
    assert "CANCELED" not in task.statuses()
    ledger.unlink()
    assert task.attempt().value["completed"] == 12
    assert task.created == 12


def test_a_results_table_that_cannot_be_written_costs_nothing(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(3), deferrable=mode)
    blocked = task.folder / "photos" / "results.jsonl"
    (blocked / "x").mkdir(parents=True)
    outcome = task.attempt()
    assert "Could not write the results table" in str(outcome.error)
    shutil.rmtree(blocked)
    value = task.attempt().value
    assert (value["jobs"], value["reused"], task.created) == (3, 0, 3)


@pytest.mark.usefixtures("on_the_wire")
def test_what_was_stored_before_a_kill_is_remembered(run: Callable[..., Table]) -> None:
    task = run(products(3))
    original = RunGenRunTableOperator.execute
    with pytest.MonkeyPatch.context() as patch:
        target = "execution.ledger.book.LedgerBook.add_done"
        patch.setattr(
            RunGenRunTableOperator, "execute", lambda *args: kill(lambda: original(*args), target, 0)
        )
        with pytest.raises(Killed):
            task.attempt()
    assert task.attempt().value["jobs"] == 3
    task.next_run("2")
    task.emulator.service.inject(Fault(on="get", status=404, times=None))
    outcome = task.attempt(destination=(task.folder / "elsewhere").as_uri())
    assert outcome.value["reused"] == 3
    assert task.created == 3


# --- parameters ---


def test_what_is_ignored_may_be_any_collection(run: Callable[..., Table]) -> None:
    task = run(products(2), to_input=lambda row: picture(row) | {"seed": row["seed"], "id": row["seed"]})
    names = {"seed", "id"}
    collections: list[Any] = [names, list(names), (name for name in names)]
    for seed, ignore in enumerate(collections):
        task.next_run(str(seed))
        ledger = Ledger((task.folder / "ledger").as_uri(), ignore=ignore)
        assert task.attempt(table=products(2, seed=seed), ledger=ledger).error is None
    assert task.created == 2
    assert repr(Ledger("/x", ignore={"b", "a", "c"})) == repr(Ledger("/x", ignore=["c", "b", "a"]))


@pytest.mark.parametrize("column", ["status", "Index", "job_id", "error"])
@pytest.mark.parametrize("where", ["key", "columns"])
def test_columns_of_the_results_table_are_refused(run: Callable[..., Table], column: str, where: str) -> None:
    task = run([{"sku": 1, column: "x", "title": "t"}], **{where: [column]})
    outcome = task.attempt()
    assert isinstance(outcome.error, AirflowFailException)
    assert "two columns" in str(outcome.error)
    assert task.created == 0


def test_a_share_is_one_of_the_rows_that_run(run: Callable[..., Table], mode: bool) -> None:
    bad = {"prompt": "x", "emulator": {"fail": "no memory"}}
    inputs = {"sku-0": None, "sku-1": None, "sku-2": bad}
    task = run(products(4), deferrable=mode, to_input=lambda row: inputs.get(row["sku"], picture(row)))
    assert "1 of 2 rows failed, 0 may" in str(task.attempt(max_failed=0.49).error)
    assert task.attempt(max_failed=0.5).error is None


def test_all_rows_may_be_skipped(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(2), deferrable=mode, to_input=lambda row: None, max_failed=0.5)
    assert task.attempt().value["skipped"] == 2
    assert task.column("status") == ["skipped"] * 2


def test_equal_keys_of_different_types(run: Callable[..., Table]) -> None:
    rows = [{"sku": key, "title": str(number)} for number, key in enumerate([1, "x", True, [1], {"a": 1}])]
    task = run(rows)
    assert task.attempt().error is None
    assert task.column("sku") == [1, "x", True, [1], {"a": 1}]
    outcome = task.attempt(table=[{"sku": 1, "title": "x"}, {"sku": 1.0, "title": "y"}])
    assert "more than once" in str(outcome.error)


@pytest.mark.parametrize(
    "uri",
    [
        "file://{folder}/results.jsonl?X-Amz-Signature=SECRETVALUE",
        "file://{folder}/results?X-Amz-Signature=SECRETVALUE&x=.csv",
        "memory://me:SECRETVALUE@host/results.jsonl",
    ],
)
def test_no_secret_of_a_uri_is_shown(
    run: Callable[..., Table], caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    task = run(
        products(1),
        ledger=None,
        destination=None,
        to_input=lambda row: {"prompt": "x", "emulator": {"result": {"text": "x"}}},
    )
    outcome = task.attempt(results=uri.format(folder=task.folder))
    shown = json.dumps([str(outcome.error), outcome.value, task.ti.pushed, caplog.text], default=str)
    assert "SECRETVALUE" not in shown


# --- the decorator ---


def test_the_decorator(rungen_emulator: Emulator, tmp_path: Path, mode: bool) -> None:
    def prompt(row: dict[str, Any], style: str, *, run_id: Any = None, extra: str = "") -> dict[str, Any]:
        return {"prompt": f"{style} {row['title']} {run_id} {extra}"}

    decorated: Any
    with DAG("dag", schedule=None):
        decorated = rungen_table_task(
            task_id="task",
            table=products(2),
            key="sku",
            destination=tmp_path.as_uri(),
            deferrable=mode,
            poll_interval=0.02,
            defer_after=0,
        )
        op = decorated(prompt)("oil", extra="x").operator
    ti = TrackedTaskInstance()
    context: Any = {"ti": ti, "task_state_store": None, "outlet_events": OutletEvents(), "run_id": "night"}
    outcome = run_task(op, context)
    assert outcome.error is None
    assert sorted(job["input"]["prompt"] for job in rungen_emulator.service.jobs()) == [
        "oil product 0 night x",
        "oil product 1 night x",
    ]


# --- S3 ---


class S3Table(Table):
    """A table task whose files are all in S3."""

    def __init__(self, emulator: Emulator, s3: str, client: Any, **options: Any) -> None:
        self.s3, self.client = s3, client
        self.prefix = s3.removeprefix("s3://my_s3@bucket/")
        places = {
            "destination": f"{s3}/photos",
            "results": f"{s3}/photos/results.jsonl",
            "ledger": Ledger(f"{s3}/ledger"),
        }
        super().__init__(emulator, Path("/nowhere"), f"{s3}/photos/*.jsonl", **places | options)

    def put(self, rows: list[dict[str, Any]]) -> None:
        body = "\n".join(map(json.dumps, rows)).encode()
        self.client.put_object(Bucket="bucket", Key=f"{self.prefix}/photos/in.jsonl", Body=body)

    @property
    def written(self) -> list[dict[str, Any]]:
        answer = self.client.get_object(Bucket="bucket", Key=f"{self.prefix}/photos/results.jsonl")
        return [json.loads(line) for line in answer["Body"].read().splitlines()]

    @property
    def names(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket="bucket", Prefix=f"{self.prefix}/")["Contents"]
        return [each["Key"].rpartition("/")[2] for each in listed]


@pytest.fixture
def in_s3(rungen_emulator: Emulator, s3: str, s3_client: Any) -> Callable[..., S3Table]:
    return lambda **options: S3Table(rungen_emulator, s3, s3_client, **options)


def test_s3_from_night_to_night(in_s3: Callable[..., S3Table], mode: bool) -> None:
    task = in_s3(deferrable=mode)
    task.put(products(3))
    assert task.attempt().value["jobs"] == 3
    task.next_run("2")
    task.put(products(4))
    value = task.attempt().value
    assert (value["rows"], value["reused"], value["jobs"]) == (4, 3, 1)
    assert task.column("reused") == [True] * 3 + [False]
    assert not [name for name in task.names if name.startswith(".")]
    task.client.delete_object(
        Bucket="bucket", Key=task.column("output")[0].removeprefix("s3://my_s3@bucket/")
    )
    task.next_run("3")
    assert task.attempt().value["jobs"] == 1
    assert task.created == 5


def test_s3_after_a_kill(in_s3: Callable[..., S3Table], mode: bool) -> None:
    task = in_s3(deferrable=mode)
    task.put(products(3))
    task.attempt_until("rungen_job_link")
    assert task.attempt().value["completed"] == 3
    assert task.created == 3
    task.next_run("2")
    assert task.attempt().value["reused"] == 3


def test_s3_when_the_time_is_up(in_s3: Callable[..., S3Table]) -> None:
    task = in_s3(deferrable=True, to_input=endless)
    task.put(products(3))
    outcome = task.attempt(timeout=0.5)
    assert outcome.error is not None
    assert set(task.statuses()) == {"CANCELED"}
    assert task.column("status") == ["canceled"] * 3
    assert not [name for name in task.names if name.startswith(".")]


# --- the schema of results ---


@pytest.mark.parametrize("required", ["images", "text"])
def test_a_result_that_does_not_fit_is_not_reused(
    run: Callable[..., Table], mode: bool, required: str
) -> None:
    task = run(products(2), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("2")
    outcome = task.attempt(result_schema={"type": "object", "required": [required]}, max_failed=2)
    assert outcome.error is None
    fits = required == "images"
    assert (outcome.value["reused"], outcome.value["failed"]) == ((2, 0) if fits else (0, 2))
    assert task.created == (2 if fits else 4)


def test_a_job_whose_outputs_expired_is_bought_again(
    run: Callable[..., Table], mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    task = run(products(2), deferrable=mode)
    task.attempt_until("rungen_job_link")
    [expired, _] = [job["id"] for job in task.emulator.service.jobs()]
    fault = Fault(on="output", status=403, times=None, job_id=expired, body=HAS_EXPIRED)
    task.emulator.service.inject(fault)
    task.next_run("8 days later")
    caplog.clear()
    assert task.attempt().value["completed"] == 2
    assert f"Outputs expired: job {expired}; its input is paid for again" in caplog.text
    assert task.column("reused") == [False, True]
    assert task.created == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_job_whose_outputs_are_refused_is_not_bought_again(
    run: Callable[..., Table], mode: bool, status: int, monkeypatch: pytest.MonkeyPatch
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
        assert [json.loads(path.read_text())["state"] for path in entries(task)] == ["pending"] * 6
    task.emulator.service.clear_faults()
    outcome = task.attempt()
    assert outcome.error is None
    assert task.column("status") == ["completed"] * 6
    assert task.created == 6


def test_a_file_that_is_refused_for_a_moment_fails_no_attempt(
    run: Callable[..., Table], mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    task = run(products(6), deferrable=mode)
    for status in (401, 403, 404, 410):
        task.emulator.service.inject(Fault(on="output", status=status))
    assert task.attempt().error is None
    assert task.created == 6


def test_outputs_that_are_gone_are_bought_again_with_refresh(
    run: Callable[..., Table], mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    task = run(products(2), deferrable=mode)
    task.attempt_until("rungen_job_link")
    for job in task.emulator.service.jobs():
        task.emulator.service.inject(Fault(on="output", status=404, times=None, job_id=job["id"]))
    assert "answered 404" in str(task.attempt().error)
    task.clear()
    again = Ledger((task.folder / "ledger").as_uri(), refresh=True)
    assert task.attempt(ledger=again).value["completed"] == 2
    assert task.created == 4


# --- the end of a deferral ---


def test_a_table_whose_deferral_airflow_ends_is_written(
    run: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(op: Any, context: Any) -> Any:
        with pytest.raises(TaskDeferred):
            op.execute(context)
        op.resume_execution("__fail__", {"error": "Trigger timeout"}, context)

    task = run(products(2), deferrable=True)
    assert task.attempt().error is None
    task.next_run("2")
    task.tries = task.max_tries
    task.options["table"] = products(4)
    monkeypatch.setattr("test_table.run_task", work)
    with pytest.raises(RunGenError, match="Airflow ended the wait for 2 jobs"):
        task.attempt(to_input=lambda row: picture(row) if row["sku"] < "sku-2" else endless(row))
    assert task.column("status") == ["completed"] * 2 + ["canceled"] * 2
    assert sorted(task.statuses()) == ["CANCELED"] * 2 + ["COMPLETED"] * 2
    assert leftovers(task) == []


# --- the log of the task run ---


def forge(content: bytes) -> bytes:
    return content.replace(b"photo of", b"nudes of").replace(b"sku-", b"uks-")


CHANGES: dict[str, Callable[[bytes], bytes | None]] = {
    "removed": lambda content: None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda content: b"\xff\n",
    "twice": lambda content: content * 2,
    "forged": forge,
}
# the attempt, its jobs, the plan, and the rows and inputs of the plan
FILES = {"attempts": "attempts/*", "jobs": "jobs/*/*", "plan": "plans/*"}


@pytest.mark.parametrize(
    ("kind", "change", "has_ledger"),
    [*((kind, change, False) for kind in FILES for change in CHANGES), ("plan", "forged", True)],
)
def test_what_changes_the_log_between_two_waves_decides_nothing(
    run: Callable[..., Table], kind: str, change: str, has_ledger: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a log of one part is handed over by Airflow itself, so that nobody else has a say
    count, in_flight = (70, 66) if kind == "jobs" else (8, 2)
    task = run(products(count), deferrable=True, max_in_flight=in_flight)
    if not has_ledger:
        task.options["ledger"] = None
    wait, before = RunGenJobTrigger.run, {}

    def meddle(trigger: Any) -> Any:
        for path in (task.folder / "photos" / ".rungen" / "runs").glob(f"*/{FILES[kind]}"):
            content = path.read_bytes()
            changed = CHANGES[change](content)
            if changed == content:
                continue
            before[path] = content
            path.unlink() if changed is None else path.write_bytes(changed)
        return wait(trigger)

    with monkeypatch.context() as patch:
        patch.setattr(RunGenJobTrigger, "run", meddle)
        outcome = task.attempt()
    if not before:  # nothing to forge
        assert (change, outcome.error) == ("forged", None)
        return
    if kind == "attempts" and change != "removed":  # only a later attempt reads it
        assert (outcome.error, task.created) == (None, count)
        return
    assert isinstance(outcome.error, RunGenError)
    assert any(path.name in str(outcome.error) for path in before), outcome.error
    assert task.created == in_flight
    for path, content in before.items():
        path.write_bytes(content)
    assert task.attempt().value["completed"] == count
    assert task.created == count


# --- SIGTERM ---


@pytest.mark.usefixtures("on_the_wire")
@pytest.mark.parametrize("state", ["failed", "running"])
def test_sigterm_while_outputs_are_stored_costs_nothing(
    run: Callable[..., Table], mode: bool, state: str
) -> None:
    task = run(products(4), deferrable=mode, max_concurrency=1)
    task.state = state
    task.emulator.service.inject(Fault(on="output", kind="hang", skip=2))

    def die() -> None:
        task.op.on_kill()
        raise AirflowException("Task received SIGTERM signal")

    with signal_when(
        signal.SIGTERM, lambda: task.emulator.service.stats()["requests"].get("output", 0) > 2, die
    ):
        assert task.attempt().error is not None
    assert task.statuses() == ["COMPLETED"] * 4
    task.state = "running"
    assert task.attempt().value["completed"] == 4
    task.next_run("2")
    assert task.attempt().value["reused"] == 4
    assert task.created == 4


# --- what the service says is not what we know ---


@pytest.mark.parametrize("knows", ["ledger", "Airflow"])
def test_jobs_are_known_after_a_change_of_the_key_though_the_service_writes_inputs_its_own_way(
    run: Callable[..., Table], mode: bool, knows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = run(products(3), deferrable=mode, **({} if knows == "ledger" else {"ledger": None}))
    task.store = FakeStore() if knows == "Airflow" else None
    task.attempt_until("rungen_job_link")
    task.emulator.service.api_key = "rungen-new-key"
    monkeypatch.setenv("AIRFLOW_CONN_RUNGEN_DEFAULT", task.emulator.airflow_connection())
    for job in task.emulator.service.jobs():
        written = {
            "job_id": job["id"],
            "status": "COMPLETED",
            "input": {"prompt": job["input"]["prompt"].upper()},
            "result": {"text": "a photo"},
        }
        task.emulator.service.inject(
            Fault(on="get", status=200, job_id=job["id"], times=None, body={"data": written})
        )
    outcome = task.attempt()
    assert outcome.error is None, outcome.error
    assert outcome.value["completed"] == 3
    assert task.created == 3


@pytest.mark.parametrize("has_ledger", [True, False])
@pytest.mark.parametrize("store", [None, FakeStore], ids=["2.11", "3.3"])
def test_what_is_stored_is_not_bought_again_when_the_service_forgets_it(
    run: Callable[..., Table], has_ledger: bool, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "RESUBMISSION_GRACE", 0)
    task = run(products(4), **({} if has_ledger else {"ledger": None}))
    task.store = store and store()

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:  # all is stored, and the log does not say so yet
        patch.setattr(Collecting, "_note_collected" if not has_ledger else "let_go", kill)
        with pytest.raises(Killed):
            task.attempt()
    assert len(list((task.folder / "photos").glob("*/manifest.json"))) >= 1
    stored = [path.parent.name for path in (task.folder / "photos").glob("*/manifest.json")]
    for job_id in stored:
        task.emulator.service.inject(Fault(on="get", status=404, times=None, job_id=job_id))
    outcome = task.attempt()
    assert outcome.error is None, outcome.error
    assert task.created == 4
