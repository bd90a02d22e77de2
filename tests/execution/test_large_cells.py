"""A row of Parquet that is too large is refused, if its footer says so before it is decoded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

# In processes of their own, whose memory is measured.
WRITE = """
import sys
import pyarrow as pa, pyarrow.parquet as pq

MIB = 1 << 20

def write(name, columns, **options):
    pq.write_table(pa.table(columns), f"{sys.argv[1]}/{name}.parquet", compression="zstd", **options)

write("small", {"text": ["a", "b"]})
write("one", {"text": ["x" * (40 * MIB)]})
write("wide", {f"c{number}": ["x" * (2 * MIB)] for number in range(20)})
"""
READ = """
import json, sys
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.table.reader import open_rows

def peak():
    with open("/proc/self/status") as file:
        [line] = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) >> 10

folder, base = sys.argv[1], 0
for name in ["small", *sys.argv[2:]]:
    error = ""
    try:
        for row in open_rows(f"{folder}/{name}.parquet"):
            pass
    except RunGenError as raised:
        error = str(raised)
    base = base or peak()
    print(json.dumps({"name": name, "error": error, "mib": peak() - base}))
"""
REFUSED = {
    "one": "more than 16 MiB: row group 1 has 40 MiB in 1 rows",
    "wide": "row group 1 has 40 MiB in 1 rows",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    subprocess.run([sys.executable, "-c", WRITE, str(folder)], check=True, timeout=300)
    return folder


def read(folder: Path, *names: str) -> Iterator[dict[str, Any]]:
    """Read files in a new process; yield of each the error, and the most memory so far in MiB."""
    command = [sys.executable, "-c", READ, str(folder), *names]
    output = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def test_rows_that_are_too_large_by_the_footer_are_refused_before_they_are_decoded(folder: Path) -> None:
    first, *others = read(folder, *REFUSED)
    assert first["error"] == ""
    for found, (name, words) in zip(others, REFUSED.items(), strict=True):
        assert words in found["error"], name
        assert f"{folder}/{name}.parquet" in found["error"]
        assert "fewer rows in each row group" in found["error"]
        assert found["mib"] < 30, name
