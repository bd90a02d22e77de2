"""
Tables of which rows were paid for before.

A table runs as a task does, without Airflow's database, in its own process. First all rows are new (jobs of
0 s), then all are stored, then 1 % changed. The bare loop reads the manifests, and checks only
sizes. The million rows share a thousand jobs, in one round. Memory
is the peak of the worst round, imports included.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rungen_emulator import Emulator

from bench.page import Row
from bench.processes import peak_memory, run_python

TABLE, BARE = "table", "bare"
CHANGED_SHARE = 0.01
# How many times the time of the bare loop all the checks may take.
_MOST_TIMES = 4.5


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Run a table again and again, and a bare loop."""
    rows, most, inputs = (round(count * scale) for count in (10_000, 1_000_000, 1_000))
    runs: dict[str, list[dict[str, Any]]] = {"stored": [], BARE: [], TABLE: []}
    with Emulator(workers=rows, job_seconds=0) as emulator:
        with tempfile.TemporaryDirectory() as folder:
            _write_table(Path(folder), _titles(rows))
            _run(TABLE, folder, emulator)
            for night in range(1, rounds + 1):
                runs["stored"].append(_run(TABLE, folder, emulator))
                runs[BARE].append(_run(BARE, folder, emulator))
                _write_table(Path(folder), _titles(rows, night))
                runs[TABLE].append(_run(TABLE, folder, emulator))
        with tempfile.TemporaryDirectory() as folder:
            for count in (inputs, most):
                _write_table(Path(folder), _titles(inputs) * (count // inputs))
                million = _run(TABLE, folder, emulator)
    stored, bare, table = (
        {name: median(run[name] for run in found) for name in found[0]} for found in runs.values()
    )
    words = "{seconds:.1f} s, {requests:,.0f} requests, {jobs:,.0f} jobs"
    times = stored["seconds"] / bare["seconds"]
    beside = f"a bare loop over the same files: {bare['seconds']:.1f} s"
    is_reached = times <= _MOST_TIMES and stored["requests"] == 1
    aim = f"≤ {_MOST_TIMES} ×, one request"
    figure = f"{words.format(**stored)} ({times:.1f} ×)"
    yield Row(f"{rows:,} rows, all stored", figure, beside, aim, is_reached)
    yield _memory(runs["stored"], f"a bare loop: {_peak(runs[BARE]):.0f} MB", 300)
    is_reached = table["jobs"] == round(rows * CHANGED_SHARE)
    yield Row(f"{rows:,} rows, 1 % changed", words.format(**table), "", "1 % of the jobs", is_reached)
    is_reached = million["requests"] == 1
    what = f"{most:,} rows of {inputs:,} inputs, all stored"
    yield Row(what, words.format(**million), "", "one request", is_reached)
    yield _memory([million], "", 500)


def _memory(runs: list[dict[str, Any]], beside: str, most: int) -> Row:
    peak = _peak(runs)
    return Row("memory for the same", f"{peak:.0f} MB", beside, f"< {most} MB", peak < most)


def _peak(runs: list[dict[str, Any]]) -> float:
    return float(max(run["peak"] for run in runs)) / 1e6


def _run(kind: str, folder: str, emulator: Emulator) -> dict[str, Any]:
    """Run a task, and return what it took."""
    emulator.service.reset()
    environment = {"AIRFLOW_HOME": f"{folder}/home"}
    environment["AIRFLOW_CONN_RUNGEN_DEFAULT"] = emulator.airflow_connection()
    found: dict[str, Any] = run_python("-m", "bench.tables", kind, folder, **environment)
    sent = emulator.service.stats()["requests"]
    return {**found, "requests": sum(sent.values()), "jobs": sent.get("run", 0)}


def _titles(rows: int, night: int = 0) -> list[str]:
    """Return a title for each row. Every so often, it is another one than in the nights before."""
    every = round(1 / CHANGED_SHARE)
    return [
        f"product {number}" + (f" of night {night}" if night and number % every == 0 else "")
        for number in range(rows)
    ]


def _write_table(folder: Path, titles: list[str]) -> None:
    """Write the table, as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"sku": [f"sku-{number:07}" for number in range(len(titles))], "title": titles}
    parquet.write_table(pa.table(columns), folder / "table.parquet")


# --- in the process of a task ---


def _make_context() -> Any:
    from rungen_emulator.fakes import FakeTaskInstance

    ti = FakeTaskInstance()
    ti.run_id = f"run {time.time_ns()}"
    return {"ti": ti}


def _picture(row: Mapping[str, Any]) -> dict[str, Any]:
    # small, since the emulator paints it
    return {"prompt": f"studio photo of {row['title']}", "width": 64, "height": 64}


def _run_table(folder: Path) -> None:
    from airflow_provider_rungen.operators import RunGenRunTableOperator

    task = RunGenRunTableOperator(
        task_id="task",
        table=(folder / "table.parquet").as_uri(),
        key="sku",
        to_input=_picture,
        destination=(folder / "photos").as_uri(),
        results=(folder / "results.parquet").as_uri(),
        ledger=(folder / "ledger").as_uri(),
    )
    summary = task.execute(_make_context())
    if summary["completed"] != summary["rows"]:
        raise RuntimeError(f"a table ended with {summary}")


def _run_bare(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    found = []
    for row in parquet.read_table(folder / "results.parquet", columns=["sku", "job_id"]).to_pylist():
        stored = folder / "photos" / row["job_id"]
        [output] = json.loads((stored / "manifest.json").read_bytes())["outputs"]
        if (stored / output["uri"].rpartition("/")[2]).stat().st_size != output["size"]:
            raise RuntimeError(f"{output['uri']} is not complete")
        found.append(row | {"output": output["uri"]})
    parquet.write_table(pa.Table.from_pylist(found), folder / "bare.parquet")


_TASKS: dict[str, Callable[[Path], None]] = {TABLE: _run_table, BARE: _run_bare}


def main(kind: str, folder: str) -> None:
    import airflow_provider_rungen.operators  # noqa: F401 - its import is not what is measured

    began = time.perf_counter()
    _TASKS[kind](Path(folder))
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
