"""Measures the reader of tables beside bare pyarrow, json and csv: ``python -m bench.reader``."""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.service import ROOT, clean_environment

COLUMNS = ("sku", "price", "title", "text")
ROWS_AT_A_TIME = 20_000
# A row has about 1 kB, which cannot be compressed well.
TITLE_BITS, TEXT_BITS = 1600, 2200


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reader", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each file")
    parser.add_argument("--measure", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(_measure(READERS[given.measure[0]], given.measure[1])))
        return
    print(f"{'':28} {'file':18} {'rows/s':>10} {'peak MB':>8} {'of it imports':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for file, readers in _write_files(Path(folder), given.rows):
            for reader in readers:
                found = _in_new_process(reader, file, folder)
                if found["rows"] != given.rows:
                    raise AssertionError(f"{reader} read {found['rows']} rows of {file.name}")
                print(
                    f"{reader:28} {file.name:18} {found['rows'] / found['seconds']:10,.0f} "
                    f"{found['peak'] / 1000:8.0f} {found['imported'] / 1000:14.0f}",
                    flush=True,
                )


# --- the files ---


def _write_files(folder: Path, count: int) -> Iterator[tuple[Path, list[str]]]:
    """Write one file after the other, and yield it with the readers that read it."""
    for name, write, readers in (
        ("rows.jsonl", _write_json_lines, ["open_rows", "json.loads"]),
        ("rows.csv", _write_csv, ["open_rows", "csv.DictReader"]),
        ("groups.parquet", partial(_write_parquet, group=50_000), ["open_rows", "pyarrow to_pylist"]),
        ("one-group.parquet", partial(_write_parquet, group=count), ["open_rows", "pyarrow to_pylist"]),
    ):
        path = folder / name
        write(path, _parts(count))
        yield path, readers
        path.unlink()


def _parts(count: int) -> Iterator[list[dict[str, Any]]]:
    chance = random.Random(1)
    for start in range(0, count, ROWS_AT_A_TIME):
        yield [
            {
                "sku": f"sku-{number:08}",
                "price": number / 7,
                "title": f"{chance.getrandbits(TITLE_BITS):0400x}",
                "text": f"{chance.getrandbits(TEXT_BITS):0550x}",
            }
            for number in range(start, min(start + ROWS_AT_A_TIME, count))
        ]


def _write_json_lines(path: Path, parts: Iterable[list[dict[str, Any]]]) -> None:
    with path.open("w") as file:
        for part in parts:
            file.writelines(json.dumps(row) + "\n" for row in part)


def _write_csv(path: Path, parts: Iterable[list[dict[str, Any]]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for part in parts:
            writer.writerows(part)


def _write_parquet(path: Path, parts: Iterable[list[dict[str, Any]]], group: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    # the writer ends a group with each table that it is given
    tables = list(map(pa.Table.from_pylist, parts))
    parquet.write_table(pa.concat_tables(tables), path, row_group_size=group)


# --- the readers ---


def _open_rows(path: str) -> Callable[[], Iterable[Any]]:
    from airflow_provider_rungen.execution.table.reader import open_rows

    # what it imports when it is used
    rows = open_rows(path)
    rows.column_types()
    return lambda: rows


def _json_loads(path: str) -> Callable[[], Iterable[Any]]:
    def read() -> Iterator[Any]:
        with open(path, "rb") as file:
            yield from map(json.loads, file)

    return read


def _dict_reader(path: str) -> Callable[[], Iterable[Any]]:
    def read() -> Iterator[Any]:
        with open(path, newline="") as file:
            yield from csv.DictReader(file)

    return read


def _to_pylist(path: str) -> Callable[[], Iterable[Any]]:
    from pyarrow import parquet

    def read() -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()

    return read


READERS = {
    "open_rows": _open_rows,
    "json.loads": _json_loads,
    "csv.DictReader": _dict_reader,
    "pyarrow to_pylist": _to_pylist,
}


def _measure(prepare: Callable[[str], Callable[[], Iterable[Any]]], path: str) -> dict[str, float]:
    """Return what it took to read a file, once all is imported."""
    read = prepare(path)
    imported = _peak()
    began = time.perf_counter()
    rows = sum(1 for _ in read())
    return {
        "rows": rows,
        "seconds": time.perf_counter() - began,
        "imported": imported,
        "peak": _peak(),
    }


def _peak() -> int:
    """Return the largest resident memory so far, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _in_new_process(reader: str, file: Path, home: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.reader", "--measure", reader, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=clean_environment(AIRFLOW_HOME=home),
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
