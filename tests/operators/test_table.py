"""From a table to a table: which rows get a job, what the results table has, and what the server counted."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, Asset
from bad_answers import Fault
from conftest import FakeStore, Outcome, OutletEvents, TrackedTaskInstance, run_task, signal_when

from airflow_provider_rungen.emulator import Emulator, Service
from airflow_provider_rungen.emulator.messages import Reply
from airflow_provider_rungen.operators import Ledger, RunGenPlanTableOperator, RunGenRunTableOperator

pytestmark = pytest.mark.usefixtures("unsettled")
MODES = {"blocking": False, "deferred": True}
COLUMNS = [
    *("index", "status", "error", "job_id", "reused", "outputs", "output", "sha256", "result"),
    *("execution_seconds", "cost", "created_at"),
]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> bool:
    return MODES[request.param]


def products(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"sku": f"sku-{n}", "title": f"product {n}", "price": n + 0.5, **more} for n in range(count)]


def to_input(row: dict[str, Any]) -> Any:
    return {
        "sku-1": None,
        "sku-2": {"prompt": 7},
        "sku-3": {"prompt": "x", "emulator": {"fail": "no memory"}},
    }.get(row["sku"], picture(row))


def picture(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"photo of {row['title']}"}


class Killed(BaseException):
    """Ends an attempt at once, as SIGKILL does: nothing that comes after it is done."""


class Table:
    """A table task, with its runs and attempts, in a folder of its own."""

    def __init__(self, emulator: Emulator, folder: Path, rows: Any, **options: Any) -> None:
        emulator.service.scale("flux-schnell", 1000)
        # a deferral comes before the first has ended, also on a slow machine
        emulator.service.job_seconds = 0.3
        self.emulator, self.folder = emulator, folder
        self.options: dict[str, Any] = {
            "table": rows,
            "key": "sku",
            "to_input": picture,
            "destination": (folder / "photos").as_uri(),
            "ledger": Ledger((folder / "ledger").as_uri()),
            "poll_interval": 0.02,
            "defer_after": 0,
        } | options
        self.operator = RunGenRunTableOperator
        self.store: Any = None
        self.dag_id, self.run_id = "dag", "night 1"
        self.max_tries, self.tries = 1, 0
        self.state: str | None = "running"
        self.on_push: Callable[[str, Any], None] | None = None
        self.outlets: list[Any] = []

    def attempt(self, **changes: Any) -> Outcome:
        """Run the next attempt."""
        self.tries += 1
        self.ti = ti = TrackedTaskInstance(self.state)
        ti.dag_id, ti.run_id = self.dag_id, self.run_id
        ti.try_number, ti.max_tries = self.tries, self.max_tries
        ti.on_push = self.on_push
        self.op = self.operator(task_id="task", outlets=self.outlets, **self.options | changes)
        self.events = OutletEvents()
        context: Any = {"ti": ti, "task_state_store": self.store, "outlet_events": self.events}
        return run_task(self.op, context)

    def attempt_until(self, key: str, **changes: Any) -> None:
        """Run the next attempt, which is killed when it pushes this XCom."""

        def kill(pushed: str, _: Any) -> None:
            if pushed == key:
                raise Killed

        self.on_push = kill
        with pytest.raises(Killed):
            self.attempt(**changes)
        self.on_push = None

    def clear(self) -> None:
        """Clear the task, as a user does."""
        self.max_tries = self.tries + 1

    def next_run(self, run_id: str) -> None:
        self.run_id, self.tries, self.max_tries = run_id, 0, 1
        self.store = None if self.store is None else FakeStore()

    @property
    def created(self) -> int:
        return int(self.emulator.service.stats()["jobs_created"])

    def statuses(self) -> list[str]:
        return [job["status"] for job in self.emulator.service.jobs()]

    @property
    def written(self) -> list[dict[str, Any]]:
        """The results table."""
        text = (self.folder / "photos" / "results.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.written]


@pytest.fixture
def run(rungen_emulator: Emulator, with_links: None, tmp_path: Path) -> Callable[..., Table]:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


# --- the results table ---


def test_each_row_has_a_row(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(4), deferrable=mode, columns=["price", "title"])
    outcome = task.attempt()
    assert outcome.error is None
    assert len(outcome.events) == mode
    assert outcome.value == {
        "results": (task.folder / "photos" / "results.jsonl").as_uri(),
        "rows": 4,
        "completed": 4,
        "failed": 0,
        "skipped": 0,
        "reused": 0,
        "jobs": 4,
        "execution_seconds": outcome.value["execution_seconds"],
    }
    assert outcome.value["execution_seconds"] > 0
    rows = task.written
    assert [list(row) for row in rows] == [["sku", "price", "title", *COLUMNS]] * 4
    jobs = {job["id"]: job["input"]["prompt"] for job in task.emulator.service.jobs()}
    for index, (row, source) in enumerate(zip(rows, products(4), strict=True)):
        assert (row["sku"], row["title"]) == (source["sku"], source["title"])
        assert (row["index"], row["status"], row["error"], row["reused"]) == (index, "completed", None, False)
        assert jobs[row["job_id"]] == picture(source)["prompt"]
        assert row["outputs"] == [row["output"]]
        assert Path(row["output"].removeprefix("file://")).read_bytes().startswith(b"\x89PNG")
    text = (task.folder / "photos" / "results.jsonl").read_text()
    assert "signature" not in text.lower()


def test_rows_may_be_skipped_refused_and_failed(run: Callable[..., Table], mode: bool) -> None:
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}}
    task = run(products(5), to_input=to_input, deferrable=mode, max_failed=2, input_schema=schema)
    outcome = task.attempt()
    assert outcome.error is None
    assert task.column("status") == ["completed", "skipped", "refused", "failed", "completed"]
    assert [bool(error) for error in task.column("error")] == [False, False, True, True, False]
    assert "no memory" in task.column("error")[3]
    assert "nothing was sent" not in task.column("error")[2]
    assert (outcome.value["completed"], outcome.value["failed"], outcome.value["skipped"]) == (2, 2, 1)
    page = task.ti.xcoms["rungen_page"]
    assert (page["rows"], page["skipped"], page["refused"]) == (5, 1, 1)
    assert (task.created, outcome.value["jobs"]) == (3, 3)


def test_more_misfits_than_may_fail_are_in_the_table_and_nothing_is_sent(run: Callable[..., Table]) -> None:
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}}
    task = run(products(4), to_input=to_input, input_schema=schema)
    outcome = task.attempt()
    assert isinstance(outcome.error, AirflowFailException)
    assert "1 of 3 rows do not fit, 0 may (max_failed): input.prompt: 7 is not" in str(outcome.error)
    assert str(outcome.error).count("nothing was sent") == 1
    assert task.created == 0
    assert task.column("status") == ["failed", "skipped", "refused", "failed"]


def test_the_table_is_written_when_the_task_fails(run: Callable[..., Table], mode: bool) -> None:
    bad = {"prompt": "x", "emulator": {"fail": "no memory"}}
    task = run(
        products(3),
        deferrable=mode,
        to_input=lambda row: bad if row["sku"] == "sku-1" else picture(row),
    )
    outcome = task.attempt()
    assert "1 of 3 rows failed, 0 may" in str(outcome.error)
    assert not isinstance(outcome.error, AirflowFailException), "a retry may help"
    assert "sku-1" in str(outcome.error)
    assert "results.jsonl" in str(outcome.error)
    assert task.column("status") == ["completed", "failed", "completed"]
    # what completed is paid for and is not bought again
    task.options["to_input"] = picture
    outcome = task.attempt()
    assert outcome.error is None
    # the failed one is paid for, too
    assert (outcome.value["jobs"], outcome.value["reused"], task.created) == (4, 0, 4)


@pytest.mark.parametrize("has_ledger", [False, True])
def test_the_summary_is_about_the_jobs_of_all_attempts(
    run: Callable[..., Table], mode: bool, has_ledger: bool, caplog: pytest.LogCaptureFixture
) -> None:
    failing = {f"sku-{number}": {"prompt": f"{number}", "emulator": {"fail": "no"}} for number in (1, 3)}
    task = run(products(4), deferrable=mode, to_input=lambda row: failing.get(row["sku"]) or picture(row))
    if not has_ledger:
        task.options.pop("ledger")
    assert "2 of 4 rows failed" in str(task.attempt().error)
    task.options["to_input"] = picture
    for created in (6, 6 if has_ledger else 10):
        summary, usage = task.attempt().value, task.ti.xcoms["usage"]
        assert summary["jobs"] == usage["jobs"] == task.created == created
        assert f"4 rows: {created} bought, 0 reused" in caplog.text
        ran = sum(job["finished"] - job["started"] for job in task.emulator.service.jobs())
        assert summary["execution_seconds"] == usage["execution_seconds"] == pytest.approx(ran, abs=0.01)
        assert task.column("reused") == [False] * 4
        task.clear()
    task.next_run("night 2")
    summary, usage = task.attempt().value, task.ti.xcoms["usage"]
    reused, bought = (4, 0) if has_ledger else (0, 4)
    assert (summary["reused"], summary["jobs"]) == (usage["reused"], usage["jobs"]) == (reused, bought)
    assert task.column("reused") == [has_ledger] * 4


@pytest.mark.parametrize("store", [None, FakeStore], ids=["2.11", "3.3"])
def test_a_job_that_nobody_can_read_keeps_no_other_from_running_again(
    run: Callable[..., Table], mode: bool, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)

    class Odd(Service):
        is_odd = True

        def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
            reply = super().handle(method, path, headers, body)
            is_unread = self.is_odd and method == "GET" and b"product 2" in reply.body
            return replace(reply, body=b"7") if is_unread else reply

    failing = {"sku-1": {"prompt": "x", "emulator": {"fail": "no"}}}
    task = run(products(3), deferrable=mode, to_input=lambda row: failing.get(row["sku"]) or picture(row))
    task.emulator.service = service = Odd(workers=10, job_seconds=0.1)
    task.store, task.max_tries = store and store(), 5
    assert "Not over in time" in str(task.attempt(timeout=1).error)
    task.options["to_input"] = picture
    assert "Not over in time" in str(task.attempt(timeout=1).error)
    assert task.column("status") == ["completed", "completed", "failed"]
    service.is_odd = False
    assert task.attempt().value["completed"] == 3
    assert task.created == 4


def test_jobs_that_take_too_long_are_canceled_and_the_others_stored(
    run: Callable[..., Table], mode: bool
) -> None:
    task = run(
        products(3),
        deferrable=mode,
        timeout=1.5,
        to_input=lambda row: picture(row) | {"emulator": {"seconds": 60 if row["sku"] == "sku-1" else 0.1}},
    )
    outcome = task.attempt()
    assert outcome.error is not None
    assert task.column("status") == ["completed", "canceled", "completed"]
    assert sorted(task.statuses()) == ["CANCELED", "COMPLETED", "COMPLETED"]
    assert task.attempt(timeout=1.0).error is not None
    assert task.created == 4, "two of them were stored"


def test_parquet_to_parquet_keeps_types(run: Callable[..., Table], tmp_path: Path, mode: bool) -> None:
    pq.write_table(pa.table({"id": [7, 8], "n": [1.5, 2.5], "title": ["a", "b"]}), tmp_path / "in.parquet")
    task = run(
        f"file://{tmp_path}/*.parquet",
        key="id",
        columns=["n"],
        deferrable=mode,
        results=(tmp_path / "out" / "r.parquet").as_uri(),
    )
    assert task.attempt().error is None
    table = pq.read_table(tmp_path / "out" / "r.parquet")
    assert table.column("id").to_pylist() == [7, 8]
    assert table.column("n").to_pylist() == [1.5, 2.5]
    assert table.schema.field("reused").type == pa.bool_()


def test_text_results_need_no_files(run: Callable[..., Table], tmp_path: Path, mode: bool) -> None:
    def caption(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": "x", "emulator": {"result": {"text": f"caption of {row['title']}"}}}

    for destination in (None, tmp_path.as_uri()):
        task = run(
            products(2),
            to_input=caption,
            destination=destination,
            ledger=None,
            results=(tmp_path / "r.jsonl").as_uri(),
            deferrable=mode,
        )
        task.run_id = str(destination)
        assert task.attempt().error is None
        rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
        assert [row["result"] for row in rows] == [
            json.dumps({"text": f"caption of product {n}"}) for n in (0, 1)
        ]
        assert [row["outputs"] for row in rows] == [[], []]


def test_the_row_is_the_input_without_a_function(run: Callable[..., Table]) -> None:
    task = run([{"sku": "{{ ds }}", "prompt": "{row} {{ run_id }} %s"}], to_input=None)
    assert task.attempt().error is None
    [job] = task.emulator.service.jobs()
    assert job["input"] == {"sku": "{{ ds }}", "prompt": "{row} {{ run_id }} %s"}
    assert task.column("sku") == ["{{ ds }}"]


def test_a_table_that_is_refused_sends_nothing_and_writes_nothing(run: Callable[..., Table]) -> None:
    task = run(products(2) + products(12))
    outcome = task.attempt()
    assert isinstance(outcome.error, AirflowFailException)
    assert "2 occur more than once (sku-0, sku-1); nothing was sent" in str(outcome.error)
    assert task.created == 0
    assert not (task.folder / "photos" / "results.jsonl").exists()


# --- paid once ---


@pytest.mark.parametrize("store", [None, FakeStore], ids=["2.11", "3.3"])
def test_the_next_night_buys_only_what_changed(run: Callable[..., Table], mode: bool, store: Any) -> None:
    task = run(products(10), deferrable=mode)
    task.store = store and store()
    assert task.attempt().value["jobs"] == 10
    first = task.written
    task.next_run("night 2")
    changed = products(10)
    changed[3]["title"] = changed[7]["title"] = "another"
    changed[7]["title"] += " one"
    before = task.emulator.service.stats()["requests"]
    value = task.attempt(table=changed).value
    assert (value["jobs"], value["reused"], value["completed"]) == (2, 8, 10)
    assert task.created == 12
    assert [row["reused"] for row in task.written] == [n not in (3, 7) for n in range(10)]
    for n in (0, 9):
        assert task.written[n] == first[n] | {"reused": True}
    after = task.emulator.service.stats()["requests"]
    assert after["output"] - before["output"] == 2


def test_a_table_that_is_all_paid_for_costs_one_request(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(30), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("night 2")
    before = len(task.emulator.service.records())
    outcome = task.attempt()
    assert outcome.value["reused"] == 30
    assert outcome.value["jobs"] == outcome.value["execution_seconds"] == 0
    assert outcome.events == []
    assert [record.operation for record in task.emulator.service.records()[before:]] == ["get_app"]


def test_a_plan_counts_the_jobs_to_run_and_sends_none(run: Callable[..., Table]) -> None:
    task = run(products(10))
    task.operator = RunGenPlanTableOperator
    nothing = {"reused": 0, "skipped": 0, "seconds": 0, "cost": 0, "currency": ""}
    assert task.attempt().value == 10
    assert task.ti.xcoms["plan"] == {"rows": 10, "jobs": 10} | nothing
    assert task.created == 0
    task.operator = RunGenRunTableOperator
    task.next_run("night 1, the table")
    assert task.attempt().error is None
    task.next_run("night 2")
    task.operator = RunGenPlanTableOperator
    before = len(task.emulator.service.records())
    assert task.attempt().value == 0
    assert task.ti.xcoms["plan"] == {"rows": 10, "jobs": 0} | nothing | {"reused": 10}
    changed = products(12)
    changed[3]["title"] = changed[4]["title"] = "the same"
    assert task.attempt(table=changed).value == 3, "two new rows, and two equal ones"
    assert 0.8 < task.ti.xcoms["plan"]["seconds"] < 2, "as long as those that are stored"
    operations = [record.operation for record in task.emulator.service.records()[before:]]
    assert operations == ["get_app"] * 2
    assert task.attempt(ledger=None).value == 10
    assert not (task.folder / "photos" / "results.csv").exists()
    assert "null or empty" in str(task.attempt(table=[{"sku": None, "title": "x"}]).error)


def test_a_clear_and_another_dag_buy_nothing(run: Callable[..., Table], mode: bool) -> None:
    task = run(products(5), deferrable=mode)
    assert task.attempt().error is None
    task.clear()
    value = task.attempt().value
    assert (value["jobs"], value["reused"], task.created) == (5, 0, 5)
    task.dag_id = "another"
    task.next_run("x")
    assert task.attempt(destination=(task.folder / "elsewhere").as_uri()).value["reused"] == 5
    assert task.created == 5


def test_equal_rows_are_one_job(run: Callable[..., Table], mode: bool) -> None:
    rows = [{"sku": n, "title": "the same"} for n in range(6)]
    task = run(rows, deferrable=mode)
    value = task.attempt().value
    assert (value["rows"], value["completed"], value["jobs"], task.created) == (6, 6, 1, 1)
    assert len(set(task.column("output"))) == 1
    task.next_run("2")
    assert task.attempt(ledger=None).value["jobs"] == 6, "without a ledger, each row has a job"


# --- attempts that are killed ---


def test_sigterm_cancels_and_forgets(run: Callable[..., Table]) -> None:
    slow = {"emulator": {"seconds": 60}}
    task = run(products(6), to_input=lambda row: picture(row) | slow)
    task.max_tries = 0
    task.state = "failed"

    def die() -> None:
        raise AirflowFailException("killed")

    with signal_when(signal.SIGTERM, lambda: task.created == 6, die):
        outcome = task.attempt()
    assert outcome.error is not None
    assert task.statuses() == ["CANCELED"] * 6
    assert list((task.folder / "ledger").glob("??/*.json")) == []
    task.next_run("2")
    task.state = "running"
    value = task.attempt(to_input=picture).value
    assert value["jobs"] == 6


def test_the_assets_and_lineage_name_the_table(run: Callable[..., Table], tmp_path: Path, mode: bool) -> None:
    (tmp_path / "in.csv").write_text("sku,title\na,x\n")
    task = run((tmp_path / "in.csv").as_uri(), deferrable=mode)
    outlet = Asset("s3://shop/results")
    task.outlets = [outlet]
    value = task.attempt().value
    extra = task.events[outlet].extra
    assert extra["results"] == value["results"]
    lineage: Any = task.op.get_openlineage_facets_on_complete(None)
    assert [each.name for each in lineage.inputs] == ["app/flux-schnell", str(tmp_path / "in.csv")]
    assert str(tmp_path / "photos" / "results.jsonl") in [each.name for each in lineage.outputs]


@pytest.mark.parametrize("has_ledger", [True, False])
def test_a_retry_runs_the_rows_whose_results_do_not_fit(
    run: Callable[..., Table], mode: bool, has_ledger: bool
) -> None:
    def caption(row: dict[str, Any]) -> dict[str, Any]:
        text = 7 if row["sku"] == "sku-1" else row["title"]
        return {"prompt": row["title"], "emulator": {"result": {"text": text}}}

    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    task = run(products(3), to_input=caption, deferrable=mode, result_schema=schema)
    if not has_ledger:
        task.options["ledger"] = None
    error = task.attempt().error
    assert "1 of 3 rows failed" in str(error)
    assert not isinstance(error, AirflowFailException), "a retry may help"
    first = task.column("job_id")
    assert task.created == 3
    assert "1 of 3 rows failed" in str(task.attempt().error)
    assert task.created == 4
    assert [old == new for old, new in zip(first, task.column("job_id"), strict=True)] == [True, False, True]
    assert task.ti.xcoms["usage"]["jobs"] == 4


# --- unknown fates ------------------------------------------------------------------------------------------


def test_rows_that_may_have_a_job_are_told_from_those_that_were_not_sent(
    run: Callable[..., Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.RETRY_BUDGET", 0.5)
    table = run(products(200), stop_after=None)
    table.emulator.service.inject(Fault(on="run", kind="no_id", times=None))
    error = str(table.attempt().error)
    assert 0 < table.created < 200
    assert f"RunGen may have created the jobs of {table.created} of 200 inputs" in error
    assert f"may pay twice for {table.created} inputs of unknown fate" in error
    told = [text.partition(":")[0] for text in table.column("error")]
    assert {text: told.count(text) for text in told} == {
        "Fate unknown": table.created,
        "not submitted": 200 - table.created,
    }


def test_rows_of_an_attempt_that_submits_nothing_say_which_may_have_a_job(run: Callable[..., Table]) -> None:
    table = run(products(8), on_unknown_submission="fail")
    table.store = FakeStore()
    table.emulator.service.inject(Fault(on="run", kind="reset_after", skip=2))
    assert "A retry submits nothing, and fails because of 1 input of unknown fate" in str(
        table.attempt().error
    )
    error = table.attempt().error
    assert str(error).endswith("Look at the app's jobs, then clear the task to submit these again.")
    assert table.created == 8
    assert sorted(table.column("status")) == ["completed"] * 7 + ["failed"]
    assert [text for text in table.column("error") if text] == [
        "Fate unknown: RunGen may have created the job"
    ]
    table.clear()
    assert table.attempt().error is None
    assert table.created == 9


def test_a_retry_with_another_ignored_field_cancels_no_job_that_is_stored(run: Callable[..., Table]) -> None:
    task = run([])
    task.options["ledger"] = Ledger((task.folder / "ledger").as_uri(), ignore=["seed"])
    task.store = FakeStore()

    def attempt(seed: int) -> Outcome:
        bad: Any = lambda row: {"prompt": 7} if row["price"] == 0.5 else {}  # noqa: E731
        return task.attempt(table=products(6), to_input=lambda row: picture(row) | {"seed": seed} | bad(row))

    assert attempt(1).error is not None
    assert task.created == 5
    attempt(2)
    assert task.created == 5
    assert task.emulator.service.count("cancel") == 0
    assert task.column("status") == ["refused", *["completed"] * 5]
