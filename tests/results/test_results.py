"""The results table: its columns in each format, what is refused, and that it is whole or not there."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore, attach
from result_samples import BARE, COLUMNS, CREATED, FORMATS, FULL, RESULT, WRITTEN

from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.outputs.storage import Storage
from airflow_provider_rungen.results.rows import ResultRow, Status
from airflow_provider_rungen.results.values import ResultReader
from airflow_provider_rungen.results.writers import ResultsTable, json_text
from airflow_provider_rungen.store.records import Output, Record
from airflow_provider_rungen.table.reader import open_rows

SIGNED = "https://storage.example/in.png?X-Amz-Signature=s3cret"
FIXED = [
    *("index", "status", "error", "job_id", "reused", "outputs", "output"),
    *("input", "result", "seconds", "cost", "bought_at"),
]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table, with the types that the format has."""
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = parquet().read_table(path).to_pylist()
        return rows
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else list(map(json.loads, file))


def parquet() -> Any:
    return import_module("pyarrow.parquet")


def written(folder: Path, suffix: str, *rows: ResultRow, columns: Any = COLUMNS) -> list[dict[str, Any]]:
    path = folder / f"results.{suffix}"
    ResultsTable(path.as_uri()).write(rows, columns)
    return read(path)


WRITTEN_BARE = dict.fromkeys([*COLUMNS, *FIXED]) | {
    "sku": "b",
    "index": 1,
    "status": "refused",
    "error": "it has no prompt",
    "reused": False,
    "outputs": [],
}
TYPES = {
    "sku": "string",
    "n": "int64",
    "price": "double",
    "on": "bool",
    **dict.fromkeys(FIXED, "string"),
    "index": "int64",
    "reused": "bool",
    "outputs": "list<element: string>",
    "seconds": "double",
    "cost": "decimal128(38, 8)",
    "bought_at": "timestamp[us, tz=UTC]",
}


