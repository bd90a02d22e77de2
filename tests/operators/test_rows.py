"""Rows from queries, functions and other tables: what the server gets, and what a later attempt sees."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSkipException, XComArg
from airflow.serialization.helpers import serialize_template_field
from operator_kit import FAST, Table, picture, products
from rungen_emulator import Emulator
from rungen_emulator.testing import run_operator

from airflow_provider_rungen.decorators import rungen_table_task
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.operators import RunGenPlanTableOperator, RunGenRunTableOperator, SqlRows

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from local_services import LocalPostgres, ServiceError

Run = Callable[..., Table]

pytestmark = pytest.mark.usefixtures("unsettled")
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
QUERY = SqlRows("SELECT id AS sku, title, price FROM products ORDER BY id", "warehouse")


@pytest.fixture
def run(rungen_emulator: Emulator, tmp_path: Path) -> Run:
    return lambda rows, **options: Table(rungen_emulator, tmp_path, rows, **options)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the database of the connection ``warehouse``."""
    path = tmp_path / "warehouse.db"
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE products (id INTEGER, title TEXT, price REAL, day TEXT)")
        rows = [(n, f"product {n}", n + 0.5 if n else None, "2026-01-31") for n in range(5)]
        connection.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", rows)
    return path


def change(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def prompts(task: Table) -> list[str]:
    return [job["input"]["prompt"] for job in task.emulator.service.jobs()]


# --- queries ---


@pytest.mark.contract
@MODES
def test_a_query_is_read_once_and_keeps_its_types(run: Run, database: Path, deferrable: bool) -> None:
    results = database.with_name("results.parquet")
    options: dict[str, Any] = {"results": str(results), "deferrable": deferrable}
    task = run(QUERY, columns=["title", "price"], **options)
    # once they are in flight, the database is gone
    task.on_push = lambda key, _: database.unlink() if key == "rungen_job_link" else None
    outcome = task.attempt()
    assert outcome.error is None
    assert sorted(prompts(task)) == [f"photo of product {n}" for n in range(5)]
    table = pq.read_table(results)
    assert table.column("sku").to_pylist() == [*range(5)]
    assert table.column("price").to_pylist() == [None, 1.5, 2.5, 3.5, 4.5]
    assert [table.schema.field(name).type for name in ("sku", "title", "price")] == [
        *(pa.int64(), pa.string(), pa.float64()),
    ]
    assert outcome.xcoms["results"] == outcome.value["results"] == str(results)


@pytest.mark.contract
def test_query_connection_and_parameters_are_templated_in_a_copy(run: Run, database: Path) -> None:
    query = SqlRows(
        "SELECT id AS sku, title FROM {{ params.table }} WHERE day = :day AND title LIKE '%3'",
        conn_id="{{ params.conn }}",
        parameters={"day": "{{ params.day }}"},
    )
    task = run(query)
    for day, count in (("2026-01-31", 1), ("2026-02-01", 0)):
        params = {"table": "products", "conn": "warehouse", "day": day}
        outcome = run_operator(task.begin(), context={"params": params, "task_state_store": None})
        assert outcome.error is None
        assert outcome.value["rows"] == count
        assert outcome.rendered["table"].parameters == {"day": day}
    assert query.conn_id == "{{ params.conn }}"


@pytest.mark.contract
def test_a_plan_and_a_limit_read_a_query_too(run: Run, database: Path) -> None:
    task = run(QUERY)
    task.kind = RunGenPlanTableOperator
    assert [task.attempt(limit=limit).value for limit in (None, 3)] == [5, 3]
    assert task.created == 0


@pytest.mark.contract
@pytest.mark.parametrize("least", [9, 0], ids=["empty", "rows"])
def test_a_column_that_a_query_lacks_is_refused_as_in_a_file(run: Run, database: Path, least: int) -> None:
    outcome = run(SqlRows("SELECT id, title FROM products WHERE id > ?", "warehouse", [least])).attempt()
    assert isinstance(outcome.error, AirflowFailException)
    assert "table has no column 'sku', only id, title; nothing was sent" in str(outcome.error)


@pytest.mark.contract
def test_a_query_without_rows_buys_nothing(run: Run, database: Path) -> None:
    task = run(SqlRows("SELECT id AS sku FROM products WHERE id < 0", "warehouse"))
    outcome = task.attempt()
    assert outcome.error is None
    assert (outcome.value["rows"], task.written, task.created) == (0, [], 0)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELEC 1", "Could not read table from connection 'warehouse': near \"SELEC\""),
        # in the middle of the rows
        (
            "SELECT id AS sku, title, abs(CASE id WHEN 3 THEN -9223372036854775808 END) FROM products",
            "connection 'warehouse' after row 1: integer overflow",
        ),
        ("SELECT id AS sku, id AS sku FROM products", "has two columns named 'sku'"),
        ("SELECT 1 AS sku, x'00' AS photo", "row 1 of connection 'warehouse' has bytes in column 'photo'"),
        ("SELECT 1 AS sku, 9e999 AS price", "has inf in column 'price', which JSON cannot express"),
    ],
)
def test_a_query_that_fails_sends_nothing(run: Run, database: Path, sql: str, words: str) -> None:
    task = run(SqlRows(sql, "warehouse"))
    assert words in str(task.attempt().error)
    assert task.created == 0


