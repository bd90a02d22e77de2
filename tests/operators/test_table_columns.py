"""Columns for what a model returned, rows that are rejected, and the way out for those that failed."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)
from conftest import pairwise
from operator_kit import Table, picture, products
from pydantic import BaseModel
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import RejectRow, RunGenError
from airflow_provider_rungen.operators import RunGenRunTableOperator
from airflow_provider_rungen.results.rows import Status

Run = Callable[..., Table]

pytestmark = [pytest.mark.usefixtures("unsettled"), pytest.mark.contract]
MODES = pytest.mark.parametrize("mode", [False, True], ids=["blocking", "deferred"])
LONG = "é" * 12_000  # more than a record holds: it is six times as much when escaped


class Tag(BaseModel):
    """What a text model is asked for."""

    title: str
    price: float | None = None
    words: list[str] = []
    part: dict[str, Any] | None = None


SCHEMA = Tag.model_json_schema()
ANSWERS: dict[str, Any] = {
    "sku-0": '```json\n{"title": "ü 🦊", "price": 2, "words": ["a", "b"], "part": {"n": [1, null]}}\n```',
    "sku-1": '{"title": null}',
    "sku-2": "I cannot help with that.",
    "sku-3": json.dumps({"title": LONG, "price": None}),
}


def tag(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["title"], "emulator": {"result": ANSWERS[row["sku"]]}}


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".csv":
        csv.field_size_limit(10_000_000)
        return list(csv.DictReader(path.read_text().splitlines()))
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- typed columns ------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("kind", [Tag, SCHEMA])
def test_each_property_is_a_column(run: Run, tmp_path: Path, mode: bool, kind: Any) -> None:
    path = tmp_path / "tags.parquet"
    options: dict[str, Any] = {"output_type": kind, "results": path.as_uri()}
    task = run(products(4), to_input=tag, deferrable=mode, max_failed=2, **options)
    outcome = task.attempt()
    assert outcome.error is None
    table = pq.read_table(path)
    kinds = [pa.string(), pa.float64(), pa.list_(pa.string()), pa.string()]
    assert [table.schema.field(name).type for name in ("title", "price", "words", "part")] == kinds
    rows = table.to_pylist()
    assert [row["status"] for row in rows] == ["completed", "invalid", "invalid", "completed"]
    assert (rows[0]["title"], rows[0]["price"], rows[0]["words"]) == ("ü 🦊", 2.0, ["a", "b"])
    assert json.loads(rows[0]["part"]) == {"n": [1, None]}
    assert json.loads(rows[0]["result"])["title"] == "ü 🦊"
    assert "result.title: " in rows[1]["error"]
    assert "is not JSON" in rows[2]["error"]
    assert [rows[n]["title"] for n in (1, 2, 3)] == [None, None, LONG]
    assert (outcome.value["completed"], outcome.value["failed"]) == (2, 2)
    assert task.created == 4


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_columns_of_texts(run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tags{suffix}"
    options: dict[str, Any] = {"output_type": Tag, "results": path.as_uri()}
    task = run(products(2), to_input=tag, max_failed="any", **options)
    assert task.attempt().error is None
    good, bad = read(path)
    assert list(good)[-4:] == ["title", "price", "words", "part"]
    as_is = {"title": "ü 🦊", "price": 2.0, "words": ["a", "b"], "part": {"n": [1, None]}}
    as_text = {"title": "ü 🦊", "price": "2.0", "words": '["a", "b"]', "part": '{"n": [1, null]}'}
    shown = as_is if suffix == ".jsonl" else as_text
    assert {name: good[name] for name in shown} == shown
    assert {bad[name] for name in shown} == {None if suffix == ".jsonl" else ""}


@MODES
def test_a_retry_runs_invalid_rows_again_and_the_next_night_buys_nothing(run: Run, mode: bool) -> None:
    task = run(products(4), to_input=tag, deferrable=mode, output_type=Tag)
    error = task.attempt().error
    assert not isinstance(error, AirflowFailException), "a retry may help"
    assert "2 of 4 rows failed" in str(error)
    assert task.column("status") == ["completed", "invalid", "invalid", "completed"]
    assert all(task.column("seconds")), "they are paid for"
    ids = task.column("job_id")
    assert task.attempt(max_failed=2).error is None
    assert [old == new for old, new in zip(ids, task.column("job_id"), strict=True)] == [
        True,
        False,
        False,
        True,
    ]
    assert task.created == 6
    task.next_run("night 2")
    assert task.attempt(table=[products(4)[n] for n in (0, 3)]).error is None
    assert (task.created, task.column("reused")) == (6, [True, True])
    assert task.column("title") == ["ü 🦊", LONG], "also of jobs that are stored"


def test_a_deferral_keeps_how_a_row_ended(run: Run) -> None:
    """The results of the first wave are known to another process than that which writes the table."""

    def slow(row: dict[str, Any]) -> dict[str, Any]:
        job_input = tag(row)
        job_input["emulator"]["seconds"] = 0.3 if row["sku"] in ("sku-0", "sku-1") else 3
        return job_input

    task = run(
        products(4),
        to_input=slow,
        deferrable=True,
        max_in_flight=2,
        max_failed="any",
        output_type=Tag,
        check=reject_all,
    )
    outcome = task.attempt()
    assert outcome.error is None
    assert len(outcome.events) > 1
    assert task.column("status") == ["rejected", "invalid", "invalid", "rejected"]
    assert task.column("error")[::3] == ["no good"] * 2
    assert all(task.column("seconds")), "they are paid for"
    assert "is not JSON" in task.column("error")[2]


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["status"], {}),
        (["Error"], {}),
        (["sku"], {}),
        (["price"], {"columns": ["price"]}),
        (["x", "X"], {}),
    ],
)
def test_names_that_clash_are_an_error_when_the_dag_is_parsed(names: list[str], options: Any) -> None:
    fields: dict[str, Any] = {name: {"type": "string"} for name in names}
    wrong: Any = {"task_id": "t", "table": [], "key": "sku", "destination": "/x"} | options
    with pytest.raises(ValueError, match=f"two columns '{names[-1]}'"):
        RunGenRunTableOperator(**wrong, output_type={"properties": fields})


def test_names_of_a_schema_in_a_file_clash_before_anything_is_sent(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"properties": {"cost": {}}}')
    task = run(products(1), output_type=str(path))
    error = task.attempt().error
    assert isinstance(error, AirflowFailException)
    assert "two columns 'cost'" in str(error)
    assert task.created == 0


def test_a_reused_row_has_the_time_and_cost_of_its_job(run: Run, rungen_emulator: Emulator) -> None:
    with rungen_emulator.connection("priced", price="3.60 USD/h"):
        task = run(products(2), rungen_conn_id="priced")
        summary = task.attempt().value
        assert summary["cost"] == pytest.approx(float(sum(map(Decimal, task.column("cost")))), abs=0.001)
        assert (summary["cost"] > 0, summary["currency"]) == (True, "USD")
        bought = task.column("seconds"), task.column("cost")
        assert all(bought[0])
        assert all(bought[1])
        task.next_run("night 2")
        assert task.attempt().value["cost"] == 0, "nothing was bought"
        assert task.column("reused") == [True, True]
        assert (task.column("seconds"), task.column("cost")) == bought


# --- a verdict for each row ---------------------------------------------------------------------------------


def reject_all(result: Any, files: Any) -> None:
    raise RejectRow("no good")


class Checks:
    """A check that rejects the pictures of some jobs, and remembers what it was asked."""

    def __init__(self, *rejected: int) -> None:
        self.rejected = rejected
        self.asked: list[Any] = []
        self.error: Exception | None = None

    def __call__(self, result: Any, files: Any) -> None:
        self.asked.append((result, [file.read_bytes()[:4] for file in files]))
        if self.error is not None:
            raise self.error
        if len(self.asked) - 1 in self.rejected:
            raise RejectRow("blank image")


@MODES
def test_a_rejected_row_keeps_its_files_and_runs_again(run: Run, mode: bool) -> None:
    check = Checks(1)
    task = run(products(3), deferrable=mode, check=check)
    error = task.attempt().error
    assert not isinstance(error, AirflowFailException), "a retry may help"
    assert "1 of 3 rows failed" in str(error)
    assert "blank image" in str(error)
    assert [files for _, files in check.asked] == [[b"\x89PNG"]] * 3
    assert all(result["images"][0]["image"].startswith("file://") for result, _ in check.asked)
    [bad] = [row for row in task.written if row["status"] != "completed"]
    assert (bad["status"], bad["error"]) == ("rejected", "blank image")
    assert Path(bad["output"].removeprefix("file://")).exists()
    assert task.attempt().error is None
    assert task.column("status") == ["completed"] * 3
    assert (task.created, len(check.asked)) == (4, 4), "what was good is not looked at again"
    task.next_run("night 2")
    assert task.attempt().error is None
    assert (task.created, len(check.asked)) == (4, 4)


@MODES
def test_a_rejected_row_is_not_remembered_as_done(run: Run, mode: bool) -> None:
    check = Checks(0)
    task = run(products(1), deferrable=mode, check=check, max_failed="any")
    assert task.attempt().error is None
    assert task.column("status") == ["rejected"]
    [first] = task.column("job_id")
    task.next_run("night 2")
    assert task.attempt().error is None
    assert (task.created, task.column("status"), task.column("reused")) == (2, ["completed"], [False])
    assert task.column("job_id") != [first]


@MODES
def test_a_check_that_fails_loses_nothing(run: Run, mode: bool) -> None:
    check = Checks()
    check.error = ZeroDivisionError("division of https://host/x.png?sig=s3cret")
    task = run(products(3), deferrable=mode, check=check, max_failed="any")
    error = task.attempt().error
    assert type(error) is RunGenError
    assert "check failed: ZeroDivisionError" in str(error)
    assert "s3cret" not in str(error)
    assert "Correct the function. A retry asks it again, and buys nothing that completed" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert len(check.asked) == 1, "it is asked no more"
    assert "completed" not in task.column("status")
    check.error = None
    outcome = task.attempt()
    assert outcome.error is None
    assert (task.created, outcome.value["completed"], len(check.asked)) == (3, 3, 4)


@MODES
@pytest.mark.parametrize("kind", [AirflowSkipException, AirflowFailException, AirflowException])
def test_a_check_may_decide_how_the_task_ends(run: Run, mode: bool, kind: type[Exception]) -> None:
    check = Checks()
    check.error = kind("nobody needs them today")
    task = run(products(8), check=check, deferrable=mode)
    task.max_tries = 0
    assert type(task.attempt().error) is kind
    assert len(check.asked) == 1
    assert len(task.written) == 8
    check.error = None
    task.next_run("night 2")
    assert task.attempt().error is None
    canceled = task.emulator.service.stats()["jobs_cancelled"]
    assert task.created == 8 + canceled, "what completed was stored"


def test_a_stop_counts_rejected_rows(run: Run) -> None:
    task = run(products(30), check=reject_all, max_in_flight=1)
    assert "Stopped" in str(task.attempt().error)
    assert task.created < 30


# --- a way out for rows that failed -------------------------------------------------------------------------


def mixed(row: dict[str, Any]) -> Any:
    fails = {"prompt": "ü 🦊", "emulator": {"fail": "no memory"}}
    url = {"prompt": "https://host/x.png?X-Amz-Signature=s3cret", "width": None}
    return {"sku-0": None, "sku-1": url, "sku-2": fails}.get(row["sku"], picture(row))


PROMPT = {"properties": {"width": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("mode", "suffix", "max_failed"), pairwise([False, True], [".parquet", ".csv", ".jsonl"], ["any", 2, 1])
)
def test_a_row_that_failed_has_its_input_and_runs_again(
    run: Run, tmp_path: Path, mode: bool, suffix: str, max_failed: Any
) -> None:
    path = tmp_path / f"results{suffix}"
    task = run(
        products(5),
        to_input=mixed,
        input_schema=PROMPT,
        deferrable=mode,
        results=path.as_uri(),
        max_failed=max_failed,
    )
    outcome = task.attempt()
    assert (outcome.error is None) == (max_failed != 1)
    skipped, refused, failed, *completed = read(path)
    assert not skipped["input"]
    assert [row["status"] for row in (skipped, refused, failed)] == ["skipped", "refused", "failed"]
    assert json.loads(failed["input"])["prompt"] == "ü 🦊"
    assert json.loads(refused["input"])["width"] is None
    assert "s3cret" not in path.read_bytes().decode("latin-1")
    assert [json.loads(row["input"]) for row in completed] == [picture(row) for row in products(5)[3:]]
    assert "input.width" in refused["error"]
    assert "no memory" in failed["error"]
    xcom = [
        {"index": 1, "key": "sku-1", "status": "refused", "job_id": None},
        {"index": 2, "key": "sku-2", "status": "failed", "job_id": failed["job_id"]},
    ]
    pushed = task.ti.xcoms["failed"]
    assert [{name: row[name] for name in row if name != "error"} for row in pushed] == xcom
    summary = task.ti.xcoms["return_value"] if outcome.error is not None else outcome.value
    assert (summary["completed"], summary["failed"], summary["skipped"]) == (2, 2, 1)
    if outcome.error is not None:
        copy = pickle.loads(pickle.dumps(outcome.error))  # noqa: S301 - its own pickle
        assert copy.failed_rows == pushed
    second = run(summary, where="failed", to_input=None, results=f"{tmp_path}/again.jsonl")
    second.next_run("again")
    assert "2 of 2 rows failed" in str(second.attempt().error)
    again = read(tmp_path / "again.jsonl")
    assert [row["sku"] for row in again] == ["sku-1", "sku-2"]
    assert [json.loads(row["input"]) for row in again] == [
        json.loads(row["input"]) for row in (refused, failed)
    ]
    good = {"width": 512, "emulator": {}}
    assert second.attempt(to_input=lambda row: json.loads(row["input"]) | good).error is None


def test_all_but_what_completed_or_was_skipped_has_failed(run: Run) -> None:
    rows = [{"sku": status, "status": status} for status in Status]
    task = run(rows, where="failed", to_input=lambda row: {"prompt": row["sku"]})
    assert task.attempt().error is None
    assert {*task.column("sku")} == {*Status} - {"completed", "skipped"}
    task = run(rows, where=["refused", "completed"], to_input=lambda row: {"prompt": row["sku"]})
    task.next_run("exact")
    assert task.attempt().error is None
    assert task.column("sku") == ["completed", "refused"]


def test_rows_of_which_none_can_be_sent_are_in_the_table(run: Run, tmp_path: Path) -> None:
    task = run(products(3), to_input=mixed, input_schema=PROMPT)
    error: Any = task.attempt().error
    assert isinstance(error, AirflowFailException)
    assert task.column("status") == ["skipped", "refused", "failed"]
    assert json.loads(task.column("input")[2])["prompt"] == "ü 🦊"
    assert [row["key"] for row in vars(error)["failed_rows"]] == ["sku-1", "sku-2"]
    assert task.ti.xcoms["return_value"]["failed"] == 2
    assert task.created == 0


def test_nothing_failed(run: Run) -> None:
    task = run(products(1), key=["sku", "title"])
    assert task.attempt().error is None
    assert task.ti.xcoms["failed"] == []
    fails = {"prompt": "x", "emulator": {"fail": "no memory"}}
    task.next_run("night 2")
    error: Any = task.attempt(to_input=lambda row: fails).error
    assert error.failed_rows[0]["key"] == ["sku-0", "product 0"]


def test_any_number_may_fail_and_a_stop_buys_no_more(run: Run) -> None:
    fails = {"prompt": "x", "emulator": {"fail": "no memory"}}
    options: dict[str, Any] = {"max_failed": "any", "max_in_flight": 1}
    task = run(products(30), to_input=lambda row: fails, **options)
    outcome = task.attempt()
    assert outcome.error is None
    assert (outcome.value["completed"], outcome.value["failed"]) == (0, 30)
    assert task.created < 30


# --- what is in the way -------------------------------------------------------------------------------------


def test_a_key_of_the_name_of_another_column_is_refused(run: Run) -> None:
    task = run([{"input": "a", "title": "b"}], key="input", to_input=lambda row: {"prompt": "x"})
    assert "two columns 'input'" in str(task.attempt().error)
    assert task.created == 0


def test_a_check_cannot_change_a_result(run: Run, tmp_path: Path) -> None:
    task = run(products(1), check=lambda result, files: result.clear(), results=f"{tmp_path}/results.jsonl")
    assert task.attempt().error is None
    assert json.loads(read(tmp_path / "results.jsonl")[0]["result"]) != {}


def test_keys_that_are_no_integers_of_64_bits_are_texts(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    pq.write_table(pa.table({"sku": pa.array([2**64 - 1], pa.uint64()), "n": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"sku": ["A-1"], "n": [1.5]}), folder / "b.parquet")
    path = tmp_path / "results.parquet"
    task = run(f"{folder}/", columns=["n"], to_input=lambda row: {"prompt": "x"}, results=path.as_uri())
    assert task.attempt().error is None
    assert [(row["sku"], row["n"]) for row in read(path)] == [(str(2**64 - 1), 1.0), ("A-1", 1.5)]