def as_csv(value: Any) -> str:
    """Return what a cell has for a value."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


@FORMATS
def test_each_format_has_all_columns(tmp_path: Path, suffix: str) -> None:
    full, bare = written(tmp_path, suffix, FULL, BARE)
    assert list(full) == list(bare) == [*COLUMNS, *FIXED]
    assert "naïve" in full["result"]
    assert json.loads(full.pop("result")) == RESULT
    if suffix == "csv":
        assert full == {name: as_csv(value) for name, value in WRITTEN.items()}
        assert bare == {name: as_csv(value) for name, value in WRITTEN_BARE.items()}
    elif suffix == "parquet":
        schema = parquet().read_schema(tmp_path / "results.parquet")
        assert {field.name: str(field.type) for field in schema} == TYPES
        assert full == WRITTEN | {"cost": Decimal("0.0000005"), "bought_at": CREATED}
        assert bare == WRITTEN_BARE
    else:
        assert (full, bare) == (WRITTEN, WRITTEN_BARE)


@FORMATS
def test_a_table_without_rows_has_its_schema(tmp_path: Path, suffix: str) -> None:
    assert written(tmp_path, suffix) == []
    content = (tmp_path / f"results.{suffix}").read_bytes()
    if suffix == "jsonl":
        assert content == b""
    elif suffix == "csv":
        assert content.decode() == ",".join([*COLUMNS, *FIXED]) + "\n"
    else:
        assert parquet().read_schema(tmp_path / "results.parquet").names == [*COLUMNS, *FIXED]


def bare_row(**values: Any) -> ResultRow:
    return ResultRow(index=1, status=Status.COMPLETED, **values)


@FORMATS
def test_a_result_of_null_differs_from_none(tmp_path: Path, suffix: str) -> None:
    found = written(tmp_path, suffix, BARE, bare_row(result=json_text(None)))
    assert [each["result"] or None for each in found] == [None, "null"]


@FORMATS
@pytest.mark.parametrize(
    "result", ["\ud800", "\0", [float("nan"), float("inf")], 2**70, {"\ud800": 1}], ids=ascii
)
def test_any_result_gives_valid_json(tmp_path: Path, suffix: str, result: Any) -> None:
    row = bare_row(values={"sku": "\ud800"}, result=json_text(result), error="\ud800")
    [stored] = written(tmp_path, suffix, row)
    assert json.loads(stored["result"]) == (["NaN", "Infinity"] if isinstance(result, list) else result)


@pytest.mark.parametrize(
    "at", ["2025-01-11T16:45:34", "2025-01-11T16:45:34Z", "2025-01-11T18:45:34+02:00", "yesterday"]
)
def test_times_are_in_utc(tmp_path: Path, at: str) -> None:
    [found] = written(tmp_path, "parquet", bare_row(bought_at=at))
    assert found["bought_at"] == (None if at == "yesterday" else CREATED)


def test_a_time_that_is_none_in_utc_is_null(tmp_path: Path) -> None:
    row = ResultRow(index=0, status=Status.COMPLETED, typed={"at": "9999-12-31T23:59:59-05:00"})
    ResultsTable(tmp_path / "results.parquet", {"index": "integer", "at": "time"}).write([row])
    assert read(tmp_path / "results.parquet") == [{"index": 0, "at": None}]


def test_a_value_of_another_type_is_converted_or_null(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = dict(zip("abcd", ["text", "integer", "number", "boolean"], strict=True))

    def row(index: int, *values: Any) -> ResultRow:
        return ResultRow(index=index, status=Status.SKIPPED, values=dict(zip("abcd", values, strict=True)))

    rows = written(
        tmp_path,
        "parquet",
        row(0, {"x": [1]}, 3.0, 3, False),
        row(1, 7, "12", "1.5", None),
        row(2, True, 3.5, [1], "yes"),
        row(3, None, 2**63, 10**400, 1),
        columns=columns,
    )
    values = [tuple(each[name] for name in "abcd") for each in rows]
    assert values == [
        ('{"x": [1]}', 3, 3.0, False),
        ("7", 12, 1.5, None),
        ("true", None, None, None),
        (None, None, None, None),
    ]
    assert caplog.text.count("Column b of the results table has null") == 1
    assert "as in row 2" in caplog.text


def test_nested_values_stay_in_json_lines_and_are_text_in_csv(tmp_path: Path) -> None:
    row = ResultRow(index=0, status=Status.SKIPPED, values={"sku": {"x": [1, None]}, "price": float("nan")})
    [lines] = written(tmp_path, "jsonl", row)
    assert (lines["sku"], lines["price"]) == ({"x": [1, None]}, "NaN")
    assert json.loads(written(tmp_path, "csv", row)[0]["sku"]) == {"x": [1, None]}


@pytest.mark.parametrize(
    "text", ["a\rb", "a\r\nb", "a\nb", "\r", "a\0b", 'a"b', "a,b", " a ", "\u2028"], ids=ascii
)
def test_any_text_in_csv_is_a_source_of_the_next_task(tmp_path: Path, text: str) -> None:
    columns = {"sku": "text", f"c{text}": "text"}
    row = ResultRow(index=0, status=Status.SKIPPED, values={"sku": text, f"c{text}": text})
    found = written(tmp_path, "csv", row, row, columns=columns)
    shown = text.replace("\0", "\\x00")
    assert [(each["sku"], each[f"c{shown}"]) for each in found] == [(shown, shown)] * 2
    assert list(open_rows(str(tmp_path / "results.csv"))) == found
    assert b"\r\n" not in (tmp_path / "results.csv").read_bytes().replace(text.encode(), b"")


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("results.txt", "must end in .parquet or .csv or .jsonl"),
        ("results", "must end in"),
        ("no/such.csv/", "must end in"),
    ],
)
def test_an_unknown_suffix_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(RunGenInputError, match=reason):
        ResultsTable(f"{tmp_path}/{name}")


@pytest.mark.parametrize("uri", ["results.csv", "nosuch://bucket/x.csv", "/dev/null/x.csv", "/proc/no/x.csv"])
def test_a_place_that_cannot_be_written_is_refused(uri: str) -> None:
    with pytest.raises(RunGenInputError, match=r"results .*cannot be used: .*Check results"):
        ResultsTable(uri).prepare()


def test_no_secret_of_the_uri_is_shown(tmp_path: Path) -> None:
    with pytest.raises(RunGenInputError) as caught:
        ResultsTable("nosuch://me:s3cret@bucket/x.csv")
    assert "s3cret" not in str(caught.value)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RunGenInputError, match=r"pip install 'airflow-provider-rungen\[tables\]'"):
        ResultsTable(tmp_path / "results.parquet")
    assert written(tmp_path, "csv", BARE)


# --- whole or not at all ------------------------------------------------------------------------------------


@pytest.fixture
def store() -> ObjectStore:
    """The store of ``memory://…``."""
    return attach()