@pytest.mark.contract
def test_a_query_is_closed_though_its_rows_are_not_read(run: Run, database: Path) -> None:
    def fail(row: dict[str, Any]) -> Any:
        raise ZeroDivisionError

    task = run(QUERY, to_input=fail)
    outcome = task.attempt()  # its traceback has the frames
    assert "to_input failed for row 1 of connection 'warehouse'" in str(outcome.error)
    other = task.attempt(key="other")
    assert "no column 'other'" in str(other.error)
    # while a query is open, SQLite locks its table
    change(database, "DROP TABLE products")


@pytest.mark.contract
@pytest.mark.parametrize(
    ("connection", "words"),
    [
        (None, "The conn_id `other` isn't defined"),
        ("nothing://host", 'Unknown hook type "nothing". Install the provider'),
        ("http://host", "HttpHook runs no SQL"),
    ],
)
def test_a_connection_without_sql_is_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, connection: str | None, words: str
) -> None:
    if connection is not None:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", connection)
    error = run(SqlRows("SELECT 1 AS sku", "other")).attempt().error
    # one that is not found may be found later
    assert isinstance(error, RunGenInputError if connection is None else AirflowFailException)
    assert all(each in str(error) for each in ("connection 'other'", words))


# --- functions ---

ROWS = products(3)


def _cursor() -> Any:
    rows = ", ".join(f"('{row['sku']}', '{row['title']}')" for row in ROWS)
    connection = sqlite3.connect(":memory:")
    cursor = connection.execute(
        f"SELECT column1 AS sku, column2 AS title FROM (VALUES {rows})"  # noqa: S608 - rows of the test
    )
    weakref.finalize(cursor, connection.close)
    return cursor


def _batches() -> Iterator[Any]:
    yield from pa.Table.from_pylist(ROWS).to_batches(max_chunksize=2)


SOURCES: dict[str, Callable[..., Any]] = {
    "list": lambda: ROWS,
    "iterator": lambda: iter(ROWS),
    "cursor": _cursor,
    "query": lambda: SqlRows("SELECT 'sku-' || id AS sku, title FROM products WHERE id < 3", "warehouse"),
    "arrow": lambda: pa.Table.from_pylist(ROWS),
    "reader": lambda: pa.Table.from_pylist(ROWS).to_reader(),
    "dataset": lambda: ds.dataset(pa.Table.from_pylist(ROWS)),
    "batches": _batches,
    "context": lambda params, ti: [row for row in ROWS if params["no"] != ti.task_id],
    "partial": partial(lambda rows: rows, ROWS),
}


@pytest.mark.contract
@pytest.mark.parametrize("name", SOURCES)
def test_a_function_returns_rows_of_any_kind(run: Run, database: Path, name: str) -> None:
    task = run(SOURCES[name])
    outcome = run_operator(task.begin(), context={"params": {"no": 7}, "task_state_store": None})
    assert outcome.error is None
    assert sorted(prompts(task)) == [f"photo of product {n}" for n in range(3)]
    assert task.column("sku") == [f"sku-{n}" for n in range(3)]


