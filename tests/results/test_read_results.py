"""Reading a results table: the same values from each format, as a stream, and errors that say why not."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from conftest import run_task
from object_store import attach
from pyarrow import parquet
from result_samples import BARE, COLUMNS, CREATED, FORMATS, FULL, RESULT, WRITTEN
from rungen_emulator import Emulator

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunTableOperator
from airflow_provider_rungen.results import read_results
from airflow_provider_rungen.results.rows import ResultRow, Status
from airflow_provider_rungen.results.writers import ResultsTable
from airflow_provider_rungen.schemas.output_type import FIXED_COLUMNS

ROWS = [
    FULL,
    BARE,
    ResultRow(index=2, status=Status.FAILED, values={"sku": "c"}, job_id="lost", error="no memory"),
    ResultRow(index=3, status=Status.COMPLETED, values={"sku": "d"}, job_id="text", result='"a text"'),
]
NOTHING = dict.fromkeys(FIXED_COLUMNS) | {"reused": False, "outputs": []}
#: Their own columns as a program gets them.
READ = [
    {name: WRITTEN.get(name) for name in FIXED_COLUMNS}
    | {"input": {"prompt": "naïve"}, "result": RESULT, "cost": FULL.cost, "bought_at": CREATED},
    {**NOTHING, "index": 1, "status": "refused", "error": "it has no prompt"},
    {**NOTHING, "index": 2, "status": "failed", "error": "no memory", "job_id": "lost"},
    {**NOTHING, "index": 3, "status": "completed", "job_id": "text", "result": "a text"},
]
OF_SOURCE = [
    FULL.values,
    *({"sku": sku, "n": None, "price": None, "on": None} for sku in "bcd"),
]


def written(folder: Path | str, suffix: str, rows: Iterable[ResultRow] = ROWS) -> str:
    """Write a table, and return its URI."""
    uri = f"{folder}/results.{suffix}"
    ResultsTable(uri).write(rows, COLUMNS)
    return uri


def failure(source: Any, method: str = "rows") -> RunGenInputError:
    """Return the error of reading a table."""
    with pytest.raises(RunGenInputError) as caught:
        list(getattr(read_results(source), method)())
    return caught.value


# --- rows ---


@FORMATS
def test_rows_have_the_same_values_in_each_format(tmp_path: Path, suffix: str) -> None:
    rows = list(read_results(written(tmp_path, suffix)).rows())
    assert [{name: row[name] for name in FIXED_COLUMNS} for row in rows] == READ
    assert [[type(row[name]) for name in FIXED_COLUMNS] for row in rows] == [
        [type(row[name]) for name in FIXED_COLUMNS] for row in READ
    ]
    of_source = [{name: row[name] for name in COLUMNS} for row in rows]
    if suffix == "csv":  # the source's own columns are text, as in each CSV file
        assert of_source[0] == {"sku": 'a,\n"é"', "n": "7", "price": "1.5", "on": "true"}
    else:
        assert of_source == OF_SOURCE


@FORMATS
def test_rows_of_a_status_or_of_several(tmp_path: Path, suffix: str) -> None:
    results = read_results(written(tmp_path, suffix))
    for status, indexes in {"failed": [1, 2], "refused": [1], "completed": [0, 3], "skipped": []}.items():
        assert [row["index"] for row in results.rows(status=status)] == indexes
    assert [row["index"] for row in results.rows(status=("completed", "refused"))] == [0, 1, 3]
    assert list(results.rows(status=())) == []
    # those that count as failed
    assert [row["index"] for row in results.rows() if row["error"]] == [1, 2]
    with pytest.raises(RunGenInputError, match=r"status must be of completed, .*, not error"):
        results.rows(status="error")


@FORMATS
def test_rows_are_a_stream(tmp_path: Path, suffix: str) -> None:
    count = 6_000
    result = json.dumps("x" * 2_000)
    source = (ResultRow(index=n, status=Status.COMPLETED, result=result) for n in range(count))
    results = read_results(written(tmp_path, suffix, source))
    next(results.rows())  # what is imported for the first row is not counted
    tracemalloc.start()
    try:
        assert sum(len(row["result"]) for row in results.rows(status="completed")) == 2_000 * count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000, "of 12 MB"


# --- tables ---


@FORMATS
def test_an_arrow_table_has_the_types_of_parquet(tmp_path: Path, suffix: str) -> None:
    table = read_results(written(tmp_path, suffix)).to_arrow()
    expected = read_results(written(tmp_path, "parquet")).to_arrow()
    assert table.column_names == [*COLUMNS, *FIXED_COLUMNS]
    assert table.select([*FIXED_COLUMNS]).equals(expected.select([*FIXED_COLUMNS]))
    if suffix != "csv":
        assert table.equals(expected)
    assert json.loads(table.column("result")[0].as_py()) == READ[0]["result"]


def test_a_column_of_several_types_is_text_in_arrow(tmp_path: Path) -> None:
    rows = [
        ResultRow(index=n, status=Status.SKIPPED, values={"sku": sku})
        for n, sku in enumerate(["a", 7, None, [1]])
    ]
    table = read_results(written(tmp_path, "jsonl", rows)).to_arrow()
    assert table.column("sku").to_pylist() == ["a", "7", None, "[1]"]


@FORMATS
def test_a_table_without_rows_has_columns(tmp_path: Path, suffix: str) -> None:
    results = read_results(written(tmp_path, suffix, []))
    assert list(results.rows()) == []
    table = results.to_arrow()
    assert table.num_rows == 0
    # JSON Lines without a line has no names of other columns
    assert table.column_names == [*(() if suffix == "jsonl" else COLUMNS), *FIXED_COLUMNS]


@FORMATS
def test_a_data_frame_has_times_and_decimals(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pandas")
    frame = read_results(written(tmp_path, suffix)).to_pandas()
    assert list(frame["index"]) == [0, 1, 2, 3]
    assert frame["bought_at"][0] == CREATED
    assert frame["cost"][0] == Decimal("0.0000005")
    assert list(frame[frame["status"] == "failed"]["error"]) == ["no memory"]


@pytest.mark.parametrize(
    ("missing", "method", "hint"),
    [
        ("pandas", "to_pandas", "pip install pandas"),
        ("pyarrow", "to_arrow", "pip install 'airflow-provider-rungen[tables]'"),
    ],
)
def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, method: str, hint: str
) -> None:
    uri = written(tmp_path, "csv")
    monkeypatch.setitem(sys.modules, missing, None)
    error = failure(uri, method)
    assert f"need {missing}, which is not installed" in str(error)
    assert hint in str(error)
    assert len(list(read_results(uri).rows())) == len(ROWS), "rows need neither"


# --- what is read ---


@pytest.mark.contract
@pytest.mark.usefixtures("unsettled")
def test_what_a_table_task_and_a_collecting_task_return_is_read(
    rungen_emulator: Emulator, tmp_path: Path
) -> None:
    task = RunGenRunTableOperator(
        task_id="photos",
        table=[{"sku": sku, "prompt": f"photo of {sku}"} for sku in "ab"],
        key="sku",
        destination=(tmp_path / "photos").as_uri(),
        poll_interval=0.02,
    )
    summary = run_task(task, {}).value
    rows = list(read_results(summary).rows(status="completed"))
    assert [row["sku"] for row in rows] == ["a", "b"]
    assert all(Path(row["output"].removeprefix("file://")).exists() for row in rows)
    assert rows[0]["result"]["images"][0]["image"] == rows[0]["output"]
    collect = RunGenCollectResultsOperator(
        task_id="collect",
        job_id=[row["job_id"] for row in rows],
        destination=str(tmp_path / "collected"),
        results=str(tmp_path / "collected.csv"),
        poll_interval=0.02,
    )
    collected = list(read_results(run_task(collect, {}).value).rows())
    assert [row["job_id"] for row in collected] == [row["job_id"] for row in rows]


@pytest.mark.parametrize("kind", [str, Path, ObjectStoragePath, "file://{}".format])
def test_a_path_of_any_kind_is_read(tmp_path: Path, kind: Any) -> None:
    assert len(list(read_results(kind(written(tmp_path, "csv"))).rows())) == len(ROWS)


@FORMATS
def test_a_connection_of_airflow_is_used(s3: str, suffix: str) -> None:
    results = read_results({"results": written(s3, suffix)})
    assert [row["index"] for row in results.rows(status="failed")] == [1, 2]
    assert results.to_arrow().num_rows == len(ROWS)


@pytest.mark.contract
@pytest.mark.parametrize("source", [{}, {"images": []}, {"results": None}, {"results": ""}])
def test_a_task_without_results_is_an_error(source: dict[str, Any]) -> None:
    with pytest.raises(
        RunGenInputError, match=r"no results table under 'results'.*Set results on the task"
    ) as caught:
        read_results(source)
    assert all(repr(name) in str(caught.value) for name in source)


@pytest.mark.contract
@pytest.mark.parametrize("source", [None, [], ["id-1"], 7, {"results": 7}, pa.table({})])
def test_other_values_are_refused(source: Any) -> None:
    kind = type(source["results"] if isinstance(source, dict) else source).__name__
    with pytest.raises(RunGenInputError, match=f"not a {kind}"):
        read_results(source)


@pytest.mark.contract
@pytest.mark.parametrize("uri", ["6f1c9a52-6c1e-4f0c", "s3://bucket/photos", "s3://bucket/photos/", ""])
def test_a_folder_or_an_id_is_refused(uri: str) -> None:
    with pytest.raises(RunGenInputError, match=r"must end in \.parquet or \.csv or \.jsonl"):
        read_results(uri)


@pytest.mark.contract
def test_no_secret_of_a_signed_url_is_shown() -> None:
    with pytest.raises(RunGenInputError, match="must end in") as caught:
        read_results("https://storage.example/results.csv?X-Amz-Signature=S3CRET")
    assert "S3CRET" not in str(caught.value)


# --- what goes wrong ---

BOTH = pytest.mark.parametrize("method", ["rows", "to_arrow"])


@BOTH
@FORMATS
def test_a_file_that_is_gone_is_named(tmp_path: Path, suffix: str, method: str) -> None:
    uri = written(tmp_path, suffix)
    Path(uri).unlink()
    error = failure({"results": uri}, method)
    assert f"Could not read results from {uri}" in str(error)
    assert "No such file" in str(error)
    assert not error.retryable


@BOTH
@FORMATS
def test_a_storage_that_does_not_answer_is_an_error_without_secrets(suffix: str, method: str) -> None:
    store = attach(conn_id="shop")
    uri = written("memory://shop@bucket", suffix)
    assert len(list(read_results(uri).rows())) == len(ROWS)
    lost = OSError("lost the connection to s3://user:S3CRET@bucket?X-Amz-Signature=S3CRET")
    for kinds in (("open",), ("info", "list", "open")):

        def refuse(kind: str, _: str, kinds: tuple[str, ...] = kinds) -> None:
            if kind.startswith(kinds):
                raise lost

        store.before = refuse
        error = failure(uri, method)
        assert f"Could not read results from {uri}" in str(error)
        assert "lost the connection" in str(error)
        assert "S3CRET" not in str(error)
        assert error.retryable


@pytest.mark.contract
@BOTH
@FORMATS
def test_another_table_is_refused(tmp_path: Path, suffix: str, method: str) -> None:
    path = tmp_path / f"products.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table({"sku": ["a"], "status": ["new"]}), path)
    else:
        path.write_text("sku,status\na,new\n" if suffix == "csv" else '{"sku": "a", "status": "new"}\n')
    error = failure(path, method)
    assert str(path) in str(error)
    assert "is of another table: it has no column index and no job_id and no result" in str(error)


@pytest.mark.contract
@BOTH
@pytest.mark.parametrize("content", ["7\n", '["index", "status", "job_id", "result"]\n', "not JSON\n"])
def test_lines_that_are_no_rows_are_refused(tmp_path: Path, content: str, method: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    assert f"line 1 of {path} is" in str(failure(path, method))


@BOTH
@FORMATS
def test_a_file_that_was_cut_short_is_an_error(tmp_path: Path, suffix: str, method: str) -> None:
    path = Path(written(tmp_path, suffix))
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path}" in str(failure(path, method))


@pytest.mark.parametrize(
    ("method", "column"), [("rows", "result"), ("rows", "cost"), ("to_arrow", "bought_at")]
)
def test_a_value_that_was_changed_by_hand_is_named(tmp_path: Path, method: str, column: str) -> None:
    path = Path(written(tmp_path, "jsonl"))
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, json.dumps(json.loads(others[0]) | {column: "yesterday"}), "\n"]))
    assert f"line 2 of {path} has a value that is not of its column's type" in str(failure(path, method))