def failing() -> Iterator[ResultRow]:
    yield FULL
    raise LookupError("the source is gone")


@FORMATS
def test_rows_that_fail_leave_the_old_table(tmp_path: Path, suffix: str) -> None:
    table = ResultsTable(tmp_path / f"results.{suffix}")
    table.write([BARE])
    before = read(tmp_path / f"results.{suffix}")
    with pytest.raises(LookupError, match="the source is gone"):
        table.write(failing())
    assert read(tmp_path / f"results.{suffix}") == before
    assert os.listdir(tmp_path) == [f"results.{suffix}"]
    table.write([FULL, BARE])
    assert len(read(tmp_path / f"results.{suffix}")) == 2


def test_an_error_of_the_rows_keeps_its_hint(tmp_path: Path) -> None:
    def rows() -> Iterator[ResultRow]:
        raise RunGenOutputError("no space left", hint="Set TMPDIR")
        yield

    with pytest.raises(RunGenOutputError, match=r"results table .*: no space left\. Set TMPDIR\.$"):
        ResultsTable(tmp_path / "results.csv").write(rows())


@FORMATS
def test_a_table_is_uploaded_as_a_whole(store: ObjectStore, tmp_path: Path, suffix: str) -> None:
    uri = f"memory://bucket/x/results.{suffix}"
    table = ResultsTable(uri)
    assert table.uri == uri
    table.write([BARE])
    store.refuse("put", OSError(f"lost the connection to {SIGNED}"))
    with pytest.raises(RunGenOutputError) as caught:
        table.write([FULL, BARE])
    assert caught.value.retryable
    assert f"Could not write the results table {uri}" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    store.refuse("", OSError())
    with pytest.raises(LookupError):
        table.write(failing())
    (tmp_path / f"results.{suffix}").write_bytes(store.cat_file(uri))
    assert len(read(tmp_path / f"results.{suffix}")) == 1
    assert len(store.store) == 1


@pytest.mark.parametrize("size", [10, 5000])
def test_row_groups_are_bounded_in_rows_and_in_size(tmp_path: Path, size: int) -> None:
    rows = (ResultRow(index=n, status=Status.COMPLETED, error="x" * size) for n in range(12_000))
    ResultsTable(tmp_path / "results.parquet").write(rows)
    file = parquet().ParquetFile(tmp_path / "results.parquet")
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert max(groups) == 4_000 if size == 10 else max(groups) * size < 2**24
    assert file.read(columns=["index"]).column("index").to_pylist() == list(range(12_000))


def test_a_stored_file_has_one_uri_that_every_program_opens() -> None:
    """Without the Airflow connection of `s3://conn_id@bucket`."""
    attach(conn_id="my_s3")
    record = Record(key="a" * 64, n=1, job="job-1", outputs=(Output(number=0, name="0.png", size=1),))
    [path] = record.paths
    record = record.model_copy(update={"result": {"images": [{"image": path}]}})
    reader = ResultReader(Storage("memory://my_s3@bucket/photos"))
    plain = f"memory://bucket/photos/{path}"
    assert reader.uris(record) == {path: plain}
    assert reader.read(record) == {"images": [{"image": plain}]}
