"""The sources of a task: each row once, with its digest, and what is refused before anything is sent."""

from __future__ import annotations

import json
import traceback
import tracemalloc
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.schemas import Schema
from airflow_provider_rungen.store.keys import input_key
from airflow_provider_rungen.table.inputs import PlannedRow, Source
from airflow_provider_rungen.table.table_rows import TableRows, ToInput

INPUTS: list[dict[str, Any]] = [{"prompt": "a"}, {"prompt": "b", "seed": 1}, {"seed": 1, "prompt": "b"}]
KEY_OF = partial(input_key, model="model", version="")
SCHEMA = {"type": "object", "properties": {"prompt": {"type": "string"}}}


def read(source: Source) -> list[tuple[PlannedRow, Any]]:
    return list(source.read(KEY_OF))


def table(rows: Any, to_input: ToInput | None = None, **options: Any) -> TableRows:
    return TableRows(rows, to_input, **{"key": ["sku"]} | options)


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.as_uri()


def test_equal_inputs_name_the_first_if_they_share_its_job() -> None:
    rows = read(table([*INPUTS, INPUTS[0], INPUTS[1]], key=(), shares_equal=True))
    assert [row.first for row, _ in rows] == [None, None, 1, 0, 1]


@pytest.mark.parametrize("line", ['{"prompt": ', "7", '{"prompt": NaN}', None])
def test_a_signed_uri_is_not_shown(tmp_path: Path, line: str | None) -> None:
    path = tmp_path / "in.jsonl?X-Amz-Signature=s3cret"
    if line is not None:
        path.write_text(line)
    with pytest.raises(RunGenInputError, match=r"in\.jsonl\?X-Amz-Signature=\*\*\*") as caught:
        read(table(str(path), key=()))
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


# --- tables ---


def test_rows_are_repeated_as_the_function_got_them() -> None:
    def to_input(row: dict[str, Any]) -> Any:
        row["tags"].append("changed")
        return {"b": None, "c": {"prompt": 7}}.get(row["sku"], {"prompt": row["sku"]})

    rows = [{"sku": sku, "tags": ["x"], "price": 1.5} for sku in "abcd"]
    source = table(rows, to_input, schema=Schema(SCHEMA, "input_schema"), columns=["tags"])
    planned = [row for row, _ in read(source)]
    assert [row.status for row in planned] == ["", "skipped", "refused", ""]
    assert [row.values for row in planned] == [[sku, ["x"]] for sku in "abcd"]
    assert [bool(row.digest) for row in planned] == [True, False, False, True]
    assert source.types == {"sku": "text", "tags": "text"}
    assert "input.prompt: 7 is not" in planned[2].why


def test_more_misfits_than_may_fail_are_an_error_once_all_is_read() -> None:
    rows = [{"sku": 1, "prompt": 7}, {"sku": 2, "prompt": "x"}, {"sku": 3, "prompt": 8}]
    source = table(rows, schema=Schema(SCHEMA, "input_schema"))
    assert len(read(source)) == 3
    source.check(2)
    source.check(0.7)
    with pytest.raises(RunGenInputError, match=r"2 of 3 rows do not fit, 1 may \(max_failed\)"):
        source.check(0.5)


def test_the_types_of_the_source_are_kept(tmp_path: Path) -> None:
    source = table(pa.table({"sku": [1], "price": [0.5], "on": [True], "x": ["x"]}), columns=["price", "on"])
    read(source)
    assert source.types == {"sku": "integer", "price": "number", "on": "boolean"}


@pytest.mark.parametrize("columns", [["status"], ["Result"], ["SKU"]])
def test_a_second_column_of_a_name_is_refused_before_a_row_is_read(columns: list[str]) -> None:
    def rows() -> Iterator[Any]:
        raise AssertionError
        yield

    with pytest.raises(RunGenInputError, match=r"there would be two columns '.*Rename"):
        read(table(rows(), columns=columns))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"sku": n} for n in range(12)] * 2, r"12 occur more than once \(0, .*, 9, …\); nothing was sent"),
        ([{"sku": None}, {"sku": ""}, {"sku": float("nan")}], r"3 are null or empty \(row 1, row 2, row 3\)"),
        ([{"id": 1, "title": "x"}], "table has no column 'sku', only id, title; nothing was sent"),
        ([["sku", 1]], "row 1 is a list, not an object"),
        *(
            ([{"sku": "a"}, {"sku": value}], "row 2 has a value in 'sku' that JSON cannot express")
            for value in ({1}, b"x", date(2026, 1, 1), 10**5000)
        ),
    ],
)
def test_rows_without_a_key_of_their_own_are_refused(rows: Any, words: str) -> None:
    with pytest.raises(RunGenInputError, match=words):
        read(table(rows, lambda row: {"prompt": "x"}))