@pytest.mark.contract
def test_a_decorated_function_makes_inputs_of_what_another_returns(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    with DAG("decorated", schedule=None):

        @rungen_table_task(table=lambda: ROWS, key="sku", destination=str(tmp_path), **FAST)
        def photos(row: dict[str, Any]) -> dict[str, Any]:
            return picture(row)

        done = photos()
    assert run_operator(done).value["completed"] == 3


@pytest.mark.contract
def test_a_function_may_return_the_uri_of_a_file(run: Run, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert run(lambda: str(tmp_path / "rows.parquet")).attempt().value["rows"] == 3


@pytest.mark.contract
def test_the_error_of_a_function_is_its_own(run: Run) -> None:
    def skip() -> Any:
        raise AirflowSkipException("no rows today")

    def fail() -> Iterator[Any]:
        yield from ROWS
        raise ZeroDivisionError("in the middle")

    task = run(skip)
    assert isinstance(task.attempt().error, AirflowSkipException)
    assert isinstance(task.attempt(table=fail).error, ZeroDivisionError)
    assert task.created == 0


NOON = datetime(2024, 2, 29, 12, 0, 0, 5)
VALUES = {
    "null": None,
    "nan": math.nan,
    "yes": True,
    "number": 2**63 - 1,
    "text": "ü\n" * 10,
    "decimal": Decimal("1234567890.10"),
    "date": date(2024, 2, 29),
    "naive": NOON,
    "utc": NOON.replace(tzinfo=UTC),
    "zone": NOON.replace(tzinfo=timezone(timedelta(hours=-5))),
    "time": NOON.time(),
    "duration": timedelta(days=-1, seconds=1.5),
    "list": [1, None],
    "object": {"at": NOON, "price": Decimal("0.50")},
}


@pytest.mark.contract
def test_values_arrive_as_those_of_a_parquet_file(run: Run, tmp_path: Path) -> None:
    seen: list[Any] = []

    def to_input(row: dict[str, Any]) -> None:
        seen.append(row)

    pq.write_table(pa.Table.from_pylist([VALUES]), tmp_path / "values.parquet")
    task = run(lambda: [VALUES], key="number", to_input=to_input)
    assert task.attempt().error is None
    assert task.attempt(table=str(tmp_path / "values.parquet")).error is None
    assert seen[0] == seen[1]
    assert (seen[0]["decimal"], seen[0]["nan"]) == ("1234567890.10", None)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("NaN"), None),
        (Decimal("1E+400"), "1" + "0" * 400),
        ((1, {"a": None}), [1, {"a": None}]),
        (b"x", "bytes"),
        (memoryview(b"x"), "bytes"),
        (math.inf, "inf"),
        (Decimal("-Infinity"), "-inf"),
        ({1: 2}, "a map whose keys are not text"),
        ([{1}], "a set"),
        ("x" * (17 << 20), "more than 16 MiB, 17 of them"),
    ],
)
def test_other_values_arrive_as_text_or_are_refused(run: Run, value: Any, sent: Any) -> None:
    seen: list[Any] = []
    task = run(lambda: [{"sku": 1, "v": value}], to_input=lambda row: seen.append(row["v"]))
    error = task.attempt().error
    if seen:
        assert error is None
        assert seen == [sent]
    else:
        assert isinstance(error, AirflowFailException)
        assert f"row 1 has {sent} in column 'v'" in str(error)


def test_rows_of_a_megabyte_are_fetched_a_few_at_a_time() -> None:
    from airflow_provider_rungen.table.reader import open_rows

    with closing(sqlite3.connect(":memory:")) as connection:
        sql = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60) "
            "SELECT i, hex(zeroblob(500000)) AS text FROM n"
        )
        rows = open_rows(connection.execute(sql))
        tracemalloc.start()
        try:
            assert sum(len(row["text"]) for row in rows) == 60_000_000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.contract
@pytest.mark.parametrize("table", [5, b"rows", None])
def test_what_cannot_be_rows_is_refused_when_the_dag_is_parsed(table: Any) -> None:
    with pytest.raises(ValueError, match="table must be rows, the URI of files, SqlRows or a function"):
        RunGenRunTableOperator(task_id="x", table=table, key="sku", destination="/r")


@pytest.mark.contract
def test_an_empty_query_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="needs sql and conn_id"):
        SqlRows("", "warehouse")


@pytest.mark.contract
@pytest.mark.parametrize(
    "table", [lambda: ROWS, partial(list, ROWS), QUERY], ids=["lambda", "partial", "query"]
)
def test_the_dag_is_the_same_each_time_that_it_is_parsed(table: Any) -> None:
    op = RunGenRunTableOperator(task_id="x", table=table, key="sku", destination="/r")
    assert " at 0x" not in str(op.table)
    assert " at 0x" not in str(serialize_template_field(op.table, "table"))


