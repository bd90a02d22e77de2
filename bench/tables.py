"""
Tables of which rows were paid for before.

A table runs as a task does, without Airflow's database, in a process of its own. First all rows are new, with
jobs of 0 s, then all are stored, and then 1 % have changed. The batch runs and collects the same rows, as a
DAG did before there were tables. Memory is the most that the process held in the worst round, imports of
Airflow included.
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

from airflow_provider_rungen.emulator import Emulator
from bench.page import Row
from bench.processes import peak_memory, run_python

TABLE, BATCH = "table", "batch"
CHANGED_SHARE = 0.01


def measure(rounds: int, scale: float) -> Iterator[Row]:
    """Run a table again and again, and a batch that remembers nothing."""
    rows = round(10_000 * scale)
    runs: dict[str, list[dict[str, Any]]] = {"stored": [], TABLE: [], BATCH: []}
    with Emulator(workers=rows, job_seconds=0) as emulator, tempfile.TemporaryDirectory() as folder:
        _write_table(Path(folder), rows)
        _run(TABLE, folder, emulator)
        for night in range(1, rounds + 1):
            runs["stored"].append(_run(TABLE, folder, emulator))
            _write_table(Path(folder), rows, night)
            for kind in (TABLE, BATCH):
                runs[kind].append(_run(kind, folder, emulator))
    stored, table, batch = (
        {name: median(run[name] for run in found) for name in found[0]} for found in runs.values()
    )
    peak = max(run["peak"] for run in runs["stored"]) / 1e6
    words = "{seconds:.1f} s, {requests:,.0f} requests, {jobs:,.0f} jobs"
    beside = f"`RunGenRunBatchOperator` and `RunGenCollectResultsOperator`: {words.format(**batch)}"
    is_reached = stored["seconds"] <= 6 and stored["requests"] == 1
    yield Row(f"{rows:,} rows, all stored", words.format(**stored), beside, "≤ 6 s, one request", is_reached)
    yield Row("memory for the same", f"{peak:.0f} MB", "", "< 300 MB", peak < 300)
    is_reached = table["jobs"] == round(rows * CHANGED_SHARE)
    yield Row(f"{rows:,} rows, 1 % changed", words.format(**table), beside, "1 % of the jobs", is_reached)


def _run(kind: str, folder: str, emulator: Emulator) -> dict[str, Any]:
    """Run a task, and return what it took."""
    emulator.service.reset()
    environment = {"AIRFLOW_HOME": f"{folder}/home"}
    environment["AIRFLOW_CONN_RUNGEN_DEFAULT"] = emulator.airflow_connection()
    found: dict[str, Any] = run_python("-m", "bench.tables", kind, folder, **environment)
    sent = emulator.service.stats()["requests"]
    return {**found, "requests": sum(sent.values()), "jobs": sent.get("run", 0)}


def _write_table(folder: Path, rows: int, night: int = 0) -> None:
    """
    Write the table, as Parquet.

    :param night: every so often, a row is another one than in the nights before.
    """
    import pyarrow as pa
    from pyarrow import parquet

    every = round(1 / CHANGED_SHARE)
    titles = [
        f"product {number}" + (f" of night {night}" if night and number % every == 0 else "")
        for number in range(rows)
    ]
    columns = {"sku": [f"sku-{number:06}" for number in range(rows)], "title": titles}
    parquet.write_table(pa.table(columns), folder / "table.parquet")


# --- in the process of a task ---


def _make_context() -> Any:
    from airflow_provider_rungen.emulator.fakes import FakeTaskInstance

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


def _run_batch(folder: Path) -> None:
    from pyarrow import parquet

    from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunBatchOperator

    rows = parquet.read_table(folder / "table.parquet").to_pylist()
    context, inputs = _make_context(), list(map(_picture, rows))
    job_ids = RunGenRunBatchOperator(task_id="run", inputs=inputs).execute(context)
    collect = RunGenCollectResultsOperator(
        task_id="collect", job_id=job_ids, destination=(folder / f"photos-{time.time_ns()}").as_uri()
    )
    if len(collect.execute(context)) != len(inputs):
        raise RuntimeError("a batch did not store all its jobs")


_TASKS: dict[str, Callable[[Path], None]] = {TABLE: _run_table, BATCH: _run_batch}


def main(kind: str, folder: str) -> None:
    import airflow_provider_rungen.operators  # noqa: F401 - its import is not what is measured

    began = time.perf_counter()
    _TASKS[kind](Path(folder))
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
