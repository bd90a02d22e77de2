"""Cells of any size, in a few bytes of Parquet, do not fill the memory of who reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import run_task

from airflow_provider_rungen.emulator import Emulator
from airflow_provider_rungen.operators import RunGenRunTableOperator

pytest.importorskip("pyarrow")

# In processes of their own, whose memory is measured.
WRITE = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
from airflow_provider_rungen.execution.table.result_files import FIXED_COLUMNS

MIB = 1 << 20
LARGE, LONG, SMALL = "x" * (270 * MIB), "x" * (15 * MIB), ["s"] * 50

def write(name, columns, **options):
    pq.write_table(pa.table(columns), f"{sys.argv[1]}/{name}.parquet", compression="zstd", **options)

write("one", {"text": ["x" * (40 * MIB)]})
write("among_100", {"text": [*SMALL, LARGE, *SMALL]}, use_dictionary=False)
write("among_1000", {"text": [*SMALL, "x" * (40 * MIB), *SMALL * 19]})
write("wide", {f"c{number}": ["x" * (2 * MIB)] for number in range(20)})
write("many", {"text": ["s"] * 9000 + [LONG] * 18}, use_dictionary=False)
write("in_a_list", {"texts": [*[["s"]] * 9, ["x" * (40 * MIB)]]})
write("list", {"numbers": pa.array([[1], [7] * 17_000_000], pa.list_(pa.int64()))})
nulls = pa.ListArray.from_arrays(pa.array([0, 17_000_000], pa.int32()), pa.nulls(17_000_000, pa.string()))
write("nulls", {"texts": nulls})
texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), [LONG])
write("list_of_one", {"texts": pa.ListArray.from_arrays(pa.array([0, 1, 100], pa.int32()), texts)})
texts = pa.DictionaryArray.from_arrays(pa.array([0] * 60_000_000, pa.int8()), ["s"])
write("list_of_many", {"texts": pa.ListArray.from_arrays(pa.array([0, 60_000_000], pa.int32()), texts)})
texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), [LONG])
write("lists", {"texts": pa.ListArray.from_arrays(pa.array(range(101), pa.int32()), texts)})

write("prefixes", {"text": [LONG] * 30}, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
write("category", {"text": pa.DictionaryArray.from_arrays([0] * 100, [LONG])})
columns = dict.fromkeys(FIXED_COLUMNS, ["a"]) | {"result": ["x" * (100 * MIB)]}
write("table", columns)
schema = pa.schema({"text": pa.string()})
with pq.ParquetWriter(
    f"{sys.argv[1]}/repeated.parquet", schema, compression="zstd", dictionary_pagesize_limit=1 << 30
) as writer:
    for _ in range(8):
        writer.write_batch(pa.record_batch({"text": [LONG] * 5}, schema))
"""
PEAK = """
import json, sys
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.table.reader import open_rows

def peak():
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10
"""
READ = """
folder, base = sys.argv[1], 0
for name in ["small", *sys.argv[2:]]:
    rows, error = 0, ""
    try:
        for row in open_rows(f"{folder}/{name}.parquet"):
            rows += 1
    except RunGenError as raised:
        error = str(raised)
    base = base or peak()
    print(json.dumps({"name": name, "rows": rows, "error": error, "mib": peak() - base}))
"""
VIEW = """
from concurrent.futures import ThreadPoolExecutor
import pyarrow.parquet
from airflow_provider_rungen.plugins.stored import read_table

def view(_):
    try:
        list(read_table(sys.argv[1], 30))
    except RunGenError as error:
        return str(error)

base = peak()
with ThreadPoolExecutor(4) as executor:
    errors = list(executor.map(view, range(4)))
print(json.dumps({"errors": errors, "mib": peak() - base}))
"""
REFUSED = {
    "one": ("row 1 ", "row group 1 has 40 MiB in 1 rows, 40 of them in column 'text'"),
    "among_100": ("row 1 ", "row group 1 needs 270 MiB at a time for column 'text', more than 256 MiB"),
    "among_1000": ("row 1 ", "row group 1 needs 40 MiB at a time for column 'text', more than 16 MiB"),
    "wide": ("row 1 ", "row group 1 has 40 MiB in 1 rows"),
    "many": ("row ", "more than 256 MiB"),
    "in_a_list": ("row 1 ", "for column 'texts.list.element', more than 16 MiB"),
    "list": ("row 1 ", "for column 'numbers.list.element', more than 256 MiB"),
    "nulls": ("row 1 ", "for column 'texts.list.element', more than 256 MiB"),
    "list_of_many": ("row 1 ", "for column 'texts.list.element', more than 256 MiB"),
}
READABLE = {"repeated": 40, "prefixes": 30, "category": 100, "lists": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, timeout=300)
    return folder


def read(folder: Path, *names: str) -> Iterator[dict[str, Any]]:
    """Read files in a new process; yield of each the rows, the error, and the most memory so far in MiB."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["a", "b"]}), folder / "small.parquet")
    command = [sys.executable, "-c", PEAK + READ, str(folder), *names]
    output = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def test_rows_that_are_too_large_are_refused_before_they_are_decoded(folder: Path) -> None:
    first, *others = read(folder, *REFUSED)
    assert (first["rows"], first["error"]) == (2, "")
    for found, (name, (row, words)) in zip(others, REFUSED.items(), strict=True):
        assert f"Could not read inputs: {row}" in found["error"], name
        assert words in found["error"], name
        assert f"{folder}/{name}.parquet" in found["error"]
        assert "fewer rows in each row group" in found["error"]
        assert found["mib"] < 160, name


def test_cells_that_are_stored_once_are_decoded_a_few_at_a_time(folder: Path) -> None:
    """Each of these files has up to 1.5 GB of values in a few hundred bytes."""
    _, *others = read(folder, *READABLE)
    assert [(found["rows"], found["error"]) for found in others] == [(rows, "") for rows in READABLE.values()]
    assert max(found["mib"] for found in others) < 300


def test_a_list_that_has_one_large_text_many_times_is_refused_with_its_row(folder: Path) -> None:
    _, found = read(folder, "list_of_one")
    assert found["rows"] == 1
    assert "row 2 " in found["error"]
    assert "more than 16 MiB, 1485 of them in column 'texts'" in found["error"]
    assert found["mib"] < 160


def test_views_of_large_cells_do_not_fill_the_memory_of_the_api_server(folder: Path) -> None:
    command = [sys.executable, "-c", PEAK + VIEW, str(folder / "table.parquet")]
    output = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE).stdout
    found = json.loads(output.splitlines()[-1])
    assert all("100 of them in column 'result'" in error for error in found["errors"])
    assert found["mib"] < 64


def test_nothing_is_sent_of_a_table_with_a_cell_that_is_too_large(
    rungen_emulator: Emulator, context: Any, folder: Path
) -> None:
    operator = RunGenRunTableOperator(
        task_id="task",
        table=str(folder / "among_1000.parquet"),
        key="text",
        to_input=lambda row: {"prompt": row["text"]},
        destination=str(folder / "photos"),
        deferrable=False,
    )
    error = run_task(operator, context).error
    assert "for column 'text', more than 16 MiB" in str(error)
    assert rungen_emulator.service.stats()["jobs_created"] == 0
