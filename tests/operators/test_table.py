"""From a table to a table: which rows get a job, what the results table has, and what the server counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Asset
from conftest import FakeStore
from operator_kit import KILLED, Table, picture, products, run_mapped, submitted
from pydantic import BaseModel, field_validator
from rungen_emulator import Emulator, Service
from rungen_emulator.messages import Reply

from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenPlanTableOperator,
    RunGenRunTableOperator,
)

Run = Callable[..., Table]

pytestmark = pytest.mark.usefixtures("unsettled")
COLUMNS = [
    *("index", "status", "error", "job_id", "reused", "outputs", "output", "input", "result"),
    *("seconds", "cost", "bought_at"),
]


@pytest.fixture(params=[False, True], ids=["blocking", "deferred"])
def mode(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


STORES = pytest.mark.parametrize("store", [None, FakeStore], ids=["3.1", "3.3"])
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
PROMPT = {"type": "object", "properties": {"prompt": {"type": "string"}}}


def to_input(row: dict[str, Any]) -> Any:
    bad: dict[str, Any] = {"sku-1": None, "sku-2": {"prompt": 7}, "sku-3": FAILS}
    return bad.get(row["sku"], picture(row))


FAILS: dict[str, Any] = {"prompt": "x", "emulator": {"fail": "no memory"}}


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


# --- the results table ---


@pytest.mark.contract
def test_each_row_has_a_row(run: Run, mode: bool) -> None:
    task = run(products(4), deferrable=mode, columns=["price", "title"])
    outcome = task.attempt()
    assert outcome.error is None
    assert len(outcome.events) == mode
    assert outcome.value.pop("execution_seconds") > 0
    nothing = {"failed": 0, "skipped": 0, "reused": 0}
    results = (task.folder / "photos" / "results.jsonl").as_uri()
    assert outcome.value == {"results": results, "rows": 4, "completed": 4, "jobs": 4} | nothing
    assert [list(row) for row in task.written] == [["sku", "price", "title", *COLUMNS]] * 4
    jobs = {job["id"]: job["input"]["prompt"] for job in task.emulator.service.jobs()}
    for index, (row, source) in enumerate(zip(task.written, products(4), strict=True)):
        assert (row["sku"], row["title"]) == (source["sku"], source["title"])
        assert (row["index"], row["status"], row["error"], row["reused"]) == (index, "completed", None, False)
        assert jobs[row["job_id"]] == picture(source)["prompt"]
        assert row["outputs"] == [row["output"]]
        assert Path(row["output"].removeprefix("file://")).read_bytes().startswith(b"\x89PNG")
    assert "signature" not in (task.folder / "photos" / "results.jsonl").read_text().lower()


@pytest.mark.contract
def test_rows_may_be_skipped_refused_and_failed(run: Run, mode: bool) -> None:
    task = run(products(5), to_input=to_input, deferrable=mode, max_failed=2, input_schema=PROMPT)
    outcome = task.attempt()
    assert outcome.error is None
    assert task.column("status") == ["completed", "skipped", "refused", "failed", "completed"]
    errors = task.column("error")
    assert [bool(error) for error in errors] == [False, False, True, True, False]
    assert "no memory" in errors[3]
    assert "nothing was sent" not in errors[2]
    assert (outcome.value["completed"], outcome.value["failed"], outcome.value["skipped"]) == (2, 2, 1)
    page = task.ti.xcoms["rungen_page"]
    assert page["rows"] == 5
    assert (task.created, outcome.value["jobs"]) == (3, 3)


@pytest.mark.contract
def test_more_misfits_than_may_fail_are_in_the_table_and_nothing_is_sent(run: Run) -> None:
    task = run(products(4), to_input=to_input, input_schema=PROMPT)
    error = task.attempt().error
    assert isinstance(error, AirflowFailException)
    assert "1 of 3 rows do not fit, 0 may (max_failed): input.prompt: 7 is not" in str(error)
    assert str(error).count("nothing was sent") == 1
    assert task.created == 0
    assert task.column("status") == ["failed", "skipped", "refused", "failed"]
    page = task.ti.xcoms["rungen_page"]
    assert page["rows"] == 4


@pytest.mark.contract
def test_the_page_of_a_table_that_is_being_read_names_its_app(run: Run) -> None:
    pages: list[Any] = []

    def rows() -> list[dict[str, Any]]:
        pages.append(task.ti.xcoms["rungen_page"])
        return products(1)

    task = run(rows)
    assert task.attempt().error is None
    page = task.ti.xcoms["rungen_page"]
    assert pages[0]["app"] == page["app"]
    assert page["rows"] == 1


@pytest.mark.contract
def test_more_misfits_than_may_fail_leave_what_was_bought_in_the_results(run: Run) -> None:
    task = run(products(4))
    assert task.attempt().error is None
    other = run(products(4), to_input=to_input, input_schema=PROMPT)
    assert isinstance(other.attempt().error, AirflowFailException)
    assert other.column("status") == ["completed", "skipped", "refused", "failed"]
    assert [row["key"] for row in other.ti.xcoms["failed"]] == ["sku-2", "sku-3"]
    assert other.created == 4


@pytest.mark.contract
def test_the_table_is_written_when_the_task_fails(run: Run, mode: bool) -> None:
    bad: Any = lambda row: FAILS if row["sku"] == "sku-1" else picture(row)  # noqa: E731
    task = run(products(3), deferrable=mode, to_input=bad)
    error = task.attempt().error
    assert not isinstance(error, AirflowFailException), "a retry may help"
    assert all(told in str(error) for told in ("1 of 3 rows failed, 0 may", "sku-1", "results.jsonl"))
    assert task.column("status") == ["completed", "failed", "completed"]
    # what completed is paid for and is not bought again
    outcome = task.attempt(to_input=picture)
    assert outcome.error is None
    # the failed one is paid for, too
    assert (outcome.value["jobs"], outcome.value["reused"], task.created) == (4, 0, 4)


@pytest.mark.contract
def test_the_summary_is_about_the_jobs_of_all_attempts(
    run: Run, mode: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bad: Any = lambda row: FAILS | row if row["sku"] in ("sku-1", "sku-3") else picture(row)  # noqa: E731
    task = run(products(4), deferrable=mode)
    assert "2 of 4 rows failed" in str(task.attempt(to_input=bad).error)
    for bought in (2, 0):
        summary, usage = task.attempt().value, task.ti.xcoms["usage"]
        assert summary["jobs"] == usage["jobs"] == task.created == 6
        assert f"4 rows: 4 completed. This attempt bought {bought}, this run 6 jobs (" in caplog.text
        ran = sum(job["finished"] - job["started"] for job in task.emulator.service.jobs())
        assert summary["execution_seconds"] == usage["execution_seconds"] == pytest.approx(ran, abs=0.01)
        assert task.column("reused") == [False] * 4
        task.clear()
    task.next_run("night 2")
    summary, usage = task.attempt().value, task.ti.xcoms["usage"]
    assert (summary["reused"], summary["jobs"]) == (usage["reused"], usage["jobs"]) == (4, 0)
    assert task.column("reused") == [True] * 4


@STORES
def test_a_job_that_nobody_can_read_keeps_no_other_from_running_again(
    run: Run, mode: bool, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.BACKOFF", 0.01)

    class Odd(Service):
        is_odd = True

        def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
            reply = super().handle(method, path, headers, body)
            is_unread = self.is_odd and method == "GET" and b"product 2" in reply.body
            return replace(reply, body=b"7") if is_unread else reply

    bad: Any = lambda row: FAILS if row["sku"] == "sku-1" else picture(row)  # noqa: E731
    task = run(products(3), deferrable=mode)
    task.emulator.service = service = Odd(workers=10, job_seconds=0.1)
    task.store, task.max_tries = store and store(), 5
    for to_input in (bad, picture):
        assert "Not over in time" in str(task.attempt(timeout=1, to_input=to_input).error)
    assert task.column("status") == ["completed", "completed", "failed"]
    service.is_odd = False
    assert task.attempt().value["completed"] == 3
    assert task.created == 4


@pytest.mark.contract
def test_jobs_that_take_too_long_are_canceled_and_the_others_stored(run: Run, mode: bool) -> None:
    late: Any = lambda row: picture(row) | {"emulator": {"seconds": 60 if row["sku"] == "sku-1" else 0.1}}  # noqa: E731
    task = run(products(3), deferrable=mode, timeout=1.5, to_input=late)
    assert task.attempt().error is not None
    assert task.column("status") == ["completed", "canceled", "completed"]
    assert sorted(task.statuses()) == ["CANCELED", "COMPLETED", "COMPLETED"]
    assert task.attempt(timeout=1.0).error is not None
    assert task.created == 4, "two of them were stored"


@pytest.mark.contract
def test_parquet_to_parquet_keeps_types(run: Run, tmp_path: Path, mode: bool) -> None:
    pq.write_table(pa.table({"id": [7, 8], "n": [1.5, 2.5], "title": ["a", "b"]}), tmp_path / "in.parquet")
    results = (tmp_path / "out" / "r.parquet").as_uri()
    task = run(f"file://{tmp_path}/*.parquet", key="id", columns=["n"], deferrable=mode, results=results)
    assert task.attempt().error is None
    table = pq.read_table(tmp_path / "out" / "r.parquet")
    assert table.column("id").to_pylist() == [7, 8]
    assert table.column("n").to_pylist() == [1.5, 2.5]
    assert table.schema.field("reused").type == pa.bool_()


@pytest.mark.contract
def test_text_results_need_no_files(run: Run, mode: bool) -> None:
    def caption(row: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": "x", "emulator": {"result": {"text": f"caption of {row['title']}"}}}

    task = run(products(2), to_input=caption, deferrable=mode)
    assert task.attempt().error is None
    assert [json.loads(each) for each in task.column("result")] == [
        {"text": f"caption of product {n}"} for n in (0, 1)
    ]
    assert task.column("outputs") == [[], []]


@pytest.mark.contract
def test_the_row_is_the_input_without_a_function(run: Run) -> None:
    task = run([{"sku": "{{ ds }}", "prompt": "{row} {{ run_id }} %s"}], to_input=None)
    assert task.attempt().error is None
    [job] = task.emulator.service.jobs()
    assert job["input"] == {"sku": "{{ ds }}", "prompt": "{row} {{ run_id }} %s"}
    assert task.column("sku") == ["{{ ds }}"]


@pytest.mark.contract
def test_a_table_that_is_refused_sends_nothing_and_writes_nothing(run: Run) -> None:
    task = run(products(2) + products(12))
    outcome = task.attempt()
    assert isinstance(outcome.error, AirflowFailException)
    assert "2 occur more than once (sku-0, sku-1); nothing was sent" in str(outcome.error)
    assert task.created == 0
    assert not (task.folder / "photos" / "results.jsonl").exists()


# --- paid once ---


@pytest.mark.contract
@STORES
def test_the_next_night_buys_only_what_changed(run: Run, mode: bool, store: Any) -> None:
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


@pytest.mark.contract
def test_a_table_that_is_all_paid_for_costs_one_request(run: Run, mode: bool) -> None:
    task = run(products(30), deferrable=mode)
    assert task.attempt().error is None
    task.next_run("night 2")
    before = len(task.emulator.service.records())
    outcome = task.attempt()
    assert outcome.value["reused"] == 30
    assert outcome.value["jobs"] == outcome.value["execution_seconds"] == 0
    assert outcome.events == []
    assert [record.operation for record in task.emulator.service.records()[before:]] == ["get_app"]


@pytest.mark.contract
def test_a_plan_counts_the_jobs_to_run_and_sends_none(run: Run) -> None:
    task = run(products(10))
    nothing = {"reused": 0, "skipped": 0, "seconds": 0, "cost": 0, "currency": ""}

    def plan(**changes: Any) -> Any:
        task.kind = RunGenPlanTableOperator
        outcome = task.attempt(**changes)
        task.kind = RunGenRunTableOperator
        return outcome.value if outcome.error is None else str(outcome.error)

    assert plan() == 10
    assert task.ti.xcoms["plan"] == {"rows": 10, "jobs": 10} | nothing
    assert task.created == 0
    task.next_run("night 1, the table")
    assert task.attempt().error is None
    task.next_run("night 2")
    before = len(task.emulator.service.records())
    assert plan() == 0
    assert task.ti.xcoms["plan"] == {"rows": 10, "jobs": 0} | nothing | {"reused": 10}
    changed = products(12)
    changed[3]["title"] = changed[4]["title"] = "the same"
    assert plan(table=changed) == 3, "two new rows, and two equal ones"
    assert 0.8 < task.ti.xcoms["plan"]["seconds"] < 2, "as long as those that are stored"
    operations = [record.operation for record in task.emulator.service.records()[before:]]
    assert operations == ["get_app"] * 2
    assert plan(reuse=False) == 10
    assert not (task.folder / "photos" / "results.csv").exists()
    assert "null or empty" in plan(table=[{"sku": None, "title": "x"}])


@pytest.mark.contract
def test_a_clear_and_another_dag_buy_nothing(run: Run, mode: bool) -> None:
    task = run(products(5), deferrable=mode)
    assert task.attempt().error is None
    task.clear()
    value = task.attempt().value
    assert (value["jobs"], value["reused"], task.created) == (5, 0, 5)
    task.dag_id = "another"
    task.next_run("x")
    assert task.attempt(results=(task.folder / "elsewhere.csv").as_uri()).value["reused"] == 5
    assert task.created == 5


@pytest.mark.contract
def test_equal_rows_are_one_job(run: Run, mode: bool) -> None:
    rows = [{"sku": n, "title": "the same"} for n in range(6)]
    task = run(rows, deferrable=mode)
    value = task.attempt().value
    assert (value["rows"], value["completed"], value["jobs"], task.created) == (6, 6, 1, 1)
    assert (task.column("reused"), value["reused"]) == ([False] + [True] * 5, 5), "one is bought"
    assert len(set(task.column("output"))) == 1
    task.next_run("2")
    assert task.attempt(per_row=True).value["jobs"] == 6


# --- attempts that are killed ---


@pytest.mark.contract
@KILLED
def test_sigterm_cancels_and_forgets(run: Run) -> None:
    task = run(products(6))
    task.max_tries = 0
    task.state = "failed"
    slow: Any = lambda row: picture(row) | {"emulator": {"seconds": 60}}  # noqa: E731
    task.attempt_killed(lambda: task.created == 6, to_input=slow)
    assert task.statuses() == ["CANCELED"] * 6
    task.next_run("2")
    task.state = "running"
    assert task.attempt().value["jobs"] == 6


@pytest.mark.contract
def test_the_assets_and_lineage_name_the_table(run: Run, tmp_path: Path, mode: bool) -> None:
    (tmp_path / "in.csv").write_text("sku,title\na,x\n")
    outlet = Asset("s3://shop/results")
    task = run((tmp_path / "in.csv").as_uri(), deferrable=mode, outlets=[outlet])
    value = task.attempt().value
    assert task.events[outlet].extra["results"] == value["results"]
    lineage: Any = task.op.get_openlineage_facets_on_complete(None)
    assert [each.name for each in lineage.inputs] == ["app/flux-schnell", str(tmp_path / "in.csv")]
    assert str(tmp_path / "photos" / "results.jsonl") in [each.name for each in lineage.outputs]


@pytest.mark.contract
def test_a_retry_runs_the_rows_whose_results_do_not_fit(run: Run, mode: bool) -> None:
    def caption(row: dict[str, Any]) -> dict[str, Any]:
        text = 7 if row["sku"] == "sku-1" else row["title"]
        return {"prompt": row["title"], "emulator": {"result": {"text": text}}}

    task = run(products(3), to_input=caption, deferrable=mode, output_type=TEXT)
    ids = []
    for created in (3, 4):
        error = task.attempt().error
        assert "1 of 3 rows failed" in str(error)
        assert not isinstance(error, AirflowFailException), "a retry may help"
        assert task.created == created
        ids.append(task.column("job_id"))
    assert [old == new for old, new in zip(*ids, strict=True)] == [True, False, True]
    assert task.ti.xcoms["usage"]["jobs"] == 4


# --- unknown fates ------------------------------------------------------------------------------------------


@pytest.mark.contract
def test_a_text_that_is_no_json_without_its_signature_is_kept(run: Run) -> None:
    result = {"text": json.dumps({"code": "/a?sig=1\\"})}

    def to_input(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | {"emulator": {"result": result}}

    task = run(products(3), to_input=to_input, output_type={"type": "object"})
    for night in ("night 1", "night 2"):
        task.next_run(night)
        assert task.attempt().error is None
        assert task.column("status") == ["completed"] * 3
    assert task.created == 3


@pytest.mark.contract
def test_mapped_tasks_with_one_destination_have_a_table_each(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "key": "sku",
        "to_input": picture,
        "destination": (tmp_path / "photos").as_uri(),
    }
    with DAG("dag", schedule=None):
        tables = [products(4)[:1], products(4)[1:]]
        op = RunGenRunTableOperator.partial(task_id="task", **options).expand(table=tables)
    for index in range(2):
        assert run_mapped(op, index).error is None
    written = sorted((tmp_path / "photos" / "results" / "dag.task").glob("*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in written] == [1, 3]


@pytest.mark.contract
@pytest.mark.parametrize("place", ["results", "results of a collector"])
def test_mapped_tasks_write_no_table_that_they_share(
    rungen_emulator: Emulator, tmp_path: Path, place: str
) -> None:
    def attempt(uri: str) -> list[Any]:
        with DAG("dag", schedule=None):
            op: Any
            if place == "results":
                places = {"destination": str(tmp_path), place: uri, "key": "sku", "to_input": picture}
                op = RunGenRunTableOperator.partial(task_id="task", **places).expand(table=tables)
            else:
                places = {"destination": str(tmp_path), "results": uri}
                op = RunGenCollectResultsOperator.partial(task_id="task", **places).expand(job_id=ids)
        return [run_mapped(op, index).error for index in range(2)]

    ids, tables = submitted({"prompt": "a"}, {"prompt": "b"}), [products(2)[:1], products(2)[1:]]
    for error in attempt(f"{tmp_path}/t.jsonl"):
        assert "each of the mapped tasks would replace the table of the others. Write {{ ti.map_" in str(
            error
        )
    assert rungen_emulator.service.stats()["jobs_created"] == 2
    assert attempt(f"{tmp_path}/t{{{{ ti.map_index }}}}.jsonl") == [None, None]
    assert all((tmp_path / f"t{index}.jsonl").exists() for index in range(2))


@pytest.mark.contract
@pytest.mark.parametrize("pattern", ["^http://127", "[?]X-Amz-"])
def test_a_result_that_fitted_with_its_urls_is_reused(run: Run, pattern: str) -> None:
    image = {"properties": {"image": {"type": "string", "pattern": pattern}}}
    schema = {"properties": {"images": {"type": "array", "items": image}}, "required": ["images"]}
    task = run(products(3), output_type=schema)
    for night in ("night 1", "night 2"):
        task.next_run(night)
        assert task.attempt().error is None
        assert task.created == 3
    # of another type, nobody knows whether they are
    task.next_run("night 3")
    image["properties"]["image"]["pattern"] = "^https?://127"
    assert task.attempt().error is None
    assert task.created == 6


@pytest.mark.contract
def test_a_result_that_a_new_validator_refuses_runs_again(run: Run) -> None:
    def longer_than(least: float) -> type:
        class Picture(BaseModel):
            duration: float

            @field_validator("duration")
            @classmethod
            def check(cls, value: float) -> float:
                if value < least:
                    raise ValueError("too short")
                return value

        return Picture

    result = {"emulator": {"result": {"duration": 0.5}}}
    task = run(products(3), to_input=lambda row: picture(row) | result, output_type=longer_than(0))
    assert task.attempt().error is None
    task.next_run("night 2")
    assert task.attempt(output_type=longer_than(1)).error is not None
    assert task.created == 6
    assert task.column("status") == ["invalid"] * 3
