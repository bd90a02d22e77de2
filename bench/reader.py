"""
Reading rows.

1,000,000 rows of 1 kB, read by a new process each. Memory is the most that the process held in the worst
round, imports of Airflow included; the bare readers import no Airflow.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.page import Row
from bench.processes import peak_memory, run_python

OURS = "open_rows"
COLUMNS = ("sku", "price", "title", "text")
_ROWS_AT_A_TIME = 20_000
_ROWS_OF_A_GROUP = 50_000
# A row has about 1 kB, which cannot be compressed well.
_TITLE_BITS, _TEXT_BITS = 1600, 2200


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Read a file of each kind, in turn with each reader."""
    rows = round(1_000_000 * scale)
    with tempfile.TemporaryDirectory() as folder:
        for name, write, bare in _FILES:
            path = Path(folder) / name
            write(path, rows)
            runs: dict[str, list[dict[str, Any]]] = {OURS: [], bare: []}
            for _ in range(rounds):
                for reader, found in runs.items():
                    found.append(run_python("-m", "bench.reader", reader, str(path), AIRFLOW_HOME=folder))
                    if found[-1]["rows"] != rows:
                        raise RuntimeError(f"{reader} read {found[-1]['rows']} rows of {name}, not {rows}")
            path.unlink()
            ours, other = (rows / median(run["seconds"] for run in runs[reader]) for reader in runs)
            peak, other_peak = (max(run["peak"] for run in runs[reader]) / 1e6 for reader in runs)
            beside, is_fast = f"bare `{bare}`: {other:,.0f}", ours >= 0.9 * other
            yield Row(f"`{name}`, rows a second", f"{ours:,.0f}", beside, "≥ 0.9 ×", is_fast)
            beside, is_small = f"bare `{bare}`: {other_peak:.0f} MB", peak < 300
            yield Row(f"`{name}`, memory", f"{peak:.0f} MB", beside, "< 300 MB", is_small)


# --- the files ---


def _parts(count: int) -> Iterator[list[dict[str, Any]]]:
    chance = random.Random(1)
    for start in range(0, count, _ROWS_AT_A_TIME):
        yield [
            {
                "sku": f"sku-{number:08}",
                "price": number / 7,
                "title": f"{chance.getrandbits(_TITLE_BITS):0400x}",
                "text": f"{chance.getrandbits(_TEXT_BITS):0550x}",
            }
            for number in range(start, min(start + _ROWS_AT_A_TIME, count))
        ]


def _write_json_lines(path: Path, count: int) -> None:
    with path.open("w") as file:
        for part in _parts(count):
            file.writelines(json.dumps(row) + "\n" for row in part)


def _write_csv(path: Path, count: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for part in _parts(count):
            writer.writerows(part)


def _write_parquet(path: Path, count: int, *, in_one_group: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    # the writer ends a group with each table that it is given
    table = pa.concat_tables(map(pa.Table.from_pylist, _parts(count)))
    parquet.write_table(table, path, row_group_size=count if in_one_group else _ROWS_OF_A_GROUP)


# --- the readers ---


def _open_rows(path: str) -> Iterable[Any]:
    from airflow_provider_rungen.table.reader import open_rows

    return open_rows(path)


def _json_loads(path: str) -> Iterator[Any]:
    with open(path, "rb") as file:
        yield from map(json.loads, file)


def _dict_reader(path: str) -> Iterator[Any]:
    with open(path, newline="") as file:
        yield from csv.DictReader(file)


def _to_pylist(path: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


_READERS: dict[str, Callable[[str], Iterable[Any]]] = {
    OURS: _open_rows,
    "json.loads": _json_loads,
    "csv.DictReader": _dict_reader,
    "to_pylist of pyarrow": _to_pylist,
}
# By name: what writes a file, and what else reads it.
_FILES: tuple[tuple[str, Callable[[Path, int], None], str], ...] = (
    ("rows.jsonl", _write_json_lines, "json.loads"),
    ("rows.csv", _write_csv, "csv.DictReader"),
    ("groups.parquet", partial(_write_parquet, in_one_group=False), "to_pylist of pyarrow"),
    ("one-group.parquet", partial(_write_parquet, in_one_group=True), "to_pylist of pyarrow"),
)


def _import_all(reader: str, path: str) -> None:
    """Import what a reader imports when it is used."""
    if reader == OURS:
        from airflow_provider_rungen.table.reader import open_rows

        open_rows(path).column_types()
    elif path.endswith(".parquet"):
        from pyarrow import parquet  # noqa: F401


def main(reader: str, path: str) -> None:
    _import_all(reader, path)
    began = time.perf_counter()
    rows = sum(1 for _ in _READERS[reader](path))
    seconds = time.perf_counter() - began
    print(json.dumps({"rows": rows, "seconds": seconds, "peak": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