@pytest.mark.parametrize(
    "keys",
    [
        *((1, "1"), (1.0, "1"), (True, "true"), (1.5, "1.5"), (1.0, "1.0"), ("1e+16", 1e16), (1, 1.0)),
        ("a\0b", "a\\x00b"),
    ],
)
def test_what_is_one_text_in_a_file_is_one_key(keys: tuple[Any, Any]) -> None:
    """A CSV file cannot distinguish a number and its text, nor what it escapes and the escape."""
    with pytest.raises(RunGenInputError, match="1 occur more than once"):
        read(table([{"sku": key} for key in (*keys, "other")]))


def test_keys_may_be_of_any_type_and_of_several_columns() -> None:
    read(table([{"sku": key} for key in (1, "x", True, [1], {"a": 1})]))
    source = table([{"sku": "a", "size": size} for size in "SM"], key=["size", "sku"])
    assert [row.values for row, _ in read(source)] == [["S", "a"], ["M", "a"]]


def test_a_column_may_be_absent_from_some_rows_and_from_all_json_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"sku": 1}, {"sku": 2, "note": "new"}]
    assert [row.values for row, _ in read(table(rows, columns=["note"]))] == [[1, None], [2, "new"]]
    with pytest.raises(RunGenInputError, match="table has no column 'notes', only sku, note"):
        read(table(rows, columns=["notes"]))
    uri = lines(tmp_path / "rows.jsonl", *rows)
    assert [row.values for row, _ in read(table(uri, columns=["notes"]))] == [[1, None], [2, None]]
    assert "No row of the table has the column 'notes', so it is null" in caplog.messages
    with pytest.raises(RunGenInputError, match="table has no column 'id', only sku, note"):
        read(table(uri, key=["id"]))


def test_a_file_without_a_row_needs_columns_only_if_it_has_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    assert read(table(str(tmp_path / "rows.jsonl"))) == []
    (tmp_path / "rows.csv").touch()
    with pytest.raises(RunGenInputError, match="table has no column 'sku', only ;"):
        read(table(str(tmp_path / "rows.csv")))


@pytest.mark.parametrize("spelling", ["", "./", "/", "more/../", "link/", "link/more/../"])
@pytest.mark.parametrize("spelled", ["source", "results"])
def test_the_results_are_neither_read_nor_overwritten(tmp_path: Path, spelling: str, spelled: str) -> None:
    lines(tmp_path / "in.jsonl", {"sku": 1})
    lines(tmp_path / "results.jsonl", {"sku": 2})
    (tmp_path / "more").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    source, results = f"{tmp_path}/", f"{tmp_path}/"
    if spelled == "source":
        source += spelling
    else:
        results += spelling
    rows = read(table(source, written=[f"{results}results.jsonl"]))
    assert [row.values for row, _ in rows] == [[1]]
    with pytest.raises(RunGenInputError, match="The task would write to the table that it reads"):
        read(table(f"{source}in.jsonl", written=[f"{results}in.jsonl"]))


@pytest.mark.parametrize(
    ("made", "words"), [("text", "returned a str"), ({"n": float("inf")}, "input of row 1.* is inf")]
)
def test_what_the_function_returns_is_checked(made: Any, words: str) -> None:
    with pytest.raises(RunGenInputError, match=words):
        read(table([{"sku": 1}], lambda row: made))
    [(_, job_input)] = read(table([{"sku": 1}], MappingProxyType))
    assert job_input == {"sku": 1}


def test_the_function_may_end_the_task_or_fail_for_a_while() -> None:
    def skip(row: dict[str, Any]) -> Any:
        raise AirflowSkipException("nothing new")

    with pytest.raises(AirflowSkipException):
        read(table([{"sku": 1}], skip))
    with pytest.raises(RunGenInputError, match=r"failed for row 1: KeyError: .*nothing was sent") as caught:
        read(table([{"sku": 1}], lambda row: row["prompt"]))
    assert caught.value.retryable


def test_a_large_table_is_not_held() -> None:
    count = 5_000
    rows = ({"sku": number, "prompt": "x" * 1000} for number in range(count))
    source = table(rows, shares_equal=True)
    tracemalloc.start()
    try:
        read_count = sum(1 for _ in source.read(KEY_OF))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read_count == count
    assert peak / count < 500, "its inputs together have 1000 bytes a row"