# --- read again ---


@pytest.mark.contract
def test_a_retry_buys_the_rows_that_changed_and_reuses_the_others(
    run: Run, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | {"seed": 7} | ({"emulator": {"fail": "no memory"}} if row["sku"] == 0 else {})

    def with_doubles(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | {"seed": 7.0}  # as pandas makes of a column with a null

    caplog.set_level("INFO")
    task = run(QUERY)
    assert "1 of 5 rows failed" in str(task.attempt(to_input=bad).error)
    change(
        database,
        "UPDATE products SET title = 'another' WHERE id < 2",
        "DELETE FROM products WHERE id = 4",
        "INSERT INTO products VALUES (9, 'new', 1, '')",
    )
    outcome = task.attempt(to_input=with_doubles)
    assert outcome.error is None
    assert re.search(r"5 rows: 2 to buy, about .*, 1 equal to others, 2 known", caplog.text)
    # the two others of the first attempt are not bought again
    assert (task.created, outcome.value["rows"]) == (5 + 2, 5)
    assert task.column("sku") == [0, 1, 2, 3, 9]


@pytest.mark.contract
def test_rows_that_are_all_skipped_in_a_retry_need_nothing(run: Run, database: Path) -> None:
    task = run(QUERY)

    def bad(row: dict[str, Any]) -> dict[str, Any]:
        return picture(row) | ({"emulator": {"fail": "no memory"}} if row["sku"] == 0 else {})

    assert "1 of 5 rows failed" in str(task.attempt(to_input=bad).error)
    assert task.attempt(to_input=lambda row: None).error is None
    assert task.attempt(to_input=bad).error is not None
    assert task.created == 5 + 1, "the four others are resumed"


# --- tables that chain ---


@pytest.fixture
def photos(rungen_emulator: Emulator, tmp_path: Path) -> Iterator[RunGenRunTableOperator]:
    """Return a task of four rows, of which one fails and one is skipped."""

    def to_input(row: dict[str, Any]) -> Any:
        if row["sku"] == "sku-1":
            return None
        return picture(row) | ({"emulator": {"fail": "no memory"}} if row["sku"] == "sku-2" else {})

    with DAG("chain", schedule=None):
        yield RunGenRunTableOperator(
            task_id="photos",
            table=products(4),
            key="sku",
            columns=["title"],
            to_input=to_input,
            destination=(tmp_path / "photos").as_uri(),
            results=(tmp_path / "photos.jsonl").as_uri(),
            max_failed=1,
            **FAST,
        )


OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "summary": lambda photos: photos.output,
    "results": lambda photos: photos.output["results"],
    "key": lambda photos: XComArg(photos, key="results"),
}


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_output_of_a_table_is_the_next_table(
    photos: RunGenRunTableOperator, rungen_emulator: Emulator, output: str, suffix: str, deferrable: bool
) -> None:
    photos.results = results = photos.results.replace("jsonl", suffix)
    captions = RunGenRunTableOperator(
        task_id="captions",
        table=OUTPUTS[output](photos),
        where="completed",
        key="sku",
        columns=["title"],
        to_input=lambda row: {"prompt": f"caption of {row['output']}"},
        destination=results.rpartition("/")[0].replace("photos", "captions"),
        results=results.replace("photos", "captions"),
        deferrable=deferrable,
        **FAST,
    )
    assert captions.upstream_task_ids == {"photos"}
    outcome = run_operator(captions, upstream={"photos": run_operator(photos)}, emulator=rungen_emulator)
    assert outcome.error is None
    assert [(row["sku"], row["title"]) for row in outcome.rows] == [
        ("sku-0", "product 0"),
        ("sku-3", "product 3"),
    ]
    asked = [job["input"]["prompt"] for job in rungen_emulator.service.jobs()][-2:]
    assert all(".png" in prompt for prompt in asked)
    assert "2 to run or reuse, 0 skipped, 0 refused, 2 left out (where)" in outcome.log
    assert outcome.xcoms["results"] == results.replace("photos", "captions")


@pytest.mark.contract
def test_several_statuses_may_be_wanted_and_all_are_by_default(
    photos: RunGenRunTableOperator, tmp_path: Path
) -> None:
    first = run_operator(photos)
    for where, rows in (((), 4), (["completed", "failed"], 3), ("skipped", 1)):
        captions = RunGenRunTableOperator(
            task_id=f"captions_{rows}",
            table=photos.output,
            where=where,
            key="sku",
            to_input=lambda row: {"prompt": row["title"]},
            destination=str(tmp_path / "captions"),
            limit=4,
            **FAST,
        )
        assert run_operator(captions, upstream={"photos": first}).value["rows"] == rows


@pytest.mark.contract
@pytest.mark.parametrize(
    ("table", "where", "words"),
    [
        (ROWS, "completed", "table has no column 'status', only sku, title, price; nothing was sent"),
        ([], "complete", "where: complete is none of completed, failed"),
        ({"rows": 3}, "completed", "not a dict"),
    ],
)
def test_a_table_or_a_status_that_is_none_is_refused(run: Run, table: Any, where: str, words: str) -> None:
    error = run(table, where=where).attempt().error
    assert isinstance(error, AirflowFailException)
    assert words in str(error)


@pytest.mark.contract
@pytest.mark.parametrize("where", [5, ["failed", "failed"], [""]])
def test_a_wrong_status_is_refused_when_the_dag_is_parsed(where: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"where|iterable"):
        RunGenRunTableOperator(task_id="x", table=[], key="sku", where=where, destination="/r")


@pytest.mark.contract
def test_the_results_of_a_failed_task_are_pushed(run: Run) -> None:
    task = run(ROWS, to_input=lambda row: picture(row) | {"emulator": {"fail": "no memory"}})
    assert task.attempt().error is not None
    assert task.ti.xcoms["results"] == (task.folder / "photos" / "results.jsonl").as_uri()


# --- PostgreSQL ---


@pytest.fixture(scope="module")
def postgres() -> Iterator[LocalPostgres]:
    pytest.importorskip("airflow.providers.postgres.hooks.postgres")
    try:
        with LocalPostgres() as server:
            yield server
    except ServiceError as error:
        pytest.skip(str(error))


@pytest.fixture
def warehouse(postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", postgres.url.replace("postgresql+psycopg2", "postgres"))


@pytest.mark.contract
@pytest.mark.usefixtures("warehouse")
def test_postgresql_keeps_the_rows_and_its_values_arrive(run: Run) -> None:
    seen: list[dict[str, Any]] = []

    def to_input(row: dict[str, Any]) -> dict[str, Any]:
        seen.append(row)
        return {"prompt": "x"}

    sql = """
        SELECT n AS sku, 1.50::numeric AS price, 'NaN'::numeric AS nan, 'NaN'::float8 AS nan_too,
            '2024-02-29 12:00+00'::timestamptz AT TIME ZONE 'UTC' AS naive, '2024-02-29'::date AS day,
            '00000000-0000-0000-0000-000000000001'::uuid AS uuid, '{"a": [1, null]}'::jsonb AS object,
            ARRAY['x', NULL] AS list, NULL AS nothing, repeat('x', 1000000) AS text, n = 1 AS yes,
            (SELECT count(*) FROM pg_cursors WHERE name = 'rungen') AS cursors
        FROM generate_series(1, %(count)s) n
    """
    task = run(SqlRows(sql, "warehouse", {"count": 2}), to_input=to_input, columns=["yes"])
    assert task.attempt().error is None
    assert seen[0] == {
        "sku": 1,
        "price": "1.50",
        "nan": None,
        "nan_too": None,
        "naive": "2024-02-29T12:00:00",
        "day": "2024-02-29",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "object": {"a": [1, None]},
        "list": ["x", None],
        "nothing": None,
        "text": "x" * 1_000_000,
        "yes": True,
        "cursors": 1,
    }
    assert task.column("sku") == [1, 2]
    empty = task.attempt(table=SqlRows("SELECT 1 AS sku, true AS yes WHERE false;", "warehouse"))
    assert empty.value["rows"] == 0


@pytest.mark.contract
@pytest.mark.usefixtures("warehouse")
def test_a_database_that_dies_in_the_middle_is_an_error_and_nothing_is_sent(run: Run) -> None:
    sql = """
        SELECT n AS sku, 'product ' || n AS title, CASE n WHEN 30
            THEN pg_terminate_backend(pg_backend_pid()) END
        FROM generate_series(1, 40) n
    """
    task = run(SqlRows(sql, "warehouse"))
    error = task.attempt().error
    assert not isinstance(error, AirflowFailException), "a retry may help"
    assert "Could not read table from connection 'warehouse' after row" in str(error)
    assert task.created == 0
